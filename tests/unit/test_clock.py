"""The machine's own clock: a sleep that a signal handler can end."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from gpuboot.clock import SystemClock

if TYPE_CHECKING:
    from _typeshed import TraceFunction


def wake_at(clock: SystemClock, line: int) -> None:
    """Sleep, and at the n-th line of Python that this takes do what a signal handler does."""
    lines = 0

    def trace(_: FrameType, event: str, __: object) -> TraceFunction | None:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                clock.wake()
        return trace

    sys.settrace(trace)
    try:
        clock.sleep(0.01)
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("line", range(1, 16))
def test_a_signal_at_any_line_of_a_sleep_ends_it(line: int) -> None:
    clock = SystemClock()
    sleeper = threading.Thread(target=wake_at, args=(clock, line), daemon=True)
    sleeper.start()
    sleeper.join(timeout=5)
    assert not sleeper.is_alive()


def test_a_wake_before_the_sleep_is_kept_for_it_and_for_no_other() -> None:
    clock = SystemClock()
    clock.wake()
    clock.wake()
    clock.sleep(60)
    before = clock.boottime()
    clock.sleep(0.01)
    assert clock.boottime() - before >= 0.01
