"""The node's disk: where the power can fail, what that leaves of a write, and writes refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from gpuboot.host import Host

if TYPE_CHECKING:
    from tests.model.machine import Machine


class PowerCut(BaseException):
    """The machine lost its power. Not an Exception: nobody may catch it on the way."""


@dataclass
class Fuse:
    """Counts the instants at which the power could fail; `cut` may raise PowerCut at one."""

    cut: Callable[[int], None] = lambda _: None
    count: int = 0

    def burn(self) -> None:
        """One more instant."""
        self.count += 1
        self.cut(self.count)


@dataclass
class Disk:
    """Counts the writes, by us and by commands; `refuse` may give the errno one fails with."""

    refuse: Callable[[int, str], int] = lambda *_: 0
    count: int = 0

    def trouble(self, name: str) -> OSError | None:
        """One more write, of this file: why it fails, if it does."""
        self.count += 1
        number = self.refuse(self.count, name)
        return OSError(number, os.strerror(number), name) if number else None

    def write(self, name: str) -> None:
        """One more write. Raises OSError if it fails."""
        if trouble := self.trouble(name):
            raise trouble


class Frozen(PosixPath):
    """A name on a read-only file system: Linux says so before it looks whether it is there."""

    def unlink(self, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))


# What a power cut leaves beside the old file of a write that had begun.
Scrap = Callable[[bytes], bytes]
SCRAPS: Sequence[Scrap] = (
    lambda _: b"",
    lambda data: data[: len(data) // 2],
    lambda data: data,
    lambda data: data[: len(data) // 2] + b"\0" * 512 + b"\xff{[garbage",
)
HALF = SCRAPS[1:2]


class ModelHost(Host):
    """The real Host, whose writes can be cut off by the power or refused by the disk."""

    machine: Machine
    _frozen: str | None = None  # the name whose file system is read-only now

    def path(self, name: str) -> Path:
        path = super().path(name)
        return Frozen(path) if name == self._frozen else path

    def write_stream(self, name: str, chunks: Iterator[bytes], *, mode: int = 0o644) -> None:
        self.machine.fuse.burn()
        data = b"".join(chunks)
        if trouble := self.machine.disk.trouble(name):
            self._refused(name, data, trouble)
        scratch = self.path(name).with_name(f".{Path(name).name}.gpuboot-new")
        scratch.parent.mkdir(parents=True, exist_ok=True)
        for scrap in self.machine.scraps:
            scratch.write_bytes(scrap(data))
            self.machine.changed(name)
            self.machine.fuse.burn()
        super().write_stream(name, iter([data]), mode=mode)
        self.machine.changed(name)
        self.machine.fuse.burn()

    def _refused(self, name: str, data: bytes, trouble: OSError) -> None:
        """Fail as the real Host does: a full disk in the midst of it, a read-only one at once."""

        def filling() -> Iterator[bytes]:
            yield data[: len(data) // 2]
            raise trouble

        self._frozen = name if trouble.errno == errno.EROFS else None
        try:
            super().write_stream(name, filling())
        finally:
            self._frozen = None

    def remove(self, name: str) -> None:
        self.machine.fuse.burn()
        trouble = self.machine.disk.trouble(name)
        # A full disk has nothing against a removal.
        self._frozen = name if trouble and trouble.errno == errno.EROFS else None
        try:
            super().remove(name)
        finally:
            self._frozen = None
        self.machine.changed(name)
        self.machine.fuse.burn()

    def beside(self, work: Callable[[], None]) -> None:
        """At once, so that every run is the same: a thread's order could not be repeated."""
        work()

    def free(self, name: str) -> int:
        return 50 << 30
