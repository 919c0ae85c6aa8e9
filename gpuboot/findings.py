"""What a step's check says, as a line of `gpuboot plan`, and which steps are not asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuboot.errors import GpubootError
from gpuboot.step import Ok, Pending, Reboot, Waiting

if TYPE_CHECKING:
    from gpuboot.errors import Code
    from gpuboot.host import Host
    from gpuboot.plan import Plan
    from gpuboot.step import Step

# For the files they read.
ROOT_ONLY = ("rancher-plan", "rke2-images", "rke2-config", "node-password", "rke2-proxy",
             "supervisor-answers", "node-joined")  # fmt: skip
REMOTE = ("supervisor-answers", "node-joined")
# NVML loads the driver when it is asked without one: looking would change the machine.
NEEDS = {"gpus-answer": "driver-loaded"}


@dataclass(frozen=True)
class Looking:
    """How far we may look: as root, and over the network."""

    root: bool = True
    offline: bool = False

    def unasked(self, step: str) -> str | None:
        """Why this step is not looked at, or None."""
        if self.offline and step in REMOTE:
            return "not asked: --offline"
        if not self.root and step in ROOT_ONLY:
            return "only root can look"
        return None


def look(
    host: Host,
    road: Plan,
    step: Step,
    before: Sequence[Mapping[str, Any]],
    looking: Looking,
    *,
    live: bool,
) -> dict[str, Any]:
    """What the step's check says now. On a live node a difference may only be noted."""
    if reason := looking.unasked(step.name):
        return line(step.name, None, reason)
    need = NEEDS.get(step.name)
    if any(other["name"] == need and other["state"] != "ok" for other in before):
        return line(step.name, "pending", f"can only be told after {need}")
    code: Code | None = None
    hint: str | None = None
    try:
        finding = step.check(host)
    except GpubootError as error:
        found = failed(step.name, error)
    else:
        found = line(step.name, _STATES[type(finding)], finding.reason)
        if isinstance(finding, Waiting):
            hint = finding.hint or finding.code.commands[0]
            found |= {"code": finding.code.id, "hint": hint}
        if isinstance(finding, Pending):
            code, hint = finding.code, finding.hint
        if isinstance(finding, Ok):
            found["drift"] = list(finding.drift)
    untouched = step.disruptive or (step in road.prepare and found["state"] != "pending")
    if live and untouched and found["state"] != "ok":
        found |= {"state": "drift", "hint": hint or "drain the node, then reboot"}
        if code:
            found["code"] = code.id
    return found


_STATES = {Ok: "ok", Pending: "pending", Waiting: "waiting", Reboot: "reboot"}


def line(name: str, state: str | None, reason: str) -> dict[str, Any]:
    """One step of the plan; no state where it was not looked at."""
    return {
        "name": name, "state": state, "reason": reason, "code": None, "hint": None, "drift": [],
    }  # fmt: skip


def failed(name: str, error: GpubootError) -> dict[str, Any]:
    """A step whose check raised."""
    found = line(name, "waiting" if error.retry else "failed", error.message)
    return {**found, "code": error.code.id, "hint": error.hint}
