"""The power is cut at every instant of the walk, one by one: it always converges to the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuboot import agent, status
from tests.model.cluster import Cluster
from tests.model.life import RELEASE, STARTS, busy, fresh, live, prepare, uncut
from tests.model.machine import DISRUPTIVE, Fuse, Machine, PowerCut


@dataclass
class Cuts:
    """The different states of the disk, and of the cluster, in which a walk could be cut off."""

    machine: Machine
    folder: Path
    found: dict[str, tuple[Path, dict[str, Any] | None, int]] = field(default_factory=dict)
    changes: int = -1

    def take(self, instant: int) -> None:
        """Keep the state at this instant, unless an earlier instant had the very same.

        What follows a cut depends on nothing but this, so the same state is driven once.
        """
        if self.changes == self.machine.changes:
            return
        self.changes = self.machine.changes
        record = self.machine.text("/var/lib/gpuboot/checkpoint.json")
        timeless = re.sub(r'"(elapsed|since|seen|seconds)": [0-9.]+', "", record)
        node = json.dumps(self.machine.cluster.node)
        key = repr((sorted(self.machine.persistent().items()), timeless, node))
        if key not in self.found:
            copy = self.folder / str(instant)
            shutil.copytree(self.machine.root, copy, symlinks=True)
            self.found[key] = (copy, json.loads(node), instant)


@pytest.mark.parametrize("start", STARTS)
def test_a_power_cut_at_any_instant_converges_to_the_uncut_state(
    folder: Path, start: Callable[[Machine], None]
) -> None:
    machine = prepare(folder / "uncut", start)
    cuts = Cuts(machine, folder)
    machine.fuse = Fuse(cuts.take)
    assert live(machine) == 0
    assert machine.fuse.count > 300
    assert len(cuts.found) > 40
    for root, node, instant in cuts.found.values():
        again = Machine(root, Cluster(RELEASE, node=node), machine.nouveau, boots=100)
        assert live(again) == 0, f"cut at instant {instant}"
        assert again.persistent() == machine.persistent(), f"cut at instant {instant}"
        assert again.cluster.node == machine.cluster.node, f"cut at instant {instant}"
        assert status.look(again.host())["state"] == "ready", f"cut at instant {instant}"


def test_the_power_can_really_be_cut(folder: Path) -> None:
    def blow(instant: int) -> None:
        if instant == 200:
            raise PowerCut

    machine = prepare(folder / "node", fresh)
    machine.fuse = Fuse(blow)
    machine.boot()
    with pytest.raises(PowerCut):
        agent.live_forever(machine.host())
    machine.fuse = Fuse()
    assert live(machine) == 0


@pytest.mark.parametrize("start", STARTS)
def test_the_reboots_are_as_many_as_needed(folder: Path, start: Callable[[Machine], None]) -> None:
    machine = uncut(folder / "node", start)
    assert machine.boots == (2 if machine.nouveau == "busy" else 1)


def test_a_second_walk_over_a_ready_node_changes_nothing(folder: Path) -> None:
    machine = uncut(folder / "node", busy)
    before = machine.persistent()
    record = machine.text("/var/lib/gpuboot/checkpoint.json")
    commands = len(machine.commands)
    assert agent.live_forever(machine.host()) == 0
    assert machine.persistent() == before
    assert machine.text("/var/lib/gpuboot/checkpoint.json") == record
    assert not [line for line in machine.commands[commands:] if DISRUPTIVE.match(line)]


def test_without_its_checkpoint_a_node_still_converges(folder: Path) -> None:
    machine = uncut(folder / "node", busy)
    wanted = machine.persistent()
    machine.path("/var/lib/gpuboot/checkpoint.json").unlink()
    assert live(machine) == 0
    assert machine.persistent() == wanted


@pytest.mark.parametrize("start", STARTS)
def test_on_a_live_node_nothing_disruptive_is_done(
    folder: Path, start: Callable[[Machine], None]
) -> None:
    machine = prepare(folder / "node", start)
    machine.boot()
    machine.active.add("rke2-agent.service")
    host = machine.host()
    with agent.take_lock(host):
        agent.walk_once(host)
        found = status.look(host)
    assert not [line for line in machine.commands if DISRUPTIVE.match(line)]
    assert found["state"] in ("degraded", "waiting")
    assert found["drift"]
