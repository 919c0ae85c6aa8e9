"""What a walk would find on this machine now: every step's check, and no apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuboot import config, facts, plan
from gpuboot.errors import GpubootError
from gpuboot.nvidia import RIVALS
from gpuboot.step import Ok, Pending, Reboot, Waiting

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host
    from gpuboot.step import Step

_STATES = {Ok: "ok", Pending: "pending", Waiting: "waiting", Reboot: "reboot"}


def preview(host: Host) -> dict[str, Any]:
    """`{"steps": [{"name", "state", "reason", "code"}], "reboot": {"answer", "reason"}}`.

    Raises ConfigError.
    """
    wanted = config.load(host)
    host.web.proxy = plan.proxy(wanted)
    machine = facts.gather(host)
    steps = [_looked_at(host, step) for step in plan.build(wanted, machine).steps]
    return {"schema": 1, "steps": steps, "reboot": _reboot(machine, steps)}


def _looked_at(host: Host, step: Step) -> dict[str, Any]:
    try:
        finding = step.check(host)
    except GpubootError as error:
        state = "waiting" if error.retry else "failed"
        return {"name": step.name, "state": state, "reason": error.message, "code": error.code.id}
    code = finding.code.id if isinstance(finding, Waiting) else None
    return {
        "name": step.name,
        "state": _STATES[type(finding)],
        "reason": finding.reason,
        "code": code,
    }


def _reboot(machine: Facts, steps: list[dict[str, Any]]) -> dict[str, str]:
    """Whether the walk will reboot: only trying to unload a rival driver can tell for certain."""
    if due := next((step for step in steps if step["state"] == "reboot"), None):
        return {"answer": "yes", "reason": due["reason"]}
    for gpu in machine.gpus:
        if gpu.driver in RIVALS:
            reason = f"{gpu.driver} holds {gpu.slot}; if it cannot be unloaded"
            return {"answer": "maybe", "reason": reason}
    return {"answer": "no", "reason": "nothing stands in the driver's way"}
