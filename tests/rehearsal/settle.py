"""Waiting for a node, its progress shown, until it is where it should be or never will be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.rehearsal.acts import Act
from tests.rehearsal.expect import Expectation
from tests.rehearsal.node import Node
from tests.rehearsal.report import TERMINAL, say
from tests.rehearsal.stage import Stage

POLL = 1.0  # seconds between two looks at `gpuboot status`
WATCHFUL = 0.2  # while a step is waited for that may be short
FINAL = ("ready", "degraded", "failed")  # what a walk may end with
UNIT = "gpuboot.service"
AT_WORK = ("active", "activating", "reloading", "deactivating")
QUIET = 15.0  # seconds without any change after which such an end is one


@dataclass
class Settle:
    """Watches the node; `during` are the acts to be performed while their step runs."""

    stage: Stage
    expect: Expectation
    during: list[Act] = field(default_factory=list)
    found: list[str] = field(default_factory=list)  # what went wrong with them

    def until(self, deadline: float) -> list[str]:
        """Waits so many seconds at most; what went wrong with an act."""
        stage, node = self.stage, self.stage.node
        end = stage.watch.seconds + deadline
        shown, changed = "", stage.watch.seconds
        while stage.watch.seconds < end and not self.found:
            stage.passes(WATCHFUL if self.during else POLL)
            status = (node.status() or ({}, 0))[0]
            line = _line(status, len(node.boots))
            if line != shown and status:
                say(stage.line(line))
            if line != shown:
                shown, changed = line, stage.watch.seconds
            TERMINAL.live(stage.line(line))
            if self.during and _runs(status, str(self.during[0].during)):
                self._perform(self.during.pop(0))
            elif not self.during and self._settled(status, stage.watch.seconds - changed):
                return []
        if not self.found:
            say(stage.line("the deadline is over"))
            self.found += [f"{act.name}: {act.during} never ran" for act in self.during]
        return self.found

    def _perform(self, act: Act) -> None:
        say(self.stage.line(f"while {act.during} runs: {act.told}"))
        self.found = [f"{act.name}: {line}" for line in act.action.perform(self.stage.acted)]

    def _settled(self, status: Mapping[str, object], quiet: float) -> bool:
        over = status.get("state") in FINAL and quiet > QUIET
        return (self._as_expected(status) or over) and self._cloud_init_ended()

    def _as_expected(self, status: Mapping[str, object]) -> bool:
        expect, node = self.expect, self.stage.node
        wanted = {"state": expect.state, "step": expect.step, "code": expect.code}
        if any(value is not None and status.get(key) != value for key, value in wanted.items()):
            return False
        if expect.boots is not None and len(node.boots) < expect.boots:
            return False
        if expect.state is None:
            return _said(node, "is-system-running") in ("running", "degraded")
        # A walk that has just been asked for may not have begun to tell of itself.
        return expect.state not in FINAL or _said(node, "is-active", UNIT) not in AT_WORK

    def _cloud_init_ended(self) -> bool:
        found = cloud_init(self.stage.node).get("status")
        return found == self.expect.cloud_init or found not in ("running", "not run")


def _runs(status: Mapping[str, object], step: str) -> bool:
    return status.get("state") == "running" and status.get("step") == step


def _said(node: Node, *question: str) -> str:
    try:
        return node.run("systemctl", *question).stdout.strip() if node.running else ""
    except subprocess.TimeoutExpired:
        return ""


def _line(status: Mapping[str, object], boot: int) -> str:
    if not status:
        return f"boot {boot}"
    progress = status.get("progress")
    of = f"{progress.get('done')}/{progress.get('total')}" if isinstance(progress, dict) else ""
    step, reason = status.get("step") or "", status.get("reason") or ""
    return f"boot {boot}  {status.get('state')!s:<9} {of:>5}  {step!s:<20} {reason}".rstrip()


def cloud_init(node: Node) -> dict[str, object]:
    """`cloud-init status --format=json`; {"status": "absent"} where there is no cloud-init."""
    done = node.run("cloud-init", "status", "--format=json")
    if done.returncode == NOT_FOUND:
        return {"status": "absent"}
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"status": done.stdout.strip() or done.stderr.strip()}
    return answer if isinstance(answer, dict) else {}


NOT_FOUND = 127  # env's exit status for a program that is not there
