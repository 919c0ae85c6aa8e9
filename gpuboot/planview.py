"""The document of `gpuboot plan` as a person reads it: what it comes to first, then each thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import click

from gpuboot.show import Width, duration, row, several, step, wrapped

HOLDS = "holds"


def text(found: dict[str, Any], width: Width = None) -> str:
    """The whole plan. Differences and packages keep their lines whole, to be copied."""
    sections = (
        _summary(found, width),
        _steps(found["steps"], width),
        _driver(found["driver"], width),
        _packages(found),
        *(_file(file) for file in found["files"]),
        _rest(found, width),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _summary(found: dict[str, Any], width: Width) -> Iterator[str]:
    """The plan in one sentence."""
    asked = [one for one in found["steps"] if one["state"]]
    open_steps = [one for one in asked if one["state"] != "ok"]
    if asked and not open_steps:
        yield click.style("Nothing is to be done: every step holds.", fg="green", bold=True)
        return
    parts = [f"{len(open_steps or found['steps'])} of {len(found['steps'])} steps to do"]
    if found["packages"]:
        parts.append(f"{_number(found['packages'], 'package')}{_fetched(found)}")
    if found["files"]:
        parts.append(_number(found["files"], "file"))
    parts += [f"about {_about(found['expected']['seconds'])}"]
    told = ", ".join([*parts, f"reboot: {found['reboot']['answer']}"])
    yield from (click.style(line, bold=True) for line in wrapped(told, width))


def _about(seconds: float) -> str:
    """As exact as it is known."""
    return f"{-(-seconds // 60):.0f} min" if seconds >= 90 else duration(seconds)


def _number(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _fetched(found: dict[str, Any]) -> str:
    size = found["download_bytes"]
    return f" ({size / 1e6:.0f} MB to fetch)" if size is not None else ""


def _heading(title: str) -> str:
    return click.style(title, bold=True)


def _steps(steps: Sequence[dict[str, Any]], width: Width) -> Iterator[str]:
    """The steps; those in a row of which there is the same to tell share their lines."""
    yield _heading("Steps")
    for plain, group in groupby(steps, key=_plain):
        if plain is None:
            for one in group:
                yield from _step(one, width)
            continue
        names = ", ".join(one["name"] for one in group)
        told = names if plain == HOLDS else f"{names}: {plain}"
        yield from several("ok" if plain == HOLDS else "pending", told, width)


def _plain(one: dict[str, Any]) -> str | None:
    """What is told of several steps at once: that they hold, or why they were not looked at."""
    if one["state"] == "ok" and not one["drift"]:
        return HOLDS
    return str(one["reason"]) if one["state"] is None else None


def _step(one: dict[str, Any], width: Width) -> Iterator[str]:
    code = f" [{one['code']}]" if one["code"] else ""
    yield step(
        {**one, "state": one["state"] or "pending", "reason": f"{one['reason']}{code}"}, width
    )
    for drift in one["drift"]:
        yield from row("      differs: ", drift, width)
    if one["hint"]:
        yield f"      next: {one['hint']}"


def _driver(driver: dict[str, Any] | None, width: Width) -> Iterator[str]:
    if driver:
        yield _heading("Driver")
        yield f"  {driver['branch']} ({driver['kernel_module_type']}), {driver['source']}"
        yield from (f"  {line}" for line in wrapped(driver["reason"], width and width - 2))


def _packages(found: dict[str, Any]) -> Iterator[str]:
    packages = found["packages"]
    if packages:
        yield _heading(f"{_number(packages, 'package').capitalize()}{_fetched(found)}")
        columns = [max(len(str(one[key] or "")) for one in packages) for key in ("name", "version")]
        yield from (f"  {_package(one, *columns)}" for one in packages)


def _package(package: dict[str, Any], name_width: int, version_width: int) -> str:
    name, action = package["name"], package["action"]
    if package["version"] is None and action != "remove":
        return str(name)
    if action == "remove":
        return f"{name:<{name_width}}  {package['before']} is removed"
    before = "" if action == "install" else f"  {action}d from {package['before']}"
    size = f"{package['bytes'] / 1e6:7.1f} MB"
    return f"{name:<{name_width}}  {package['version']:<{version_width}}  {size}{before}"


def _file(file: dict[str, Any]) -> Iterator[str]:
    if file["diff"] is None:
        yield f"{_heading(file['name'])}  downloaded, and verified before it is used"
        return
    yield _heading(file["name"])
    yield from (_coloured(line) for line in file["diff"].splitlines()[2:])


def _coloured(line: str) -> str:
    colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return "  " + (click.style(line, fg=colour) if colour else line)


def _rest(found: dict[str, Any], width: Width) -> Iterator[str]:
    """What there is to know beside: one row each."""
    rows = []
    if found["held"]:
        rows.append(("held", ", ".join(found["held"])))
    if found["units"]:
        rows.append(("enabled", ", ".join(found["units"])))
    rows += [("trusted", f"{item['what']} by {item['by']}") for item in found["trusted"]]
    rows += [("warning", said) for said in found["warnings"]]
    if found["live"]:
        rows.append(("live", "rke2-agent runs, so nothing disruptive is done before the next boot"))
    rows.append(("time", _time(found["expected"])))
    rows.append(("reboot", f"{found['reboot']['answer']} ({found['reboot']['reason']})"))
    for name, said in rows:
        head = click.style(f"{name}:", fg="yellow" if name == "warning" else None)
        yield from row(head + " " * (8 - len(name)), said, width)


def _time(expected: dict[str, Any]) -> str:
    """How long it takes, of which steps, and how that is known."""
    if not expected["steps"]:
        return "seconds: nothing is to be done that takes long"
    own = set(expected["own"])
    told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in expected["steps"].items())
    known = "as it took here before" if own >= set(expected["steps"]) else "as is usual"
    if own and not own >= set(expected["steps"]):
        known = f"{', '.join(sorted(own))} as it took here before, the rest as is usual"
    again = f"; a reboot adds about {duration(expected['reboot_seconds'])}"
    return f"about {_about(expected['seconds'])} ({told}; {known}){again}"
