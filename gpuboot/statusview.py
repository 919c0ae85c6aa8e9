"""The document of `gpuboot status` as a person reads it: one screen, the sentence first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import click

from gpuboot.show import Width, duration, row, several, step, wrapped
from gpuboot.status import EXIT_CODES, NEVER_ENABLED, exit_code

COLOURS = {
    "ready": "green",
    "degraded": "yellow",
    "waiting": "yellow",
    "rebooting": "yellow",
    "running": "cyan",
    "failed": "red",
    "idle": "bright_black",
}
PROVEN = ("ready", "degraded")
BAR = 24  # columns
EVIDENCE = 8  # lines
SLOW = 5  # steps that are named as those that took longest


def text(found: dict[str, Any], width: Width = None, now: datetime | None = None) -> str:
    """The whole screen. `now` is for what is told as so long ago, or so long ahead."""
    steps, machine = list(_steps(found, width)), list(_machine(found, width))
    body = [*steps, "", *machine] if steps and machine else [*steps, *machine]
    lines = [*_head(found, width), *body, *_evidence(found, width), *_times(found, width, now)]
    return "\n".join([*lines, *_next(found)])


def motd(found: dict[str, Any]) -> str:
    """One line for whoever logs in: where a node stands that is not ready; nothing for others."""
    if exit_code(found) in (EXIT_CODES["ready"], NEVER_ENABLED):
        return ""
    return f"gpuboot: {_state(found)}{_counted(found)}: {_sentence(found)}; more: gpuboot status"


def left(found: dict[str, Any]) -> str:
    """About how long it will still take, where that is known and worth a word."""
    seconds = (found.get("progress") or {}).get("eta_seconds")
    return f" (about {duration(seconds)} left)" if seconds and seconds > 5 else ""


# -- the sentence -------------------------------------------------------------------------------


def _head(found: dict[str, Any], width: Width) -> list[str]:
    lines = row(f"{_state(found)}{_counted(found)}: ", _sentence(found), None)
    if width and len(click.unstyle(lines[0])) > width:  # below the state rather than beside it
        indented = [f"  {line}" for line in wrapped(_sentence(found), width - 2)]
        lines = [f"{_state(found)}{_counted(found)}:", *indented]
    counted = found.get("progress")
    if found["state"] == "running" and counted and counted["total"]:
        done = round(BAR * counted["done"] / counted["total"])
        lines.append(f"  {click.style('━' * done, fg='cyan')}{'─' * (BAR - done)}")
    return lines


def _state(found: dict[str, Any]) -> str:
    return click.style(found["state"], fg=COLOURS[found["state"]], bold=True)


def _counted(found: dict[str, Any]) -> str:
    counted = found.get("progress")
    if not counted or not counted["total"] or found["state"] in PROVEN:
        return ""
    return f" ({counted['done']} of {counted['total']} steps)"


def _sentence(found: dict[str, Any]) -> str:
    code = f" [{found['code']}]" if found.get("code") else ""
    step_name = found.get("step") or ""
    named = found["state"] != "running" or found["reason"].startswith(step_name)
    at = "" if named else f"{step_name}: "
    return f"{at}{found['reason']}{code}{left(found)}"


# -- the steps ----------------------------------------------------------------------------------


def _steps(found: dict[str, Any], width: Width) -> Iterator[str]:
    """The steps of a walk; those in a row of which nothing is to be told share their lines."""
    if found["state"] in PROVEN:
        return
    told = [one for one in found["steps"] if one.get("state")]
    for plain, group in groupby(told, key=_plain):
        if plain is None:
            yield from (step(one, width) for one in group)
        else:
            yield from several(plain, ", ".join(one["name"] for one in group), width)


def _plain(one: dict[str, Any]) -> str | None:
    """The state of a step that has no more to tell than that: it held, or its turn is to come."""
    quick = one.get("seconds", 0) < 1
    return one["state"] if one["state"] in ("ok", "pending") and quick else None


# -- the machine --------------------------------------------------------------------------------


def _machine(found: dict[str, Any], width: Width) -> Iterator[str]:
    """What is proven of the node, or known by now."""
    for gpu in found["gpus"]:
        yield from _row("GPU", _gpu(gpu), width)
    if driver := found["driver"]:
        yield from _row("driver", _driver(driver), width)
    if node := found["node"]:
        yield from _row(
            "node", f"{node['name']}  {'Ready' if node['ready'] else 'NotReady'}", width
        )
        for name, values in (("labels", _own(node["labels"])), ("taints", node["taints"])):
            if values:
                yield from _row(name, "  ".join(values), width)
        for drift in node["drift"]:
            yield from _row("to do", drift, width)
    for drift in found.get("drift") or []:
        yield from _row("differs", drift, width)
    if reboots := _reboots(found):
        yield from _row("reboots", reboots, width)


def _row(name: str, value: str, width: Width) -> list[str]:
    return row(f"  {name:<9} ", value, width)


def _gpu(gpu: dict[str, Any]) -> str:
    parts = [gpu["pci"], gpu.get("name") or gpu.get("id") or ""]
    if gpu.get("temperature_c") is not None:
        parts.append(f"{gpu['temperature_c']} °C")
    used, total = gpu.get("memory_used_mib"), gpu.get("memory_mib")
    if used is not None and total:
        parts.append(f"{used:,} of {total:,} MiB in use")
    return "  ".join([*filter(None, parts), gpu.get("uuid") or ""]).strip()


def _driver(driver: dict[str, Any]) -> str:
    told = f"{driver['version']} ({driver['kernel_module_type']})"
    if "next_boot_kernel" not in driver:
        return told
    module = "a module" if driver["next_boot_kernel_has_module"] else "no module"
    return f"{told}; kernel {driver['next_boot_kernel']} boots next and has {module}"


def _own(labels: dict[str, str]) -> list[str]:
    """The labels that say what a node is for; those that every kubelet sets are no news."""
    return [
        f"{key}={value}" for key, value in sorted(labels.items()) if "kubernetes.io/" not in key
    ]


def _reboots(found: dict[str, Any]) -> str:
    """How many of how many, and what for; nothing on a node that has needed none so far."""
    reboots = found["reboots"]
    if not reboots.get("spent") and not reboots["reasons"]:
        return ""
    spent = reboots.get("spent") or len(reboots["reasons"])
    of = f" of {reboots['budget']}" if reboots.get("budget") else ""
    because = "; ".join(reboots["reasons"])
    return f"{spent}{of}{f': {because}' if because else ''}"


# -- what there is to read, when, and what to type ----------------------------------------------


def _evidence(found: dict[str, Any], width: Width) -> list[str]:
    if not found.get("evidence"):
        return []
    said = found["evidence"].splitlines()[-EVIDENCE:]
    parts = (part for line in said for part in wrapped(line, width and width - 2))
    return ["", "Evidence:", *(f"  {part}" for part in parts), ""]


def _times(found: dict[str, Any], width: Width, now: datetime | None) -> Iterator[str]:
    if found["state"] in PROVEN:
        yield from _row("took", _took(found), width)
    if found["state"] in PROVEN and found.get("checked"):
        yield from _row("looked at", f"{found['checked']}{_distance(found['checked'], now)}", width)
    if at := found.get("next_attempt"):
        yield from _row("next try", f"{at}{_distance(at, now)}", width)


def _took(found: dict[str, Any]) -> str:
    seconds = found["seconds_to_ready"]
    reboots = len(found["reboots"]["reasons"])
    told = f"{duration(seconds) if seconds is not None else '?'}, "
    told += f"{reboots or 'no'} reboot{'' if reboots == 1 else 's'}"
    return f"{told}{_longest(found['steps'])}"


def _longest(steps: Sequence[dict[str, Any]]) -> str:
    """The steps that took longest, in the order of the walk."""
    slow = sorted((one for one in steps if one.get("seconds", 0) >= 1),
                  key=lambda one: -one["seconds"])[:SLOW]  # fmt: skip
    told = [f"{one['name']} {duration(one['seconds'])}" for one in steps if one in slow]
    return f"; {', '.join(told)}" if told else ""


def _distance(at: str, now: datetime | None) -> str:
    """How far off an instant is, as stamp() writes it."""
    if now is None:
        return ""
    try:
        seconds = (datetime.fromisoformat(at.replace("Z", "+00:00")) - now).total_seconds()
    except ValueError:
        return ""
    return f" (in {duration(seconds)})" if seconds > 0 else f" ({_age(-seconds)} ago)"


def _age(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}s"
    return duration(seconds)


def _next(found: dict[str, Any]) -> Iterator[str]:
    if found.get("code"):
        yield f"  explained by: gpuboot explain {found['code']}"
    if found.get("hint"):
        yield f"  next: {found['hint']}"  # whole, to be copied
