"""The agent's log: entries of the journal with fields of their own, secrets masked.

`journalctl -u gpuboot GPUBOOT_STEP=driver-loaded` finds what was said during a step, and
GPUBOOT_CODE=GB302 what was said of an error. Where standard error is no journal it takes the lines.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

IDENTIFIER = "gpuboot"
SOCKET = "/run/systemd/journal/socket"
# Of syslog(3), as the journal has them.
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}

_step: ContextVar[str] = ContextVar("step", default="")  # a thread of its own has none


@contextmanager
def during(step: str) -> Iterator[None]:
    """What this thread logs inside is said during that step."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


class _Lines(logging.Formatter):
    def __init__(self, mask: Callable[[str], str]) -> None:
        super().__init__("%(message)s")
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(super().format(record))


class _Journal(logging.StreamHandler):  # type: ignore[type-arg] # not generic at run time
    """Speaks the journal's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

    What it does not take, such as an entry that is too long for a datagram, goes to standard error,
    which the journal reads as well.
    """

    def __init__(self, place: str) -> None:
        super().__init__(sys.stderr)
        self._place = place
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(PRIORITIES.get(record.levelno, 3)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "GPUBOOT_STEP": _step.get(),
            "GPUBOOT_CODE": str(getattr(record, "code", "")),
        }
        entry = b"".join(_field(name, value) for name, value in fields.items() if value)
        try:
            self._socket.sendto(entry, self._place)
        except OSError:
            super().emit(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    content = value.encode("utf-8", "replace")
    if b"\n" not in content:
        return name.encode() + b"=" + content + b"\n"
    return name.encode() + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"


def start(mask: Callable[[str], str], *, verbose: bool, place: str | None = None) -> logging.Logger:
    """Log from now on, every text through `mask`; to the journal's socket if it is `place`.

    Without one it is looked whether standard error is the journal. The program's own logger.
    """
    place = place or (SOCKET if _is_journal() else None)
    handler = _Journal(place) if place else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(mask))
    logger = logging.getLogger("gpuboot")
    for old in logger.handlers:
        old.close()
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    return logger


def _is_journal() -> bool:
    """Whether standard error is systemd's stream to the journal (systemd.exec(5))."""
    with suppress(OSError, ValueError):
        found = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False
