"""Time: the wall clock for display, CLOCK_BOOTTIME for everything that is measured."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """What the agent asks of time; tests hand in one that does not wait."""

    def now(self) -> datetime:
        """The wall clock, aware and in UTC. It may jump: only for display."""
        ...

    def boottime(self) -> float:
        """Seconds since this boot; never jumps, also counts suspended time."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait, or less: `wake` cuts it short."""
        ...

    def wake(self) -> None:
        """End a sleep under way (called from a signal handler)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, the one form we write."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
