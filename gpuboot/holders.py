"""Kernel modules that are to go, and who keeps them in use: modules, processes, the console."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import kernel, systemd

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

# NVIDIA's own services, which keep the driver in use for as long as they run, and our monitor,
# which has it at each look. Nobody's work is lost by stopping them; every other process is a
# stranger's.
SERVICES = (
    "gpuboot-monitor.service",
    "nvidia-persistenced.service",
    "nvidia-dcgm.service",
    "dcgm.service",
    "dcgm-exporter.service",
    "nvidia-fabricmanager.service",
    "nvidia-powerd.service",
)
PATIENCE = 5  # seconds; nvidia-smi and its like are about to end
SHOWN = 3  # holders that are named in one line


@dataclass(frozen=True)
class Holder:
    """Somebody who keeps a module in use. `pid` and `unit` are those of a process."""

    name: str
    unit: str = ""
    pid: int | None = None

    @property
    def lasting(self) -> str:
        """What it will be called in the next boot too."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def __str__(self) -> str:
        if self.pid is None:
            return self.name
        return f"{self.name} (pid {self.pid}{', ' if self.unit else ''}{self.unit})"


def listed(holders: Sequence[Holder]) -> str:
    """The holders as a line that reads the same in the next boot."""
    names = list(dict.fromkeys(holder.lasting for holder in holders))
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")


@contextmanager
def services_stopped(host: Host) -> Iterator[None]:
    """NVIDIA's services and our monitor let go of the driver; those that ran are started again."""
    ran = [name for name in SERVICES if systemd.unit(host, name).live]
    for name in ran:
        systemd.stop(host, name)
    yield
    for name in ran:
        systemd.start(host, name)


def unload(host: Host, stack: Sequence[str], devices: Sequence[str]) -> list[Holder]:
    """Unload what is loaded of a stack of modules, in its order. Who prevents it; nobody if not.

    `devices` are beginnings of their device files' names. Half a stack would serve nobody, so
    nothing is unloaded while somebody is seen who uses any of it.
    """
    present = [module for module in stack if kernel.loaded(host, module)]
    found = _lasting_users(host, present, devices) or _remove(host, present, devices)
    for holder in found:
        log.info("%s cannot be unloaded: in use by %s", present[-1], holder)
    return found


def _lasting_users(host: Host, modules: Sequence[str], devices: Sequence[str]) -> list[Holder]:
    """Who uses the modules, and still does after a while."""
    found = _users(host, modules, devices)
    for _ in range(PATIENCE):
        if not found:
            break
        host.sleep(1)
        found = _users(host, modules, devices)
    return found


def _remove(host: Host, modules: Sequence[str], devices: Sequence[str]) -> list[Holder]:
    """Unload by name and by the kernel's count of users; who uses the first that stays.

    modprobe -r would have to find the file a module came from, which an upgrade may have removed.
    """
    for module in modules:
        result = host.run(["rmmod", module], timeout=60)
        if result.code != 0 and kernel.loaded(host, module):
            return _users(host, modules, devices) or [_inside(host, module)]
    return []


def _users(host: Host, modules: Sequence[str], devices: Sequence[str]) -> list[Holder]:
    """The modules and processes that use one of the modules for sure."""
    found = [
        Holder(f"module {name}")
        for module in modules
        for name in host.names(f"/sys/module/{module}/holders")
        if name not in modules
    ]
    return found + _processes(host, devices)


def _processes(host: Host, devices: Sequence[str]) -> list[Holder]:
    """The processes that have one of the device files open."""
    found = []
    for pid in (name for name in host.names("/proc") if name.isdigit()):
        if any(name.startswith(tuple(devices)) for name in _open_files(host, pid)):
            groups = re.findall(
                r"([^/\n]+\.(?:service|scope))$", host.read(f"/proc/{pid}/cgroup") or "", re.M
            )
            command = (host.read(f"/proc/{pid}/comm") or "a process").strip()
            found.append(Holder(command, groups[-1] if groups else "", int(pid)))
    return found


def _open_files(host: Host, pid: str) -> list[str]:
    """What a process has open; nothing if it has just ended."""
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        return [host.link(f"{folder}/{name}") or "" for name in host.names(folder)]
    return []


def _inside(host: Host, module: str) -> Holder:
    """Who uses a module inside the kernel: the console, if its screen is the module's."""
    if re.search(rf"^\d+ {module.partition('_')[0]}", host.read("/proc/fb") or "", re.M):
        return Holder("the console")
    count = (host.read(f"/sys/module/{module}/refcnt") or "?").strip()
    return Holder(f"the kernel itself ({module}: refcnt {count})")
