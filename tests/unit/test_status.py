"""Where the node stands: what the agent wrote, corrected by looking."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import jsonschema
import pytest

from gpuboot import checkpoint, progress, status, statusview
from gpuboot.boots import Boot, Span
from gpuboot.checkpoint import Checkpoint, Effort, Spent
from gpuboot.config import Config, Rke2
from gpuboot.engine import Outcome
from gpuboot.host import Host
from gpuboot.process import Result
from gpuboot.progress import Progress
from gpuboot.secret import Secret
from gpuboot.step import Finding, Ok
from tests.unit.node import KERNEL, Node

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/status.schema.json").read_text())
GATE = "/run/gpuboot/ready"
# `status --json` in DESIGN §4: keys are only ever added.
KEYS = {
    "schema", "state", "step", "reason", "code", "hint", "mode", "boot_id", "checked",
    "next_attempt", "progress", "steps", "reboots", "boots", "gpus", "driver", "node", "started",
    "ready_at", "seconds_to_ready", "gpuboot",
}  # fmt: skip
DRIVER = {"version": "535", "kernel_module_type": "proprietary"}
NODE = {"name": "gpu-1", "joined": True, "ready": True, "labels": {}, "taints": [], "drift": [],
        "checked": "2026-01-01T00:00:00Z"}  # fmt: skip
READY = Outcome("ready", None, "every step holds", shows={
    "gpus": [{"pci": "0000:03:00.0"}], "driver": DRIVER, "node": NODE,
})  # fmt: skip


@dataclass(frozen=True)
class First:
    """A step by name."""

    name: ClassVar[str] = "packages"
    disruptive: ClassVar[bool] = False

    def check(self, _: Host) -> Finding:
        return Ok("")

    def apply(self, _: Host) -> None: ...


@dataclass(frozen=True)
class Second(First):
    """Another."""

    name: ClassVar[str] = "cdi"


def record(boot: str = "boot-1") -> Checkpoint:
    return Checkpoint("m", "i", "u", boot_id=boot, boots=1, steps={"packages": Effort(2, 90.0)},
                      reboots=[Spent("boot-0", "driver-loaded", "nouveau holds it")],
                      started="2026-01-01T00:00:00Z")  # fmt: skip


def walk(node: Node, boot: str = "boot-1", config: Config | None = None) -> Progress:
    """A walk that has just begun."""
    found = Progress(node.host, record(boot), config or Config(), (First(), Second()))
    found.save()
    return found


@pytest.fixture
def booted(node: Node) -> Node:
    return boot(node)


def boot(node: Node) -> Node:
    """A node in boot-1, enabled, on which everything a ready node has is there."""
    node.put("/proc/sys/kernel/random/boot_id", "boot-1\n")
    node.put("/proc/sys/kernel/osrelease", KERNEL)
    node.put(status.ENABLED)
    node.put(GATE)
    node.put("/sys/module/nvidia/version", "535\n")
    node.put(status.LOCK)
    node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    node.answers["systemctl is-active rke2-agent.service"] = "active\n"
    return node


@contextmanager
def walking(node: Node) -> Iterator[None]:
    """An agent that holds the lock."""
    with node.host.path(status.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def look(node: Node) -> dict[str, Any]:
    """The document, which is as the published schema says."""
    seen = status.look(node.host)
    jsonschema.validate(seen, SCHEMA)
    return seen


def shown(seen: dict[str, Any]) -> str:
    """The same as a person reads it."""
    return click.unstyle(statusview.text({**seen, "gpus": [], "node": None}))


# -- what the agent writes


def test_a_walk_under_way_is_shown_with_its_steps(booted: Node) -> None:
    found = walk(booted)
    found.watch(First(), "ok", "12 packages")
    found.watch(Second(), "running", "containers cannot ask")
    with walking(booted):
        seen = look(booted)
    assert (seen["state"], seen["step"], seen["reason"]) == (
        "running", "cdi", "containers cannot ask",
    )  # fmt: skip
    assert seen["progress"] == {"done": 1, "total": 2, "eta_seconds": 1}
    assert seen["steps"][0] == {
        "name": "packages", "state": "ok", "reason": "12 packages", "attempts": 2, "seconds": 90.0,
    }  # fmt: skip
    assert seen["reboots"] == {"spent": 1, "budget": 3, "reasons": ["nouveau holds it"]}
    assert seen["mode"] == "rancher"
    assert status.exit_code(seen) == 3


def test_the_time_that_is_left_is_learnt_from_this_machine_and_goes_by(booted: Node) -> None:
    before = record()
    before.history = [Boot("boot-0", KERNEL, "", spans=[
        Span("packages", "waiting", 0.0, 900.0), Span("packages", "ok", 900.0, 930.0),
    ])]  # fmt: skip
    found = Progress(booted.host, before, Config(), (First(), Second()))
    found.watch(First(), "running", "12 packages are missing")
    with walking(booted):
        assert look(booted)["progress"]["eta_seconds"] == 31
        booted.host.clock.sleep(10)
        seen = look(booted)
        assert seen["progress"]["eta_seconds"] == 21
        assert seen["steps"][0]["seconds"] == pytest.approx(100.0, abs=1)
        found.watch(First(), "running", "unpacking")
        assert look(booted)["progress"]["eta_seconds"] == 21
        booted.host.clock.sleep(1000)
        assert look(booted)["progress"]["eta_seconds"] == 0
        found.watch(First(), "running", "unpacking")
        assert look(booted)["progress"]["eta_seconds"] == 1  # what comes after it


def test_half_of_a_character_in_a_reason_is_no_fault(booted: Node) -> None:
    walk(booted).watch(First(), "waiting", "the file \udcff")
    with walking(booted):
        assert look(booted)["reason"] == "the file ?"


def test_what_the_agent_writes_holds_no_secret_and_is_for_everyone(booted: Node) -> None:
    booted.host.mask.add(Secret("open-sesame"))
    walk(booted).watch(First(), "waiting", "the server said open-sesame")
    text = booted.text(progress.FILE) or ""
    assert "open-sesame" not in text
    assert "the server said <secret>" in text
    assert booted.host.mode(progress.FILE) == 0o644


def test_a_secret_that_spells_one_of_our_own_words_takes_nothing_apart(booted: Node) -> None:
    booted.host.mask.add(Secret("tota"))
    walk(booted).watch(First(), "waiting", "in tota")
    with walking(booted):
        seen = look(booted)
    assert seen["reason"] == "in <secret>"
    assert seen["progress"]["total"] > 0


def test_an_end_shows_code_hint_evidence_and_the_next_try(booted: Node) -> None:
    walk(booted).end(
        Outcome("waiting", "cdi", "r", "GB310", "do this", "seen", ("differs",)), "2026Z"
    )
    with walking(booted):
        seen = look(booted)
    assert (seen["state"], seen["code"], seen["hint"], seen["next_attempt"]) == (
        "waiting", "GB310", "do this", "2026Z",
    )  # fmt: skip
    assert (seen["evidence"], seen["drift"]) == ("seen", ["differs"])
    assert seen["progress"]["eta_seconds"] is None


# -- the kernel that boots next


def test_the_driver_is_shown_with_the_next_boots_module(booted: Node) -> None:
    walk(booted).end(READY, None)
    seen = look(booted)
    boots = {"next_boot_kernel": KERNEL, "next_boot_kernel_has_module": True}
    assert seen["driver"] == {**DRIVER, **boots}
    assert f"kernel {KERNEL} boots next and has a module" in shown(seen)


def test_a_later_kernel_without_a_module_is_told_before_the_reboot_that_would_hurt(
    booted: Node,
) -> None:
    walk(booted).end(READY, None)
    booted.put("/boot/vmlinuz-6.1.0-56-amd64")
    seen = look(booted)
    assert seen["driver"]["next_boot_kernel_has_module"] is False
    assert (seen["state"], seen["code"], seen["hint"]) == ("degraded", "GB323", "gpuboot run")
    assert status.exit_code(seen) == 4
    text = shown(seen)
    assert "kernel 6.1.0-56-amd64, the newest in /boot, boots next and has no NVIDIA" in text
    assert "kernel 6.1.0-56-amd64 boots next and has no module" in text
    assert "next: gpuboot run" in text
    booted.put("/lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current.ko.xz")
    assert look(booted)["state"] == "ready"


def test_looking_for_the_next_kernels_module_runs_no_program(booted: Node) -> None:
    walk(booted).end(READY, None)
    booted.put("/boot/vmlinuz-6.1.0-56-amd64")
    booted.ran.clear()
    look(booted)
    assert {line.split()[0] for line in booted.ran} == {"systemctl", "nvidia-smi"}


def test_a_newer_kernel_that_grub_does_not_boot_is_no_matter(booted: Node) -> None:
    walk(booted).end(READY, None)
    for release in (KERNEL, "6.1.0-56-amd64"):
        booted.put(f"/boot/vmlinuz-{release}")
    entries = "".join(
        f"menuentry 'Linux {release}' {{\n linux /boot/vmlinuz-{release} ro\n}}\n"
        for release in ("6.1.0-56-amd64", KERNEL)
    )
    booted.put("/boot/grub/grub.cfg", f'set default="1"\n{entries}')
    assert look(booted)["state"] == "ready"
    booted.put("/boot/grub/grub.cfg", f'set default="0"\n{entries}')
    assert "6.1.0-56-amd64, GRUB's choice, boots next" in look(booted)["reason"]


def test_while_a_walk_builds_the_module_the_state_is_the_walks(booted: Node) -> None:
    found = walk(booted)
    found.watch(First(), "running", "building")
    booted.put("/boot/vmlinuz-6.1.0-56-amd64")
    with walking(booted):
        assert look(booted)["state"] == "running"


# -- corrected by looking


def test_a_ready_node_is_ready(booted: Node) -> None:
    walk(booted).end(READY, None)
    seen = look(booted)
    assert (seen["state"], status.exit_code(seen)) == ("ready", 0)
    assert (seen["gpus"], seen["node"]) == ([{"pci": "0000:03:00.0"}], NODE)


@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_walk_that_nobody_walks_was_interrupted(booted: Node, state: str) -> None:
    walk(booted).watch(First(), "running", "x")
    if state == "waiting":
        walk(booted).end(Outcome("waiting", "packages", "x", "GB201"), None)
    seen = look(booted)
    assert (seen["state"], seen["hint"]) == ("idle", "gpuboot run")
    assert seen["reason"] == "the walk was interrupted in packages"
    assert status.exit_code(seen) == 3


def test_a_walk_that_was_cut_off_at_its_very_beginning_says_so(booted: Node) -> None:
    walk(booted)
    assert look(booted)["reason"] == "the walk was interrupted in its beginning"


def gone(node: Node, what: str) -> None:
    if what == "module":
        (node.root / "sys/module/nvidia/version").unlink()
        (node.root / "sys/module/nvidia").rmdir()
    elif what == "gate":
        node.host.remove(GATE)
    else:
        node.answers["systemctl is-active rke2-agent.service"] = Result(3, f"{what}\n")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("module", "the nvidia module is not loaded any more"),
        ("gate", "/run/gpuboot/ready is gone: rke2-agent would not start again"),
        ("failed", "rke2-agent is failed"),
        ("inactive", "rke2-agent is inactive"),
        ("activating", "rke2-agent is activating"),
        ("", "rke2-agent is not there"),
    ],
)
def test_a_ready_node_that_lost_something_is_degraded(booted: Node, what: str, why: str) -> None:
    walk(booted).end(READY, None)
    gone(booted, what)
    seen = look(booted)
    assert (seen["state"], seen["reason"], seen["hint"]) == ("degraded", why, "gpuboot run")
    assert status.exit_code(seen) == 4


def test_a_node_that_joined_without_its_gpu_says_so_and_misses_no_module(booted: Node) -> None:
    why = "joined without its GPU: no NVIDIA GPU is on the PCI bus"
    walk(booted).end(Outcome("degraded", None, why, "GB110", "lspci -nn"), None)
    gone(booted, "module")
    seen = look(booted)
    assert (seen["reason"], seen["code"], seen["hint"]) == (why, "GB110", "lspci -nn")
    gone(booted, "gate")
    assert "is gone" in look(booted)["reason"]


def test_a_node_that_joins_nothing_needs_no_agent(booted: Node) -> None:
    walk(booted, config=Config(rke2=Rke2(join="none"))).end(READY, None)
    gone(booted, "gate")
    assert look(booted)["state"] == "ready"


def test_while_a_walk_is_over_a_ready_node_it_is_not_judged(booted: Node) -> None:
    walk(booted).end(READY, None)
    gone(booted, "gate")
    with walking(booted):
        assert look(booted)["state"] == "ready"


@pytest.mark.parametrize(
    ("outcome", "exit_code"),
    [
        (Outcome("failed", "packages", "x", "GB204"), 1),
        (Outcome("rebooting", "driver-loaded", "nouveau holds it"), 3),
        (Outcome("degraded", None, "taint missing", drift=("taint missing",)), 4),
    ],
)
def test_an_end_stays_what_it_was(booted: Node, outcome: Outcome, exit_code: int) -> None:
    walk(booted).end(outcome, None)
    seen = look(booted)
    assert (seen["state"], status.exit_code(seen)) == (outcome.state, exit_code)


# -- nothing written in this boot


def test_a_machine_that_was_never_enabled_says_so(node: Node) -> None:
    seen = look(node)
    assert (seen["state"], seen["enabled"], status.exit_code(seen)) == ("idle", False, 5)
    assert (seen["reason"], seen["hint"]) == ("gpuboot.service is not enabled", "gpuboot run")
    assert node.ran == []


def test_another_boots_walk_is_not_this_ones(booted: Node) -> None:
    walk(booted, "boot-0").end(READY, None)
    arrived = record("boot-0")
    arrived.ready_at = "2026-01-01T00:01:00Z"
    arrived.save(booted.host)
    seen = look(booted)
    assert (seen["state"], seen["boot_id"], status.exit_code(seen)) == ("idle", "boot-1", 3)
    assert seen["reason"] == (
        "no walk has begun in this boot; the node was ready at 2026-01-01T00:01:00Z"
    )
    assert (seen["gpus"], seen["boots"]) == ([], 1)
    assert seen["reboots"]["reasons"] == ["nouveau holds it"]
    assert seen["steps"][0]["seconds"] == 90.0


def test_an_idle_node_tells_what_it_waited_for_last(booted: Node) -> None:
    waited = record("boot-0")
    waited.trouble = "gpu-present GB110"
    waited.save(booted.host)
    assert look(booted)["reason"] == (
        "no walk has begun in this boot; it waited last in gpu-present GB110"
    )


@pytest.mark.parametrize(
    ("active", "said"), [("active\n", "active"), ("inactive\n", "inactive"), ("", "not there")]
)
def test_a_node_that_gpuboot_was_taken_from_tells_what_became_of_rke2(
    booted: Node, active: str, said: str
) -> None:
    booted.host.remove(status.ENABLED)
    arrived = record("boot-0")
    arrived.ready_at = "2026-01-01T00:01:00Z"
    arrived.save(booted.host)
    booted.answers["systemctl is-active rke2-agent.service"] = active
    seen = look(booted)
    assert (seen["state"], seen["enabled"], status.exit_code(seen)) == ("idle", False, 3)
    assert seen["reason"] == (
        "gpuboot.service is not enabled; the node was ready at 2026-01-01T00:01:00Z;"
        f" rke2-agent is {said}"
    )


DAMAGED = [
    '{"schema": 1, "boots": 3, "reboots": null}', '{"schema": 1, "boots": 3, "reboots": [7]}',
    '{"schema": 1, "boots": 3, "steps": {"packages": 7}}',
    '{"schema": 1, "boots": 3, "steps": []}',
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_checkpoint_is_none(booted: Node, text: str) -> None:
    booted.put(status.CHECKPOINT, text)
    seen = look(booted)
    assert (seen["state"], seen["boots"], seen["steps"]) == ("idle", 0, [])


def test_a_failed_node_whose_agent_is_at_work_again_has_not_failed_yet(booted: Node) -> None:
    walk(booted).end(Outcome("failed", "packages", "x", "GB204"), None)
    with walking(booted):
        seen = look(booted)
    assert (seen["state"], seen["reason"], seen["code"]) == ("running", "the walk begins", None)
    assert look(booted)["state"] == "failed"


@pytest.mark.parametrize("outcome", [READY, Outcome("failed", "packages", "x", "GB204")])
def test_how_the_walk_before_ended_is_no_answer_of_the_one_asked_for(
    booted: Node, outcome: Outcome
) -> None:
    walk(booted).end(outcome, None)
    look_anew = status.anew(booted.host, look(booted))
    assert (look_anew()["state"], look_anew()["steps"]) == ("running", [])
    again = walk(booted)
    assert look_anew()["reason"] != "the walk begins"
    again.end(outcome, None)
    assert look_anew()["state"] == outcome.state


def test_a_walk_that_had_not_begun_before_is_seen_from_its_start(booted: Node) -> None:
    look_anew = status.anew(booted.host, look(booted))
    assert look_anew()["state"] == "idle"
    walk(booted).end(READY, None)
    assert look_anew()["state"] == "ready"


def test_a_walk_that_has_written_nothing_yet_has_begun(booted: Node) -> None:
    with walking(booted):
        seen = look(booted)
    assert (seen["state"], seen["reason"]) == ("running", "the walk begins")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "boot_id": "boot-1"}', "\0"])
@pytest.mark.parametrize("name", [status.PROGRESS, status.CHECKPOINT])
def test_a_file_that_cannot_be_read_is_no_file(booted: Node, name: str, text: str) -> None:
    booted.put(name, text)
    assert look(booted)["state"] == "idle"


# -- the document


def test_the_names_repeated_in_status_are_the_real_ones() -> None:
    from gpuboot import agent, rke2

    assert (status.PROGRESS, status.CHECKPOINT) == (progress.FILE, checkpoint.FILE)
    assert (status.LOCK, status.GATE, status.ENABLED) == (agent.LOCK, rke2.GATE, rke2.ENABLED)


@pytest.mark.parametrize("state", ["never", "idle", "running", "ready"])
def test_the_document_always_has_all_its_keys(booted: Node, state: str) -> None:
    if state == "never":
        booted.host.remove(status.ENABLED)
    if state == "running":
        walk(booted)
    if state == "ready":
        walk(booted).end(READY, None)
    seen = look(booted)
    assert set(seen) >= KEYS
    assert seen["schema"] == 1
    assert json.loads(json.dumps(seen)) == seen


def test_an_idle_document_has_the_same_inner_keys(booted: Node) -> None:
    record("boot-0").save(booted.host)
    seen = look(booted)
    assert set(seen["reboots"]) == {"spent", "budget", "reasons"}
    assert set(seen["steps"][0]) == {"name", "state", "reason", "attempts", "seconds"}


def test_an_idle_document_counts_lost_reboots_too(booted: Node) -> None:
    lost = record("boot-0")
    lost.surcharge = 2
    lost.save(booted.host)
    assert look(booted)["reboots"]["spent"] == lost.spent
