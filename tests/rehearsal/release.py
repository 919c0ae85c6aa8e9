"""An RKE2 release in upstream's layout, with the stand-in `rke2` in it (facts/rke2.md §5)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

TARBALL = "rke2.linux-amd64.tar.gz"
ALL_IMAGES = "rke2-images.linux-amd64.tar.zst"
CORE_IMAGES = "rke2-images-core.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"

_SOURCES = Path(__file__).parent / "standins/rke2"
_TIME = 1_767_225_600  # 2026-01-01: the same sources always give the same bytes
_BLOCK = 128 << 10  # the largest that a Zstandard frame may have
_ZIP_TIME = (2026, 1, 1, 0, 0, 0)
# What of the sources becomes the program; the rest of agent/ is its package.
_MAIN = """\
import sys

from rke2.program import main

sys.exit(main({version!r}, {commit!r}, sys.argv[1:]))
"""


def build(out: Path, version: str) -> str:
    """Write OUT/VERSION/, a release with two image archives; returns its tarball's SHA-256.

    The folder is also what upstream's installer takes for an offline one (facts/rke2.md §5).
    """
    folder = out / version
    folder.mkdir(parents=True, exist_ok=True)
    binary = program(version)
    # As upstream: all artefacts of the architecture, one of which is the other one's beginning.
    files = {
        "rke2.linux-amd64": binary,
        ALL_IMAGES: _zstandard(_images(version, "rke2-runtime", "rke2-cloud-provider", "pause")),
        CORE_IMAGES: gzip.compress(_images(version, "rke2-runtime", "pause"), mtime=_TIME),
        TARBALL: _tarball(binary),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines = [f"{_sha256(content)}  {name}\n" for name, content in files.items()]
    (folder / CHECKSUMS).write_text("".join(lines))
    return _sha256(files[TARBALL])


def _images(version: str, *names: str) -> bytes:
    """An archive as `docker save` makes it, of images that nobody runs."""
    tag = version.replace("+", "-")
    entries = [
        {"Config": "", "RepoTags": [f"rancher/{name}:{tag}"], "Layers": []} for name in names
    ]
    return _tar({"manifest.json": json.dumps(entries).encode()})


def _zstandard(content: bytes) -> bytes:
    """A Zstandard frame with the content as it is (RFC 8878 3.1.1): one piece, raw blocks."""
    head = b"\x28\xb5\x2f\xfd\xa0" + len(content).to_bytes(4, "little")
    pieces = [content[i : i + _BLOCK] for i in range(0, len(content), _BLOCK)]
    blocks = [
        (len(piece) << 3 | (piece is pieces[-1])).to_bytes(3, "little") + piece for piece in pieces
    ]
    return head + b"".join(blocks)


def program(version: str) -> bytes:
    """The stand-in as one executable file: Python modules in a zip behind a shebang."""
    commit = _sha256(version.encode())[:40]  # as long as git's
    modules = {f"rke2/{path.name}": path.read_text() for path in (_SOURCES / "agent").glob("*.py")}
    modules["__main__.py"] = _MAIN.format(version=version, commit=commit)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(modules.items()):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), text, zipfile.ZIP_DEFLATED)
    return b"#!/usr/bin/python3\n" + packed.getvalue()


def _tarball(binary: bytes) -> bytes:
    bundle = _SOURCES / "bundle"
    files = {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }
    return gzip.compress(_tar({**files, "bin/rke2": binary}), mtime=_TIME)


def _tar(files: Mapping[str, bytes]) -> bytes:
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted([*folders, *files]):
            entry = tarfile.TarInfo(name)
            entry.mtime = _TIME
            if name in folders:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
                continue
            entry.mode = 0o755 if name.startswith("bin/") else 0o644
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))
    return plain.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
