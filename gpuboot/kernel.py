"""The running kernel, the next one to boot, and their modules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

# The NVIDIA module's name is nvidia-current or nvidia-current-open in Debian's packages, nvidia
# everywhere else.
MODULE_FILE = re.compile(r"(nvidia|nvidia-current|nvidia-current-open)\.ko(\.(xz|zst|gz))?")
MODULE_FOLDERS = ("updates/dkms", "updates", "extra", "kernel/drivers/video", "kernel/nvidia")


def running(host: Host) -> str:
    """The running kernel's release, as /proc says it."""
    return (host.read("/proc/sys/kernel/osrelease") or "").strip()


def next_boot(host: Host) -> str:
    """The newest kernel in /boot, which boots next; the running one if there is none."""
    releases = [
        name.removeprefix("vmlinuz-")
        for name in host.names("/boot")
        if name.startswith("vmlinuz-") and not name.endswith((".old", ".bak"))
    ]
    return max(releases, key=version_key, default=running(host))


def version_key(release: str) -> list[tuple[int, int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-56: numbers as numbers."""
    parts = re.findall(r"\d+|[a-z]+", release)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


@dataclass(frozen=True)
class Module:
    """An NVIDIA module file for one kernel, as modinfo reads it."""

    path: str
    version: str


def nvidia_module(host: Host, release: str) -> Module | None:
    """The NVIDIA module that was really built for this kernel, or None.

    A file alone proves nothing: its vermagic must name the kernel.
    """
    for folder in MODULE_FOLDERS:
        place = f"/lib/modules/{release}/{folder}"
        for name in host.names(place):
            if MODULE_FILE.fullmatch(name):
                path = f"{place}/{name}"
                magic = host.run(["modinfo", "--field", "vermagic", str(host.path(path))])
                version = host.run(["modinfo", "--field", "version", str(host.path(path))])
                if magic.code == 0 and magic.out.split()[:1] == [release]:
                    return Module(path, version.out.strip())
    return None


def loaded(host: Host, module: str) -> bool:
    """Whether a module is in the running kernel."""
    return host.exists(f"/sys/module/{module}")


def loaded_version(host: Host, module: str) -> str | None:
    """The version a loaded module says it has; None if it is not loaded."""
    text = host.read(f"/sys/module/{module}/version")
    return text.strip() if text else None


def messages(host: Host, pattern: str) -> str:
    """The kernel's last lines of this boot that match, at most 20."""
    argv = ["journalctl", "--dmesg", "--boot", "--grep", pattern, "--lines", "20"]
    return host.run([*argv, "--output", "cat", "--no-pager", "--quiet"], timeout=30).out.strip()
