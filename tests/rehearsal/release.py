"""An RKE2 release in upstream's layout, with the stand-in `rke2` in it (facts/rke2.md §5)."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

TARBALL = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"

_SOURCES = Path(__file__).parent / "standins/rke2"
_TIME = 1_767_225_600  # 2026-01-01: the same sources always give the same bytes
_ZIP_TIME = (2026, 1, 1, 0, 0, 0)
# What of the sources becomes the program; the rest of agent/ is its package.
_MAIN = """\
import sys

from rke2.program import main

sys.exit(main({version!r}, {commit!r}, sys.argv[1:]))
"""


def build(out: Path, version: str) -> str:
    """Write OUT/VERSION/ with the tarball and the checksum file; returns the tarball's SHA-256."""
    folder = out / version
    folder.mkdir(parents=True, exist_ok=True)
    binary = program(version)
    tarball = _tarball(binary)
    (folder / TARBALL).write_bytes(tarball)
    (folder / "rke2.linux-amd64").write_bytes(binary)
    digest = _sha256(tarball)
    # As upstream: all artefacts of the architecture, one of which is the other one's beginning.
    lines = [f"{_sha256(binary)}  rke2.linux-amd64", f"{digest}  {TARBALL}"]
    (folder / CHECKSUMS).write_text("\n".join(lines) + "\n")
    return digest


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
    return _packed({**files, "bin/rke2": binary})


def _packed(files: Mapping[str, bytes]) -> bytes:
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
    return gzip.compress(plain.getvalue(), mtime=_TIME)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
