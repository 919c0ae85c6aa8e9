"""gpuboot: from a freshly booted GPU VM to a proven GPU worker of an RKE2 cluster."""

__version__ = "0.1.0"
