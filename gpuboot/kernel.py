"""The running kernel, the next one to boot, and their modules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import grub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuboot.host import Host

# The module's name is nvidia-current or nvidia-tesla-BRANCH (with -open) in Debian's packages, and
# nvidia everywhere else. Its companions have names like nvidia-current-uvm.
MODULE_FILE = re.compile(r"nvidia(-current|-tesla(-\d+)?)?(-open)?\.ko(\.(xz|zst|gz))?")
# A kernel's flavour, by the end of its name: amd64, cloud-amd64, rt-amd64; generic, aws.
_FLAVOUR = re.compile(r"-((?:cloud-|rt-)?[a-z][a-z0-9]*)$")
MODULE_FOLDERS = ("updates/dkms", "updates", "extra", "kernel/drivers/video", "kernel/nvidia")


def running(host: Host) -> str:
    """The running kernel's release, as /proc says it."""
    return (host.read("/proc/sys/kernel/osrelease") or "").strip()


def next_boot(host: Host) -> str:
    """The kernel that boots next: GRUB's choice, else the newest in /boot, else the running one."""
    return choice(host)[0]


def choice(host: Host) -> tuple[str, str]:
    """The kernel that boots next, and who says so.

    GRUB's files decide where they are there and name a kernel that is; any other boot loader is
    taken to boot the newest.
    """
    text = host.read(grub.CONFIG)
    if text:
        chosen = grub.next_kernel(text, host.read(grub.ENVIRONMENT) or "")
        if chosen and host.exists(f"/boot/vmlinuz-{chosen}"):
            return chosen, "GRUB's choice"
    return newest(host), "the newest in /boot"


def newest(host: Host) -> str:
    """The newest kernel in /boot; the running one if there is none."""
    releases = [
        name.removeprefix("vmlinuz-")
        for name in host.names("/boot")
        if name.startswith("vmlinuz-") and not name.endswith((".old", ".bak"))
    ]
    return max(releases, key=version_key, default=running(host))


def matter(host: Host) -> tuple[str, ...]:
    """The kernels that need a module: the running one and the one that boots next."""
    return tuple(dict.fromkeys((running(host), next_boot(host))))


def version_key(release: str) -> tuple[object, ...]:
    """Sorts releases as Debian's grub-mkconfig does: by dpkg's rules, 6.1-rc7 before 6.1."""
    text = re.sub(r"[._-](pre|rc|test|git|old|trunk)", r"~\1", release)
    upstream, _, revision = text.rpartition("-")
    return _order(upstream), _order(revision)


def _order(text: str) -> list[tuple[list[int], int]]:
    """dpkg's order of a version's part (deb-version(7)): ~ before the end, letters before signs."""
    return [
        (
            [-1 if one == "~" else ord(one) if one.isalpha() else ord(one) + 0x110000
             for one in signs] + [0],
            int(digits or 0),
        )
        for signs, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", text)
    ]  # fmt: skip


@dataclass(frozen=True)
class Module:
    """An NVIDIA module file for one kernel, as modinfo reads it."""

    path: str
    version: str


def module_files(host: Host, release: str) -> Iterator[str]:
    """The files that by their names are the NVIDIA module for this kernel; none was opened."""
    folder = f"/lib/modules/{release}"
    # Ubuntu's precompiled ones lie in kernel/nvidia-580-server and the like.
    own = [f"kernel/{name}" for name in host.names(f"{folder}/kernel") if "nvidia-" in name]
    for place in (*MODULE_FOLDERS, *own):
        for name in host.names(f"{folder}/{place}"):
            if MODULE_FILE.fullmatch(name):
                yield f"{folder}/{place}/{name}"


def nvidia_module(host: Host, release: str) -> Module | None:
    """The NVIDIA module that was really built for this kernel, or None.

    A file alone proves nothing: its vermagic must name the kernel. A compressed one takes modinfo
    a second, so what it said of a file is remembered until the file is another.
    """
    for path in module_files(host, release):
        seen = host.stamp(path)
        module = host.memory.get((path, seen))
        if isinstance(module, Module):
            return module
        said = host.run(["modinfo", str(host.path(path))])
        fields = dict(re.findall(r"^(vermagic|version):[ \t]*(.*)$", said.out, re.MULTILINE))
        if said.code == 0 and fields.get("vermagic", "").split()[:1] == [release]:
            module = Module(path, fields.get("version", "").strip())
            host.memory[(path, seen)] = module
            return module
    return None


def loaded(host: Host, module: str) -> bool:
    """Whether a module is in the running kernel."""
    return host.exists(f"/sys/module/{module}")


def loaded_version(host: Host, module: str) -> str | None:
    """The version a loaded module says it has; None if it is not loaded."""
    text = host.read(f"/sys/module/{module}/version")
    return text.strip() if text else None


def flavour(release: str) -> str | None:
    """A kernel's flavour by its name, such as cloud-amd64; None for a kernel that has none."""
    match = _FLAVOUR.search(release)
    return match[1] if match else None


def series(host: Host, release: str) -> str:
    """What the metas that bring a flavour's newest kernel are named by: linux-image-SERIES.

    In Debian that is the flavour. Ubuntu has several series of one flavour (generic, virtual,
    generic-hwe-24.04), and the installed meta tells which one this kernel is of.
    """
    own = flavour(release)
    if own is None or own.endswith("amd64"):
        return own or "amd64"
    fields = "${db:Status-Status} ${Package} ${Depends}\n"
    said = host.run(["dpkg-query", "--show", "--showformat", fields, f"linux-image-{own}*",
                     "linux-image-virtual*"]).out  # fmt: skip
    form = r"^installed linux-image-([a-z]\S*) (.*)$"
    metas = [(name, depends) for name, depends in re.findall(form, said, re.MULTILINE)]
    follows = [name for name, depends in metas if f"linux-image-{release}" in depends]
    return next(iter(follows or [name for name, _ in metas]), own)


def messages(host: Host, pattern: str) -> str:
    """The kernel's last lines of this boot that match, at most 20, the oldest first."""
    # With --grep, --lines has them the other way round; newer ones can do without, older cannot.
    argv = ["journalctl", "--dmesg", "--boot", "--grep", pattern, "--lines", "20", "--reverse"]
    said = host.run([*argv, "--output", "cat", "--no-pager", "--quiet"], timeout=30).out
    return "\n".join(reversed(said.strip().splitlines()))
