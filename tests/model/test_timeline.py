"""What a life leaves in its timeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gpuboot import agent, timeline
from tests.model.life import busy, live, prepare
from tests.model.machine import Machine


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture
def node(folder: Path) -> Machine:
    machine = prepare(folder / "node", busy)
    assert live(machine) == agent.EXIT_OK
    return machine


def test_every_boot_is_there_with_what_was_done_in_it(node: Machine) -> None:
    first, second = timeline.read(node.host()).boots
    assert first.ended.startswith("reboot: nouveau holds")
    assert second.ended == "ready"
    done = {bar.name: bar.state for bar in first.bars}
    assert done["packages"] == "ok"
    assert done["driver-loaded"] == "reboot"
    assert {"driver-loaded", "rke2-installed"} <= {bar.name for bar in second.bars}
    assert all(0 <= bar.begin <= bar.end for boot in (first, second) for bar in boot.bars)


def test_a_walk_that_has_failed_is_told_as_such(folder: Path) -> None:
    machine = prepare(folder / "node", busy)
    machine.put("/etc/gpuboot/config.yaml", "nonsense: true\n")
    machine.boot()
    assert agent.live_forever(machine.host()) == agent.EXIT_CONFIG
    assert timeline.read(machine.host()).boots[-1].ended == "failed"


def test_a_look_at_a_ready_node_leaves_it_as_it_is(node: Machine) -> None:
    before = timeline.read(node.host())
    assert agent.live_forever(node.host()) == agent.EXIT_OK
    assert timeline.read(node.host()) == before


def test_another_boot_of_a_ready_node_is_one_more(node: Machine) -> None:
    node.boot()
    assert agent.live_forever(node.host()) == agent.EXIT_OK
    assert [boot.ended for boot in timeline.read(node.host()).boots][-2:] == ["ready", "ready"]
