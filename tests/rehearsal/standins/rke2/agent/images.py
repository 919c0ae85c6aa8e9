"""Image archives, imported before the kubelet starts (facts/rke2.md §5).

Nothing runs the images here: an archive is opened, its images are named in the log, and with a
.cache.json beside it what has not changed is passed over at the next start.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
from pathlib import Path

from . import log
from .settings import Settings

CACHE = ".cache.json"
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def load(settings: Settings) -> None:
    """Import what is there. An archive that cannot be read is told and passed over."""
    folder = settings.agent / "images"
    cache = folder / CACHE
    if not folder.is_dir():
        return
    known = json.loads(cache.read_text() or "{}") if cache.exists() else {}
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(_ENDINGS):
            continue
        details = path.stat()
        seen = {"size": details.st_size, "mtime": details.st_mtime_ns}
        if known.get(path.name) == seen:
            log.info(f"Image archive {path} is unchanged, skipping")
            continue
        _import(path)
        known[path.name] = seen
    if cache.exists():
        cache.write_text(json.dumps(known))


def _import(path: Path) -> None:
    began = time.monotonic()
    try:
        with tarfile.open(fileobj=io.BytesIO(_plain(path.read_bytes()))) as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest is not None
            names = [name for entry in json.load(manifest) for name in entry["RepoTags"]]
    except (OSError, ValueError, KeyError, AssertionError, tarfile.TarError) as error:
        log.error(f"Error encountered while importing {path}: {error}")
        return
    for name in names:
        log.info(f"Imported docker.io/{name}")
    log.info(f"Imported images from {path} in {time.monotonic() - began:.3f}s")


def _plain(content: bytes) -> bytes:
    """The tar in an archive; of Zstandard only the raw blocks that the lab's releases have."""
    if content.startswith(_ZSTANDARD):
        return b"".join(_blocks(content[9:]))
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _blocks(rest: bytes) -> list[bytes]:
    found = []
    last = False
    while not last:
        head = int.from_bytes(rest[:3], "little")
        size, kind, last = head >> 3, head >> 1 & 3, bool(head & 1)
        if len(rest) < 3 + size or kind:
            raise ValueError("no raw block")
        found.append(rest[3 : 3 + size])
        rest = rest[3 + size :]
    return found
