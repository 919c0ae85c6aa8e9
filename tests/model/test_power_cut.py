"""The power is cut at every instant of the walk, one by one: it always converges to the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gpuboot import agent, status
from tests.conftest import Figure
from tests.model.disk import Fuse, PowerCut
from tests.model.life import (
    IMAGES,
    STARTS,
    baked,
    busy,
    cloned,
    corrupt,
    fresh,
    idle,
    interrupted,
    live,
    offline,
    older_rke2,
    prepare,
    uncut,
)
from tests.model.machine import DISRUPTIVE, Machine
from tests.model.reach import Reach, Start


@pytest.mark.parametrize("start", STARTS)
def test_a_power_cut_at_any_instant_converges_to_the_uncut_state(
    folder: Path, start: Start
) -> None:
    reach = Reach(folder, [start], depth=1)
    reach.explore()
    assert len(reach.known) > 40
    assert reach.instants > 300 * len(reach.known) / 2


# Starts that have the same end; each group is one search.
GROUPS = [(fresh, older_rke2), (corrupt,), (busy, cloned), (interrupted,), (idle,), (baked,),
          (offline,)]  # fmt: skip


def test_the_groups_are_all_the_starts() -> None:
    assert {start for group in GROUPS for start in group} == set(STARTS)


@pytest.mark.long
@pytest.mark.parametrize("starts", GROUPS, ids=lambda starts: starts[0].__name__)
def test_power_cuts_as_many_as_you_like_converge(
    folder: Path, starts: Sequence[Start], figure: Figure
) -> None:
    reach = Reach(folder, starts, depth=20)
    figure(reach.explore())
    assert len(reach.known) > 200
    assert 2 < reach.deepest < reach.depth  # no cut leaves a new state any more


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


def test_a_node_without_a_release_server_has_all_that_its_folder_gave(folder: Path) -> None:
    machine = uncut(folder / "node", offline)
    images = "/var/lib/rancher/rke2/agent/images"
    assert machine.text(f"{images}/{IMAGES}") == "images"
    assert machine.text("/etc/rancher/node/password") == "staple-staple-staple\n"
    assert "paperclip" in machine.text("/etc/rancher/rke2/gpuboot-proxy.env")
    told = [name for name, text in machine.persistent().items() if "paperclip" in text]
    assert told == ["etc/gpuboot/config.yaml", "etc/rancher/rke2/gpuboot-proxy.env"]
    for name in ("/run/gpuboot/progress.json", "/var/lib/gpuboot/checkpoint.json"):
        assert not re.search("paperclip|staple-staple", machine.text(name))


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
