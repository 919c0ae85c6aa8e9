"""apt's and dpkg's locks: who holds one, and waiting for him no longer than a walk may."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot.aptfailure import LOCKED, failure
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host
    from gpuboot.process import Result

log = logging.getLogger(__name__)

# In the order in which apt takes them. DPkg::Lock::Timeout covers the last two, for apt-get alone:
# the lists', the archives', and all of them for dpkg and apt-mark end in an error at once (tried
# with apt 2.6.2 and 3.0.4).
LOCKS = (
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
)
PATIENCE = 600.0  # seconds of a walk; unattended-upgrades at first boot can take minutes
POLL = 1.0  # seconds
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid
_UNIT = re.compile(r"/([^/\n]+\.(?:service|scope|timer))(?:\n|$)")


@dataclass(frozen=True)
class Holder:
    """The process that has a lock. `unit` is systemd's, where it is of one."""

    lock: str
    pid: int
    command: str
    unit: str | None

    def __str__(self) -> str:
        where = f"pid {self.pid}" + (f", {self.unit}" if self.unit else "")
        return f"{self.command} ({where}), which holds {self.lock}"

    @property
    def look(self) -> str:
        """What shows what it is at."""
        service = self.unit and self.unit.endswith(".service")
        return f"systemctl status {self.unit}" if service else f"ps -fp {self.pid}"


def holder(host: Host) -> Holder | None:
    """Whoever holds one of the locks, by asking the kernel; nobody is in the way of being asked."""
    for lock in LOCKS:
        if pid := _holder(host, lock):
            return Holder(lock, pid, _command(host, pid), _unit(host, pid))
    return None


def _holder(host: Host, lock: str) -> int:
    try:
        descriptor = os.open(host.path(lock), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0  # not there: nobody has it; not ours to read: we are only looking
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    # A lock of a process in no process namespace of ours has no number here.
    return 0 if kind == fcntl.F_UNLCK else int(pid) or -1


def _command(host: Host, pid: int) -> str:
    """The program and what it is to do, without its options: they are long, and may be secret."""
    program, *words = (host.read(f"/proc/{pid}/cmdline") or "").rstrip("\0").split("\0")
    name = program.rpartition("/")[2] or (host.read(f"/proc/{pid}/comm") or "").strip()
    verbs = [word for word in words if not word.startswith("-") and "::" not in word]
    return host.mask(shlex.join([name, *verbs]))[:80] if name else "a process"


def _unit(host: Host, pid: int) -> str | None:
    found = _UNIT.findall(host.read(f"/proc/{pid}/cgroup") or "")
    return found[-1] if found else None


def wait(host: Host) -> None:
    """Until nobody holds any of the locks, saying whom we wait for. Raises GB201, Stopped."""
    told: Holder | None = None
    while found := holder(host):
        _still_patient(host, f"{found.command} (pid {found.pid})", found)
        if found != told:
            log.info("waiting for %s", found)
            host.tell(f"waiting for {found}")
            told = found
        _pause(host)
    if told:
        host.tell("")


def run(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> Result:
    """Run what takes a lock, once nobody else has one, however long it then takes.

    Who is quicker than we are is waited for once more. Raises GB201, Stopped.
    """
    while True:
        wait(host)
        result = host.run(argv, timeout=3600, env=env, patient=True)
        if result.code == 0 or (error := failure(result)).code is not LOCKED:
            return result
        _still_patient(host, "another program", None, error.evidence)
        _pause(host)


def _still_patient(host: Host, who: str, found: Holder | None, evidence: str = "") -> None:
    if host.waited < PATIENCE:
        return
    held = f" and still holds {found.lock}" if found else ""
    unit = f" of {found.unit}" if found and found.unit else ""
    raise GpubootError(
        LOCKED, f"{who}{unit} was waited for {PATIENCE / 60:.0f} min{held}",
        hint=found.look if found else None, evidence=evidence, retry=True,
    )  # fmt: skip


def _pause(host: Host) -> None:
    begun = host.clock.boottime()
    host.sleep(POLL)
    host.waited += host.clock.boottime() - begun
