"""The few apt and dpkg verbs we need, and what their failures mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gpuboot.errors import Code, GpubootError
from gpuboot.host import WRITE_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from gpuboot.host import Host, Result

LOCKED = Code(
    "GB201",
    "another program holds apt's or dpkg's lock",
    ("unattended-upgrades, cloud-init or somebody's apt runs longer than we wait.",),
    ("fuser -v /var/lib/dpkg/lock-frontend /var/lib/apt/lists/lock", "gpuboot status"),
)
SOURCE_FAILED = Code(
    "GB202",
    "a package source cannot be read",
    (
        "The archive or its mirror does not answer, or has moved.",
        "A proxy is needed for it (key proxy).",
    ),
    ("apt-get update", "cat /etc/apt/sources.list.d/gpuboot-*.sources"),
)
SIGNATURE_REFUSED = Code(
    "GB203",
    "a package source's signature is refused",
    (
        "The key configured under sources is not the one the archive is signed with.",
        "The archive's signature has expired, or the node's clock is wrong.",
    ),
    ("apt-get update", "timedatectl", "gpuboot config show"),
)
NO_PACKAGE = Code(
    "GB204",
    "a package is not to be had",
    (
        "The source it comes from lacks a component or suite.",
        "The archive no longer has headers for the running kernel: boot the newest kernel.",
    ),
    ("apt-cache policy PACKAGE", "apt-get install linux-image-amd64", "gpuboot config show"),
)
INSTALL_FAILED = Code(
    "GB205",
    "packages could not be installed",
    (
        "A maintainer script failed; its last lines are shown as evidence.",
        "Held or pinned packages stand in the way.",
    ),
    ("apt-get -f install", "apt-mark showhold", "journalctl -u gpuboot -n 80"),
)
DISK_FULL = Code(
    "GB206",
    "the disk is full",
    ("Driver, headers and module need about 3 GB of free space.",),
    ("df -h / /var", "apt-get clean"),
)

LISTS = "/var/lib/apt/lists"
FRESH = 300.0  # seconds for which what the sources said is good enough
LOCK_WAIT = 600  # seconds; unattended-upgrades at first boot can take minutes
# needrestart would restart services, rke2-agent among them, and asks questions.
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
INSTALL = (
    "--no-install-recommends", "--allow-change-held-packages", "--allow-downgrades", "install",
)  # fmt: skip
CONFOLD = ("-o", "Dpkg::Options::=--force-confold")  # ask nothing, keep the node's own files
OPTIONS = (
    "-q",
    "-o", f"DPkg::Lock::Timeout={LOCK_WAIT}",
    "-o", "Dpkg::Use-Pty=0",
    "-o", "Acquire::Retries=3",
    "-o", "Acquire::http::Timeout=30",
    "-o", "Acquire::https::Timeout=30",
)  # fmt: skip


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
    """Keep apt from changing these packages."""
    host.must(["apt-mark", "hold", *sorted(names)], env=QUIET)


def fix_broken(host: Host, packages: Sequence[str], env: Mapping[str, str]) -> None:
    """Mend what dpkg has left; with packages just so, else as apt sees fit. Raises GB20x.

    What is new is marked as brought along, not as asked for: before dpkg begins, so that a power
    cut cannot lose it.
    """
    _apt(host, ["--fix-broken", "--mark-auto", *CONFOLD, *INSTALL, *packages], env)


def download(host: Host, packages: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
    """Fetch and verify the packages' archives into a folder of root's own. Raises GB20x."""
    options = [*OPTIONS, "-o", "APT::Sandbox::User=root"]
    argv = ["env", f"--chdir={folder}", "apt-get", *options, "download", *packages]
    result = host.run(argv, timeout=3600, env={**QUIET, **env})
    if result.code != 0:
        raise failure(result)


def update(host: Host, env: Mapping[str, str], options: Sequence[str] = ()) -> None:
    """Read all package sources anew; any that fails is an error (GB201, GB202, GB203)."""
    _apt(host, [*options, "-o", "APT::Update::Error-Mode=any", "update"], env)


def refresh(host: Host, env: Mapping[str, str]) -> None:
    """Read all package sources anew, unless that was just done: two steps of a walk want it."""
    if not fresh(host):
        update(host, env)
        host.memory[LISTS] = host.clock.boottime()


def fresh(host: Host) -> bool:
    """Whether this process has read all package sources just now."""
    read = host.memory.get(LISTS)
    return isinstance(read, float) and host.clock.boottime() - read < FRESH


def candidates(host: Host, names: Sequence[str], options: Sequence[str] = ()) -> dict[str, str]:
    """The version apt would install, for those of the packages that have one."""
    text = host.must(["apt-cache", *options, "policy", *names])
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        name, _, rest = block.partition(":\n")
        match = re.search(r"^  Candidate: (\S+)$", rest, re.MULTILINE)
        if match and match[1] != "(none)":
            found[name.strip()] = match[1]
    return found


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
        if result.code != 0:
            raise failure(result)
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


def _action(host: Host, before: str, version: str) -> str:
    if not before:
        return "install"
    lower = host.run(["dpkg", "--compare-versions", version, "lt", before]).code == 0
    return "downgrade" if lower else "upgrade"


def install(host: Host, packages: Sequence[str], env: Mapping[str, str]) -> None:
    """Install all of them in one transaction, `name` or `name=version`. Raises GB20x."""
    _apt(host, [*CONFOLD, *INSTALL, *packages], env)


def _apt(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> None:
    # Never stopped by us: a killed dpkg leaves the node worse than a slow one.
    result = host.run(
        ["apt-get", "--yes", *OPTIONS, *argv], timeout=3600, env={**QUIET, **env}, patient=True
    )
    if result.code != 0:
        raise failure(result)


# What apt says, and what that means: the first line that fits decides.
_CAUSES = (
    (re.compile(r"No space left on device|have enough free space"), DISK_FULL, True),
    # It fails to fetch, or has no lock, only because it cannot write.
    (re.compile(r"Read-only file system"), WRITE_FAILED, True),
    # sqv is what verifies on Debian 13, gpgv what did before.
    (re.compile(r"sqv returned an error|NO_PUBKEY|EXPKEYSIG|BADSIG|is not signed"
                r"|signatures? (?:couldn't|were|was)|not valid yet|Release file .* expired"
                r"|weak security information"),
     SIGNATURE_REFUSED, True),
    (re.compile(r"Could not get lock|(?:is|was) locked by|Unable to acquire"), LOCKED, True),
    (re.compile(r"Unable to locate package|has no installation candidate|was not found"),
     NO_PACKAGE, False),
    (re.compile(r"Failed to fetch|Could not resolve|Connection (?:failed|refused|timed out)"
                r"|Unable to fetch|does not have a Release file|Unable to connect"),
     SOURCE_FAILED, True),
)  # fmt: skip


# Lines that tell of no failure: it waited and got the lock; two of our sources have one index.
_NOISE = re.compile(r"^(?:Waiting for cache lock|W: Target \S+ .* configured multiple times).*\n?",
                    re.MULTILINE)  # fmt: skip
# A line that tells of one, with what is indented below it.
_TOLD = re.compile(r"^(?:(?:E|Err|W|Error|dpkg)\b|The following packages have unmet)"
                   r".*(?:\n[ \t].*)*", re.MULTILINE)  # fmt: skip


# The archive's signature seems to come from the future.
_NOT_YET = re.compile(r"not valid yet|Not live until")
CLOCK_HINT = "timedatectl (the node's clock is behind: set it, then: gpuboot run)"


def failure(result: Result) -> GpubootError:
    """What a failed apt-get means; its error lines are the evidence."""
    text = _NOISE.sub("", f"{result.out}\n{result.err}")
    lines = "\n".join(_TOLD.findall(text)).splitlines()
    evidence = "\n".join(lines[-12:]) or text.strip()[-1500:]
    for pattern, code, retry in _CAUSES:
        if match := pattern.search(text):
            # The same is often said twice, and only the line that is marked names the source.
            marked = [line for line in lines if not line.startswith((" ", "\t", "Err"))]
            found = (line for line in (*marked, *text.splitlines()) if match[0] in line)
            message = " ".join(next(found, match[0]).split())
            hint = CLOCK_HINT if _NOT_YET.search(text) else None
            return GpubootError(code, message, hint=hint, evidence=evidence, retry=retry)
    how = f"was killed by signal {-result.code}" if result.code < 0 else "failed"
    return GpubootError(INSTALL_FAILED, f"apt-get {how}", evidence=evidence, retry=True)
