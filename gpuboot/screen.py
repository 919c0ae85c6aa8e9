"""What lives on a terminal: a walk that is followed, and a status that is drawn again and again."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import click

from gpuboot import show, status, statusview

Look = Callable[[], dict[str, Any]]

# Of ECMA-48 and xterm: a screen of its own, which leaves the one before as it was.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RESET = "\x1b[0m"


def draw(text: str) -> None:
    """Write to the terminal, its control signs as well, or to a pipe without any.

    NO_COLOR takes the colours away (no-color.org), and nothing else.
    """
    if os.environ.get("NO_COLOR"):
        text = COLOUR.sub("", text)
    click.echo(text, nl=False, color=sys.stdout.isatty())


def follow(look: Look, *, poll: float = 0.5) -> dict[str, Any]:
    """Show the walk as it goes on, until it is over; the last document.

    A step is printed once when it holds; the line at the bottom lives.
    """
    done: set[str] = set()
    started = time.monotonic()
    while True:
        found = look()
        for step in found["steps"]:
            if step.get("state") == "ok" and step["name"] not in done:
                done.add(step["name"])
                draw(f"\r{REST_OF_LINE}{show.step(step)}\n")
        over = found["state"] in (*status.FINAL, "idle")
        if over and not _begins(found, time.monotonic() - started):
            draw(f"\r{REST_OF_LINE}")
            return found
        live = (
            f"  {_spinner()} {found.get('step') or ''}: {found['reason']}{statusview.left(found)}"
        )
        columns = shutil.get_terminal_size().columns
        draw(f"\r{REST_OF_LINE}{live[: columns - 1]}")
        time.sleep(poll)


def watch(look: Look, *, poll: float = 1.0, write: Callable[[str], None] = draw) -> dict[str, Any]:
    """Draw the status again and again until somebody types Ctrl-C; the last document."""
    found = look()
    with _own_screen(write):
        try:
            while True:
                size = shutil.get_terminal_size()
                now = datetime.now(timezone.utc)
                write(frame(statusview.text(found, size.columns, now), *size))
                time.sleep(poll)
                found = look()
        except KeyboardInterrupt:
            return found


def frame(text: str, columns: int, lines: int) -> str:
    """One picture of that size, written over the one before in one piece: nothing flickers."""
    rows = [_cut(line, columns) for line in text.splitlines()]
    if len(rows) > lines:
        rows = [*rows[: lines - 1], _cut("…", columns)]
    return HOME + "\n".join(row + REST_OF_LINE for row in rows) + REST_OF_SCREEN


def _cut(line: str, columns: int) -> str:
    """As much of a line as fits, its colours counted as nothing."""
    if len(click.unstyle(line)) <= columns:
        return line
    room, parts, at = columns - 1, [], 0
    for match in [*COLOUR.finditer(line), None]:
        plain = line[at : match.start() if match else len(line)][:room]
        parts.append(plain)
        room -= len(plain)
        if match is None or room <= 0:
            break
        parts.append(match[0])
        at = match.end()
    return "".join(parts) + (RESET if len(parts) > 1 else "") + "…"


@contextmanager
def _own_screen(write: Callable[[str], None]) -> Iterator[None]:
    write(ENTER)
    try:
        yield
    finally:
        write(LEAVE)


def _begins(found: dict[str, Any], seconds: float) -> bool:
    """Whether the unit may just not have written anything yet."""
    return found["state"] == "idle" and seconds < 10


def _spinner() -> str:
    return "|/-\\"[int(time.monotonic() * 2) % 4]
