"""Kernel modules that come ready-made, in a package for each kernel: Ubuntu's signed ones.

Asked for are those of just this kernel. A meta-package follows the newest kernel and may bring it
along, so it is taken only where it names this kernel, or where there is nothing for it. Where the
archive has neither, DKMS builds (facts: nvidia 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apt, aptsources, kernel
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending, Reboot

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_MODULES = Code(
    "GB324",
    "there is no ready-made module for a kernel that needs one",
    (
        "The kernel is older or newer than those that the archive has modules for.",
        "The kernel's flavour is none that the archive builds the driver for.",
    ),
    ("apt-cache search --names-only '^linux-modules-nvidia-.*-server'", "uname -r",
     "gpuboot config show"),
 evidence='the ready-made modules that the sources have, by their names',)  # fmt: skip

# The proprietary module comes in objects that are linked on the node, which the packages do only
# where this question was answered so (facts: nvidia 2.3; it has no default without a person).
LATELINK = "linux-restricted-modules linux/nvidia/latelink boolean true\n"
# What belongs to a kernel's ready-made module beside the package that was asked for.
BESIDE = re.compile(r"linux-(?:modules|objects|signatures)-nvidia-")


@dataclass(frozen=True)
class Modules:
    """How the driver's module is to be had: packages STEM-KERNEL, else `otherwise` for DKMS.

    `beside`: the driver's other packages. An older kernel's module wants them of its own version,
    and is not to be had with newer ones.
    """

    stem: str
    otherwise: tuple[str, ...] = ()  # empty: DKMS may not build it
    beside: tuple[str, ...] = ()

    def wanted(self, host: Host, options: Sequence[str] = ()) -> tuple[str, ...]:
        """What brings the module for the kernels that have none, by apt's lists of these options.

        A meta-package is among them where it brings no other kernel.
        """
        lacking = without_module(host)
        if not lacking:
            return ()
        if self.built(host, options):
            return self.otherwise
        names = [self.package(release) for release in lacking]
        meta = self._meta(host)
        if self.package(kernel.running(host)) in self._needs(host, meta, options):
            names.append(meta)
        return tuple(names)

    def built(self, host: Host, options: Sequence[str] = ()) -> bool:
        """Whether DKMS builds the module here; never before apt's lists were read."""
        if not self.otherwise:
            return False
        if apt.installed(host, self.otherwise):
            return True
        if not options and not apt.fresh(host):
            return False
        lacking = self.lacking(host, options)
        return bool(lacking) and not self.meta_helps(host, options)

    def lacking(self, host: Host, options: Sequence[str] = ()) -> list[str]:
        """The kernels that have no module, and for which no package with it is to be had."""
        kernels = without_module(host)
        names = {release: self.package(release) for release in kernels}
        found = apt.candidates(host, list(names.values()), options) if names else {}
        return [release for release in kernels if names[release] not in found
                or not apt.possible(host, [names[release], *self.beside], options)]  # fmt: skip

    def meta_helps(self, host: Host, options: Sequence[str] = ()) -> bool:
        """Whether the archive's newest kernel of this series has a ready-made module."""
        return self._meta(host) in apt.candidates(host, [self._meta(host)], options)

    def upgrade(self, host: Host) -> tuple[str, ...]:
        """What brings the series' newest kernel and its module together."""
        return f"linux-image-{kernel.series(host, kernel.running(host))}", self._meta(host)

    def link(self, host: Host) -> None:
        """Have the packages link the proprietary module. Raises GB010."""
        host.must(["debconf-set-selections"], input=LATELINK)

    def package(self, release: str) -> str:
        """The package with one kernel's module."""
        return f"{self.stem}-{release}"

    def _meta(self, host: Host) -> str:
        # What a virtual series boots is the generic kernel; it has no metas of modules of its own.
        series = kernel.series(host, kernel.running(host)).replace("virtual", "generic")
        return f"{self.stem}-{series}"

    def _needs(self, host: Host, name: str, options: Sequence[str]) -> set[str]:
        """The packages that the candidate of a package depends on directly."""
        view = (*(options or aptsources.ONLY), *aptsources.FORGETFUL)
        said = host.run(["apt-cache", "depends", *view, name]).out
        return set(re.findall(r"^ [ |](?:Pre)?Depends: (\S+)$", said, re.MULTILINE))


@dataclass(frozen=True)
class KernelModules:
    """Every kernel that needs a module has a ready-made one, installed or to be had.

    Where the running one has none, the series' newest kernel comes with its own and one reboot
    follows. What is to be had comes with the driver, in one transaction.
    """

    name: ClassVar[str] = "kernel-modules"
    disruptive: ClassVar[bool] = True

    modules: Modules
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a proxy's password

    def check(self, host: Host) -> Finding:
        kernels = without_module(host)
        if not kernels:
            return Ok("every kernel that needs a module has one")
        listed = " and ".join(kernels)
        if self.modules.built(host):
            return Ok(f"the archive has no ready-made module for kernel {listed}: DKMS builds it")
        if apt.fresh(host) and not self.modules.lacking(host):
            return Ok(f"a ready-made module for kernel {listed} is to be had")
        return Pending(f"no module is there for kernel {listed}", NO_MODULES)

    def apply(self, host: Host) -> Reboot | None:
        apt.refresh(host, self.env)
        lacking = self.modules.lacking(host)
        if not lacking or self.modules.built(host):
            return None
        running = kernel.running(host)
        if not self.modules.meta_helps(host):
            raise _none(lacking[0], "and DKMS may not build it (driver.build, Secure Boot)")
        self.modules.link(host)
        apt.obtain(host, lambda: self.modules.upgrade(host), self.env)
        following = kernel.next_boot(host)
        if kernel.nvidia_module(host, following) is None:
            raise _none(following, "though it boots next")
        if running not in lacking:
            return None
        return Reboot(f"a ready-made module is to be had for {following}, and none for {running}")


def without_module(host: Host) -> list[str]:
    """The kernels that need a module and have none."""
    return [one for one in kernel.matter(host) if kernel.nvidia_module(host, one) is None]


def _none(release: str, why: str) -> GpubootError:
    return GpubootError(
        NO_MODULES,
        f"no source has a ready-made module for kernel {release}, {why}",
        hint="boot a kernel that the archive has modules for, or set driver.build: dkms",
        retry=True,
    )
