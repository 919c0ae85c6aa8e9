"""RKE2's release: looked up, downloaded, verified, and unpacked piece by piece."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin, urlsplit

from gpuboot import web
from gpuboot.errors import Code, GpubootError
from gpuboot.kinds import RELEASE

if TYPE_CHECKING:
    from gpuboot.host import Host

TARBALL = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"
CACHE = "/var/cache/gpuboot"
PREFIX = "/usr/local"  # what the tarball's own units and scripts say
UNITS = "/etc/systemd/system"  # where they go if RKE2 is somewhere else (rke2 install.sh)
HOPS = 5  # from a channel's address to the release it stands for

NOT_FOUND = Code(
    "GB504",
    "the RKE2 release cannot be had",
    (
        "rke2.version does not exist, or the mirror under sources.rke2.url lacks it.",
        "rke2.images names an archive that the release, the mirror or the folder does not have.",
        "The channel is unknown to the server under sources.rke2.channels.",
    ),
    ("gpuboot config show", "curl -I URL"),
    evidence="the server's or the folder's answer to the file's name",
)
UNVERIFIED = Code(
    "GB505",
    "the RKE2 release cannot be verified",
    ("Over plain http its checksum file proves nothing.",),
    ("gpuboot config schema", "sha256sum rke2.linux-amd64.tar.gz"),
    evidence="the address of the source, and what pins there are",
)
DAMAGED = Code(
    "GB506",
    "the RKE2 release is not what a release looks like",
    ("The pinned checksum belongs to some other file.",),
    (f"tar tzf {TARBALL}",),
    evidence="the names in the archive",
)


@dataclass(frozen=True)
class Release:
    """Which release to install, and from where: an address or a local folder."""

    version: str | None
    channel: str | None
    sha256: str | None
    url: str
    channels: str

    @property
    def local(self) -> bool:
        """Whether it lies in a folder of this machine."""
        return self.url.startswith("/")


def install(host: Host, want: Release, prefix: str = PREFIX) -> None:
    """Download, verify and unpack below `prefix`; the program last. Raises GB504-506, GB4xx."""
    _unpack(host, fetch(host, want), prefix)


def fetch(host: Host, want: Release) -> str:
    """Have the release's tarball here, verified; its name. Raises GB504, GB505, GB4xx, Stopped."""
    version = want.version or lookup(host, want)
    tarball = f"{CACHE}/rke2-{version}.tar.gz"
    with host.fetching():
        expected = want.sha256 or checksum(checksums(host, want, version), TARBALL, version)
        if not host.exists(tarball) or sha256(host, tarball) != expected:
            found = pieces(host, want, version, TARBALL)
            host.write_stream(tarball, web.checked(found, expected, TARBALL))
    return tarball


def available(host: Host, want: Release, version: str, names: Sequence[str]) -> None:
    """Look whether these files of a release can be had and verified; only reads.

    Raises GB504, GB505, GB4xx.
    """
    listed = [name for name in names if name != TARBALL or not want.sha256]
    published = checksums(host, want, version) if listed else {}
    for name in listed:
        checksum(published, name, version)
    for name in names:
        next(iter(pieces(host, want, version, name)), None)  # the first piece, no more


def lookup(host: Host, want: Release) -> str:
    """The release a channel stands for now: the server redirects to its name. Raises GB504.

    The release's own page is not asked for: it is at a third party's, and its name says all.
    """
    # Messages tell this address alone: one that it leads to may hold a signature or a password.
    channel = address = f"{want.channels}/{want.channel}"
    for _ in range(HOPS):
        answer = host.web.get(address)
        try:
            target = urljoin(address, answer.headers.get("location", address))
            name = unquote(urlsplit(target).path.rstrip("/").rpartition("/")[2])
        except ValueError:  # an address that cannot be taken apart
            target, name = address, ""
        if not 300 <= answer.status < 400 or target == address:
            said = f"{channel} answered {answer.status} and names no release"
            if answer.status == 404:
                said = f"{channel} answered 404: there seems to be no such channel"
            raise GpubootError(NOT_FOUND, said, hint=f"curl -I {channel}", retry=True)
        if address.startswith("https:") and not target.startswith("https:"):
            said = f"{channel} leads to an address without TLS"
            raise GpubootError(NOT_FOUND, said, hint=f"curl -I {channel}", retry=True)
        if re.fullmatch(RELEASE, name):
            return name
        address = target
    raise GpubootError(NOT_FOUND, f"{channel} leads on and on to no release", retry=True)


def checksums(host: Host, want: Release, version: str) -> Mapping[str, str]:
    """The release's own list, file name to SHA-256, believed only over TLS or from a folder.

    Raises GB504, GB505, GB4xx.
    """
    if want.url.startswith("http:"):
        raise GpubootError(
            UNVERIFIED, f"{want.url} is plain http and rke2.sha256 is not set",
            hint="set rke2.sha256 to the tarball's SHA-256, or use https",
        )  # fmt: skip
    text = b"".join(pieces(host, want, version, CHECKSUMS)).decode("utf-8", "replace")
    lines = [line.partition(" ") for line in text.splitlines()]
    return {
        name.strip().lstrip("*"): digest
        for digest, _, name in lines
        if re.fullmatch(r"[0-9a-f]{64}", digest)
    }


def checksum(published: Mapping[str, str], name: str, version: str) -> str:
    """The SHA-256 of one file of a release. Raises GB504 if its list does not have it."""
    if name not in published:
        raise GpubootError(NOT_FOUND, f"{CHECKSUMS} of {version} has no line for {name}")
    return published[name]


def pieces(host: Host, want: Release, version: str, name: str) -> Iterator[bytes]:
    """A file of a release, piece by piece and not verified. Raises GB504, GB4xx."""
    if not want.local:
        return host.web.pieces(f"{want.url}/{quote(version, safe='')}/{name}")
    for place in (f"{want.url}/{version}/{name}", f"{want.url}/{name}"):
        if host.exists(place):
            return _read(host, place)
    raise GpubootError(  # the folder may be a mount that is not there yet
        NOT_FOUND, f"{want.url} has no {name} of {version}", hint=f"ls {want.url}", retry=True
    )


def _read(host: Host, place: str) -> Iterator[bytes]:
    with host.path(place).open("rb") as file:
        yield from iter(lambda: file.read(web.CHUNK), b"")


def sha256(host: Host, place: str) -> str:
    """The SHA-256 of a file on this machine, hex."""
    digest = hashlib.sha256()
    for piece in _read(host, place):
        digest.update(piece)
    return digest.hexdigest()


def _unpack(host: Host, tarball: str, prefix: str) -> None:
    """Each file by a rename of its own; bin/rke2 comes last, so that it proves the rest.

    The tarball goes before it, still open: nothing would remove it after a power cut then.
    """
    try:
        with tarfile.open(host.path(tarball), "r:gz") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            if sparse := next((member for member in members if member.issparse()), None):
                # A few bytes of it may stand for more than the disk holds.
                raise GpubootError(DAMAGED, f"{TARBALL} holds the sparse file {sparse.name!r}")
            members.sort(key=lambda member: member.name.endswith("bin/rke2"))
            for member in members:
                inside = _inside(member.name)
                name = _place(inside, prefix)
                if member is members[-1]:
                    host.remove(tarball)
                content = archive.extractfile(member)
                # The operator's own settings live in the .env file: an old one stays.
                if not content or (name.endswith(".env") and host.exists(name)):
                    continue
                moved = prefix != PREFIX and inside.endswith((".service", "rke2-uninstall.sh"))
                chunks = _moved(content, prefix) if moved else _chunks(content)
                host.write_stream(name, chunks, mode=member.mode & 0o755)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise GpubootError(DAMAGED, f"{tarball}: {error}") from error


def _place(inside: str, prefix: str) -> str:
    """Where a file of the tarball goes: systemd looks for no unit below any other prefix."""
    if prefix != PREFIX and inside.endswith(".service"):
        return f"{UNITS}/{inside.rpartition('/')[2]}"
    return f"{prefix}/{inside}"


def _moved(file: IO[bytes], prefix: str) -> Iterator[bytes]:
    """A unit or script of the tarball that speaks of `prefix`, as rke2's install.sh has it."""
    yield file.read().replace(PREFIX.encode(), prefix.encode())


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    yield from iter(lambda: file.read(web.CHUNK), b"")


def _inside(name: str) -> str:
    """The member's name if it stays below the prefix. Raises GB506."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or not name.isprintable():
        raise GpubootError(DAMAGED, f"{TARBALL} holds the name {name!r}")
    return "/".join(parts)
