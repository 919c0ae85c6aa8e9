"""dpkg after it was cut off: what it has left half done, and how that is ended."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpuboot import apt, aptlock
from gpuboot.aptfailure import INSTALL_FAILED, NO_PACKAGE, STRANGER_BROKEN
from gpuboot.aptsources import ONLY
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

STATUS = "/var/lib/dpkg/status"
SOUND = ("installed", "triggers-pending", "triggers-awaited", "config-files", "not-installed")
BROKEN_RECORDS = "dpkg's own records"


def interrupted(host: Host) -> bool:
    """Whether dpkg was cut off: packages half-installed or not configured."""
    return bool(host.run(["dpkg", "--audit"]).out.strip()) or any(
        name.isdigit() for name in host.names("/var/lib/dpkg/updates")
    )


def unsound(host: Host) -> dict[str, str]:
    """The packages that dpkg has left half done, with their states; none while it is at work."""
    if not interrupted(host) or aptlock.holder(host):
        return {}
    _, begun = _parted(host.read(STATUS) or "")
    return begun or {BROKEN_RECORDS: "interrupted"}


def mend(
    host: Host, wanted: Callable[[], Sequence[str]], env: Mapping[str, str], *, lacking: bool = True
) -> dict[str, str]:
    """End what an interrupted dpkg began; what is left are other people's, in states as they are.

    `wanted` resolves what we install. An archive is needed only where configuring is not enough,
    and not asked where ours lack nothing and what is left was tried and failed. Raises GB2xx.

    apt's own repair chooses other packages than an installation does (the first of several
    alternatives), so it is told what a sound node would get; it decides only what remains.
    """
    absent: list[str] = []
    begun: set[str] = set()
    configure(host, env)
    left = unsound(host)
    if not left or (not lacking and set(left.values()) == {"half-configured"}):
        return left
    apt.update(host, env)
    _unpack_again(host, env)
    names = wanted()
    with _scripts_may_fail():
        absent, begun = _absent(host, names, env)
        if absent:
            apt.fix_broken(host, absent, env)
    if interrupted(host) and (asked := [one for one in names if _name(one) not in begun]):
        # What is half done needs one of those that were asked for themselves.
        with _scripts_may_fail():
            apt.fix_broken(host, [*absent, *asked], env)
            apt.asked_for(host, map(_name, asked))
    if interrupted(host):
        with _scripts_may_fail():
            apt.fix_broken(host, (), env)
    left = unsound(host)
    ours = set(map(_name, names))
    if stuck := [name for name in left if name in ours or name == BROKEN_RECORDS]:
        raise GpubootError(
            INSTALL_FAILED, f"dpkg was interrupted, and {', '.join(stuck)} could not be mended",
            evidence=_audit(host), retry=True,
        )  # fmt: skip
    return left


def configure(host: Host, env: Mapping[str, str]) -> None:
    """Configure what is unpacked. Whether it has helped is looked at, not believed."""
    _dpkg(host, ["--configure", "--pending"], env)


def told(left: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each package of somebody else's that is broken and does not stop us."""
    return tuple(f"{name}, which is not ours, is {state}" for name, state in sorted(left.items()))


def _dpkg(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """What dpkg said, if it did not end well."""
    words = ["dpkg", "--force-confdef,confold", *argv]
    result = aptlock.run(host, words, {**apt.QUIET, **env})
    if result.code == 0:
        return ""
    log.info("dpkg %s: %s", argv[0], result.said)
    return result.said


def _audit(host: Host) -> str:
    return host.run(["dpkg", "--audit"]).out.strip()[-1500:]


@contextmanager
def _scripts_may_fail() -> Iterator[None]:
    """That a package's own script fails is no error yet: what is left is looked at later."""
    try:
        yield
    except GpubootError as error:
        if error.code is not INSTALL_FAILED:
            raise
        log.info("dpkg: %s\n%s", error.message, error.evidence)


def _unpack_again(host: Host, env: Mapping[str, str]) -> None:
    """The packages of which only a part was unpacked, as on a disk that was full.

    dpkg refuses to configure them, and apt takes them for unpacked. Raises GB2xx.
    """
    parts = _in_parts(host)
    if not parts:
        return
    with tempfile.TemporaryDirectory(prefix="gpuboot-dpkg-") as folder:
        for name in parts:
            _fetch(host, name, Path(folder), env)
        said = _dpkg(host, ["--unpack", "--recursive", folder], env)
    if left := _in_parts(host):
        raise GpubootError(
            INSTALL_FAILED, f"dpkg could not unpack {', '.join(left)} again",
            evidence=said or _audit(host), retry=True,
        )  # fmt: skip


def _in_parts(host: Host) -> list[str]:
    fields = "${db:Status-Eflag}\t${binary:Package}\n"
    result = host.run(["dpkg-query", "--show", "--showformat", fields])
    rows = [line.partition("\t") for line in result.out.splitlines()]
    return sorted(name for flag, _, name in rows if flag == "reinstreq")


def _fetch(host: Host, name: str, folder: Path, env: Mapping[str, str]) -> None:
    try:
        apt.download(host, name, folder, env)
    except GpubootError as error:
        if error.code is not NO_PACKAGE:
            raise
        # apt installs nothing at all as long as it is there.
        raise GpubootError(
            STRANGER_BROKEN, f"{name} is half installed, and no source has it any more",
            hint=f"dpkg --remove --force-remove-reinstreq {name}", evidence=_audit(host),
            retry=True,
        ) from error  # fmt: skip


def _name(package: str) -> str:
    return package.partition("=")[0]


def _absent(
    host: Host, wanted: Sequence[str], env: Mapping[str, str]
) -> tuple[list[str], set[str]]:
    """What would come along with the packages, were nothing half done, and has not begun to.

    And the names of what has begun.

    Each is name=version. What has begun is not named: apt would then hold it for asked for.
    """
    with tempfile.TemporaryDirectory(prefix="gpuboot-dpkg-") as folder:
        changes, begun = _undisturbed(host, wanted, Path(folder), env)
    others = begun.union(map(_name, wanted))
    new = [one for one in changes if one.action == "install" and one.name not in others]
    return [f"{one.name}={one.version}" for one in new], begun


def _undisturbed(
    host: Host, wanted: Sequence[str], folder: Path, env: Mapping[str, str]
) -> tuple[list[apt.Change], set[str]]:
    """What apt would do were nothing half done, and the names of what is. Raises GB2xx."""
    status = folder / "status"
    settings = {"Dir::State::status": status, "Dir::Log": folder, "Debug::NoLocking": "true"}
    options = [*ONLY]
    options += [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    begun: set[str] = set()
    while True:
        sound, half = _parted(host.read(STATUS) or "", begun)
        begun |= half.keys()
        status.write_text(sound, encoding="utf-8")
        try:
            return apt.changes(host, wanted, options, env), begun
        except GpubootError as error:
            # Of two that need each other dpkg configures one first: without the other it is no
            # better than half done.
            more = set(_UNMET.findall(error.evidence)) - begun
            if error.code is not INSTALL_FAILED or not more:
                raise
            begun |= more


_UNMET = re.compile(r"^ (\S+?)(?::\S+)? : (?:Pre-?)?Depends: ", re.MULTILINE)


def _parted(status: str, also: Collection[str] = ()) -> tuple[str, dict[str, str]]:
    """dpkg's status without the packages that are half done, and these with their states.

    Those in `also` count as half done, whatever dpkg says.
    """
    sound, begun = [], {}
    for stanza in re.split(r"\n\n+", status.strip()):
        name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        state = re.search(r"^Status: \S+ (\S+) (\S+)$", stanza, re.MULTILINE)
        if not name or not state:
            continue
        if state[2] in SOUND and state[1] != "reinstreq" and name[1] not in also:
            sound.append(stanza)
        else:
            begun[name[1]] = state[2]
    return "\n\n".join([*sound, ""]), begun
