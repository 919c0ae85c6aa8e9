"""The download servers: a package archive, RKE2's releases and its release channels."""

from __future__ import annotations

import email.utils
import re
from dataclasses import replace
from pathlib import Path

from .faults import Faults
from .serving import App, Part, Request, Response, as_json, as_text

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
MIRROR = "/artifacts/rancher/rke2"
_CHANNELS = "/v1-release/channels"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)(?:-rc(\d+))?\+rke2r(\d+)")
_FINAL = 1 << 30  # a release sorts after all its candidates


def archive(folder: Path) -> App:
    """The files of a folder, with what apt asks for: ranges and If-Modified-Since."""

    def app(request: Request) -> Response:
        return _file(request, folder, request.path)

    return app


def plain(folder: Path, mirrored: Path, faults: Faults) -> App:
    """What is served without TLS: the archive, and the mirror of the releases by its name."""
    mirror, debian = releases(mirrored), archive(folder)

    def app(request: Request) -> Response:
        named = request.headers.get("host", "").startswith("mirror.")
        moved = replace(request, path=faults.moved(request.path))
        return (mirror if named else debian)(moved)

    return app


def releases(folder: Path) -> App:
    """/rke2/VERSION/… from the folder, and the channel server over the versions in it.

    Asked for by the name of a mirror, it is one: the same files under another path, nothing else.
    """

    def app(request: Request) -> Response:
        if request.headers.get("host", "").startswith("mirror."):
            if request.path.startswith(MIRROR):
                return _file(request, folder, request.path.removeprefix(MIRROR))
            return as_text(404, "not found\n")
        if request.path.startswith(_CHANNELS):
            return _channel(request, folder)
        if request.path.startswith("/rke2/releases/tag/"):
            return as_text(200, request.path.rpartition("/")[2] + "\n")
        if request.path.startswith("/rke2/"):
            return _file(request, folder, request.path.removeprefix("/rke2"))
        return as_text(404, "not found\n")

    return app


def _file(request: Request, folder: Path, name: str) -> Response:
    if request.method not in ("GET", "HEAD"):
        return as_text(405, "method not allowed\n")
    root = folder.resolve()
    path = (root / name.lstrip("/")).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        return as_text(404, "not found\n")
    details = path.stat()
    changed = int(details.st_mtime)
    stamp = email.utils.formatdate(changed, usegmt=True)
    headers = {
        "Last-Modified": stamp,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if changed <= _moment(request.headers.get("if-modified-since", "")):
        return Response(304, b"", headers)
    return _ranged(request, path, details.st_size, headers)


def _ranged(request: Request, path: Path, size: int, headers: dict[str, str]) -> Response:
    whole = Response(200, Part(path, 0, size), headers)
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    # If-Range: only continue what is still the same file.
    same = request.headers.get("if-range", headers["Last-Modified"]) == headers["Last-Modified"]
    if not match or not same or not (match[1] or match[2]):
        return whole
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first > last:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Response(206, Part(path, first, last - first + 1), headers)


def _moment(text: str) -> float:
    """Seconds since the epoch of an HTTP date; long ago for anything else."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return -1.0


def _channel(request: Request, folder: Path) -> Response:
    """As rancher/channelserver: a collection, and a redirect to the release's page for each."""
    latest = _latest(folder)
    wanted = request.path.removeprefix(_CHANNELS).strip("/")
    host = request.headers.get("host", "releases.lab")
    if not wanted:
        data = [
            {"id": name, "type": "channel", "name": name, "latest": version}
            for name, version in sorted(latest.items())
        ]
        return as_json(200, {"type": "collection", "resourceType": "channel", "data": data})
    if wanted not in latest:
        return as_text(404, "404 page not found\n")
    version = latest[wanted].replace("+", "%2B")
    return Response(302, b"", {"Location": f"https://{host}/rke2/releases/tag/{version}"})


def _latest(folder: Path) -> dict[str, str]:
    """Channel to version. No candidate is ever latest, except in `testing`."""
    versions = sorted(
        (key, path.name) for path in folder.iterdir() if (key := _order(path.name)) is not None
    )
    channels: dict[str, str] = {}
    for key, name in versions:
        channels["testing"] = name
        if key[3] == _FINAL:
            channels["stable"] = channels["latest"] = channels[f"v{key[0]}.{key[1]}"] = name
    return channels


def _order(name: str) -> tuple[int, ...] | None:
    match = _VERSION.fullmatch(name)
    if not match:
        return None
    major, minor, patch, candidate, revision = match.groups()
    rank = _FINAL if candidate is None else int(candidate)
    return int(major), int(minor), int(patch), rank, int(revision)
