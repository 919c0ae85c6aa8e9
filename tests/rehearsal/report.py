"""What the person at the terminal sees, and the error that ends a rehearsal."""

from __future__ import annotations

import os
import sys
import time

LIVE = "GPUBOOT_LIVE"  # set if what a lab says through its pipe ends on a terminal


class RigError(Exception):
    """The rehearsal itself cannot go on; nothing is said about gpuboot."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n  {hint}" if hint else message)


class Terminal:
    """Lines for everyone, and one live line where standard output is a terminal."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty() or bool(os.environ.get(LIVE))
        self._shown = ""

    def line(self, text: str) -> None:
        """One line that stays."""
        self._wipe()
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def live(self, text: str) -> None:
        """One line that the next one replaces."""
        if self._live:
            self._wipe()
            self._shown = text[:120]
            sys.stdout.write(self._shown)
            sys.stdout.flush()

    def _wipe(self) -> None:
        if self._shown:
            sys.stdout.write("\r\x1b[K")
            self._shown = ""


TERMINAL = Terminal()


def say(text: str) -> None:
    """Tells the person at the terminal what happens now."""
    TERMINAL.line(text)


class Watch:
    """Seconds since something began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return time.monotonic() - self._began
