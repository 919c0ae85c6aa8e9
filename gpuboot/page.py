"""The support bundle's index page: where the node stands, and what each file tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from gpuboot import __version__, explain, statusview

if TYPE_CHECKING:
    from gpuboot.report import Text

COLOURS = {"ready": "#1a7f37", "running": "#0969da", "idle": "#57606a", "failed": "#cf222e"}
WAITS = "#9a6700"
NOTE = (
    "Passwords, tokens and keys were taken out, by their values and by how they look;"
    " names and addresses of machines were not."
)
STYLE = """\
:root { color-scheme: light dark; --line: #d0d7de; --soft: #57606a; }
@media (prefers-color-scheme: dark) { :root { --line: #444c56; --soft: #9198a1; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.state { color: white; border-radius: .4rem; padding: .1rem .6rem; }
pre { border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; overflow-x: auto;
  font-size: 13px; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .25rem .8rem .25rem 0; vertical-align: top; }
td:last-child { text-align: right; white-space: nowrap; color: var(--soft); }
.missing td { color: var(--soft); } .trouble { color: #cf222e; }
img { max-width: 100%; background: white; }
p.note { color: var(--soft); }
"""


def html(
    name: str, found: Mapping[str, Any], texts: Sequence[Text], codes: Mapping[str, int]
) -> str:
    """The page; it needs no other file but those it links to."""
    body = [
        f"<h1>{escape(name)}</h1>",
        _sentence(found),
        f"<pre>{escape(click.unstyle(statusview.text(dict(found), 100)))}</pre>",
        *_explained(found, codes),
        *_picture(texts),
        *_files(texts),
        f'<p class="note">{NOTE} Made by gpuboot {__version__}.</p>',
    ]
    head = f'<meta charset="utf-8">\n<title>{escape(name)}</title>\n<style>\n{STYLE}</style>'
    return "\n".join(['<!doctype html>\n<html lang="en">', head, *body, "</html>\n"])


def _sentence(found: Mapping[str, Any]) -> str:
    state = str(found["state"])
    mark = f'<span class="state" style="background: {COLOURS.get(state, WAITS)}">{state}</span>'
    return f"<p>{mark} {escape(str(found['reason']))}</p>"


def _explained(found: Mapping[str, Any], codes: Mapping[str, int]) -> Iterator[str]:
    """The codes of the status and of the journal, each with its explanation."""
    known = explain.codes()
    ids = [*dict.fromkeys([*filter(None, [found.get("code")]), *codes])]
    if not ids:
        return
    yield "<h2>What was said</h2>"
    for code in (known[one] for one in ids if one in known):
        times = codes.get(code.id, 0)
        often = f" ({times} times in the journal)" if times else ""
        yield f"<details><summary>{code.id}: {escape(code.title)}{often}</summary>"
        yield f"<pre>{escape(explain.text(code))}</pre></details>"


def _picture(texts: Sequence[Text]) -> Iterator[str]:
    if any(text.name == "gpuboot/timeline.svg" and not text.missing for text in texts):
        yield "<h2>Where the time went</h2>"
        yield '<img src="gpuboot/timeline.svg" alt="The steps of every boot, to scale">'


def _files(texts: Sequence[Text]) -> Iterator[str]:
    yield "<h2>What there is to read</h2>\n<table>"
    for _, folder in groupby(texts, key=lambda text: text.name.partition("/")[0]):
        for text in folder:
            yield _file(text)
    yield "</table>"


def _file(text: Text) -> str:
    name = escape(text.name)
    if text.missing:
        kind = ' class="trouble"' if text.trouble else ""
        return (
            f'<tr class="missing"><td>{name}</td><td>{escape(text.tells)}'
            f"<br><span{kind}>{escape(text.missing)}</span></td><td></td></tr>"
        )
    end = "<br>only its end" if text.cut else ""
    return (
        f'<tr><td><a href="{name}">{name}</a></td><td>{escape(text.tells)}{end}</td>'
        f"<td>{_size(text.size)}</td></tr>"
    )


def _size(size: int) -> str:
    return f"{size:,} B" if size < 1024 else f"{size / 1024:,.0f} KiB"
