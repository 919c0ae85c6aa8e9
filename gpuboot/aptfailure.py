"""What a failed apt or dpkg means: one table from its texts to a code, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from gpuboot.aptsources import FILE
from gpuboot.errors import Code, GpubootError
from gpuboot.host import WRITE_FAILED

if TYPE_CHECKING:
    from gpuboot.process import Result


LOCKED = Code(
    "GB201",
    "another program holds apt's or dpkg's lock",
    (
        "apt-daily, unattended-upgrades, cloud-init or somebody's apt runs longer than we wait.",
        "An apt of somebody's asks a question and waits for the answer.",
    ),
    ("gpuboot status", "systemctl list-units 'apt-*' unattended-upgrades.service",
     "lslocks -o COMMAND,PID,PATH"),
 evidence='who holds the lock, by the process that has it',)  # fmt: skip
SOURCE_FAILED = Code(
    "GB202",
    "a package source cannot be reached",
    (
        "The archive or its mirror does not answer, or turns this node away.",
        "A portal or firewall answers in its place.",
        "A proxy is needed for it (key proxy).",
    ),
    ("apt-get update", f"cat {FILE}"),
    evidence="what apt-get update says of the source",
)
SIGNATURE_REFUSED = Code(
    "GB203",
    "a package source's signature is refused",
    (
        "The index was changed after it was signed: by a proxy, or by somebody in between.",
        "The source is not signed at all.",
    ),
    ("apt-get update", f"cat {FILE}", "gpuboot config show"),
    evidence="what apt-get update says of the signature",
)
NO_PACKAGE = Code(
    "GB204",
    "a package is not to be had",
    (
        "The source it comes from lacks a component or suite.",
        "The archive no longer has headers for the running kernel: boot the newest kernel.",
    ),
    ("apt-cache policy PACKAGE", "apt-get install linux-image-amd64", "gpuboot config show"),
    evidence="what apt-get says of the package",
)
INSTALL_FAILED = Code(
    "GB205",
    "packages could not be installed",
    (
        "A maintainer script failed; its last lines are shown as evidence.",
        "Held or pinned packages stand in the way.",
    ),
    ("apt-get -f install", "apt-mark showhold", "journalctl -u gpuboot -n 80"),
    evidence="the last lines of apt-get and dpkg",
)
DISK_FULL = Code(
    "GB206",
    "the disk is full",
    ("Driver, headers and module need about 3 GB of free space.",),
    ("df -h / /var", "apt-get clean", "journalctl --vacuum-size=100M"),
    evidence="what apt-get and dpkg say, and the free bytes",
)
STALE_LISTS = Code(
    "GB207",
    "a package source changed while it was read",
    (
        "The mirror is being brought up to date at this moment.",
        "A proxy between this node and the mirror hands out old copies, or damaged ones.",
    ),
    ("apt-get -o Acquire::http::No-Cache=true update", "gpuboot run", "apt-config dump Acquire"),
    evidence="the checksums that apt-get update found and those it expected",
)
KEY_UNKNOWN = Code(
    "GB208",
    "a package source is signed with a key that is not trusted for it",
    (
        "The key configured under sources is not the one the archive is signed with.",
        "The archive's owner has changed the key: check the new one's fingerprint.",
    ),
    (f"cat {FILE}", "gpg --show-keys KEYFILE", "gpuboot config show"),
    evidence="the key ids in what apt-get update says",
)
KEY_EXPIRED = Code(
    "GB209",
    "the key of a package source has expired",
    (
        "The owner has prolonged the key, and this node has the old copy of it.",
        "The node's clock is ahead.",
    ),
    ("timedatectl", "gpg --show-keys KEYFILE", f"cat {FILE}"),
    evidence="the key's date of expiry",
)
TOO_WEAK = Code(
    "GB213",
    "a package source is signed in a way that counts no more",
    (
        "Signature or key rest on SHA-1, which this Debian refuses.",
        "The index has no SHA-256 sums.",
    ),
    ("apt-get update", "gpg --show-keys KEYFILE", "gpuboot config show"),
    evidence="what apt-get update says of the signature or the index",
)
RELEASE_EXPIRED = Code(
    "GB214",
    "a package source's index is out of date",
    (
        "The mirror is not brought up to date any more.",
        "A proxy between this node and the mirror hands out an old copy.",
        "The node's clock is ahead.",
    ),
    ("timedatectl", "apt-get -o Acquire::http::No-Cache=true update", f"cat {FILE}"),
    evidence="the index's Valid-Until date, beside this node's clock",
)
CLOCK_BEHIND = Code(
    "GB215",
    "a package source was signed at a time to come",
    ("The node's clock is behind: no time service has set it yet.",
     "The clock of the machine that signs the archive is ahead."),
    ("timedatectl", "gpuboot run"),
 evidence="the index's date, beside this node's clock",)  # fmt: skip
UNREADABLE = Code(
    "GB216",
    "apt cannot read its list of sources",
    (
        "A line or stanza in the file that is named is wrong.",
        "Two entries name the same source with different keys.",
    ),
    ("apt-get update", "ls -l /etc/apt/sources.list /etc/apt/sources.list.d"),
    evidence="the line that apt names",
)
NO_SUCH_SOURCE = Code(
    "GB219",
    "there is no package source at the address that is configured",
    ("The address or the release's name is wrong, or the mirror does not carry this release.",),
    (f"cat {FILE}", "gpuboot config show"),
    evidence="what the server answers to the index's address",
)
STRANGER_BROKEN = Code(
    "GB218",
    "a package that is not gpuboot's is broken",
    (
        "Its own configuration script fails, whoever runs it.",
        "Its installation was cut off, and no source has it any more.",
    ),
    ("dpkg --audit", "dpkg --configure -a", "journalctl -u gpuboot -n 80"),
    evidence="the states that dpkg --audit tells, and the script's last lines",
)


class Cause(NamedTuple):
    """What apt says, what that means, what to do ({key}), and whether another try can help."""

    said: re.Pattern[str]
    code: Code
    hint: str | None = None
    retry: bool = True


CLOCK_HINT = "timedatectl (the node's clock is behind: set it, then: gpuboot run)"
_AHEAD = "timedatectl (if the clock is right: {0})"

# The first line that fits decides. All texts are recorded: tests/data/apt-errors.md.
CAUSES = (
    Cause(re.compile(r"No space left on device|have enough free space"), DISK_FULL),
    # It fails to fetch, or has no lock, only because it cannot write.
    Cause(re.compile(r"Read-only file system"), WRITE_FAILED),
    Cause(re.compile(r"Could not get lock|(?:is|was) locked by|Unable to acquire"
                     r"|Unable to lock the administration directory"), LOCKED),
    Cause(re.compile(r"Malformed entry|Type '.*' is not known on line|Unable to parse package file"
                     r"|Conflicting values set for option|list of sources could not be read"),
          UNREADABLE),
    Cause(re.compile(r"The package (?P<name>\S+) needs to be reinstalled"), STRANGER_BROKEN,
          "dpkg --remove --force-remove-reinstreq {name} (or give apt a source that has it)"),
    # apt calls what it may not read, or what a portal answers instead, "not signed".
    Cause(re.compile(r"Failed to fetch \S+ +(?:40[137]|5\d\d) |network require authentication"),
          SOURCE_FAILED),
    # sqv is what verifies on Debian 13, gpgv what did before.
    Cause(re.compile(r"not valid yet|Not live until"), CLOCK_BEHIND, CLOCK_HINT),
    Cause(re.compile(r"EXPKEYSIG|Expired on"), KEY_EXPIRED,
          _AHEAD.format("a newer copy of key {key} belongs into the file that Signed-By names")),
    Cause(re.compile(r"SHA1 is not considered secure|weak security information"
                     r"|signatures were invalid: [0-9A-F]{40}$", re.MULTILINE), TOO_WEAK,
          "the source's owner has to sign anew, with SHA-256 or better; until then use a mirror"
          " that does (gpuboot config schema: sources)"),
    Cause(re.compile(r'Failed to parse keyring "(?P<name>[^"]+)"'), KEY_UNKNOWN,
          "ls -l {name} (the key file that Signed-By names cannot be read)"),
    Cause(re.compile(r"NO_PUBKEY|Missing key"), KEY_UNKNOWN,
          "if key {key} is the owner's, put it into the file that Signed-By names, or configure"
          " its fingerprint (gpuboot config schema: sources)"),
    Cause(re.compile(r"Release file .* expired"), RELEASE_EXPIRED,
          _AHEAD.format("the mirror, or a proxy before it, is stale: use another one")),
    Cause(re.compile(r"sqv returned an error|BADSIG|is not signed"
                     r"|signatures? (?:couldn't|were|was)"), SIGNATURE_REFUSED),
    Cause(re.compile(r"Hash Sum mismatch|File has unexpected size|Failed to fetch \S+ +404 "),
          STALE_LISTS),
    Cause(re.compile(r"(?:does not have|no longer has) a Release file"), NO_SUCH_SOURCE),
    Cause(re.compile(r"Unable to locate package|has no installation candidate|was not found"
                     r"|Can't find a source to download"),
          NO_PACKAGE, retry=False),
    Cause(re.compile(r"Failed to fetch|Could not resolve|Connection (?:failed|refused|timed out)"
                     r"|Unable to fetch|Unable to connect"), SOURCE_FAILED),
)  # fmt: skip

# Lines that tell of no failure: it waited and got the lock; two of our sources have one index.
_NOISE = re.compile(r"^(?:Waiting for cache lock|W: Target \S+ .* configured multiple times).*\n?",
                    re.MULTILINE)  # fmt: skip
# A line that tells of one, with what is indented below it; sums are for nobody's eyes.
_TOLD = re.compile(r"^(?:(?:E|Err|W|Error|dpkg)\b|The following packages have unmet)"
                   r".*(?:\n[ \t].*)*", re.MULTILINE)  # fmt: skip
_SUMS = re.compile(r"^ +(?:- \w+:|Hashes of|Last modification|Release file created).*\n?",
                   re.MULTILINE)  # fmt: skip
_KEY = re.compile(r"(?:NO_PUBKEY|EXPKEYSIG|BADSIG|Missing key|Signing key on|invalid:)"
                  r" ([0-9A-F]{16,})")  # fmt: skip
_FAILED = re.compile(r"dpkg: error processing (?:package|archive) (\S+) \(--(\w+)\)")


def failure(result: Result) -> GpubootError:
    """What a failed apt-get or dpkg means; its error lines are the evidence."""
    text = _NOISE.sub("", f"{result.out}\n{result.err}")
    lines = _SUMS.sub("", "\n".join(_TOLD.findall(text)) + "\n").splitlines()
    evidence = "\n".join(lines[-12:]) or text.strip()[-1500:]
    for cause in CAUSES:
        if match := cause.said.search(text):
            # The same is often said twice, and only the line that is marked names the source.
            marked = [line for line in lines if not line.startswith((" ", "\t", "Err"))]
            found = (line for line in (*marked, *text.splitlines()) if match[0] in line)
            message = " ".join(next(found, match[0]).split())
            return GpubootError(cause.code, message, hint=_hint(cause, match, text),
                                evidence=evidence, retry=cause.retry)  # fmt: skip
    return GpubootError(INSTALL_FAILED, _untold(result, text), evidence=evidence, retry=True)


def _hint(cause: Cause, match: re.Match[str], text: str) -> str | None:
    key = _KEY.search(text)
    words = {"key": key[1] if key else "it", **match.groupdict()}
    return cause.hint.format(**words) if cause.hint else None


def _untold(result: Result, text: str) -> str:
    """The message where no cause is known: at least which packages failed."""
    if failed := dict.fromkeys(_FAILED.findall(text)):
        named = ", ".join(name.rpartition("/")[2] for name, _ in failed)
        return f"dpkg failed to {next(iter(failed))[1]} {named}"
    how = f"was killed by signal {-result.code}" if result.code < 0 else "failed"
    return f"apt-get {how}"
