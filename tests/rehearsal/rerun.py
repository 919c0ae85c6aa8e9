"""`gpuboot run` on a node that is ready: it must change nothing, and say so in one line."""

from __future__ import annotations

import stat
import time
from pathlib import Path

from tests.rehearsal.node import Node

RUNS = 2
WALK = 60.0  # seconds; a walk over a converged node takes about one
# What grows or is rewritten by the mere passing of time, on any machine.
LIVING = ("var/log/", "var/lib/rancher/", "var/lib/systemd/", "var/lib/kubelet/", "run/", "tmp/",
          "var/tmp/")  # fmt: skip


def findings(node: Node, disk: Path) -> list[str]:
    """What two more runs changed, or said beyond one line."""
    before = _seen(disk)
    found = []
    for attempt in range(1, RUNS + 1):
        done = node.run("gpuboot", "run")
        lines = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode != 0 or len(lines) != 1:
            shown = "\n".join(lines) or "nothing"
            found.append(
                f"gpuboot run again ({attempt}): expected exit status 0 and one line / "
                f"found exit status {done.returncode} and {shown}"
            )
        found += _until_ready(node, attempt)
    after = _seen(disk)
    changed = sorted(name for name in before.keys() | after.keys() if _differ(name, before, after))
    return [*found, *(f"gpuboot run again: expected no change / found {name}" for name in changed)]


def _until_ready(node: Node, attempt: int) -> list[str]:
    deadline = time.monotonic() + WALK
    state: object = None
    while time.monotonic() < deadline:
        active = node.run("systemctl", "is-active", "gpuboot.service").stdout.strip()
        answered = node.status()
        state = answered[0].get("state") if answered else None
        if state == "ready" and active == "inactive":
            return []
        time.sleep(0.3)
    return [f"gpuboot run again ({attempt}): expected ready / found {state}"]


def _differ(name: str, before: dict[str, str], after: dict[str, str]) -> bool:
    return before.get(name) != after.get(name)


def _seen(disk: Path) -> dict[str, str]:
    return {
        name: seen
        for name, seen in (line.split("\t", 1) for line in listing(disk))
        if not name.lstrip("/").startswith(LIVING)
    }


def listing(disk: Path) -> list[str]:
    """The files the node has written: name, mode, owner, size and time, separated by tabs."""
    lines = []
    for file in sorted(disk.rglob("*")):
        try:
            seen = file.lstat()
        except FileNotFoundError:  # the node lives on while we look
            continue
        if not stat.S_ISDIR(seen.st_mode):
            facts = (f"{stat.filemode(seen.st_mode)}", seen.st_uid, seen.st_gid, seen.st_size,
                     seen.st_mtime_ns)  # fmt: skip
            lines.append(f"/{file.relative_to(disk)}\t" + "\t".join(map(str, facts)))
    return lines
