"""What everything that is shown on a terminal is made of: words, marks, rows, problems."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpuboot.reader import Problem

# What a width of None means: the text goes into a pipe, and no line is broken.
Width = int | None

MARKS = {
    "ok": ("✓", "green"),
    "pending": ("·", "bright_black"),
    "running": ("▸", "cyan"),
    "waiting": ("…", "yellow"),
    "drift": ("≠", "yellow"),
    "reboot": ("↻", "yellow"),
    "failed": ("✗", "red"),
}
NAME = 18  # columns of a step's name
SEVERITIES = {"error": "red", "warning": "yellow", "notice": "cyan"}


# A number is not parted from its unit.
_QUANTITY = re.compile(r"(?<=\d) (?=(?:min|s|MiB|MB|°C)\b)|(?<=\d min) (?=\d)")
_TIED = "\u00a0"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 211 is "3 min 31 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def row(head: str, text: str, width: Width) -> list[str]:
    """The head, and beside it the text, which goes on below itself; the head may be coloured."""
    taken = len(click.unstyle(head))
    first, *rest = wrapped(text, width and width - taken)
    return [head + first, *(" " * taken + line for line in rest)]


def wrapped(text: str, width: Width) -> list[str]:
    """The text in lines of that width, at least one; what is longer, such as a path, is whole."""
    if width is None:
        return [text]
    whole = _QUANTITY.sub(_TIED, text)
    lines = textwrap.wrap(whole, max(width, 20), break_long_words=False, break_on_hyphens=False)
    return [line.replace(_TIED, " ") for line in lines] or [""]


def step(found: dict[str, Any], width: Width = None) -> str:
    """One step: a mark for its state, its name, why, and how long it took."""
    mark, colour = MARKS[found["state"]]
    seconds = f"  {duration(found['seconds'])}" if found.get("seconds", 0) >= 1 else ""
    reason = f"{found['reason'] or ''}{seconds}".strip()
    head = f"  {click.style(mark, fg=colour)} {found['name']:<{NAME}}  "
    return "\n".join(line.rstrip() for line in row(head, reason, width))


def several(state: str, told: str, width: Width) -> list[str]:
    """Steps of which there is the same to tell, such as their names, on lines that they share."""
    mark, colour = MARKS[state]
    return row(f"  {click.style(mark, fg=colour)} ", told, width)


def table(rows: Iterable[tuple[str, str]], width: Width = None) -> str:
    """Two columns."""
    rows = list(rows)
    name_width = max(len(name) for name, _ in rows)
    return "\n".join(
        line for name, value in rows for line in row(f"{name:<{name_width}}  ", value, width)
    )


def problems(found: Sequence[Problem], *, width: Width) -> str:
    """Problems by file and line, for a terminal of this width."""
    lines: list[str] = []
    for file in dict.fromkeys(one.file for one in found):
        lines.append(click.style(file, bold=True))
        for one in (problem for problem in found if problem.file == file):
            lines += _problem(one, width)
        lines.append("")
    return "\n".join(lines)


def _problem(one: Problem, width: Width) -> list[str]:
    key = f"{one.key}: " if one.key else ""
    wanted = f"; expected {one.expected}" if one.expected else ""
    marked = click.style(f"{one.severity:<8}", fg=SEVERITIES[one.severity])
    head = f"{one.line or '-':>5} {marked} "
    lines = row(head, f"{key}{one.message}{wanted} [{one.code}]", width)
    if one.hint:
        lines += row(" " * len(click.unstyle(head)), f"next: {one.hint}", width)
    return lines


def counted(found: Sequence[Problem]) -> str:
    """How many problems of each severity, in how many files."""
    parts = []
    for severity in SEVERITIES:
        number = sum(one.severity == severity for one in found)
        parts += [f"{number} {severity}{'s' if number != 1 else ''}"] if number else []
    files = len({one.file for one in found})
    return f"{', '.join(parts)} in {files} file{'s' if files != 1 else ''}"
