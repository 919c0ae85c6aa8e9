"""When a reboot may be asked for, and that its record comes first."""

from __future__ import annotations

import json

import pytest

from gpuboot import checkpoint, reboot
from gpuboot.checkpoint import Checkpoint, Spent
from gpuboot.config import Reboot
from gpuboot.errors import GpubootError, Stopped
from gpuboot.host import Command, Result
from tests.unit.node import Node

STEP, WHY = "driver-loaded", "nouveau holds 0000:03:00.0"
NOW = "boot-3"


def record(*spent: tuple[str, str], surcharge: int = 0, ready_at: str | None = None) -> Checkpoint:
    """A checkpoint in boot-3; `spent` are boots and reasons."""
    return Checkpoint(
        "m", "i", "u", boot_id=NOW, surcharge=surcharge, ready_at=ready_at,
        reboots=[Spent(boot, STEP, why) for boot, why in spent],
    )  # fmt: skip


PERMITTED = [
    (record(), Reboot(budget=1)),
    (record(("boot-1", "other"), ("boot-2", "another")), Reboot(budget=3)),
    # Another reason came between: the reboot for this one did help then.
    (record(("boot-1", WHY), ("boot-2", "other")), Reboot(budget=3)),
    # Asked in this very boot, and not followed by a reboot yet.
    (record((NOW, WHY)), Reboot(budget=1)),
    (record(("boot-2", "other"), (NOW, WHY)), Reboot(budget=2)),
    (record(surcharge=2), Reboot(budget=3)),
]
REFUSED = [
    (record(("boot-2", WHY)), Reboot(budget=3), "GB021", False),
    (record(("boot-2", WHY), (NOW, WHY)), Reboot(budget=3), "GB021", False),
    (record(("boot-2", WHY)), Reboot(allow=False, budget=3), "GB021", False),
    (record(), Reboot(budget=0), "GB022", False),
    (record(("boot-1", "a"), ("boot-2", "b")), Reboot(budget=2), "GB022", False),
    (record(("boot-2", "a"), surcharge=2), Reboot(budget=3), "GB022", False),
    (record(), Reboot(allow=False), "GB023", True),
    (record((NOW, WHY)), Reboot(allow=False), "GB023", True),
]


@pytest.mark.parametrize(("now", "settings"), PERMITTED)
def test_a_reboot_is_permitted(now: Checkpoint, settings: Reboot) -> None:
    reboot.permit(now, settings, STEP, WHY)


@pytest.mark.parametrize(("now", "settings", "code", "retry"), REFUSED)
def test_a_reboot_is_refused(now: Checkpoint, settings: Reboot, code: str, *, retry: bool) -> None:
    with pytest.raises(GpubootError, match="reboot") as caught:
        reboot.permit(now, settings, STEP, WHY)
    assert (caught.value.code.id, caught.value.retry) == (code, retry)
    assert WHY in caught.value.message


@pytest.mark.parametrize(
    "spent", [[("boot-0", "a"), ("boot-1", "b"), ("boot-2", "c")], [("boot-2", WHY)]], ids=str
)
def test_reboots_from_before_the_node_was_ready_do_not_count(spent: list[tuple[str, str]]) -> None:
    now = record(*spent, ready_at="2026-01-01T00:00:00Z")
    reboot.permit(now, Reboot(budget=3), STEP, WHY)


# -- the record


def test_the_record_is_written_before_the_reboot_is_asked_for(node: Node) -> None:
    found = []

    def systemctl(_: Command) -> Result:
        found.append(json.loads(node.text(checkpoint.FILE) or "")["reboots"])
        return Result(0)

    node.answers["systemctl reboot"] = systemctl
    told: list[str] = []
    reboot.reboot(node.host, record(), STEP, WHY, told.append)
    assert found == [[{"boot_id": NOW, "step": STEP, "reason": WHY}]]
    assert told == [WHY]


def test_a_reboot_asked_twice_in_one_boot_is_spent_once(node: Node) -> None:
    now = record(("boot-2", "other"))
    reboot.spend(node.host, now, STEP, "first")
    reboot.spend(node.host, now, STEP, WHY)
    assert now.reboots == [Spent("boot-2", STEP, "other"), Spent(NOW, STEP, WHY)]


def test_the_first_reboot_after_the_node_was_ready_begins_a_new_road(node: Node) -> None:
    now = record(("boot-1", "a"), ("boot-2", "b"), ready_at="2026-01-01T00:00:00Z")
    reboot.spend(node.host, now, STEP, WHY)
    assert now.reboots == [Spent(NOW, STEP, WHY)]
    assert now.ready_at is None


def test_a_record_that_cannot_be_written_stops_the_reboot(node: Node) -> None:
    node.put("/var/lib/gpuboot")  # a file where the folder must be
    node.answers["systemctl reboot"] = ""
    with pytest.raises(GpubootError) as caught:
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: None)
    assert caught.value.code.id == "GB012"
    assert "systemctl reboot" not in node.ran


def test_a_record_that_is_lost_stops_the_reboot(node: Node) -> None:
    class Forgetful(Checkpoint):
        def save(self, host: object) -> None:
            """A disk that says yes and keeps nothing."""

    node.put(checkpoint.FILE, '{"schema": 1, "reboots": []}')
    now = Forgetful("m", "i", "u", boot_id=NOW)
    with pytest.raises(GpubootError) as caught:
        reboot.spend(node.host, now, STEP, WHY)
    assert caught.value.code is reboot.NOT_RECORDED


# -- cloud-init comes first


def test_a_reboot_waits_until_cloud_init_is_done(node: Node) -> None:
    node.put("/usr/bin/cloud-init")
    node.put("/run/cloud-init/enabled")
    states = ["inactive", "activating", "activating", "active"]

    def show(_: Command) -> Result:
        state = states.pop(0)
        if state == "active":
            node.put("/run/cloud-init/result.json")
        return Result(0, f"LoadState=loaded\nActiveState={state}\nJob=0\n")

    node.answers["systemctl show"] = show
    node.answers["systemctl reboot"] = ""
    told: list[str] = []
    reboot.reboot(node.host, record(), STEP, WHY, told.append)
    assert states == []
    assert node.ran[-1] == "systemctl reboot"
    assert told == [
        f"{WHY}; the reboot waits: cloud-init has not ended yet",
        f"{WHY}; the reboot waits: cloud-init runs its last stage (cloud-final)",
        WHY,
    ]


def test_being_stopped_while_cloud_init_runs_spends_nothing(node: Node) -> None:
    node.put("/usr/bin/cloud-init")
    node.unit("cloud-final.service", ActiveState="activating")
    with pytest.raises(Stopped):
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: node.host.stop())
    assert node.text(checkpoint.FILE) is None
