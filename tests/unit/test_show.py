"""How things look on a terminal."""

from __future__ import annotations

from typing import Any

import click
import pytest

from gpuboot import show

STEPS = [
    {"name": "packages", "state": "ok", "reason": "12 packages", "attempts": 1, "seconds": 91.6},
    {"name": "driver-built", "state": "running", "reason": "no module", "attempts": 1,
     "seconds": 0.0},
    {"name": "cdi", "state": "pending", "reason": "", "attempts": 0, "seconds": 0.0},
]  # fmt: skip


def document(state: str, **changes: object) -> dict[str, Any]:
    return {
        "schema": 1, "state": state, "step": "driver-built", "reason": "why", "code": None,
        "hint": None, "next_attempt": None, "mode": "agent", "progress": {"done": 1, "total": 3},
        "steps": STEPS, "reboots": {"spent": 0, "budget": 3, "reasons": []}, "boots": 1,
        "gpus": [], "driver": None, "node": None, "seconds_to_ready": None, **changes,
    }  # fmt: skip


def text(state: str, **changes: object) -> list[str]:
    return click.unstyle(show.status(document(state, **changes))).splitlines()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (60, "1 min 0 s"),
     (211.4, "3 min 31 s"), (3725, "62 min 5 s")],
)  # fmt: skip
def test_a_duration_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert show.duration(seconds) == said


@pytest.mark.parametrize("state", ["running", "waiting", "rebooting", "failed"])
def test_a_walk_is_shown_with_its_steps(state: str) -> None:
    at = "driver-built: " if state == "running" else ""
    assert text(state) == [
        f"{state} (1 of 3 steps): {at}why",
        "  ✓ packages            12 packages  1 min 32 s",
        "  ▸ driver-built        no module",
        "  · cdi               ",
    ]


def test_an_idle_node_is_shown_without_marks_that_nobody_knows() -> None:
    steps = [{"name": "packages", "attempts": 1, "seconds": 91.6}]
    assert text("idle", steps=steps, progress=None, hint="gpuboot run") == [
        "idle: why", "  next: gpuboot run",
    ]  # fmt: skip


def test_trouble_is_shown_with_evidence_code_next_try_and_next_command() -> None:
    lines = text(
        "waiting", code="GB201", hint="fuser -v", next_attempt="2026-01-01T00:00:00Z", steps=[],
        evidence="\n".join(f"line {number}" for number in range(12)),
    )  # fmt: skip
    assert lines[0] == "waiting (1 of 3 steps): why [GB201]"
    assert lines[2:4] == ["Evidence:", "  line 4"]
    assert lines[-3:] == [
        "  next try: 2026-01-01T00:00:00Z", "  explained by: gpuboot explain GB201",
        "  next: fuser -v",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "reasons", "took"),
    [
        (211.4, [], "3 min 31 s, 0 reboots"),
        (60.0, ["nouveau holds it"], "1 min 0 s, 1 reboot (nouveau holds it)"),
        (None, ["a", "b"], "?, 2 reboots (a; b)"),
    ],
)
def test_a_ready_node_is_shown_by_its_proof(
    seconds: float | None, reasons: list[str], took: str
) -> None:
    lines = text(
        "ready", seconds_to_ready=seconds, reboots={"reasons": reasons},
        gpus=[{"pci": "0000:03:00.0", "name": "Tesla T4", "uuid": "GPU-1"}],
        driver={"version": "535.309.01", "kernel_module_type": "proprietary"},
        node={"name": "gpu-1", "ready": True, "taints": ["a:NoSchedule"], "drift": ["label b"],
              "labels": {"kubernetes.io/os": "linux", "nvidia.com/gpu": "present"}},
    )  # fmt: skip
    assert lines == [
        "ready: why",
        "  GPU     0000:03:00.0  Tesla T4  GPU-1",
        "  driver  535.309.01 (proprietary)",
        "  node    gpu-1  Ready",
        "  label   nvidia.com/gpu=present",
        "  taint   a:NoSchedule",
        "  to do   label b",
        f"  took    {took}",
    ]


def test_a_degraded_node_is_shown_with_what_differs() -> None:
    lines = text("degraded", drift=["packages: old"], hint="drain the node")
    assert lines[0] == "degraded: why"
    assert lines[-2:] == ["  differs: packages: old", "  next: drain the node"]


@pytest.mark.parametrize("state", ["ok", "pending", "running", "waiting", "reboot", "failed"])
def test_every_state_of_a_step_has_a_mark(state: str) -> None:
    lines = text("running", steps=[{"name": "x", "state": state, "reason": "r"}])
    assert lines[1].endswith(" r")


@pytest.mark.parametrize(
    ("state", "enabled", "boots", "said"),
    [
        ("ready", True, 1, ""),
        ("idle", False, 0, ""),  # a template: gpuboot was never asked for
        ("waiting", True, 1, "gpuboot: waiting (1 of 3 steps): why [GB110]; more: gpuboot status"),
        ("degraded", True, 2, "gpuboot: degraded: why [GB110]; more: gpuboot status"),
        ("idle", True, 1, "gpuboot: idle (1 of 3 steps): why [GB110]; more: gpuboot status"),
    ],
)
def test_whoever_logs_in_is_told_of_a_node_that_is_not_ready_and_of_no_other(
    state: str, boots: int, said: str, *, enabled: bool
) -> None:
    found = document(state, enabled=enabled, boots=boots, code="GB110")
    assert click.unstyle(show.motd(found)) == said


def test_a_table_has_two_columns() -> None:
    assert show.table([("a", "1"), ("long name", "2")]) == "a          1\nlong name  2"
