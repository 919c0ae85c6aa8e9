"""The Node object as a kubelet makes it from what the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
_NO_NETWORK = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady"
    " message:Network plugin returns error: cni plugin not initialized"
)
# What the kubelet's --protect-kernel-defaults and RKE2's CIS profile want of the kernel.
KERNEL_DEFAULTS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
}


def new(name: str, address: str, labels: Mapping[str, str], taints: Sequence[Json]) -> Json:
    """A Node for its first registration: the only moment when a node may taint itself."""
    default = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
    }
    # The kubelet always runs with an external cloud provider, which takes this one away.
    external = {"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {**default, **labels},
            "annotations": {
                "alpha.kubernetes.io/provided-node-ip": address,
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"taints": [*taints, external]},
    }


def status(name: str, address: str, version: str, *, ready: bool) -> Json:
    """The status a kubelet reports; nvidia.com/gpu is the device plugin's business."""
    resources = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{_memory_kib()}Ki",
        "pods": "110",
    }
    return {
        "addresses": [
            {"type": "InternalIP", "address": address},
            {"type": "Hostname", "address": name},
        ],
        "capacity": resources,
        "allocatable": resources,
        "conditions": _conditions(ready=ready),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": _line("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": "containerd://2.2.6-k3s1",
            "kernelVersion": _line("/proc/sys/kernel/osrelease"),
            "kubeletVersion": version,
            "machineID": _line("/etc/machine-id"),
            "operatingSystem": "linux",
            "osImage": _os_name(),
        },
    }


def wrong_kernel_defaults() -> list[tuple[str, str, str]]:
    """The sysctls that are not as a protected kubelet wants them: name, wanted, found."""
    found = [(name, wanted, _line(f"/proc/sys/{name}")) for name, wanted in KERNEL_DEFAULTS.items()]
    return [one for one in found if one[1] != one[2]]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _conditions(*, ready: bool) -> list[Json]:
    fine = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    conditions = [
        {"type": kind, "status": "False", "reason": reason, "message": message}
        for kind, reason, message in fine
    ]
    conditions.append(
        {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "KubeletReady" if ready else "KubeletNotReady",
            "message": "kubelet is posting ready status" if ready else _NO_NETWORK,
        }
    )
    # The server keeps lastTransitionTime of a condition whose status stays the same.
    return [{**one, "lastHeartbeatTime": now(), "lastTransitionTime": now()} for one in conditions]


def _memory_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1])
    return 0


def _os_name() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
