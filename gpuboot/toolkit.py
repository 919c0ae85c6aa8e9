"""The NVIDIA Container Toolkit: the devices that containers may ask for (CDI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import pci, systemd
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_CDI = Code(
    "GB310",
    "the toolkit generates no devices for containers",
    (
        "nvidia-cdi-refresh failed: it needs a driver that answers nvidia-smi -L.",
        "It started five times before the driver was up, and systemd gave up on it.",
    ),
    ("systemctl status nvidia-cdi-refresh", "nvidia-ctk cdi list", "nvidia-smi -L"),
)
REFRESH = "nvidia-cdi-refresh.service"
SPEC = "/var/run/cdi/nvidia.yaml"  # on tmpfs: made anew at every boot


@dataclass(frozen=True)
class Cdi:
    """`nvidia-ctk cdi list` names every GPU, and `all`."""

    name: ClassVar[str] = "cdi"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        listed = _devices(host)
        count = len(pci.gpus(host))
        wanted = ["nvidia.com/gpu=all", *(f"nvidia.com/gpu={index}" for index in range(count))]
        missing = [device for device in wanted if device not in listed]
        if missing:
            return Pending(f"containers cannot ask for {', '.join(missing)}")
        return Ok(f"containers can ask for {', '.join(wanted)}")

    def apply(self, host: Host) -> None:
        if systemd.unit(host, REFRESH).exists:
            # Not triggered by a modprobe, and dead after five early failures (toolkit#1395).
            systemd.restart(host, REFRESH, timeout=120)
        else:
            host.must(["nvidia-ctk", "cdi", "generate", f"--output={SPEC}"], timeout=120)
        if not _devices(host):
            raise GpubootError(
                NO_CDI,
                "nvidia-ctk cdi list names no device",
                evidence=systemd.journal(host, REFRESH, lines=12),
                retry=True,
            )


def _devices(host: Host) -> set[str]:
    """The devices that `nvidia-ctk cdi list` prints, one a line."""
    result = host.run(["nvidia-ctk", "--quiet", "cdi", "list"])
    words = result.out.split() if result.code == 0 else []
    return {word for word in words if word.startswith("nvidia.com/gpu=")}
