"""RKE2 on this node: the hold, the release, and the agent's start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import release, systemd
from gpuboot.config import ConfigError
from gpuboot.errors import Code, GpubootError
from gpuboot.reader import Problem
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

AGENT = "rke2-agent.service"
GPUBOOT = "gpuboot.service"
GATE = "/run/gpuboot/ready"
HOLD = "/usr/lib/systemd/system/rke2-agent.service.d/10-gpuboot.conf"
WANTS = "/etc/systemd/system/multi-user.target.wants"
ENABLED = f"{WANTS}/gpuboot.service"
OPT = "/opt/rke2"  # where RKE2 goes if /usr/local is no place for it (rke2 install.sh)
UNPACKED = (f"{release.PREFIX}/bin/rke2", f"{OPT}/bin/rke2")  # by us, or by rke2's install.sh
BINARIES = (*UNPACKED, "/usr/bin/rke2")
# The operator's own variables, which the unit reads when it starts (rke2's bundle).
ENVIRONMENT = (
    "/etc/default/rke2-agent",
    "/etc/sysconfig/rke2-agent",
    "/usr/local/lib/systemd/system/rke2-agent.env",
    f"{OPT}/lib/systemd/system/rke2-agent.env",
)
# In systemd's own order: the first that has a unit is the one that counts (systemd.unit(5)).
UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)

NO_HOLD = Code(
    "GB501",
    "nothing keeps rke2-agent from starting too early",
    ("The package's drop-in is gone, or gpuboot runs without being installed as a package.",),
    ("apt-get install --reinstall gpuboot", "systemctl cat rke2-agent"),
    evidence="the drop-in of rke2-agent.service, as systemd has read it",
)
SERVER_HERE = Code(
    "GB502",
    "this node is an RKE2 server",
    ("rke2-server is enabled or running here, and refuses an agent beside it.",),
    ("systemctl status rke2-server", "gpuboot config show"),
    evidence="the state of rke2-server.service",
)
NOT_STARTING = Code(
    "GB503",
    "rke2-agent does not start",
    ("Its unit is masked, or a condition other than gpuboot's hold stands in the way.",),
    ("systemctl status rke2-agent", "journalctl -u rke2-agent -n 50"),
    evidence="the states and conditions of rke2-agent.service",
)
NOT_OURS = Code(
    "GB507",
    "RKE2 was installed by other means, and another version is wanted",
    (
        "rke2.version pins a release, and RKE2 came as a package of another one.",
        "The agent's unit starts an rke2 that somebody has put into a place of its own.",
    ),
    ("systemctl cat rke2-agent", "dpkg -S /usr/bin/rke2", "gpuboot config show"),
    evidence="rke2 --version, and the unit that starts it",
)
OTHER_RELEASE = Code(
    "GB508",
    "the source holds another release of RKE2 than the one that is wanted",
    (
        "A local folder without a folder for each release was filled with another one.",
        "A mirror has a release under another one's name.",
    ),
    ("ls -R FOLDER", "gpuboot config show"),
    evidence="the version that the release's files name",
)


@dataclass(frozen=True)
class Rke2Hold:
    """rke2-agent cannot start before the gate is opened, in this boot and in every other."""

    name: ClassVar[str] = "rke2-hold"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        if "ConditionPathExists=|" + GATE not in (host.read(HOLD) or ""):
            raise GpubootError(NO_HOLD, f"{HOLD} is missing or not gpuboot's")
        if not host.exists(ENABLED):
            return Pending("gpuboot.service is not enabled, so the hold is open")
        return Ok("rke2-agent is held until the gate opens")

    def apply(self, host: Host) -> None:
        systemd.enable(host, GPUBOOT)

    def enables(self, host: Host) -> Sequence[str]:
        return () if host.exists(ENABLED) else (GPUBOOT,)


@dataclass(frozen=True)
class Rke2Installed:
    """The wanted RKE2 release is installed, binary and unit."""

    name: ClassVar[str] = "rke2-installed"
    disruptive: ClassVar[bool] = True

    want: release.Release
    files: ClassVar[tuple[str, ...]] = (release.TARBALL,)  # what of a release it takes

    def check(self, host: Host) -> Finding:
        if systemd.enabled(host, "rke2-server.service"):
            raise GpubootError(SERVER_HERE, "rke2-server is enabled on this node")
        found = installed_version(host)
        if found is None or not has_unit(host):
            if not self.want.version and not self.want.channel:
                raise ConfigError([Problem(
                    "/etc/gpuboot/config.yaml", "rke2",
                    "RKE2 is not installed, and neither version nor channel is set",
                    "rke2.version, such as v1.35.7+rke2r1",
                )])  # fmt: skip
            elsewhere = f"; it goes below {OPT}" if prefix(host) == OPT else ""
            return Pending(f"RKE2 is not installed{elsewhere}")
        if self.want.version and found != self.want.version:
            if (binary := program(host)) not in UNPACKED:
                # A tarball beside it would not be what the unit starts, or would be half of each.
                raise GpubootError(
                    NOT_OURS,
                    f"{binary} is RKE2 {found} by other means, wanted is {self.want.version}",
                    hint="install that version the same way, or take rke2.version out",
                    retry=True,
                )
            return Pending(f"RKE2 {found} is installed, wanted is {self.want.version}")
        return Ok(f"RKE2 {found} is installed")

    def fetch(self, host: Host) -> None:
        """Have the tarball here before it is needed. Raises GB504, GB505, GB4xx, Stopped."""
        if isinstance(self.check(host), Pending):
            release.fetch(host, self.want)

    def apply(self, host: Host) -> None:
        release.install(host, self.want, prefix(host))
        systemd.reload_units(host)
        found = installed_version(host)
        if found and self.want.version and found != self.want.version:
            raise GpubootError(
                OTHER_RELEASE,
                f"{self.want.url} has RKE2 {found} as {self.want.version}",
                retry=True,
            )


def installed_version(host: Host) -> str | None:
    """The release of the rke2 program on this node; None if there is none that runs."""
    binary = program(host)
    if not binary or not host.exists(binary):
        return None
    result = host.run([binary, "--version"], timeout=30)
    match = re.search(r"rke2 version (v\S+)", result.out)
    return match[1] if match else None


def program(host: Host) -> str | None:
    """The rke2 that the agent's unit starts; where there is no such unit, the one that is there."""
    unit = next((text for folder in UNIT_FOLDERS if (text := host.read(f"{folder}/{AGENT}"))), "")
    match = re.search(r"^ExecStart=[-@:+!]*(/\S+/rke2)\s", unit, re.MULTILINE)
    return match[1] if match else next((name for name in BINARIES if host.exists(name)), None)


def has_unit(host: Host) -> bool:
    """Whether a unit file of rke2-agent is anywhere systemd looks."""
    return any(host.exists(f"{folder}/{AGENT}") for folder in UNIT_FOLDERS)


def prefix(host: Host) -> str:
    """Below which folder a release is unpacked: as RKE2's own installer decides.

    /usr/local, unless that is read-only or a file system of its own; and where it already is.
    """
    if (program(host) or "").startswith(f"{OPT}/"):
        return OPT
    place, options = "", set[str]()
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        # proc(5): ids and root, then mount point, options … - type, source, super options
        fields = line.split()
        point = fields[4] if len(fields) > 5 else ""
        if point in ("/", "/usr", release.PREFIX) and len(point) >= len(place):
            place, options = point, {*fields[5].split(","), *fields[-1].split(",")}
    return OPT if place == release.PREFIX or "ro" in options else release.PREFIX


def live(host: Host) -> bool:
    """Whether rke2-agent runs, or is on its way up or down: the node may carry workloads."""
    return systemd.unit(host, AGENT).live


@dataclass(frozen=True)
class AgentStarted:
    """The gate is open, and rke2-agent is enabled and runs."""

    name: ClassVar[str] = "agent-started"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        unit = systemd.unit(host, AGENT)
        if not host.exists(GATE):
            return Pending("the gate is closed")
        if not systemd.enabled(host, AGENT):
            return Pending("rke2-agent is not enabled")
        if not unit.live and not unit.job:
            return Pending(f"rke2-agent is {unit.active or 'not there'}")
        return Ok("the gate is open and rke2-agent runs")

    def apply(self, host: Host) -> None:
        open_gate(host)
        systemd.enable(host, AGENT)
        start(host)

    def enables(self, host: Host) -> Sequence[str]:
        return () if systemd.enabled(host, AGENT) else (AGENT,)


def open_gate(host: Host) -> None:
    """Let rke2-agent start in this boot; nobody ever closes the gate again."""
    if not host.exists(GATE):
        host.write(GATE, "")
    unit = systemd.unit(host, AGENT)
    stale = systemd.stale(host, AGENT) if unit.exists else has_unit(host)
    if stale and not unit.live:
        systemd.reload_units(host)  # what systemd knows of it is older than its files


def start(host: Host) -> None:
    """Start rke2-agent without waiting for it. Raises GB503 if it is not even on its way."""
    systemd.start(host, AGENT)
    unit = systemd.unit(host, AGENT)
    if not unit.live and not unit.job:
        raise GpubootError(
            NOT_STARTING,
            f"rke2-agent was started and is {unit.active}",
            evidence=systemd.journal(host, AGENT, lines=10),
            retry=True,
        )
