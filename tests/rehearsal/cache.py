"""What is built once and kept: folders in .cache, each named by all that went into it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.rehearsal import lab
from tests.rehearsal.report import say

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
KEPT_BUILDS = 3  # of each kind; a run beside this one may still stand on the one before


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Only one rehearsal at a time builds into the cache."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(paths: Iterable[Path], extra: Iterable[object] = ()) -> str:
    """A short name for the content of files and folders of this project."""
    summed = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                summed.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode}\0".encode())
                summed.update(file.read_bytes())
    summed.update(repr(tuple(map(str, extra))).encode())
    return summed.hexdigest()[:16]


def built(folder: Path, told: str, fill: Callable[[Path], None]) -> Path:
    """The folder, filled if it is not there yet: it appears whole or not at all."""
    if not folder.is_dir():
        say(told)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(folder)
    _prune(folder)
    return folder


def layer(name: str, lower: Sequence[Path], inputs: str, fill: Callable[[Path], None]) -> Path:
    """The folder that holds what `fill` changed in a tree over `lower` (topmost first)."""

    def changed(partial: Path) -> None:
        work = partial.with_name(partial.name + ".work")
        shutil.rmtree(work, ignore_errors=True)
        with lab.overlay(lower, partial, CACHE / "layers" / "tree") as tree:
            fill(tree)
        shutil.rmtree(work)

    return built(CACHE / "layers" / f"{name}-{inputs}", f"Building the {name} layer.", changed)


def _prune(used: Path) -> None:
    """Removes builds of the same kind that are long out of use."""
    used.touch()
    kind = used.name.rpartition("-")[0]
    alike = [path for path in used.parent.iterdir() if path.name.rpartition("-")[0] == kind]
    for old in sorted(alike, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_BUILDS:]:
        shutil.rmtree(old)
