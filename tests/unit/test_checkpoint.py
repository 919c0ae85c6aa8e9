"""What is remembered over boots, and what becomes of a record that is foreign or damaged."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuboot import checkpoint, reboot, status
from gpuboot.checkpoint import Checkpoint, Effort, Spent
from gpuboot.config import Reboot
from gpuboot.errors import GpubootError
from gpuboot.progress import Progress
from tests.unit.node import Node, facts

HERE = facts()


def load(node: Node, budget: int = 3, **changes: object) -> Checkpoint:
    return checkpoint.load(node.host, facts(**changes), budget=budget)


def saved(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.text(checkpoint.FILE) or "null")
    return found


def store(node: Node, **changes: object) -> None:
    """A checkpoint of this machine, from its first boot."""
    content = {
        "schema": 1, "machine_id": HERE.machine_id, "instance_id": HERE.instance_id,
        "product_uuid": HERE.product_uuid, "boot_id": "boot-1", "boots": 1, "steps": {},
        "reboots": [], **changes,
    }  # fmt: skip
    node.put(checkpoint.FILE, json.dumps(content))


def test_a_new_machine_begins_with_its_first_boot(node: Node) -> None:
    found = load(node)
    assert (found.boots, found.boot_id, found.spent, found.elapsed) == (1, "boot-1", 0, 0.0)
    assert found.started == "2026-01-01T00:00:10Z"
    assert saved(node)["schema"] == 1
    assert node.host.mode(checkpoint.FILE) == 0o644


def test_what_is_saved_is_what_is_read(node: Node) -> None:
    record = load(node)
    record.begin(node.host, "packages")
    record.end(node.host, "packages", 12.3456)
    record.begin(node.host, "driver-loaded")
    record.reboots.append(Spent("boot-1", "driver-loaded", "nouveau hält 0000:03:00.0"))
    record.rung = 2
    record.save(node.host)
    found = checkpoint.parse(node.text(checkpoint.FILE) or "")
    assert found == record
    assert found.steps == {"packages": Effort(1, 12.346), "driver-loaded": Effort(1, 0.0)}
    assert found.doing == "driver-loaded"


def test_a_second_walk_in_the_same_boot_writes_nothing(node: Node) -> None:
    load(node)
    before = node.host.path(checkpoint.FILE).stat()
    load(node)
    after = node.host.path(checkpoint.FILE).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_boot_adds_the_seconds_of_those_before(node: Node) -> None:
    node.clock.seconds = 100.0
    record = load(node)
    node.clock.seconds = 160.0
    record.save(node.host)
    node.clock.seconds = 20.0
    again = load(node, boot_id="boot-2")
    assert (again.boots, again.boot_id, again.since) == (2, "boot-2", 0.0)
    assert again.elapsed == pytest.approx(60, abs=0.1)
    assert again.seconds(node.host) == pytest.approx(80, abs=0.2)


def test_seconds_to_ready_are_summed_over_boots(node: Node) -> None:
    node.clock.seconds = 10.0
    record = load(node)
    node.clock.seconds = 110.0
    record.save(node.host)
    node.clock.seconds = 30.0
    record = load(node, boot_id="boot-2")
    record.arrive(node.host)
    assert record.seconds_to_ready == pytest.approx(130, abs=0.2)
    assert record.ready_at == "2026-01-01T00:00:30Z"


def test_a_node_that_stays_ready_writes_nothing(node: Node) -> None:
    record = load(node)
    record.arrive(node.host)
    first = record.ready_at
    node.clock.seconds += 60
    node.host.remove(checkpoint.FILE)
    record.arrive(node.host)
    assert record.ready_at == first
    assert node.text(checkpoint.FILE) is None


def test_arriving_forgives_what_was_counted_for_a_lost_record(node: Node) -> None:
    node.put(checkpoint.FILE, "{")
    record = load(node)
    record.rung = 4
    record.arrive(node.host)
    assert (record.surcharge, record.rung) == (0, 0)


def test_another_trouble_begins_the_ladder_anew(node: Node) -> None:
    record = load(node)
    for trouble, rung in (("gpu-present GB110", 0), ("gpu-present GB110", 3), ("x GB201", 0)):
        record.meet(trouble)
        assert (record.trouble, record.rung) == (trouble, rung)
        record.rung = 3


def test_a_step_that_holds_tells_that_its_reboot_helped(node: Node) -> None:
    record = load(node)
    record.holds("driver-loaded")
    record.reboots = [Spent("boot-0", "driver-loaded", "a"), Spent("boot-0", "other", "b")]
    record.holds("driver-loaded")
    assert [spent.helped for spent in record.reboots] == [False, False]
    record.holds("other")
    assert [spent.helped for spent in record.reboots] == [False, True]
    record.save(node.host)
    assert checkpoint.parse(node.text(checkpoint.FILE) or "") == record


def test_departing_begins_a_new_road(node: Node) -> None:
    record = load(node)
    record.begin(node.host, "packages")
    record.reboots.append(Spent("boot-1", "x", "y"))
    record.arrive(node.host)
    record.depart()
    assert (record.ready_at, record.seconds_to_ready) == (None, None)
    assert (record.reboots, record.steps) == ([], {})


# -- whose it is

FOREIGN = [
    {"machine_id": "other"}, {"product_uuid": "other"}, {"machine_id": ""},
    {"machine_id": "uninitialized"}, {"machine_id": "other", "product_uuid": ""},
    {"product_uuid": "other", "instance_id": "i-2"},
]  # fmt: skip


@pytest.mark.parametrize("changes", FOREIGN, ids=str)
def test_another_machines_record_is_set_aside(node: Node, changes: dict[str, str]) -> None:
    store(node, reboots=[{"boot_id": "b", "step": "s", "reason": "r"}] * 3, boots=7, **changes)
    theirs = node.text(checkpoint.FILE)
    node.put(checkpoint.CORRUPT, "theirs too")
    found = load(node)
    assert (found.spent, found.boots, found.elapsed) == (0, 1, 0.0)
    assert (found.started, found.ready_at) == ("2026-01-01T00:00:10Z", None)
    assert found.seconds(node.host) < 1
    assert node.text(checkpoint.FOREIGN) == theirs
    assert node.text(checkpoint.CORRUPT) is None
    assert saved(node)["machine_id"] == HERE.machine_id


@pytest.mark.parametrize(("ready_at", "spent"), [(None, 1), ("2026-01-01T00:00:00Z", 0)])
def test_a_new_instance_on_the_same_machine_begins_afresh_but_for_its_reboots(
    node: Node, ready_at: str | None, spent: int
) -> None:
    reboots = [{"boot_id": "b", "step": "s", "reason": "r"}]
    store(node, instance_id="i-0", boots=7, rung=4, reboots=reboots, ready_at=ready_at)
    found = load(node)
    assert (found.spent, found.boots, found.rung, found.instance_id) == (spent, 1, 0, "i-1")
    assert json.loads(node.text(checkpoint.FOREIGN) or "")["boots"] == 7


def test_a_machine_that_begins_to_tell_its_uuid_keeps_its_record(node: Node) -> None:
    store(node, product_uuid="", boots=4, boot_id="boot-0")
    assert load(node).boots == 5
    assert saved(node)["product_uuid"] == HERE.product_uuid
    assert load(node, product_uuid="").boots == 5


def test_a_record_from_before_cloud_init_learns_the_instance_id(node: Node) -> None:
    store(node, instance_id="", boots=1, boot_id="boot-0")
    assert load(node).boots == 2
    assert saved(node)["instance_id"] == "i-1"


def test_a_machine_that_lost_cloud_init_keeps_its_record(node: Node) -> None:
    store(node, boots=4)
    assert load(node, instance_id="").boots == 4


# -- damaged

CORRUPT = [
    "", "{", "null", "[]", '"x"', "{}", '{"schema": 1}', '{"schema": 2, "steps": {}}', "\ufffd",
    '{"schema": 1, "steps": {}, "reboots": [{"what": 1}]}',
    '{"schema": 1, "steps": {"x": 1}, "reboots": []}',
    '{"schema": 1, "steps": {}, "reboots": null, "machine_id": ""}',
    '{"schema": 1, "steps": {}, "reboots": [], "unheard-of": 1}', "[" * 3 + "]" * 2,
]  # fmt: skip


@pytest.mark.parametrize("text", CORRUPT)
def test_a_record_that_cannot_be_read_leaves_one_reboot(node: Node, text: str) -> None:
    node.put(checkpoint.FILE, text)
    found = load(node, budget=3)
    assert (found.spent, found.boots) == (2, 1)
    assert node.text(checkpoint.CORRUPT) == text
    assert load(node, budget=3).spent == 2


@pytest.mark.parametrize(("budget", "spent"), [(0, 0), (1, 0), (2, 1), (20, 19)])
def test_a_lost_record_costs_all_but_one_reboot(node: Node, budget: int, spent: int) -> None:
    node.put(checkpoint.FILE, "{")
    assert load(node, budget=budget).spent == spent


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": []}, {"boots": None}, {"elapsed": "x"}, {"rung": 1.5}, {"rung": -1},
        {"rung": True}, {"seen": float("nan")}, {"since": float("inf")}, {"boot_id": 7},
        {"ready_at": 7}, {"seconds_to_ready": "x"}, {"missing": []}, {"trouble": 1},
        {"steps": {"packages": {"attempts": "x"}}}, {"steps": {"packages": {"seconds": None}}},
        {"reboots": [{"boot_id": "b", "step": "s", "reason": None}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_with_wrong_types_leaves_one_reboot(
    node: Node, changes: dict[str, object]
) -> None:
    store(node, **changes)
    assert load(node, budget=3).spent == 2


@pytest.mark.parametrize("text", ["{", ""])
def test_a_second_lost_record_leaves_no_reboot(node: Node, text: str) -> None:
    for boot, spent in (("boot-1", 2), ("boot-2", 3), ("boot-3", 3)):
        node.put(checkpoint.FILE, text)
        assert load(node, budget=3, boot_id=boot).spent == spent


def test_a_record_that_is_lost_again_after_the_node_was_ready_leaves_one_reboot(
    node: Node,
) -> None:
    node.put(checkpoint.FILE, "{")
    load(node).arrive(node.host)
    node.put(checkpoint.FILE, "{")
    assert load(node, budget=3).spent == 2


def test_a_record_that_is_there_and_cannot_be_read_is_lost(node: Node) -> None:
    node.link(checkpoint.FILE, "checkpoint.json")  # as a bad sector: reading it is an error
    assert load(node, budget=3).spent == 2
    assert saved(node)["surcharge"] == 2


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=2)
        | st.dictionaries(st.sampled_from(["attempts", "seconds", "boot_id", "x"]), below)
    ),
    max_leaves=4,
)
PATHS = [
    *((name,) for name in (*asdict(Checkpoint("", "", "")), "schema")),
    ("steps", "packages"), ("steps", "packages", "attempts"), ("steps", "packages", "seconds"),
    ("reboots", 0), ("reboots", 0, "step"), ("reboots", 0, "boot_id"), ("reboots", 0, "reason"),
]  # fmt: skip


@given(st.sampled_from(PATHS), ODD)
def test_whatever_a_record_holds_it_is_used_or_set_aside(
    path: tuple[str | int, ...], value: object
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        store(node, steps={"packages": {"attempts": 1, "seconds": 2.5}}, reboots=[
            {"boot_id": "boot-0", "step": "driver-loaded", "reason": "nouveau holds it"},
        ])  # fmt: skip
        content: Any = saved(node)
        place = content
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        node.put(checkpoint.FILE, json.dumps(content))
        status.look(node.host)
        record = load(node, boot_id="boot-2")
        record.begin(node.host, "packages")
        record.end(node.host, "packages", 1.0)
        with suppress(GpubootError):
            reboot.permit(record, Reboot(), "driver-loaded", "nouveau holds it")
        Progress(node.host, record, None, ()).save()
        reboot.spend(node.host, record, "driver-loaded", "nouveau holds it")
        record.arrive(node.host)
        assert load(node, boot_id="boot-2") == record


# -- for display


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}'])
def test_what_cannot_be_shown_is_nothing(node: Node, text: str) -> None:
    node.put(checkpoint.FILE, text)
    assert checkpoint.peek(node.host) is None


def test_the_content_is_shown_as_it_is(node: Node) -> None:
    assert checkpoint.peek(node.host) is None
    store(node, boots=5)
    found = checkpoint.peek(node.host)
    assert found
    assert found["boots"] == 5


def test_a_disk_that_takes_nothing_is_told(node: Node) -> None:
    node.put("/var/lib/gpuboot")  # a file where the folder must be
    with pytest.raises(GpubootError, match="Not a directory"):
        load(node)
