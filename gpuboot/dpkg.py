"""dpkg after it was cut off: what it has left half done, and how that is ended."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuboot import apt
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

STATUS = "/var/lib/dpkg/status"
LOCK = "/var/lib/dpkg/lock-frontend"
SOUND = ("installed", "triggers-pending", "triggers-awaited", "config-files", "not-installed")


def interrupted(host: Host) -> bool:
    """Whether dpkg was cut off: packages half-installed or not configured."""
    return bool(host.run(["dpkg", "--audit"]).out.strip()) or any(
        name.isdigit() for name in host.names("/var/lib/dpkg/updates")
    )


def busy(host: Host) -> bool:
    """Whether another program holds dpkg's lock, so that what is half done is being done."""
    try:
        with host.path(LOCK).open("rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            told = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:  # no dpkg was ever run here, or only root may ask
        return False
    return bool(told[0] != fcntl.F_UNLCK)


def let_end(host: Host) -> None:
    """Wait, but not for ever, for somebody's installation to end. Raises Stopped."""
    end = host.clock.boottime() + apt.LOCK_WAIT
    while busy(host) and host.clock.boottime() < end:
        host.sleep(1)


def mend(host: Host, wanted: Callable[[], Sequence[str]], env: Mapping[str, str]) -> None:
    """End what an interrupted dpkg began. `wanted` resolves what we install; needs an archive
    only where configuring is not enough. Raises GB20x.

    apt's own repair chooses other packages than an installation does (the first of several
    alternatives), so it is told what a sound node would get; it decides only what remains.
    """
    _dpkg(host, ["--configure", "--pending"], env)
    if not interrupted(host):
        return
    apt.update(host, env)
    _unpack_again(host, env)
    try:
        if absent := _absent(host, wanted(), env):
            apt.fix_broken(host, absent, env)
    except GpubootError as error:
        if error.code is not apt.INSTALL_FAILED:
            raise
        log.info("dpkg: %s; apt's own repair is tried\n%s", error.message, error.evidence)
    if interrupted(host):
        apt.fix_broken(host, (), env)
    if left := host.run(["dpkg", "--audit"]).out.strip():  # an installation would stumble over it
        raise GpubootError(
            apt.INSTALL_FAILED, "dpkg was interrupted, and not all of it could be made up for",
            evidence=left[-1500:], retry=True,
        )  # fmt: skip


def _dpkg(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Whether it has helped is looked at, not believed."""
    words = ["dpkg", "--force-confold", *argv]
    host.run(words, timeout=3600, env={**apt.QUIET, **env}, patient=True)


def _unpack_again(host: Host, env: Mapping[str, str]) -> None:
    """The packages of which only a part was unpacked, as on a disk that was full.

    dpkg refuses to configure them, and apt takes them for unpacked. Raises GB20x.
    """
    fields = "${db:Status-Eflag}\t${binary:Package}\n"
    result = host.run(["dpkg-query", "--show", "--showformat", fields])
    rows = [line.partition("\t") for line in result.out.splitlines()]
    if parts := sorted(name for flag, _, name in rows if flag == "reinstreq"):
        with tempfile.TemporaryDirectory(prefix="gpuboot-dpkg-") as folder:
            apt.download(host, parts, Path(folder), env)
            _dpkg(host, ["--unpack", "--recursive", folder], env)


def _absent(host: Host, wanted: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """What would come along with the packages, were nothing half done, and has not begun to.

    Each is name=version. What has begun is not named: apt would then hold it for asked for.
    """
    with tempfile.TemporaryDirectory(prefix="gpuboot-dpkg-") as folder:
        sound, begun = _parted(host.read(STATUS) or "")
        status = Path(folder) / "status"
        status.write_text(sound, encoding="utf-8")
        settings = {"Dir::State::status": status, "Dir::Log": folder, "Debug::NoLocking": "true"}
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        changes = apt.changes(host, wanted, options, env)
    others = begun.union(name.partition("=")[0] for name in wanted)
    new = [one for one in changes if one.action == "install" and one.name not in others]
    return [f"{one.name}={one.version}" for one in new]


def _parted(status: str) -> tuple[str, set[str]]:
    """dpkg's status without the packages that are half done, and their names."""
    sound, begun = [], set()
    for stanza in re.split(r"\n\n+", status.strip()):
        if re.search(rf"^Status: .* ({'|'.join(SOUND)})$", stanza, re.MULTILINE):
            sound.append(stanza)
        else:
            begun.update(re.findall(r"^Package: (\S+)$", stanza, re.MULTILINE))
    return "\n\n".join([*sound, ""]), begun
