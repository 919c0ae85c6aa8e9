"""The kernel's log as it is written, by /dev/kmsg: what journald may drop is seen here too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

DEVICE = "/dev/kmsg"
RECORD = 8192  # bytes; the kernel's longest record fits


class Kmsg:
    """Reads what is new."""

    def __init__(self, path: Path) -> None:
        """From the oldest record on, for what happened before we looked. Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def lines(self) -> list[tuple[float, str]]:
        """What has come since the last time: seconds of this boot, and the message."""
        found: list[tuple[float, str]] = []
        while True:
            try:
                record = os.read(self._file, RECORD)
            except BlockingIOError:
                return found
            except BrokenPipeError:  # overwritten: the next read goes on with the oldest there is
                continue
            if not record:
                return found
            # `priority,sequence,microseconds,flags;text`, then lines of the dictionary.
            prefix, _, text = record.decode("utf-8", "replace").partition(";")
            found.append((_seconds(prefix), text.partition("\n")[0]))

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self._file)


def _seconds(prefix: str) -> float:
    when = prefix.split(",")[2:3]
    return int(when[0]) / 1e6 if when and when[0].isdecimal() else 0.0
