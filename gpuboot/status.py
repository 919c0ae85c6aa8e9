"""Where the node stands: what the agent wrote, corrected by looking at the machine."""

from __future__ import annotations

import fcntl
import json
from typing import TYPE_CHECKING, Any

from gpuboot import __version__

if TYPE_CHECKING:
    from gpuboot.host import Host

# Repeated here as texts: importing the modules they belong to would cost more than all the rest.
PROGRESS = "/run/gpuboot/progress.json"
CHECKPOINT = "/var/lib/gpuboot/checkpoint.json"
LOCK = "/run/gpuboot/lock"
GATE = "/run/gpuboot/ready"
ENABLED = "/etc/systemd/system/multi-user.target.wants/gpuboot.service"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

EXIT_CODES = {"ready": 0, "failed": 1, "degraded": 4}
IN_PROGRESS = 3
NEVER_ENABLED = 5
FINAL = ("ready", "degraded", "failed")


def look(host: Host) -> dict[str, Any]:
    """The document of `gpuboot status --json`; only reads, and needs no privilege."""
    boot_id = (host.read(BOOT_ID) or "").strip()
    enabled = host.exists(ENABLED)
    walking = locked(host)
    found = _json(host, PROGRESS)
    if found is None or found.get("boot_id") != boot_id:
        found = _idle(_json(host, CHECKPOINT), enabled=enabled, walking=walking)
    elif found["state"] in ("running", "waiting") and not walking:
        found = {
            **found,
            "state": "idle",
            "reason": f"the walk was interrupted in {found['step'] or 'its beginning'}",
            "hint": "gpuboot run",
        }
    elif found["state"] in ("ready", "degraded") and not walking:
        found = _verified(host, found)
    return {**found, "boot_id": boot_id, "enabled": enabled}


def exit_code(found: dict[str, Any]) -> int:
    """The exit status that says the same: 0 ready, 1 failed, 3 in progress, 4 degraded, 5 never."""
    if found["state"] == "idle" and not found["enabled"] and not found["boots"]:
        return NEVER_ENABLED
    return EXIT_CODES.get(found["state"], IN_PROGRESS)


def locked(host: Host) -> bool:
    """Whether an agent is at work: it holds the lock as long as it lives."""
    try:
        with host.path(LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:  # only root may ask the lock; systemd tells anybody
        unit = host.run(["systemctl", "is-active", "gpuboot.service"])
        return unit.out.strip() in ("active", "activating", "reloading", "deactivating")
    except OSError:
        return False
    return False


def _json(host: Host, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads(host.read(name) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("schema") == 1 else None


def _idle(record: dict[str, Any] | None, *, enabled: bool, walking: bool) -> dict[str, Any]:
    """The document when the agent has written nothing in this boot."""
    if walking:
        state, reason, hint = "running", "the walk begins", None
    elif not enabled:
        state, reason, hint = "idle", "gpuboot.service is not enabled", "gpuboot run"
    else:
        state, reason, hint = "idle", "no walk has begun in this boot", "gpuboot run"
    last = record or {}
    if last.get("ready_at"):
        reason += f"; the node was ready at {last['ready_at']}"
    reboots = last.get("reboots", [])
    return {
        "schema": 1,
        "state": state,
        "step": last.get("doing"),
        "reason": reason,
        "code": None,
        "hint": hint,
        "next_attempt": None,
        "mode": None,
        "checked": None,
        "progress": None,
        "steps": [
            {"name": name, "state": None, "reason": "", **effort}
            for name, effort in last.get("steps", {}).items()
        ],
        "reboots": {
            "spent": len(reboots) + last.get("surcharge", 0),
            "budget": None,
            "reasons": [spent["reason"] for spent in reboots],
        },
        "boots": last.get("boots", 0),
        "gpus": [],
        "driver": None,
        "node": None,
        "started": last.get("started"),
        "ready_at": last.get("ready_at"),
        "seconds_to_ready": last.get("seconds_to_ready"),
        "gpuboot": __version__,
    }


def _verified(host: Host, found: dict[str, Any]) -> dict[str, Any]:
    """A ready node looked at once more, as far as looking costs nothing."""
    trouble = None
    if not host.exists("/sys/module/nvidia"):
        trouble = "the nvidia module is not loaded any more"
    elif found["mode"] != "none":
        if not host.exists(GATE):
            trouble = f"{GATE} is gone: rke2-agent would not start again"
        else:
            active = host.run(["systemctl", "is-active", "rke2-agent.service"]).out.strip()
            if active != "active":
                trouble = f"rke2-agent is {active or 'not there'}"
    if trouble is None:
        return found
    return {**found, "state": "degraded", "reason": trouble, "hint": "gpuboot run"}
