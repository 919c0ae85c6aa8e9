"""The few systemctl verbs we need."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

LIVE = ("active", "activating", "reloading", "deactivating")


@dataclass(frozen=True)
class Unit:
    """A unit as systemd has it now. `load` is not-found for one that does not exist."""

    load: str
    active: str
    sub: str
    job: bool
    restarts: int
    condition: bool

    @property
    def exists(self) -> bool:
        return self.load not in ("", "not-found")

    @property
    def live(self) -> bool:
        """It runs, or is on its way up or down."""
        return self.active in LIVE


_PROPERTIES = "LoadState,ActiveState,SubState,Job,NRestarts,ConditionResult"


def unit(host: Host, name: str) -> Unit:
    """Look at a unit; also answers for one that does not exist. Raises GB010 without systemd."""
    text = host.must(["systemctl", "show", "--property", _PROPERTIES, name], timeout=30)
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    return Unit(
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        job=values.get("Job", "0") not in ("", "0"),
        restarts=int(values.get("NRestarts") or 0),
        condition=values.get("ConditionResult") == "yes",
    )


def enabled(host: Host, name: str) -> bool:
    """Whether a unit is enabled, by the files as they are now.

    What `systemctl show` tells of that is as old as the last daemon-reload, wherever another unit
    that is loaded names this one (systemd's manager.h: unit_file_state_outdated).
    """
    return host.run(["systemctl", "is-enabled", name], timeout=30).out.startswith("enabled")


@dataclass(frozen=True)
class Start:
    """A unit's last start. `process` is 0 while no main process runs, as between two restarts."""

    invocation: str
    process: int
    age: float  # seconds


_START = "InvocationID,MainPID,ExecMainStartTimestampMonotonic"


def last_start(host: Host, name: str) -> Start | None:
    """When the unit was started last; None if it never was in this boot."""
    text = host.must(["systemctl", "show", "--property", _START, name], timeout=30)
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    began = int(values.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    if not began:
        return None
    # systemd counts without the time in which the machine was suspended: a VM hardly ever is.
    age = max(0.0, host.clock.boottime() - began)
    return Start(values.get("InvocationID", ""), int(values.get("MainPID") or 0), age)


def stale(host: Host, name: str) -> bool:
    """Whether a unit's files or drop-ins are newer than what systemd knows of it."""
    text = host.run(["systemctl", "show", "--property", "NeedDaemonReload", name], timeout=30).out
    return text.strip() == "NeedDaemonReload=yes"


def enable(host: Host, name: str) -> None:
    """Enable without a daemon-reload, which can take the GPU from running containers."""
    host.must(["systemctl", "enable", "--no-reload", "--quiet", name])


def start(host: Host, name: str) -> None:
    """Queue a start, also of a failed unit, and do not wait for it."""
    host.run(["systemctl", "reset-failed", name])
    host.must(["systemctl", "start", "--no-block", name])


def restart(host: Host, name: str, *, timeout: float) -> None:
    """Restart, also a failed unit, and wait for it."""
    host.run(["systemctl", "reset-failed", name])
    host.must(["systemctl", "restart", name], timeout=timeout)


def restart_later(host: Host, name: str) -> None:
    """Queue a restart and do not wait for it."""
    host.must(["systemctl", "restart", "--no-block", name])


def stop(host: Host, name: str, *, timeout: float = 60) -> None:
    """Stop and wait; no error if there is no such unit."""
    host.run(["systemctl", "stop", name], timeout=timeout)


def reload_units(host: Host) -> None:
    """Make systemd read unit files again."""
    host.must(["systemctl", "daemon-reload"], timeout=90)


def journal(host: Host, name: str, *, lines: int, invocation: str = "") -> str:
    """The unit's last lines of this boot, or of one start alone; empty if there is no journal."""
    which = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", name]
    argv = ["journalctl", "--boot", *which, "--lines", str(lines), "--output", "cat"]
    return host.run([*argv, "--no-pager", "--quiet"], timeout=30).out


def notify(message: str) -> None:
    """Tell systemd, `READY=1` or `STATUS=…` (sd_notify(3)); nothing outside a notify unit."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(message.encode())
