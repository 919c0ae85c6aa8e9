"""Where the node stands: what the agent wrote, corrected by looking at the machine."""

from __future__ import annotations

import fcntl
import json
import re
import time
from typing import TYPE_CHECKING, Any

from gpuboot import __version__
from gpuboot.errors import Code
from gpuboot.gauges import NO_ANSWER, Gauges

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuboot.host import Host

# Repeated here as texts: importing the modules they belong to would cost more than all the rest.
PROGRESS = "/run/gpuboot/progress.json"
HEALTH = "/run/gpuboot/health.json"
CHECKPOINT = "/var/lib/gpuboot/checkpoint.json"
LOCK = "/run/gpuboot/lock"
GATE = "/run/gpuboot/ready"
ENABLED = "/etc/systemd/system/multi-user.target.wants/gpuboot.service"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

NO_MODULE = Code(
    "GB323",
    "the kernel that boots next has no NVIDIA module",
    (
        "A kernel was installed and its headers were not, so that DKMS has left it out.",
        "DKMS could not build the module for it.",
        "It came without the package of its ready-made module, as Ubuntu's may.",
        "GRUB was told to boot another kernel than before.",
    ),
    (
        "gpuboot run",
        "find /lib/modules -name 'nvidia*.ko*'",
        "apt-cache search --names-only 'KERNEL$'",
    ),
    evidence="the module files below /lib/modules of the kernel that GRUB boots next",
)

FAULT = Code(
    "GB307",
    "something is wrong with a GPU, or with what it lives on, since the node was ready",
    (
        "The driver told of an error (Xid), the card was lost, or its memory fails.",
        "The driver's files were replaced, or its module is not loaded any more.",
        "rke2-agent has stopped, or its containerd has lost the NVIDIA runtime.",
    ),
    ("gpuboot status", "journalctl -u gpuboot-monitor -n 50", "nvidia-smi -q"),
    evidence="NVML, the kernel's log, versions, and files, by gpuboot-monitor.service",
)
# What is read of the monitor's document; one that has not all of it is no word of this monitor's.
MONITORED = {"boottime", "interval", "gpus", "reason", "advice",
             "state", "faults", "blind", "xids", "checked"}  # fmt: skip
STALE = 4  # intervals after which the monitor's last word is none any more

EXIT_CODES = {"ready": 0, "failed": 1, "degraded": 4}
IN_PROGRESS = 3
NEVER_ENABLED = 5
FINAL = ("ready", "degraded", "failed")
BEGIN_WAIT = 20.0  # seconds a walk that was asked for may take to begin


def look(host: Host) -> dict[str, Any]:
    """The document of `gpuboot status --json`; only reads, and needs no privilege."""
    boot_id = (host.read(BOOT_ID) or "").strip()
    found = _json(host, PROGRESS)
    health = last_look(host, boot_id)
    # Asked while the rest is looked at, where no monitor has the answer.
    gauges = None if health else _gauges(host, found, boot_id)
    enabled = host.exists(ENABLED)
    walking = locked(host)
    if found is None or found.get("boot_id") != boot_id:
        found = _idle(host, enabled=enabled, walking=walking)
        if walking:
            found |= _told(host)
    elif found["state"] == "failed" and walking:
        found = {**found, **_BEGINS}
    elif found["state"] in ("running", "waiting") and not walking:
        found = {
            **found,
            "state": "idle",
            "reason": f"the walk was interrupted in {found['step'] or 'its beginning'}",
            "hint": "gpuboot run",
        }
    elif found["state"] in ("ready", "degraded") and not walking:
        found = _verified(host, found)
    if found["state"] == "running" and walking:
        found = _by_now(host, found)
    if isinstance(found.get("driver"), dict):
        found = _next_boot(host, found, walking=walking)
    if health:
        found = _monitored(found, health, walking=walking)
    elif gauges:
        found = _read(found, gauges, walking=walking)
    return {**found, "boot_id": boot_id, "enabled": enabled}


def told(host: Host) -> dict[str, Any]:
    """What the agent said last in this boot, without a look; an idle node if it said nothing."""
    boot_id = (host.read(BOOT_ID) or "").strip()
    found = _json(host, PROGRESS)
    if found is None or found.get("boot_id") != boot_id:
        found = _idle(host, enabled=True, walking=False)
    return {**found, "boot_id": boot_id}


def last_look(host: Host, boot_id: str) -> dict[str, Any] | None:
    """What the monitor said last, if it is at work: it has looked a few intervals ago at most."""
    found = _json(host, HEALTH)
    if found is None or found.get("boot_id") != boot_id or not found.keys() >= MONITORED:
        return None
    age = host.clock.boottime() - found["boottime"]
    return found if age < found["interval"] * STALE else None


def _monitored(found: dict[str, Any], health: dict[str, Any], *, walking: bool) -> dict[str, Any]:
    """With what the monitor sees; a node with a fault is not ready."""
    cards = {card["pci"]: card for card in health["gpus"]}
    keys = ("temperature_c", "memory_used_mib")
    gpus = [
        {**gpu, **{key: cards[gpu["pci"]][key] for key in keys}} if gpu["pci"] in cards else gpu
        for gpu in found["gpus"]
    ]
    shown = {key: health[key] for key in ("state", "faults", "blind", "xids", "checked")}
    found = {**found, "gpus": gpus, "health": shown}
    if walking or found["state"] != "ready" or not health["faults"]:
        return found
    return {**found, "state": "degraded", "reason": health["reason"], "code": FAULT.id,
            "hint": health["advice"]}  # fmt: skip


def _gauges(host: Host, found: dict[str, Any] | None, boot_id: str) -> Gauges | None:
    """The question for temperatures and memory, where a driver is loaded that could answer it.

    Without one nvidia-smi would load it: looking must not change the machine.
    """
    if found is None or found.get("boot_id") != boot_id or not found.get("gpus"):
        return None
    if found["state"] not in ("ready", "degraded") or not host.exists("/sys/module/nvidia"):
        return None
    return Gauges(host)


def _read(found: dict[str, Any], gauges: Gauges, *, walking: bool) -> dict[str, Any]:
    """With what the cards say now; a node whose cards have stopped to answer is not ready."""
    now = gauges.read()
    found = {**found, "gpus": [{**gpu, **now.get(gpu["pci"], {})} for gpu in found["gpus"]]}
    if gauges.refusal is None or walking or found["state"] != "ready":
        return found
    return {**found, "state": "degraded", "reason": f"nvidia-smi: {gauges.refusal}",
            "code": NO_ANSWER.id, "hint": NO_ANSWER.commands[0]}  # fmt: skip


def _by_now(host: Host, found: dict[str, Any]) -> dict[str, Any]:
    """The step that is being applied has gone on since its agent wrote, and less is left."""
    passed = max(host.clock.boottime() - (found.get("boottime") or host.clock.boottime()), 0.0)
    counted = found.get("progress") or {}
    left = counted.get("eta_seconds")
    steps = [
        {**step, "seconds": round(step.get("seconds", 0.0) + passed, 3)}
        if step.get("state") == "running" else step for step in found["steps"]
    ]  # fmt: skip
    if left is None:
        return {**found, "steps": steps}
    counted = {**counted, "eta_seconds": max(round(left - passed), 0)}
    return {**found, "steps": steps, "progress": counted}


def anew(host: Host, before: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Looks at the walk that was just asked for: how the one before it ended is no answer."""
    patience = time.monotonic() + BEGIN_WAIT

    def look_anew() -> dict[str, Any]:
        found = look(host)
        over = found["state"] in FINAL and found.get("walk") == before.get("walk")
        return {**found, **_BEGINS} if over and time.monotonic() < patience else found

    return look_anew


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


# What stands over the end of an earlier walk when another one is on its way.
_BEGINS: dict[str, Any] = {
    "state": "running", "step": None, "reason": "the walk begins", "code": None, "hint": None,
    "evidence": None, "next_attempt": None, "steps": [],
}  # fmt: skip


def _idle(host: Host, *, enabled: bool, walking: bool) -> dict[str, Any]:
    """The document when the agent has written nothing in this boot."""
    record = _json(host, CHECKPOINT) or {}
    try:
        found = _recorded(record)
    except (AttributeError, KeyError, TypeError):  # damaged; the agent will set it aside
        record, found = {}, _recorded({})
    if walking:
        return {**found, **_BEGINS}
    reason = "no walk has begun in this boot" if enabled else "gpuboot.service is not enabled"
    if record.get("ready_at"):
        reason += f"; the node was ready at {record['ready_at']}"
    if record.get("trouble"):
        reason += f"; it waited last in {record['trouble']}"
    if record and not enabled:
        agent = host.run(["systemctl", "is-active", "rke2-agent.service"]).out.strip()
        reason += f"; rke2-agent is {agent or 'not there'}"
    return {**found, "reason": reason}


def _recorded(last: dict[str, Any]) -> dict[str, Any]:
    """An idle node's document, with what the checkpoint remembers. Raises for a damaged one."""
    reboots = last.get("reboots", [])
    return {
        "schema": 1,
        "state": "idle",
        "step": last.get("doing"),
        "reason": "",
        "code": None,
        "hint": "gpuboot run",
        "next_attempt": None,
        "mode": None,
        "walk": None,
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


def _told(host: Host) -> dict[str, Any]:
    """What the agent told systemd where /run took no progress file; nothing if it told nothing."""
    argv = ["systemctl", "show", "--value", "--property=StatusText", "gpuboot.service"]
    match = re.fullmatch(r"waiting: (.*) \[(GB\d+)\]", host.run(argv).out.strip(), re.DOTALL)
    if not match:
        return {}
    hint = f"gpuboot explain {match[2]}"
    return {"state": "waiting", "reason": match[1], "code": match[2], "hint": hint}


def _next_boot(host: Host, found: dict[str, Any], *, walking: bool) -> dict[str, Any]:
    """Which kernel boots next, and whether a module lies there for it: by file names only."""
    from gpuboot import kernel

    release, by = kernel.choice(host)
    has_module = next(kernel.module_files(host, release), None) is not None
    boots = {"next_boot_kernel": release, "next_boot_kernel_has_module": has_module}
    found = {**found, "driver": {**found["driver"], **boots}}
    if has_module or walking or found["state"] != "ready":
        return found
    reason = f"kernel {release}, {by}, boots next and has no NVIDIA module"
    return {**found, "state": "degraded", "reason": reason, "code": NO_MODULE.id,
            "hint": "gpuboot run"}  # fmt: skip


def _verified(host: Host, found: dict[str, Any]) -> dict[str, Any]:
    """A ready node looked at once more, as far as looking costs nothing."""
    trouble = None
    # A node that joined without its GPU has proven no driver, and misses none.
    if found["driver"] and not host.exists("/sys/module/nvidia"):
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
