"""A kernel module built by DKMS, for the running kernel and for the next one to boot."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import kernel, makelog
from gpuboot.errors import Code, GpubootError
from gpuboot.host import WRITE_FAILED, unwritable
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

BUILD_FAILED = Code(
    "GB301",
    "the driver's kernel module could not be built",
    (
        "The driver is older than the kernel and does not compile for it.",
        "The open module of that driver does not compile, while the proprietary one does.",
    ),
    ("dkms status", "tail -40 /var/lib/dkms/*/*/build/make.log", "gpuboot config show"),
    evidence="the first error in DKMS's make.log",
)
NO_MEMORY = Code(
    "GB330",
    "the compiler had too little memory for the driver's kernel module",
    ("About 1 GB is needed for each job at work; it was tried with one job too.",),
    ("free -m", "journalctl -k -g 'Out of memory' -n 20", "gpuboot status"),
    evidence="the compiler's end in make.log, and the kernel's out-of-memory lines",
)
NO_HEADERS = Code(
    "GB331",
    "the headers of a kernel are not where DKMS looks for them",
    (
        "The package linux-headers-KERNEL is not installed, or not all of it.",
        "The folder /lib/modules/KERNEL/build was removed or leads nowhere.",
    ),
    ("ls -lL /lib/modules/*/build", "apt-get install --reinstall linux-headers-$(uname -r)"),
    evidence="the folder /lib/modules/KERNEL/build, and DKMS's words",
)
OTHER_COMPILER = Code(
    "GB332",
    "the compiler is not the one that the kernel was built with",
    (
        "The kernel is not Debian's, and its headers name no compiler package.",
        "CC or a gcc in front of Debian's was set up on the node.",
    ),
    ("cat /proc/version", "ls -l /usr/bin/gcc* /usr/local/bin/gcc*"),
    evidence="the compiler that /proc/version names, and the one that was used",
)

TREE = "/var/lib/dkms"
SOURCES = "/usr/src"
BUILD_TIMEOUT = 3600  # seconds; four minutes on two cores, more where cores are shared

# While this file is there, no maintainer script builds a module (dkms 3.0.10 and 3.2.2, read).
SWITCH = "/etc/dkms/no-autoinstall"
NOTICE = """\
# gpuboot is installing the driver and builds its module itself, after apt. Its next walk removes
# this file. If gpuboot is gone: remove it, or new kernels get no modules.
"""


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
                error = _failure(host, release, said)
                if error.code is not NO_MEMORY:
                    raise error
                log.info("dkms: %s; once more with a single job", error.message)
                said = _build(host, release, "-j", "1")
            if kernel.nvidia_module(host, release) is None:
                raise _failure(host, release, said)


@contextmanager
def deferred(host: Host) -> Iterator[None]:
    """Inside, packages are configured without a build: that is left to DriverBuilt.

    A build that fails in a maintainer script leaves the package half configured, and nothing can
    be installed any more; and Debian 13's build for every kernel that is installed. Modules of
    others are built afterwards, as the packages would have done. Raises GB012.
    """
    if host.exists(SWITCH) and not left(host):  # an administrator's own
        yield
        return
    host.write(SWITCH, NOTICE)
    try:
        yield
    except Exception:
        host.remove(SWITCH)
        raise
    host.remove(SWITCH)
    if _others(host):
        for release in _kernels(host):
            result = host.run(["dkms", "autoinstall", "-k", release], timeout=BUILD_TIMEOUT)
            log.log(logging.WARNING if result.code else logging.DEBUG, "dkms: %s", result.said)


def left(host: Host) -> bool:
    """Whether a walk that was cut off has left DKMS switched off."""
    return host.read(SWITCH) == NOTICE


def _kernels(host: Host) -> list[str]:
    """The running kernel and the next: looked up anew, as the headers can bring a new kernel."""
    return list(dict.fromkeys((kernel.running(host), kernel.next_boot(host))))


def _build(host: Host, release: str, *options: str) -> str:
    """Have DKMS build and install for this kernel; what it said."""
    said = ""
    for module in _modules(host):
        commands = [["install", module]]
        if host.names(f"{TREE}/{module}/{release}"):
            # DKMS believes in its own tree, and does nothing where a power cut or a full disk
            # left half a module, there or below /lib/modules (tried with 3.0.10).
            commands = [["build", "--force", module], ["install", "--force", module]]
        for words in commands:
            argv = ["dkms", *words, "-k", release, *options]
            result = host.run(argv, timeout=BUILD_TIMEOUT)
            said += f"{result.out}\n{result.err}\n"
            if result.code:  # an installation would only try to build once more
                break
    if unsigned := makelog.UNSIGNED.search(said):
        log.info("dkms: %s", unsigned[0].strip())  # where the firmware asks for it, GB104 says so
    return said


def _modules(host: Host) -> list[str]:
    """NVIDIA's modules whose source is installed, as DKMS names them: NAME/VERSION."""
    return [
        "/".join(folder.rpartition("-")[::2])
        for folder in host.names(SOURCES)
        if folder.startswith("nvidia") and host.exists(f"{SOURCES}/{folder}/dkms.conf")
    ]


def _others(host: Host) -> list[str]:
    """What DKMS builds beside NVIDIA's modules, such as a file system of the administrator's."""
    names = [name for name in host.names(TREE) if not name.startswith("nvidia")]
    return [name for name in names if host.names(f"{TREE}/{name}")]  # and no key of DKMS's own


def _logs(host: Host) -> dict[str, str]:
    """What make said in builds that failed, by module."""
    logs = {module: host.read(f"{TREE}/{module}/build/make.log") for module in _modules(host)}
    return {module: text for module, text in logs.items() if text}


def _failure(host: Host, release: str, said: str) -> GpubootError:
    """Why there is no module for this kernel; the compiler's own words are the evidence."""
    if makelog.NO_HEADERS.search(said):  # then nothing was built, and a log is an older one
        return GpubootError(
            NO_HEADERS, f"DKMS finds no headers of kernel {release}", evidence=said.strip()[-1500:],
            hint=f"apt-get install --reinstall linux-headers-{release}, then: gpuboot run",
        )  # fmt: skip
    logs = _logs(host)
    text = "\n".join([said, *logs.values()])
    if line := unwritable(text):
        return GpubootError(WRITE_FAILED, f"dkms: {line}", evidence=said.strip(), retry=True)
    evidence = "\n".join(map(makelog.excerpt, logs.values())) or said.strip()[-1500:]
    if makelog.STARVED.search(text):
        message = f"the compiler was ended for want of memory while it built for kernel {release}"
        return GpubootError(NO_MEMORY, message, evidence=evidence, retry=True)
    error = re.sub(rf"{TREE}/\S+?/build/", "", makelog.first_error(text) or "")
    told = f": {error.strip()}" if error else ""
    if not _modules(host):
        told = f": none has its source below {SOURCES}"
    if makelog.OTHER_COMPILER.search(text):
        message = f"the compiler does not suit kernel {release}{told}"
        return GpubootError(OTHER_COMPILER, message, evidence=evidence)
    message = f"DKMS has built no NVIDIA module for kernel {release}{told}"
    return GpubootError(BUILD_FAILED, message, hint=_remedy(list(logs)), evidence=evidence)


def _remedy(failed: list[str]) -> str | None:
    """What works instead of the modules that do not compile (facts: nvidia 2.4)."""
    if any("-open/" in module for module in failed):
        return "set driver.kernel-module-type: proprietary, which compiles, then: gpuboot run"
    if failed:
        return "boot an older kernel, or set driver.source or driver.branch for a newer driver"
    return None
