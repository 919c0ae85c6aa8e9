"""dpkg after it was cut off: what it has left half done, and how that is ended."""

from __future__ import annotations

import logging
import re
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
SOUND = ("installed", "triggers-pending", "triggers-awaited", "config-files", "not-installed")


def interrupted(host: Host) -> bool:
    """Whether dpkg was cut off: packages half-installed or not configured."""
    return bool(host.run(["dpkg", "--audit"]).out.strip()) or any(
        name.isdigit() for name in host.names("/var/lib/dpkg/updates")
    )


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
        changes, begun = _undisturbed(host, wanted, Path(folder), env)
    others = begun.union(name.partition("=")[0] for name in wanted)
    new = [one for one in changes if one.action == "install" and one.name not in others]
    return [f"{one.name}={one.version}" for one in new]


def _undisturbed(
    host: Host, wanted: Sequence[str], folder: Path, env: Mapping[str, str]
) -> tuple[list[apt.Change], set[str]]:
    """What apt would do were nothing half done, and the names of what is. Raises GB20x."""
    status = folder / "status"
    settings = {"Dir::State::status": status, "Dir::Log": folder, "Debug::NoLocking": "true"}
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    begun: set[str] = set()
    while True:
        sound, begun = _parted(host.read(STATUS) or "", begun)
        status.write_text(sound, encoding="utf-8")
        try:
            return apt.changes(host, wanted, options, env), begun
        except GpubootError as error:
            # Of two that need each other dpkg configures one first: without the other it is no
            # better than half done.
            more = set(_UNMET.findall(error.evidence)) - begun
            if error.code is not apt.INSTALL_FAILED or not more:
                raise
            begun |= more


_UNMET = re.compile(r"^ (\S+?)(?::\S+)? : (?:Pre-?)?Depends: ", re.MULTILINE)


def _parted(status: str, begun: set[str]) -> tuple[str, set[str]]:
    """dpkg's status without the packages that are half done, and their names.

    Those in `begun` count as half done, whatever dpkg says.
    """
    sound, names = [], set(begun)
    for stanza in re.split(r"\n\n+", status.strip()):
        name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        whole = re.search(rf"^Status: .* ({'|'.join(SOUND)})$", stanza, re.MULTILINE)
        if whole and name and name[1] not in begun:
            sound.append(stanza)
        elif name:
            names.add(name[1])
    return "\n\n".join([*sound, ""]), names
