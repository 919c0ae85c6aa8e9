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
BINARIES = ("/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2")
UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/opt/rke2/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)

NO_HOLD = Code(
    "GB501",
    "nothing keeps rke2-agent from starting too early",
    ("The package's drop-in is gone, or gpuboot runs without being installed as a package.",),
    ("apt-get install --reinstall gpuboot", "systemctl cat rke2-agent"),
)
SERVER_HERE = Code(
    "GB502",
    "this node is an RKE2 server",
    ("rke2-server is enabled or running here, and refuses an agent beside it.",),
    ("systemctl status rke2-server", "gpuboot config show"),
)
NOT_STARTING = Code(
    "GB503",
    "rke2-agent does not start",
    ("Its unit is masked, or a condition other than gpuboot's hold stands in the way.",),
    ("systemctl status rke2-agent", "journalctl -u rke2-agent -n 50"),
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

    def check(self, host: Host) -> Finding:
        if systemd.unit(host, "rke2-server.service").enabled:
            raise GpubootError(SERVER_HERE, "rke2-server is enabled on this node")
        found = installed_version(host)
        if found is None or not has_unit(host):
            if not self.want.version and not self.want.channel:
                raise ConfigError([Problem(
                    "/etc/gpuboot/config.yaml", "rke2",
                    "RKE2 is not installed, and neither version nor channel is set",
                    "rke2.version, such as v1.35.7+rke2r1",
                )])  # fmt: skip
            return Pending("RKE2 is not installed")
        if self.want.version and found != self.want.version:
            return Pending(f"RKE2 {found} is installed, wanted is {self.want.version}")
        return Ok(f"RKE2 {found} is installed")

    def apply(self, host: Host) -> None:
        release.install(host, self.want)
        systemd.reload_units(host)


def installed_version(host: Host) -> str | None:
    """The release of the rke2 program on this node; None if there is none that runs."""
    for binary in BINARIES:
        if host.exists(binary):
            result = host.run([binary, "--version"], timeout=30)
            match = re.search(r"rke2 version (v\S+)", result.out)
            if match:
                return match[1]
    return None


def has_unit(host: Host) -> bool:
    """Whether a unit file of rke2-agent is anywhere systemd looks."""
    return any(host.exists(f"{folder}/{AGENT}") for folder in UNIT_FOLDERS)


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
        if not unit.enabled:
            return Pending("rke2-agent is not enabled")
        if not unit.live and not unit.job:
            return Pending(f"rke2-agent is {unit.active or 'not there'}")
        return Ok("the gate is open and rke2-agent runs")

    def apply(self, host: Host) -> None:
        open_gate(host)
        systemd.enable(host, AGENT)
        start(host)

    def enables(self, host: Host) -> Sequence[str]:
        return () if systemd.unit(host, AGENT).enabled else (AGENT,)


def open_gate(host: Host) -> None:
    """Let rke2-agent start in this boot; nobody ever closes the gate again."""
    if not host.exists(GATE):
        host.write(GATE, "")
    if has_unit(host) and not systemd.unit(host, AGENT).exists:
        systemd.reload_units(host)  # the unit file came after systemd had looked for it


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
