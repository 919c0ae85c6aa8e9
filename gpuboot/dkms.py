"""A kernel module built by DKMS, for the running kernel and for the next one to boot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import kernel
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

BUILD_FAILED = Code(
    "GB301",
    "the driver's kernel module could not be built",
    (
        "The driver is older than the kernel and does not compile for it.",
        "Memory or disk space ran out: about 1 GB of memory per core is needed.",
        "The headers for that kernel are not installed.",
    ),
    ("dkms status", "tail -40 /var/lib/dkms/*/*/build/make.log", "df -h /var; free -m"),
)

BUILD_TIMEOUT = 3600  # seconds; four minutes on two cores, more where cores are shared


@dataclass(frozen=True)
class DriverBuilt:
    """A module file exists for every kernel that runs or boots next, and modinfo reads it.

    apt ends with status 0 where DKMS skipped a kernel, so its word is no proof.
    """

    name: ClassVar[str] = "driver-built"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        versions = []
        for release in _kernels(host):
            module = kernel.nvidia_module(host, release)
            if module is None:
                return Pending(f"there is no NVIDIA module for kernel {release}")
            versions.append(f"{module.version} for {release}")
        return Ok(f"NVIDIA module {', '.join(versions)}")

    def apply(self, host: Host) -> None:
        for release in _kernels(host):
            if kernel.nvidia_module(host, release):
                continue
            result = host.run(["dkms", "autoinstall", "-k", release], timeout=BUILD_TIMEOUT)
            if kernel.nvidia_module(host, release) is None:
                raise GpubootError(
                    BUILD_FAILED,
                    f"DKMS has built no NVIDIA module for kernel {release}",
                    evidence=_evidence(host, result.said),
                )


def _kernels(host: Host) -> list[str]:
    """The running kernel and the next: looked up anew, as the headers can bring a new kernel."""
    return list(dict.fromkeys((kernel.running(host), kernel.next_boot(host))))


def _evidence(host: Host, said: str) -> str:
    """The first compiler errors of the newest build log, else what dkms said."""
    for folder in host.names("/var/lib/dkms"):
        for version in host.names(f"/var/lib/dkms/{folder}"):
            log = host.read(f"/var/lib/dkms/{folder}/{version}/build/make.log")
            if log:
                errors = re.findall(r"^.*(?:error:|Error \d|\*\*\*).*$", log, re.MULTILINE)
                return "\n".join(errors[:8] or log.splitlines()[-15:])
    return said
