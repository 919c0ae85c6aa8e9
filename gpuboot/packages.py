"""The packages a worker needs, installed in one transaction and held."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apt, aptlock, dkms, dpkg, origins
from gpuboot.aptfailure import INSTALL_FAILED, NO_PACKAGE, STRANGER_BROKEN
from gpuboot.errors import GpubootError
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


@dataclass(frozen=True)
class Packages:
    """Headers, driver, libraries and toolkit are installed; driver and toolkit are held.

    An update that comes by itself would put a new library over a loaded module: hence the hold.
    """

    name: ClassVar[str] = "packages"
    disruptive: ClassVar[bool] = True

    headers: tuple[str, ...]
    driver: tuple[str, ...]
    toolkit_version: str | None  # None: the newest
    tools: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a proxy's password
    unwanted: tuple[str, ...] = ()  # the other kind of module: it goes in the same transaction
    # Packages of other people's that were tried in this walk and stay broken.
    left: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.headers, *self.driver, *TOOLKIT, *self.tools)

    @property
    def held(self) -> tuple[str, ...]:
        return (*self.driver, *TOOLKIT)

    def check(self, host: Host) -> Finding:
        broken = dpkg.unsound(host)
        if broken.keys() - self.left:
            return Pending(f"dpkg was interrupted: {_some(sorted(broken))}")
        if dkms.left(host):
            return Pending("DKMS was switched off while packages were installed, and still is")
        if lack := self._lack(host):
            return Pending(lack)
        if loose := self.loose(host):
            return Pending(f"{len(loose)} packages are not held, {_some(loose)}")
        hint = f"dpkg --configure {' '.join(sorted(broken))} (their own scripts say why they fail)"
        return Ok(f"{len(self.names)} packages are installed", dpkg.told(broken),
                  code=STRANGER_BROKEN, hint=hint)  # fmt: skip

    def apply(self, host: Host) -> None:
        aptlock.wait(host)
        with dkms.deferred(host):
            if dpkg.interrupted(host):
                lacking = bool(self._lack(host))
                left = dpkg.mend(host, lambda: self.resolved(host), self.env, lacking=lacking)
                self.left.update(left)
            if self._lack(host):
                self._install(host)
        apt.hold(host, self.held)

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
        """What `apply` would have apt do, by apt's lists of these options. Raises GB20x."""
        if not self._lack(host) and not dpkg.interrupted(host):
            return []
        apt.update(host, self.env, options)
        return apt.changes(host, self.resolved(host, options), options, self.env)

    def loose(self, host: Host) -> list[str]:
        """The packages that `apply` would hold and are not held yet."""
        return sorted(set(self.held) - apt.held(host))

    def _lack(self, host: Host) -> str | None:
        """What only apt can mend."""
        installed = apt.installed(host, (*self.names, *self.unwanted))
        missing = [name for name in self.names if name not in installed]
        if missing:
            return f"{len(missing)} packages are missing, {_some(missing)}"
        if rivals := [name for name in self.unwanted if name in installed]:
            return f"{_some(rivals)} must go: the module is to be of the other kind"
        versions = {installed[name] for name in TOOLKIT}
        if len(versions) > 1 or not self._wanted(versions.pop()):
            return "the toolkit's packages are not of the wanted version"
        return None

    def _wanted(self, version: str) -> bool:
        """1.20.0 asks for any revision of it; 1.20.0-1 for just that one."""
        want = self.toolkit_version
        return want is None or version == want or version.startswith(f"{want}-")

    def resolved(self, host: Host, options: Sequence[str] = ()) -> list[str]:
        """The packages with the toolkit's one version, by apt's lists of these options.

        Raises GB204 with all that are missing, GB217 where the driver would be of two sources.
        """
        known = apt.policy(host, self.names, options)
        missing = [name for name in self.names if name not in known or not known[name].candidate]
        if missing:
            raise GpubootError(
                NO_PACKAGE,
                f"no source has {', '.join(missing)}",
                hint=_remedy(missing),
            )
        origins.refuse_mixture(host, self.driver, options)
        leader = known[TOOLKIT[0]]
        version = leader.offered or str(leader.candidate)
        if self.toolkit_version and not self._wanted(version):
            want = self.toolkit_version
            version = want if "-" in want else f"{want}-1"
        plain = [name for name in self.names if name not in TOOLKIT]
        there = apt.installed(host, self.unwanted) if self.unwanted else ()
        gone = [f"{name}-" for name in there]
        return [*plain, *(f"{name}={version}" for name in TOOLKIT), *gone]


def _some(names: list[str]) -> str:
    """The first few names: a line on a terminal has no room for all."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _remedy(missing: list[str]) -> str:
    if any(re.match(r"linux-headers-\d", name) for name in missing):
        return (
            "the archive keeps headers only for recent kernels: install the newest kernel"
            " (apt-get install linux-image-amd64), reboot, then: gpuboot run"
        )
    return f"apt-cache policy {missing[0]}"


def headers(kernel: str) -> tuple[str, str]:
    """The header package for a Debian kernel, and the meta-package that follows its flavour.

    Without the meta-package the next kernel comes without headers, and DKMS skips it silently.
    """
    match = re.search(r"-((?:cloud-|rt-)?[a-z0-9]+)$", kernel)
    return f"linux-headers-{kernel}", f"linux-headers-{match[1] if match else 'amd64'}"
