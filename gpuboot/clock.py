"""Time: the wall clock for display, CLOCK_BOOTTIME for everything that is measured."""

from __future__ import annotations

import os
import select
import time
from datetime import datetime, timezone
from typing import Protocol

TIME_ERROR = 5  # linux/timex.h: the clock is not synchronised


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

    def synchronised(self) -> bool:
        """Whether a time service has set the clock; only asks the kernel (adjtimex(2))."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        # A threading.Event would do but for its lock: a signal handler that sets it while the
        # sleep holds that lock waits for itself.
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        if select.select([self._woken], [], [], seconds)[0]:
            os.eventfd_read(self._woken)

    def wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def __del__(self) -> None:
        os.close(self._woken)

    def synchronised(self) -> bool:
        import ctypes

        # A struct timex of zeros asks for nothing to be set. timedatectl would start a service.
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
        return state != TIME_ERROR


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, the one form we write."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
