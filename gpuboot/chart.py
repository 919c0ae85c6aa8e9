"""The timeline as a picture: bars to scale on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gpuboot.show import duration

if TYPE_CHECKING:
    from gpuboot.timeline import Bar, Chart, Timeline

EIGHTHS = " ▏▎▍▌▋▊▉█"
LABEL, SECONDS = 21, 12  # columns beside the bars
TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
COLOURS = {"ok": "cyan", "waiting": "yellow", "reboot": "yellow", "failed": "red"}


def text(found: Timeline, columns: int) -> str:
    """The timeline in so many columns; all boots are drawn to one scale."""
    width = max(columns - LABEL - SECONDS - 1, 10)
    scale = Scale.fitting(found, width)
    lines = [head(found)]
    for number, boot in enumerate(found.boots, 1):
        lines += ["", _title(number, boot, columns), f"{'':{LABEL}}{_axis(scale, width)}"]
        lines += [_row(bar, scale, width) for bar in boot.shown]
    lines += ["", "* had it been shorter, the boot would have come to its end sooner"]
    return "\n".join(lines)


class Scale:
    """Seconds to places: from the first instant of any boot to the last."""

    def __init__(self, begin: float, end: float, width: float) -> None:
        self.begin = begin
        self.per_second = width / max(end - begin, 1e-9)

    @classmethod
    def fitting(cls, found: Timeline, width: float) -> Scale:
        """One that has room for every boot."""
        begin = min((boot.begin for boot in found.boots), default=0.0)
        end = max((boot.end for boot in found.boots), default=1.0)
        return cls(min(begin, 0.0), max(end, begin + 1.0), width)

    def at(self, seconds: float) -> float:
        """The place of an instant."""
        return (seconds - self.begin) * self.per_second

    def ticks(self, apart: float) -> Iterator[int]:
        """Round numbers of seconds that are at least so many places apart, from zero on."""
        step = next((tick for tick in TICKS if tick * self.per_second >= apart), TICKS[-1])
        return iter(range(0, math.ceil(3e6), step))


def head(found: Timeline) -> str:
    """What it is the timeline of, in one line."""
    boots = f"{len(found.boots)} boot{'' if len(found.boots) == 1 else 's'}"
    reboots = f"{found.reboots} reboot{'' if found.reboots == 1 else 's'} asked for"
    if found.seconds_to_ready is None:
        return f"{found.host}: not ready yet, {boots}, {reboots}"
    took = duration(found.seconds_to_ready)
    return f"{found.host}: {took} from the first walk to ready, {boots}, {reboots}"


def title(number: int, boot: Chart) -> str:
    """What a boot is: its number, when it began, its kernel, how it ended."""
    ended = f", {boot.ended}" if boot.ended else ", cut off or still at it"
    return f"boot {number}  {boot.began}  kernel {boot.kernel}{ended}"


def _title(number: int, boot: Chart, columns: int) -> str:
    line = title(number, boot)
    return click.style(line if len(line) <= columns else line[: columns - 1] + "…", bold=True)


def _axis(scale: Scale, width: int) -> str:
    line = [" "] * (width + SECONDS)
    for tick in scale.ticks(9):
        place = round(scale.at(tick))
        label = clock(tick)
        if place + len(label) > width:
            break
        line[place : place + len(label)] = label
    return click.style("".join(line).rstrip(), fg="bright_black")


def clock(seconds: int) -> str:
    """An instant of the axis: 30 is `30 s`, 90 is `1:30`."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def _row(bar: Bar, scale: Scale, width: int) -> str:
    mark = "*" if bar.critical else " "
    name = f"{mark} {bar.name}"[: LABEL - 1]
    colour = COLOURS.get(bar.state, "cyan") if bar.kind == "step" else "bright_black"
    begin = min(int(scale.at(bar.begin)), width - 1)
    drawn = _blocks(scale.at(bar.begin) - begin, scale.at(bar.end) - begin, width - begin)
    field = f"{'':{begin}}{click.style(drawn, fg=colour)}{'':{width - begin - len(drawn)}}"
    return f"{name:{LABEL}}{field} {took(bar.seconds):>{SECONDS}}"


def _blocks(begin: float, end: float, room: int) -> str:
    """A bar whose right end is drawn to an eighth of a place, and that is never nothing."""
    eighths = max(round(min(end, room) * 8), 1)
    whole, rest = divmod(eighths, 8)
    drawn = "█" * whole + (EIGHTHS[rest] if rest else "")
    if begin >= 0.5 and len(drawn) > 1:  # the left end has no blocks of its own
        drawn = "▐" + drawn[1:]
    return drawn[:room]


def took(seconds: float) -> str:
    """A bar's length for a person: 0.42 s, 12.3 s, 3 min 31 s."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    return duration(seconds)
