"""The packages a worker needs, installed in one transaction, held, and not upgraded unattended."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apt, aptlock, dkms, dpkg, headers, initramfs, kernel, origins
from gpuboot.aptfailure import INSTALL_FAILED, NO_PACKAGE, STRANGER_BROKEN
from gpuboot.errors import GpubootError
from gpuboot.precompiled import BESIDE, Modules
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

# Must share one version: their dependencies on each other are exact.
TOOLKIT = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)


UPGRADES = "/etc/apt/apt.conf.d/52gpuboot-unattended-upgrades"
UPGRADES_TEXT = """\
// Written by gpuboot, once: what you change here stays, and without the file it is written again.
//
// To the administrator: unattended-upgrades leaves these packages alone. A driver's library that
// is upgraded under a loaded module, or a kernel that comes without the driver's module, costs the
// node its GPU. The same packages are on hold (apt-mark showhold). Upgrade them by hand, on a
// drained node: apt-get upgrade --with-new-pkgs --ignore-hold --allow-change-held-packages, then
// reboot; gpuboot proves the GPU at the boot. Each line is a regular expression that a package's
// name begins with.
Unattended-Upgrade::Package-Blacklist {
    "(lib)?nvidia-";
    "lib[a-z0-9-]+-nvidia";
    "libcuda(1|debugger1)$";
    "libnv(cuvid|optix|ptxcompiler)";
    "firmware-nvidia-";
    "xserver-xorg-video-nvidia";
    "linux-(image|headers|modules|objects|signatures)-";
};
"""


@dataclass(frozen=True)
class UpgradesBlocked:
    """unattended-upgrades leaves driver, toolkit and kernel alone; the file is the operator's."""

    name: ClassVar[str] = "upgrades-blocked"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        if not host.exists(UPGRADES):
            return Pending(f"{UPGRADES} is not written")
        return Ok(f"{UPGRADES} keeps unattended upgrades away from the driver")

    def writes(self, host: Host) -> Mapping[str, str]:
        return {} if host.exists(UPGRADES) else {UPGRADES: UPGRADES_TEXT}

    def apply(self, host: Host) -> None:
        host.write(UPGRADES, UPGRADES_TEXT)


@dataclass(frozen=True)
class Packages:
    """Headers, driver, libraries and toolkit are installed; with the kernel they are held.

    An update that comes by itself would put a new library over a loaded module, or a kernel without
    a module before the next boot: hence the hold, on everything that came with the driver.
    """

    name: ClassVar[str] = "packages"
    disruptive: ClassVar[bool] = True

    driver: tuple[str, ...]
    toolkit_version: str | None  # None: the newest
    tools: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a proxy's password
    unwanted: tuple[str, ...] = ()  # names or patterns: they go in the same transaction
    modules: Modules | None = None  # where the module comes ready-made; None: DKMS builds it
    # Packages of other people's that were tried in this walk and stay broken.
    left: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The packages that any machine needs; what headers it needs is up to its kernels."""
        return (*self.driver, *TOOLKIT, *self.tools)

    def wanted(self, host: Host) -> tuple[str, ...]:
        """All packages that must be there, module or headers first. Raises GB322."""
        return (*self._for_kernels(host), *self.names)

    def _for_kernels(self, host: Host, options: Sequence[str] = ()) -> tuple[str, ...]:
        """What the kernels' modules need, by apt's lists of these options."""
        if self.modules is None:
            return headers.wanted(host)
        ready = self.modules.wanted(host, options)
        built = ready == self.modules.otherwise
        return (*headers.wanted(host), *ready) if built else ready

    def check(self, host: Host) -> Finding:
        broken = dpkg.unsound(host)
        if broken.keys() - self.left:
            return Pending(f"dpkg was interrupted: {_some(sorted(broken))}")
        if dkms.left(host):
            return Pending("DKMS was switched off while packages were installed, and still is")
        if initramfs.left(host):
            return Pending("packages were installed, and the initramfs was left for later")
        if lack := self._lack(host):
            return lack
        if loose := self.loose(host):
            hint = f"apt-mark hold {' '.join(loose)}"
            return Pending(f"{_count(loose)} not held, {_some(loose)}", hint=hint)
        hint = f"dpkg --configure {' '.join(sorted(broken))} (their own scripts say why they fail)"
        return Ok(f"{len(self.wanted(host))} packages are installed", dpkg.told(broken),
                  code=STRANGER_BROKEN, hint=hint)  # fmt: skip

    def apply(self, host: Host) -> None:
        aptlock.wait(host)
        if self.modules and not self.modules.built(host):
            self.modules.link(host)
        with initramfs.deferred(host), dkms.deferred(host):
            if dpkg.interrupted(host):
                lacking = bool(self._lack(host))
                left = dpkg.mend(host, lambda: self.resolved(host), self.env, lacking=lacking)
                self.left.update(left)
            if self._lack(host):
                self._install(host)
        if loose := self.loose(host):
            apt.hold(host, loose)

    def _install(self, host: Host) -> None:
        """One transaction; a package of somebody else's that fails in it does not stop ours."""
        try:
            apt.obtain(host, lambda: self.resolved(host), self.env)
        except GpubootError as error:
            named = re.findall(r"[^\s,]+", error.message)
            if error.code is not INSTALL_FAILED or not set(self.names).isdisjoint(named):
                raise
            dpkg.configure(host, self.env)
            if self._lack(host):
                raise
            log.warning("packages: all of ours are installed, though %s", error.message)
        self.left.update(dpkg.unsound(host))

    def changes(self, host: Host, options: Sequence[str]) -> list[apt.Change]:
        """What `apply` would have apt do, by apt's lists of these options. Raises GB20x.

        With it what comes before, where the kernel has to be upgraded for its headers.
        """
        if not self._lack(host) and not dpkg.interrupted(host):
            return []
        apt.update(host, self.env, options)
        names = (*self._coming(host, options), *self.names)
        return apt.changes(host, self._named(host, names, options), options, self.env)

    def _coming(self, host: Host, options: Sequence[str]) -> tuple[str, ...]:
        """What the kernels' modules need, or the kernel that comes instead of one without any."""
        if self.modules and not self.modules.built(host, options):
            if self.modules.lacking(host, options) and self.modules.meta_helps(host, options):
                return self.modules.upgrade(host)
            return self.modules.wanted(host, options)
        ready = self.modules.otherwise if self.modules else ()
        return (*headers.coming(host, options), *ready)

    def loose(self, host: Host, coming: Mapping[str, str] | None = None) -> list[str]:
        """The packages that `apply` would hold and are not held yet.

        `coming`: those that are to be installed, with their versions.
        """
        there = {**apt.installed(host), **(coming or {})}
        versions = {there[name] for name in self.driver if name in there} - {""}
        beside = {name for name, version in there.items()
                  if version in versions or (self.modules and BESIDE.match(name))}  # fmt: skip
        kernels = [*kernel.matter(host), *headers.kernels_in(coming or ())]
        # Of a kernel that is to be replaced because its headers are gone nothing will be held.
        lasting = [
            one
            for one in kernels
            if there.keys() & self._modules_of(one) or kernel.nvidia_module(host, one)
        ]
        names = {name for one in lasting for name in headers.kernel_packages(host, one)}
        full = {*self.driver, *TOOLKIT, *beside, *names.intersection(there)}
        return sorted(full - apt.held(host))

    def _modules_of(self, release: str) -> set[str]:
        """What, once it is there, gives a kernel its module: headers to build it, or itself."""
        own = {headers.package(release)}
        return own | {self.modules.package(release)} if self.modules else own

    def _lack(self, host: Host) -> Pending | None:
        """What only apt can mend."""
        wanted = self.wanted(host)
        installed = apt.installed(host, (*wanted, *self.unwanted))
        missing = [name for name in wanted if name not in installed]
        if missing:
            only_headers = all(name.startswith("linux-headers-") for name in missing)
            hint = f"apt-get install {' '.join(missing)}" if only_headers else None
            code = headers.NO_HEADERS if only_headers else None
            return Pending(f"{_count(missing)} missing, {_some(missing)}", code, hint)
        if rivals := [name for name in installed if _any(name, self.unwanted)]:
            return Pending(f"{_some(rivals)} must go: the module is to be of the other kind")
        versions = {installed[name] for name in TOOLKIT}
        if len(versions) > 1 or not self._fits(versions.pop()):
            return Pending("the toolkit's packages are not of the wanted version")
        return None

    def _fits(self, version: str) -> bool:
        """1.20.0 asks for any revision of it; 1.20.0-1 for just that one."""
        want = self.toolkit_version
        return want is None or version == want or version.startswith(f"{want}-")

    def resolved(self, host: Host, options: Sequence[str] = ()) -> list[str]:
        """The packages with the toolkit's one version, by apt's lists of these options.

        Raises GB204 with all that are missing, GB217 where the driver would be of two sources.
        """
        return self._named(host, self.wanted(host), options)

    def _named(self, host: Host, names: Sequence[str], options: Sequence[str]) -> list[str]:
        known = apt.policy(host, names, options)
        missing = [name for name in names if name not in known or not known[name].candidate]
        if missing:
            raise GpubootError(
                NO_PACKAGE,
                f"no source has {', '.join(missing)}",
                hint=f"apt-cache policy {missing[0]}",
            )
        origins.refuse_mixture(host, self.driver, options)
        leader = known[TOOLKIT[0]]
        version = leader.offered or str(leader.candidate)
        if self.toolkit_version and not self._fits(version):
            want = self.toolkit_version
            version = want if "-" in want else f"{want}-1"
        plain = [name for name in names if name not in TOOLKIT]
        there = apt.installed(host, self.unwanted) if self.unwanted else ()
        gone = [f"{name}-" for name in there]
        return [*plain, *(f"{name}={version}" for name in TOOLKIT), *gone]


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _count(names: Sequence[str]) -> str:
    return "1 package is" if len(names) == 1 else f"{len(names)} packages are"


def _some(names: Sequence[str]) -> str:
    """The first few names: a line on a terminal has no room for all."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
