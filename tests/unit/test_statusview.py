"""The screen that `gpuboot status` shows."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click
import pytest

from gpuboot import statusview

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
STEPS = [
    {"name": "rke2-hold", "state": "ok", "reason": "held", "attempts": 0, "seconds": 0.1},
    {"name": "preflight", "state": "ok", "reason": "debian 12", "attempts": 0, "seconds": 0.0},
    {"name": "packages", "state": "ok", "reason": "12 packages", "attempts": 1, "seconds": 91.6},
    {"name": "driver-built", "state": "running", "reason": "no module", "attempts": 1,
     "seconds": 0.0},
    {"name": "driver-loaded", "state": "pending", "reason": "", "attempts": 0, "seconds": 0.0},
    {"name": "cdi", "state": "pending", "reason": "", "attempts": 0, "seconds": 0.0},
]  # fmt: skip
GPU = {"pci": "0000:03:00.0", "id": "10de:1eb8", "name": "Tesla T4", "uuid": "GPU-1",
       "memory_mib": 15360}  # fmt: skip
NODE = {"name": "gpu-1", "ready": True, "taints": ["a:NoSchedule"], "drift": ["label b"],
        "labels": {"kubernetes.io/os": "linux", "nvidia.com/gpu": "present"}}  # fmt: skip
LONG = "there are no headers for a kernel that needs a module, and none in any of the sources"


def document(state: str, **changes: object) -> dict[str, Any]:
    return {
        "schema": 1, "state": state, "step": "driver-built", "reason": "why", "code": None,
        "hint": None, "next_attempt": None, "mode": "agent", "progress": {"done": 3, "total": 6},
        "steps": STEPS, "reboots": {"spent": 0, "budget": 3, "reasons": []}, "boots": 1,
        "gpus": [], "driver": None, "node": None, "seconds_to_ready": None, **changes,
    }  # fmt: skip


def text(state: str, width: int | None = None, **changes: object) -> list[str]:
    found = document(state, **changes)
    return click.unstyle(statusview.text(found, width, NOW)).splitlines()


@pytest.mark.parametrize("state", ["waiting", "rebooting", "failed"])
def test_a_walk_is_shown_with_its_steps_those_that_are_no_news_together(state: str) -> None:
    assert text(state) == [
        f"{state} (3 of 6 steps): why",
        "  ✓ rke2-hold, preflight",
        "  ✓ packages            12 packages  1 min 32 s",
        "  ▸ driver-built        no module",
        "  · driver-loaded, cdi",
    ]


def test_a_walk_that_goes_on_shows_how_far_it_is_and_how_long_it_will_take() -> None:
    lines = text("running", progress={"done": 3, "total": 6, "eta_seconds": 200})
    assert lines[0] == "running (3 of 6 steps): driver-built: why (about 3 min 20 s left)"
    assert lines[1] == "  ━━━━━━━━━━━━────────────"


def test_an_idle_node_is_shown_without_marks_that_nobody_knows() -> None:
    steps = [{"name": "packages", "attempts": 1, "seconds": 91.6}]
    assert text("idle", steps=steps, progress=None, hint="gpuboot run") == [
        "idle: why", "  next: gpuboot run",
    ]  # fmt: skip


def test_trouble_is_shown_with_evidence_code_next_try_and_next_command() -> None:
    lines = text(
        "waiting", code="GB201", hint="fuser -v", next_attempt="2026-01-01T00:01:30Z", steps=[],
        evidence="\n".join(f"line {number}" for number in range(12)),
    )  # fmt: skip
    assert lines == [
        "waiting (3 of 6 steps): why [GB201]", "", "Evidence:",
        *(f"  line {number}" for number in range(4, 12)), "",
        "  next try  2026-01-01T00:01:30Z (in 1 min 30 s)",
        "  explained by: gpuboot explain GB201", "  next: fuser -v",
    ]  # fmt: skip


def test_what_is_known_of_the_machine_is_shown_before_it_is_ready_too() -> None:
    lines = text(
        "waiting", steps=[], gpus=[{key: GPU[key] for key in ("pci", "id", "name")}],
        reboots={"spent": 2, "budget": 3, "reasons": ["nouveau holds it", "a new kernel"]},
    )  # fmt: skip
    assert lines[1:] == [
        "  GPU       0000:03:00.0  Tesla T4",
        "  reboots   2 of 3: nouveau holds it; a new kernel",
    ]


@pytest.mark.parametrize(
    ("seconds", "reasons", "took"),
    [
        (211.4, [], "3 min 31 s, no reboots"),
        (60.0, ["nouveau holds it"], "1 min 0 s, 1 reboot"),
        (None, ["a", "b"], "?, 2 reboots"),
    ],
)
def test_a_ready_node_is_shown_by_its_proof(
    seconds: float | None, reasons: list[str], took: str
) -> None:
    reboots = [f"  reboots   {len(reasons)}: {'; '.join(reasons)}"] if reasons else []
    lines = text(
        "ready", seconds_to_ready=seconds, reboots={"reasons": reasons}, node=NODE,
        gpus=[{**GPU, "temperature_c": 37, "memory_used_mib": 448}],
        driver={"version": "535.309.01", "kernel_module_type": "proprietary",
                "next_boot_kernel": "6.1.0-50-amd64", "next_boot_kernel_has_module": True},
        checked="2025-12-29T00:00:00Z",
    )  # fmt: skip
    assert lines == [
        "ready: why",
        "  GPU       0000:03:00.0  Tesla T4  37 °C  448 of 15,360 MiB in use  GPU-1",
        "  driver    535.309.01 (proprietary); kernel 6.1.0-50-amd64 boots next and has a module",
        "  node      gpu-1  Ready",
        "  labels    nvidia.com/gpu=present",
        "  taints    a:NoSchedule",
        "  to do     label b",
        *reboots,
        f"  took      {took}; packages 1 min 32 s",
        "  looked at 2025-12-29T00:00:00Z (3 days ago)",
    ]


def test_a_degraded_node_is_shown_with_what_differs() -> None:
    lines = text("degraded", drift=["packages: old"], hint="drain the node")
    assert lines[:2] == ["degraded: why", "  differs   packages: old"]
    assert lines[-1] == "  next: drain the node"


@pytest.mark.parametrize("state", list(statusview.COLOURS))
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_but_what_is_copied(state: str, width: int) -> None:
    lines = text(
        state, width, reason=LONG, code="GB320", evidence=f"E: {LONG}; {LONG}", gpus=[GPU],
        drift=[f"packages: {LONG}"], node={**NODE, "drift": [LONG]},
        reboots={"spent": 1, "budget": 3, "reasons": [LONG]},
        steps=[{**STEPS[3], "reason": LONG}, *STEPS], hint="x" * 130,
    )  # fmt: skip
    assert max(len(line) for line in lines[:-1]) <= width
    assert lines[-1] == f"  next: {'x' * 130}"
    assert " ".join(" ".join(lines).split()).count(LONG) >= 4


@pytest.mark.parametrize(
    ("state", "enabled", "boots", "said"),
    [
        ("ready", True, 1, ""),
        ("idle", False, 0, ""),  # a template: gpuboot was never asked for
        ("waiting", True, 1, "gpuboot: waiting (3 of 6 steps): why [GB110]; more: gpuboot status"),
        ("degraded", True, 2, "gpuboot: degraded: why [GB110]; more: gpuboot status"),
        ("idle", True, 1, "gpuboot: idle (3 of 6 steps): why [GB110]; more: gpuboot status"),
    ],
)
def test_whoever_logs_in_is_told_of_a_node_that_is_not_ready_and_of_no_other(
    state: str, boots: int, said: str, *, enabled: bool
) -> None:
    found = document(state, enabled=enabled, boots=boots, code="GB110")
    assert click.unstyle(statusview.motd(found)) == said
