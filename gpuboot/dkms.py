"""A kernel module built by DKMS, for the running kernel and for the next one to boot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import kernel
from gpuboot.errors import Code, GpubootError
from gpuboot.host import WRITE_FAILED, unwritable
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

TREE = "/var/lib/dkms"
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
            said = _build(host, release)
            if kernel.nvidia_module(host, release) is None:
                raise _failure(host, release, said)


def _kernels(host: Host) -> list[str]:
    """The running kernel and the next: looked up anew, as the headers can bring a new kernel."""
    return list(dict.fromkeys((kernel.running(host), kernel.next_boot(host))))


def _build(host: Host, release: str) -> str:
    """Have DKMS build and install for this kernel; what it said."""
    commands = [["autoinstall"]]
    for module in _modules(host):
        if host.names(f"{TREE}/{module}/{release}"):
            # DKMS believes in its own tree, and does nothing where a power cut or a full disk
            # left half a module, there or below /lib/modules (tried with 3.0.10).
            commands = [["build", "--force", module], ["install", "--force", module]]
    said = ""
    for words in commands:
        result = host.run(["dkms", *words, "-k", release], timeout=BUILD_TIMEOUT)
        said += f"{result.out}\n{result.err}\n"
    return said


def _modules(host: Host) -> list[str]:
    """NVIDIA's modules that DKMS knows, as it names them: NAME/VERSION."""
    return [
        f"{name}/{version}"
        for name in host.names(TREE)
        if name.startswith("nvidia")
        for version in host.names(f"{TREE}/{name}")
        if host.link(f"{TREE}/{name}/{version}") is None  # kernel-… points to the one installed
    ]


def _failure(host: Host, release: str, said: str) -> GpubootError:
    """Why there is no module: the disk, or the compiler's first errors, or what DKMS said."""
    logs = [host.read(f"{TREE}/{module}/build/make.log") or "" for module in _modules(host)]
    if line := unwritable("\n".join([said, *logs])):
        return GpubootError(WRITE_FAILED, f"dkms: {line}", evidence=said.strip(), retry=True)
    evidence = said.strip()
    if log := next(filter(None, logs), ""):
        errors = re.findall(r"^.*(?:error:|Error \d|\*\*\*).*$", log, re.MULTILINE)
        evidence = "\n".join(errors[:8] or log.splitlines()[-15:])
    return GpubootError(
        BUILD_FAILED, f"DKMS has built no NVIDIA module for kernel {release}", evidence=evidence
    )
