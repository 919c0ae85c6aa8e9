"""Kernel headers, which DKMS builds the module with, and the way out where the archive has none.

Debian keeps the headers of few kernels (facts: nvidia 8.3): a template of some months ago runs one
that no module can be built for any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apt, dkms, kernel
from gpuboot.errors import Code, GpubootError
from gpuboot.precompiled import Modules, without_module
from gpuboot.step import Finding, Ok, Pending, Reboot

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_HEADERS = Code(
    "GB320",
    "there are no headers for a kernel that needs a module",
    (
        "The archive keeps headers for its last few kernels only, and this one is older.",
        "The kernel comes from elsewhere than the package sources of this node.",
        "The headers were removed, or the kernel was installed without them.",
    ),
    (
        "apt-cache policy linux-headers-$(uname -r)",
        "apt-get install linux-image-amd64 linux-headers-amd64",
        "gpuboot status",
    ),
    evidence="the header packages that are installed and those that the sources have",
)
PINNED = Code(
    "GB321",
    "the kernel that the driver can be built for is not the one that GRUB boots",
    (
        "GRUB_DEFAULT in /etc/default/grub names one kernel, or `saved` and grub-set-default does.",
        "grub.cfg was not made anew when the kernel was installed.",
    ),
    ("grep -r GRUB_DEFAULT /etc/default/grub /etc/default/grub.d", "update-grub", "gpuboot run"),
    evidence="grub.cfg and GRUB's environment, and the kernels in /boot",
)
REALTIME = Code(
    "GB322",
    "NVIDIA's driver is not built for a realtime kernel",
    ("The machine runs, or boots next, one of Debian's rt kernels; DKMS leaves those out.",),
    ("apt-get install linux-image-amd64 linux-headers-amd64", "dpkg -l 'linux-image-*rt*'"),
    evidence="the running kernel's name, and that of the one that boots next",
)


@dataclass(frozen=True)
class KernelHeaders:
    """Every kernel that needs a module has headers, installed or to be had.

    Where the running one's are gone, kernel and headers are upgraded together and one reboot
    follows; the driver is built after it, for the new kernel alone. What is to be had comes with
    the driver, in one transaction.
    """

    name: ClassVar[str] = "kernel-headers"
    disruptive: ClassVar[bool] = True

    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a proxy's password
    modules: Modules | None = None  # where they come ready-made, nothing is built, as long as so

    def check(self, host: Host) -> Finding:
        lacking = _lacking(host)
        if not lacking:
            return Ok("every kernel that needs headers has them")
        if self.modules and not self.modules.built(host):
            return Ok("no headers are needed: the module comes ready-made")
        kernels = " and ".join(lacking)
        # A template's own lists are as old as it is, and know of headers that are long gone.
        if apt.fresh(host) and not _gone(host, lacking):
            return Ok(f"the headers for kernel {kernels} are to be had")
        hint = f"apt-get install {' '.join(package(release) for release in lacking)}"
        return Pending(f"no headers are installed for kernel {kernels}", NO_HEADERS, hint)

    def apply(self, host: Host) -> Reboot | None:
        apt.refresh(host, self.env)
        gone = _gone(host, _lacking(host))
        if not gone:
            return None
        running = kernel.running(host)
        if running not in gone or kernel.next_boot(host) in gone:
            self._upgrade(host, gone)
        if running in gone:
            following = kernel.next_boot(host)
            return Reboot(
                f"the archive has no headers for {running} any more; {following} boots next"
            )
        return None

    def _upgrade(self, host: Host, gone: Sequence[str]) -> None:
        """Install the flavour's newest kernel with its headers; the next boot is its.

        Raises GB320, GB321, GB20x.
        """
        metas = _metas(host, gone[0])
        if len(apt.candidates(host, metas)) < len(metas):
            raise _no_way(host, gone[0], "no source has " + " and ".join(metas))
        with dkms.deferred(host):
            apt.obtain(host, lambda: metas, self.env)
        following, by = kernel.choice(host)
        if not _gone(host, [following]) or kernel.nvidia_module(host, following):
            return
        newest = kernel.newest(host)
        if newest == following:
            raise _no_way(host, following, "the archive has no newer kernel either")
        raise GpubootError(
            PINNED,
            f"there are no headers for kernel {following}, and it boots next ({by}),"
            f" not {newest}, which is installed",
            hint="let GRUB boot the newest kernel (GRUB_DEFAULT=0 in /etc/default/grub, then"
            " update-grub), then: gpuboot run",
            retry=True,
        )


def wanted(host: Host) -> tuple[str, ...]:
    """The headers that a build needs: for each kernel without a module its own, and their meta.

    Without the meta-package the next kernel comes without headers, and DKMS skips it silently.
    """
    names = [name for release in _without_module(host) for name in packages(host, release)]
    return tuple(dict.fromkeys(names))


def coming(host: Host, options: Sequence[str]) -> tuple[str, ...]:
    """The headers a walk would install by apt's lists of these options.

    Where the running kernel's are gone, what the kernel is upgraded by instead.
    """
    running = kernel.running(host)
    if running in _lacking(host) and _gone(host, [running], options):
        return _metas(host, running)
    return wanted(host)


def packages(host: Host, release: str) -> tuple[str, str]:
    """The header package for a kernel, and the meta-package that follows its series."""
    return package(release), f"linux-headers-{kernel.series(host, release)}"


def package(release: str) -> str:
    """The package with one kernel's headers."""
    return f"linux-headers-{release}"


def kernel_packages(host: Host, release: str) -> tuple[str, ...]:
    """The packages that a kernel stands and falls with, the metas that would replace it first."""
    metas = kernel.series(host, release)
    own = ("image", "headers", "modules", "modules-extra")
    return (f"linux-image-{metas}", f"linux-headers-{metas}", f"linux-{metas}",
            *(f"linux-{kind}-{release}" for kind in own))  # fmt: skip


def kernels_in(names: Iterable[str]) -> list[str]:
    """The kernels whose image packages are among these."""
    found = (re.fullmatch(r"linux-image-(\d.*)", name) for name in names)
    return [match[1] for match in found if match]


def _metas(host: Host, release: str) -> tuple[str, str]:
    """The metas of a kernel's series; of the plain one for a kernel that is not a release's own."""
    metas = kernel.series(host, release)
    return f"linux-image-{metas}", f"linux-headers-{metas}"


def _without_module(host: Host) -> list[str]:
    """The kernels that need a module and have none. Raises GB322."""
    found = without_module(host)
    for release in found:
        if (kernel.flavour(release) or "").startswith("rt-"):
            raise GpubootError(REALTIME, f"kernel {release} is a realtime kernel", retry=True)
    return found


def _lacking(host: Host) -> list[str]:
    """The kernels that need headers, and have none installed. Raises GB322."""
    kernels = _without_module(host)
    if not kernels:
        return []
    installed = apt.installed(host, [package(release) for release in kernels])
    return [release for release in kernels if package(release) not in installed]


def _gone(host: Host, kernels: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Those of the kernels whose headers are neither installed nor to be had, by apt's lists."""
    if not kernels:
        return []
    found = apt.candidates(host, [package(release) for release in kernels], options)
    return [release for release in kernels if package(release) not in found]


def _no_way(host: Host, release: str, why: str) -> GpubootError:
    image, headers = _metas(host, release)
    return GpubootError(
        NO_HEADERS,
        f"there are no headers for kernel {release}; {why}",
        hint=f"give apt a source that has {package(release)}, or a newer kernel with its headers"
        f" (apt-get install {image} {headers}), then: gpuboot run",
        retry=True,
    )
