"""The timeline as a picture for a report: SVG, readable without any other file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from gpuboot.chart import Scale, clock, head, title, took

if TYPE_CHECKING:
    from gpuboot.timeline import Bar, Chart, Timeline

WIDTH, LABEL, SECONDS, MARGIN = 960, 170, 90, 24  # of the picture and its columns, in pixels
ROW, BAR = 20, 12  # of a row, and of the bar in it
SPACE = 30  # between two boots
APART = 70  # between two marks of the axis, at least

COLOURS = {"machine": "#9aa5b1", "ok": "#2f7ebc", "waiting": "#e0a100", "reboot": "#d97706",
           "failed": "#c0392b"}  # fmt: skip
CRITICAL = "#12395b"
LEGEND = (("the machine's own", COLOURS["machine"], False), ("gpuboot", COLOURS["ok"], False),
          ("waiting", COLOURS["waiting"], False), ("asks for a reboot", COLOURS["reboot"], False),
          ("failed", COLOURS["failed"], False),
          ("critical path", "white", True))  # fmt: skip
STYLE = """\
text { font: 12px "DejaVu Sans", Verdana, sans-serif; fill: #1f2933; }
.head { font-size: 16px; font-weight: bold; }
.boot { font-weight: bold; }
.axis { fill: #66727f; font-size: 11px; }
.grid { stroke: #e4e7eb; }
"""


def svg(found: Timeline) -> str:
    """The whole picture, all boots to one scale."""
    scale = Scale.fitting(found, WIDTH - 2 * MARGIN - LABEL - SECONDS)
    parts = []
    y = MARGIN + 16
    parts.append(_text(MARGIN, y, head(found), "head"))
    y += 26
    parts += _legend(y)
    y += SPACE
    for number, boot in enumerate(found.boots, 1):
        parts += _boot(number, boot, scale, y)
        y += (len(boot.shown) + 2) * ROW + SPACE
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}"'
        f' viewBox="0 0 {WIDTH} {y}">\n<style>\n{STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _legend(y: float) -> Iterator[str]:
    x = float(MARGIN)
    for name, colour, critical in LEGEND:
        yield _rect(x, y - 10, 18, BAR, colour, critical=critical)
        yield _text(x + 24, y, name)
        x += 24 + 8 * len(name) + 20


def _boot(number: int, boot: Chart, scale: Scale, y: float) -> Iterator[str]:
    """A boot's title, axis and rows, from y on."""
    line = title(number, boot)
    yield f"<g><title>{escape(line)}</title>{_text(MARGIN, y, _short(line), 'boot')}</g>"
    top, bottom = y + ROW, y + ROW * (len(boot.shown) + 1) + 4
    left, right = MARGIN + LABEL, WIDTH - MARGIN - SECONDS
    for tick in scale.ticks(APART):
        x = left + scale.at(tick)
        if x > right:
            break
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        yield _text(x + 2, top - 4, clock(tick), "axis")
    for index, bar in enumerate(boot.shown):
        yield from _row(bar, scale, top + ROW * index + 4)


def _row(bar: Bar, scale: Scale, y: float) -> Iterator[str]:
    colour = COLOURS["machine"] if bar.kind == "machine" else COLOURS.get(bar.state, COLOURS["ok"])
    begin, end = scale.at(bar.begin), scale.at(bar.end)
    base = y + BAR - 2
    told = f"{bar.name}: {took(bar.seconds)}{f', {bar.reason}' if bar.reason else ''}"
    yield f"<g><title>{escape(told)}</title>"
    yield _text(MARGIN, base, bar.name)
    yield _rect(MARGIN + LABEL + begin, y, max(end - begin, 1.0), BAR, colour,
                critical=bar.critical)  # fmt: skip
    yield _text(WIDTH - MARGIN, base, took(bar.seconds), "axis", end=True) + "</g>"


def _rect(x: float, y: float, width: float, height: float, colour: str, *, critical: bool) -> str:
    edge = f' stroke="{CRITICAL}" stroke-width="2"' if critical else ""
    size = f'width="{width:.1f}" height="{height}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="2" fill="{colour}"{edge}/>'


def _text(x: float, y: float, text: str, kind: str = "", *, end: bool = False) -> str:
    own = f" class={quoteattr(kind)}" if kind else ""
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{own}{anchor}>{escape(text)}</text>'


def _short(line: str) -> str:
    """As much of a line as fits into the picture's width; the whole is its tooltip."""
    room = (WIDTH - 2 * MARGIN) // 8
    return line if len(line) <= room else line[: room - 1] + "…"
