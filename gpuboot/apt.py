"""The few apt and dpkg verbs we need. What apt reads are our sources alone, unless said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gpuboot import aptlock
from gpuboot.aptfailure import (
    DISK_FULL,
    LOCKED,
    NO_PACKAGE,
    STALE_LISTS,
    UNREADABLE,
    failure,
)
from gpuboot.aptsources import EVERYBODYS, ONLY, entry
from gpuboot.errors import GpubootError
from gpuboot.host import WRITE_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from gpuboot.host import Host
    from gpuboot.process import Result

log = logging.getLogger(__name__)

# Nothing asks: there is nobody to answer. needrestart would restart services, rke2-agent among
# them; its hooks of apt and dpkg obey the variable. apt-listchanges and apt-listbugs ask too.
# In front stands packaging/path/update-initramfs, for the time in which the initramfs is deferred.
PATH = "/usr/lib/gpuboot/path:/usr/sbin:/usr/bin:/sbin:/bin"
QUIET = {
    "PATH": PATH,
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "NEEDRESTART_SUSPEND": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
    "APT_LISTBUGS_FRONTEND": "none",
    "UCF_FORCE_CONFFOLD": "1",
}
LISTS = "/var/lib/apt/lists"
FRESH = 300.0  # seconds for which what the sources said is good enough
INSTALL = (
    "--no-install-recommends", "--allow-change-held-packages", "--allow-downgrades", "install",
)  # fmt: skip
# Ask nothing, keep the node's own files.
CONFOLD = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")
OPTIONS = (
    "-q",
    "-o", "DPkg::Lock::Timeout=10",  # aptlock waits; this is for who is quicker than it
    "-o", "Dpkg::Use-Pty=0",
    "-o", f"DPkg::Path={PATH}",
    "-o", "Acquire::Retries=3",
    "-o", "Acquire::http::Timeout=30",
    "-o", "Acquire::https::Timeout=30",
)  # fmt: skip
# For everybody's sources at once: a dead one that we do not need is not waited for. Ours are read
# once more then, with all patience.
HURRIED = (
    "-o", "Acquire::Retries=0",
    "-o", "Acquire::http::Timeout=5",
    "-o", "Acquire::https::Timeout=5",
)  # fmt: skip
STRICT = ("-o", "APT::Update::Error-Mode=any")
# As apt says that a transaction cannot be.
UNMET = re.compile("unmet dependencies|held broken packages|Unable to satisfy dependencies")
PAST_CACHES = ("-o", "Acquire::http::No-Cache=true", "-o", "Acquire::https::No-Cache=true")


def proxied(host: Host) -> bool:
    """Whether apt's own settings name a proxy, which nothing else on the node knows of."""
    dump = host.run(["apt-config", "dump", "Acquire"]).out
    form = r'^Acquire::https?::Proxy(?:-?Auto-?Detect)? "(?!DIRECT")[^"]'
    return bool(re.search(form, dump, re.MULTILINE | re.IGNORECASE))


def installed(host: Host, names: Sequence[str] = ()) -> dict[str, str]:
    """Those of the packages that are unpacked and configured, with their versions; all for none."""
    fields = "${Package}\t${db:Status-Status}\t${Version}\n"
    result = host.run(["dpkg-query", "--show", "--showformat", fields, *names])
    found = {}
    for line in result.out.splitlines():
        name, status, version = line.split("\t")
        if status == "installed":
            found[name] = version
    return found


def held(host: Host) -> set[str]:
    """The packages that apt may not change. Asks dpkg: apt-mark would renew apt's own cache."""
    fields = "${db:Status-Want}\t${Package}\n"
    listing = host.must(["dpkg-query", "--show", "--showformat", fields])
    return set(re.findall(r"^hold\t(\S+)$", listing, re.MULTILINE))


def hold(host: Host, names: Iterable[str]) -> None:
    """Keep apt from changing these packages. Raises GB201, GB205, GB206."""
    wanted = sorted(names)
    result = aptlock.run(host, ["apt-mark", "hold", *wanted], QUIET)
    if _hidden(result):
        result = aptlock.run(host, ["apt-mark", *ONLY, "hold", *wanted], QUIET)
    _done(host, result)


def asked_for(host: Host, names: Iterable[str]) -> None:
    """Mark packages as asked for, not as brought along. Raises GB201, GB205, GB206."""
    _done(host, aptlock.run(host, ["apt-mark", "manual", *sorted(names)], QUIET))


def fix_broken(host: Host, packages: Sequence[str], env: Mapping[str, str]) -> None:
    """Mend what dpkg has left; with packages just so, else as apt sees fit. Raises GB2xx.

    What is new is marked as brought along, not as asked for: before dpkg begins, so that a power
    cut cannot lose it. What was left may be anybody's, so all sources are read.
    """
    argv = ["--fix-broken", "--mark-auto", *CONFOLD, *INSTALL, *packages]
    result = _run(host, argv, env)
    _done(host, _run(host, [*ONLY, *argv], env) if _hidden(result) else result)


def download(host: Host, package: str, folder: Path, env: Mapping[str, str]) -> None:
    """Fetch and verify a package's archive into a folder of root's own. Raises GB2xx.

    From any source that has it: it may be anybody's.
    """
    options = [*OPTIONS, "-o", "APT::Sandbox::User=root"]

    def fetched(view: Sequence[str]) -> Result:
        argv = ["env", f"--chdir={folder}", "apt-get", *options, *view, "download", package]
        return host.run(argv, timeout=3600, env={**QUIET, **env})

    result = fetched(())
    _done(host, fetched(ONLY) if _hidden(result) else result)


def obtain(host: Host, wanted: Callable[[], Sequence[str]], env: Mapping[str, str]) -> None:
    """Read the sources and install what `wanted` then names. Raises GB2xx.

    Where the archive has changed in between, or an old copy of it was read, once more at once,
    past every cache.
    """
    for again in (False, True):
        try:
            refresh(host, env, anew=again)
            install(host, wanted(), env, fresh=again)
        except GpubootError as error:
            if again or error.code is not STALE_LISTS:
                raise
            log.info("apt: %s; once more, past every cache", error.message)
        else:
            return


def update(
    host: Host, env: Mapping[str, str], options: Sequence[str] = (), *, fresh: bool = False
) -> None:
    """Read all package sources anew; one of ours that fails is an error. Raises GB2xx.

    Of the others only the journal tells: they are none of our business. With options that set a
    state of apt's own only what they name is read, and no lock is waited for.
    """
    words = [*STRICT, *(PAST_CACHES if fresh else ()), "update"]
    if options:
        argv = ["apt-get", "--yes", *OPTIONS, *options, *words]
        _done(host, host.run(argv, timeout=3600, env={**QUIET, **env}, patient=True))
        return
    try:
        _apt(host, [*HURRIED, *words], env)
    except GpubootError as error:
        if error.code in (LOCKED, DISK_FULL, WRITE_FAILED):
            raise
        _apt(host, [*ONLY, *words], env)
        log.warning("apt: a source that is not needed is broken: %s; %s", error.message, error.hint)


@dataclass(frozen=True)
class Policy:
    """What apt knows of a package: versions with their sources, the newest first.

    `candidate` is the one it would install, `installed` the one that is.
    """

    installed: str | None
    candidate: str | None
    versions: Mapping[str, tuple[str, ...]]

    @property
    def offered(self) -> str | None:
        """The newest version that a source has; what is only installed is no source."""
        return next((version for version, places in self.versions.items() if places), None)


def policy(host: Host, names: Sequence[str], options: Sequence[str] = ()) -> dict[str, Policy]:
    """What apt knows of each package that it knows: by the lists that these options say.

    Without options by our sources', and of packages that ours lack by everybody's: a mirror may
    have less than what the node was made from, such as the headers of its kernel.
    """
    if options:
        result = host.run(["apt-cache", "policy", *options, *names])
        if _hidden(result):
            result = host.run(["apt-cache", "policy", *ONLY, *options, *names])
        _done(host, result)
        return _policies(result.out)
    found = _policies(host.must(["apt-cache", "policy", *ONLY, *names]))
    lacking = [name for name in names if name not in found or not found[name].candidate]
    if lacking:
        others = _policies(host.run(["apt-cache", "policy", *EVERYBODYS, *lacking]).out)
        found |= {name: one for name, one in others.items() if one.candidate}
    return found


def _policies(text: str) -> dict[str, Policy]:
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        name, _, rest = block.partition(":\n")
        installed, candidate = (re.search(rf"^  {word}: (\S+)$", rest, re.MULTILINE)
                                for word in ("Installed", "Candidate"))  # fmt: skip
        table = re.findall(r"^ (?:\*\*\*|   ) (\S+) .*((?:\n {7,}.*)*)", rest, re.MULTILINE)
        versions = {version: _places(lines) for version, lines in table}
        if name.strip():
            found[name.strip()] = Policy(_known(installed), _known(candidate), versions)
    return found


def _places(lines: str) -> tuple[str, ...]:
    """The sources in lines such as `500 http://deb/debian bookworm/main amd64 Packages`."""
    places = re.findall(r"^ +-?\d+ (\S.*)$", lines, re.MULTILINE)
    return tuple(place for place in places if not place.startswith("/var/lib/dpkg/"))


def _known(match: re.Match[str] | None) -> str | None:
    return match[1] if match and match[1] != "(none)" else None


def refresh(host: Host, env: Mapping[str, str], *, anew: bool = False) -> None:
    """Read all package sources anew, unless that was just done: two steps of a walk want it.

    With `anew` in any case, past every cache. Raises GB2xx.
    """
    if anew or not fresh(host):
        update(host, env, fresh=anew)
        host.memory[LISTS] = host.clock.boottime()


def fresh(host: Host) -> bool:
    """Whether this process has read all package sources just now."""
    read = host.memory.get(LISTS)
    return isinstance(read, float) and host.clock.boottime() - read < FRESH


def candidates(host: Host, names: Sequence[str], options: Sequence[str] = ()) -> dict[str, str]:
    """The version apt would install, for those of the packages that have one."""
    known = policy(host, names, options)
    return {name: one.candidate for name, one in known.items() if one.candidate}


@dataclass(frozen=True)
class Change:
    """What apt would do with a package: install, upgrade, downgrade or remove.

    `size` is what it would fetch, in bytes; `before` the version that is installed now.
    """

    name: str
    action: str
    version: str | None
    before: str | None
    size: int


def changes(
    host: Host, packages: Sequence[str], options: Sequence[str], env: Mapping[str, str]
) -> list[Change]:
    """What installing the packages would do, in apt's order, dependencies too. Raises GB20x."""
    argv = ["apt-get", "--yes", *OPTIONS, *options]
    said = []
    for way in ("--simulate", "--print-uris"):
        result = host.run([*argv, way, *INSTALL, *packages], timeout=120, env={**QUIET, **env})
        _done(host, result)
        said.append(result.out)
    # 'URI' name_version_architecture.deb size hash; the version's colon is written %3a.
    lines = re.findall(r"^'[^']*' ([^_\s]+)_([^_\s]+)_\S+\.deb (\d+) ", said[1], re.MULTILINE)
    sizes = {(name, unquote(version)): int(size) for name, version, size in lines}
    found = []
    # Inst NAME [BEFORE] (VERSION SOURCE [ARCHITECTURE]) and Remv NAME [BEFORE]
    form = re.compile(r"^(Inst|Remv) ([^\s:]+)\S*(?: \[([^]]+)\])?(?: \((\S+) )?", re.MULTILINE)
    for verb, name, before, version in form.findall(said[0]):
        action = "remove" if verb == "Remv" else _action(host, before, version)
        size = sizes.get((name, version), 0)
        found.append(Change(name, action, version or None, before or None, size))
    return found


def possible(host: Host, packages: Sequence[str], options: Sequence[str] = ()) -> bool:
    """Whether these could be installed together, by apt's lists of these options, else ours."""
    argv = ["apt-get", "--yes", *OPTIONS, *(options or ONLY), "--simulate", *INSTALL, *packages]
    return host.run(argv, timeout=120, env=QUIET).code == 0


def _action(host: Host, before: str, version: str) -> str:
    if not before:
        return "install"
    lower = host.run(["dpkg", "--compare-versions", version, "lt", before]).code == 0
    return "downgrade" if lower else "upgrade"


def install(
    host: Host, packages: Sequence[str], env: Mapping[str, str], *, fresh: bool = False
) -> None:
    """Install all of them in one transaction, `name` or `name=version`. Raises GB2xx.

    From our sources; where these do not suffice, each package that they have just so, and only what
    they lack from anybody's.
    """
    argv = [*(PAST_CACHES if fresh else ()), *CONFOLD, *INSTALL]
    try:
        _apt(host, [*ONLY, *argv, *packages], env)
    except GpubootError as error:
        if error.code is not NO_PACKAGE and not UNMET.search(error.evidence):
            raise
        log.info("apt: our sources do not suffice: %s", error.message)
        result = _run(host, [*argv, *_pinned(host, packages)], env)
        if _hidden(result):
            raise
        _done(host, result)


def _pinned(host: Host, packages: Sequence[str]) -> list[str]:
    """The packages with the versions that our sources have."""
    names = [package for package in packages if "=" not in package]
    known = policy(host, names, ONLY)
    offered = {name: one.offered for name, one in known.items()}
    return [f"{one}={offered[one]}" if offered.get(one) else one for one in packages]


def _apt(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> None:
    _done(host, _run(host, argv, env))


def _run(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> Result:
    # Never stopped by us: a killed dpkg leaves the node worse than a slow one.
    return aptlock.run(host, ["apt-get", "--yes", *OPTIONS, *argv], {**QUIET, **env})


def _hidden(result: Result) -> bool:
    """Whether somebody's broken source file has kept apt from reading any: ours will do."""
    return result.code != 0 and failure(result).code is UNREADABLE


def _done(host: Host, result: Result) -> None:
    """Raises what a failure means, with the entry of the source that is to blame."""
    if result.code == 0:
        return
    error = failure(result)
    if ":/" in error.message and (place := entry(host, error.message)):
        error = GpubootError(error.code, f"{error.message} ({place})", hint=error.hint,
                             evidence=error.evidence, retry=error.retry)  # fmt: skip
    raise error
