"""RKE2's release: looked up, downloaded, verified, and unpacked piece by piece."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from gpuboot import web
from gpuboot.errors import Code, GpubootError
from gpuboot.kinds import RELEASE

if TYPE_CHECKING:
    from gpuboot.host import Host

TARBALL = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"
CACHE = "/var/cache/gpuboot"
PREFIX = "/usr/local"

NOT_FOUND = Code(
    "GB504",
    "the RKE2 release cannot be had",
    (
        "rke2.version does not exist, or the mirror under sources.rke2.url lacks it.",
        "The channel is unknown to the server under sources.rke2.channels.",
    ),
    ("gpuboot config show", "curl -I URL"),
)
UNVERIFIED = Code(
    "GB505",
    "the RKE2 release cannot be verified",
    ("Over plain http its checksum file proves nothing.",),
    ("gpuboot config schema", "sha256sum rke2.linux-amd64.tar.gz"),
)
DAMAGED = Code(
    "GB506",
    "the RKE2 release is not what a release looks like",
    ("The pinned checksum belongs to some other file.",),
    (f"tar tzf {TARBALL}",),
)


@dataclass(frozen=True)
class Release:
    """Which release to install, and from where: an address or a local folder."""

    version: str | None
    channel: str | None
    sha256: str | None
    url: str
    channels: str


def install(host: Host, want: Release) -> None:
    """Download, verify and unpack below /usr/local; the program last. Raises GB504-506, GB4xx."""
    version = want.version or lookup(host, want)
    tarball = f"{CACHE}/rke2-{version}.tar.gz"
    expected = want.sha256 or _published(host, want, version)
    if not host.exists(tarball) or _sha256(host, tarball) != expected:
        pieces = _pieces(host, want, version, TARBALL)
        host.write_stream(tarball, web.checked(pieces, expected, TARBALL))
    _unpack(host, tarball)


def available(host: Host, want: Release) -> None:
    """Look whether `install` would find all it needs; only reads. Raises GB504, GB505, GB4xx."""
    version = want.version or lookup(host, want)
    if not want.sha256:
        _published(host, want, version)
    next(iter(_pieces(host, want, version, TARBALL)), None)  # the first piece, no more


def lookup(host: Host, want: Release) -> str:
    """The release a channel stands for now: the server redirects to its name. Raises GB504."""
    address = f"{want.channels}/{want.channel}"
    answer = host.web.get(address)
    name = unquote(answer.headers.get("location", "").rstrip("/").rpartition("/")[2])
    if not re.fullmatch(RELEASE, name):
        raise GpubootError(
            NOT_FOUND, f"{address} answered {answer.status} and names no release", retry=True
        )
    return name


def _published(host: Host, want: Release, version: str) -> str:
    """The checksum in the release's own list, believed only over TLS or from a local folder."""
    if want.url.startswith("http:"):
        raise GpubootError(
            UNVERIFIED, f"{want.url} is plain http and rke2.sha256 is not set",
            hint="set rke2.sha256 to the tarball's SHA-256, or use https",
        )  # fmt: skip
    text = b"".join(_pieces(host, want, version, CHECKSUMS)).decode("utf-8", "replace")
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip().lstrip("*") == TARBALL and re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    raise GpubootError(NOT_FOUND, f"{CHECKSUMS} of {version} has no line for {TARBALL}")


def _pieces(host: Host, want: Release, version: str, name: str) -> Iterator[bytes]:
    if not want.url.startswith("/"):
        return host.web.pieces(f"{want.url}/{quote(version, safe='')}/{name}")
    for place in (f"{want.url}/{version}/{name}", f"{want.url}/{name}"):
        if host.exists(place):
            return _read(host, place)
    raise GpubootError(NOT_FOUND, f"{want.url} has no {name} of {version}")


def _read(host: Host, place: str) -> Iterator[bytes]:
    with host.path(place).open("rb") as file:
        yield from iter(lambda: file.read(web.CHUNK), b"")


def _sha256(host: Host, place: str) -> str:
    digest = hashlib.sha256()
    for piece in _read(host, place):
        digest.update(piece)
    return digest.hexdigest()


def _unpack(host: Host, tarball: str) -> None:
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
                name = f"{PREFIX}/{_inside(member.name)}"
                if member is members[-1]:
                    host.remove(tarball)
                content = archive.extractfile(member)
                # The operator's own settings live in the .env file: an old one stays.
                if content and not (name.endswith(".env") and host.exists(name)):
                    host.write_stream(name, _chunks(content), mode=member.mode & 0o755)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise GpubootError(DAMAGED, f"{tarball}: {error}") from error


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    yield from iter(lambda: file.read(web.CHUNK), b"")


def _inside(name: str) -> str:
    """The member's name if it stays below the prefix. Raises GB506."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or not name.isprintable():
        raise GpubootError(DAMAGED, f"{TARBALL} holds the name {name!r}")
    return "/".join(parts)
