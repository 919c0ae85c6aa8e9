"""How things look on a terminal: status, facts, plan and problems as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpuboot.reader import Problem

MARKS = {
    "ok": ("✓", "green"),
    "pending": ("·", "bright_black"),
    "running": ("▸", "cyan"),
    "waiting": ("…", "yellow"),
    "drift": ("≠", "yellow"),
    "reboot": ("↻", "yellow"),
    "failed": ("✗", "red"),
}
COLOURS = {
    "ready": "green",
    "degraded": "yellow",
    "waiting": "yellow",
    "rebooting": "yellow",
    "running": "cyan",
    "failed": "red",
    "idle": "bright_black",
}


def status(found: dict[str, Any]) -> str:
    """The document of `gpuboot status` as a few lines."""
    lines = [_head(found)]
    if found["state"] in ("ready", "degraded"):
        lines += _proof(found)
    else:
        lines += [step(one) for one in found["steps"] if one.get("state")]
    if found.get("evidence"):
        lines += ["", "Evidence:", *(f"  {line}" for line in found["evidence"].splitlines()[-8:])]
    lines += [f"  differs: {drift}" for drift in found.get("drift") or []]
    if found.get("next_attempt"):
        lines.append(f"  next try: {found['next_attempt']}")
    if found.get("code"):
        lines.append(f"  explained by: gpuboot explain {found['code']}")
    if found.get("hint"):
        lines.append(f"  next: {found['hint']}")
    return "\n".join(lines)


def _head(found: dict[str, Any]) -> str:
    state = click.style(found["state"], fg=COLOURS[found["state"]], bold=True)
    code = f" [{found['code']}]" if found.get("code") else ""
    counted = found.get("progress")
    share = ""
    if counted and counted["total"] and found["state"] not in ("ready", "degraded"):
        share = f" ({counted['done']} of {counted['total']} steps)"
    step_name = found.get("step") or ""
    named = found["state"] != "running" or found["reason"].startswith(step_name)
    at = "" if named else f"{step_name}: "
    return f"{state}{share}: {at}{found['reason']}{code}{left(found)}"


def _proof(found: dict[str, Any]) -> list[str]:
    """What a ready node is."""
    lines = [
        f"  GPU     {gpu['pci']}  {gpu['name']}  {gpu.get('uuid', '')}".rstrip()
        for gpu in found["gpus"]
    ]
    if driver := found["driver"]:
        lines.append(f"  driver  {driver['version']} ({driver['kernel_module_type']})")
        if "next_boot_kernel" in driver:
            module = "a module" if driver["next_boot_kernel_has_module"] else "no module"
            lines.append(f"  boots   kernel {driver['next_boot_kernel']} next, and it has {module}")
    if node := found["node"]:
        lines.append(f"  node    {node['name']}  {'Ready' if node['ready'] else 'NotReady'}")
        lines += [f"  label   {key}={value}" for key, value in _own(node["labels"])]
        lines += [f"  taint   {taint}" for taint in node["taints"]]
        lines += [f"  to do   {drift}" for drift in node["drift"]]
    lines.append(f"  took    {_took(found)}")
    return lines


def _own(labels: dict[str, str]) -> list[tuple[str, str]]:
    """The labels that say what a node is for; those that every kubelet sets are no news."""
    return [(key, value) for key, value in sorted(labels.items()) if "kubernetes.io/" not in key]


def _took(found: dict[str, Any]) -> str:
    seconds = found["seconds_to_ready"]
    reasons = found["reboots"]["reasons"]
    reboots = f"{len(reasons)} reboot{'' if len(reasons) == 1 else 's'}"
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return f"{duration(seconds) if seconds is not None else '?'}, {reboots}{because}"


def step(found: dict[str, Any]) -> str:
    """One step: a mark for its state, its name, why, and how long it took."""
    mark, colour = MARKS[found["state"]]
    seconds = f"  {duration(found['seconds'])}" if found.get("seconds", 0) >= 1 else ""
    reason = f"  {found['reason']}" if found.get("reason") else ""
    return f"  {click.style(mark, fg=colour)} {found['name']:<18}{reason}{seconds}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 211 is "3 min 31 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def motd(found: dict[str, Any]) -> str:
    """One line for whoever logs in: where a node stands that is not ready; nothing for others."""
    never = found["state"] == "idle" and not found["enabled"] and not found["boots"]
    if found["state"] == "ready" or never:
        return ""
    return f"gpuboot: {_head(found)}; more: gpuboot status"


def left(found: dict[str, Any]) -> str:
    """About how long it will still take, where that is known and worth a word."""
    seconds = (found.get("progress") or {}).get("eta_seconds")
    return f" (about {duration(seconds)} left)" if seconds and seconds > 5 else ""


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def plan(found: dict[str, Any]) -> str:
    """The document of `gpuboot plan` as text."""
    lines = []
    for one in found["steps"]:
        lines.append(step({**one, "state": one["state"] or "pending"}) + _marked(one))
        lines += [f"      differs: {drift}" for drift in one["drift"]]
    if driver := found["driver"]:
        kind = f"{driver['branch']} ({driver['kernel_module_type']}), {driver['source']}"
        lines += ["", f"driver: {kind}", f"  {driver['reason']}"]
    if packages := found["packages"]:
        size = found["download_bytes"]
        total = f", {size / 1e6:.0f} MB to fetch" if size is not None else ""
        lines += ["", f"{len(packages)} packages{total}:"]
        lines += [f"  {_package(package)}" for package in packages]
    for file in found["files"]:
        diff = file["diff"] or f"+++ {file['name']} (downloaded, and verified before it is used)"
        lines += ["", *(_coloured(line) for line in diff.splitlines())]
    lines.append("")
    if found["held"]:
        lines.append(f"held: {', '.join(found['held'])}")
    if found["units"]:
        lines.append(f"enabled: {', '.join(found['units'])}")
    lines += [f"trusted: {item['what']} by {item['by']}" for item in found["trusted"]]
    lines += [click.style(f"warning: {text}", fg="yellow") for text in found["warnings"]]
    if found["live"]:
        lines.append("live: rke2-agent runs, so nothing disruptive is done before the next boot")
    lines.append(f"reboot: {found['reboot']['answer']} ({found['reboot']['reason']})")
    return "\n".join(lines)


SEVERITIES = {"error": "red", "warning": "yellow", "notice": "cyan"}


def problems(found: Sequence[Problem], *, width: int | None) -> str:
    """Problems by file and line, for a terminal of this width; None breaks no line."""
    lines: list[str] = []
    for file in dict.fromkeys(one.file for one in found):
        lines.append(click.style(file, bold=True))
        for one in (problem for problem in found if problem.file == file):
            lines += _problem(one, width)
        lines.append("")
    return "\n".join(lines)


def _problem(one: Problem, width: int | None) -> list[str]:
    key = f"{one.key}: " if one.key else ""
    wanted = f"; expected {one.expected}" if one.expected else ""
    texts = [f"{key}{one.message}{wanted} [{one.code}]"]
    texts += [f"next: {one.hint}"] if one.hint else []
    head = f"{one.line or '-':>5} {one.severity:<8} "
    indent = " " * len(head)
    body = [line for text in texts for line in _wrapped(text, width and width - len(head))]
    marked = head.replace(one.severity, click.style(one.severity, fg=SEVERITIES[one.severity]))
    return [marked + body[0], *(indent + line for line in body[1:])]


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    # A label or path that is longer than the line is left whole, to be copied.
    return textwrap.wrap(
        text, max(width, 20), break_long_words=False, break_on_hyphens=False
    ) or [""]  # fmt: skip


def counted(found: Sequence[Problem]) -> str:
    """How many problems of each severity, in how many files."""
    parts = []
    for severity in SEVERITIES:
        number = sum(one.severity == severity for one in found)
        parts += [f"{number} {severity}{'s' if number != 1 else ''}"] if number else []
    files = len({one.file for one in found})
    return f"{', '.join(parts)} in {files} file{'s' if files != 1 else ''}"


def _marked(step: dict[str, Any]) -> str:
    code = f" [{step['code']}]" if step["code"] else ""
    hint = f"\n      next: {step['hint']}" if step["hint"] else ""
    return code + hint


def _package(package: dict[str, Any]) -> str:
    name, action = package["name"], package["action"]
    if package["version"] is None and action != "remove":
        return str(name)
    if action == "remove":
        return f"{name:<32} {package['before']} is removed"
    before = "" if action == "install" else f"  {action}d from {package['before']}"
    return f"{name:<32} {package['version']:<28} {package['bytes'] / 1e6:8.1f} MB{before}"


def _coloured(line: str) -> str:
    colour = {"+": "green", "-": "red"}.get(line[:1])
    return click.style(line, fg=colour) if colour else line
