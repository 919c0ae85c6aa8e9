"""on-gpu-failure: join. A node without its GPU joins bare, and gets its labels when it has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuboot import agent, status
from tests.model.life import CONFIG, busy, fresh, live, prepare
from tests.model.machine import Machine

LABELS = {"nvidia.com/gpu": "present", "example.com/pool": "t4"}
POOL = "config: {node-label: [nvidia.com/gpu=present, example.com/pool=t4], "
JOIN = CONFIG.replace("config: {", POOL) + "on-gpu-failure: join\ngpu: {wait: 20s}\n"


def node(root: Path, *, gpu: bool) -> Machine:
    machine = prepare(root, fresh)
    machine.put("/etc/gpuboot/config.yaml", JOIN)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    machine.gpu = gpu
    return machine


def labels(machine: Machine) -> dict[str, str]:
    assert machine.cluster.node
    found: dict[str, str] = machine.cluster.node["metadata"]["labels"]
    return found


def test_without_a_card_the_node_joins_bare_after_its_time(folder: Path) -> None:
    machine = node(folder / "node", gpu=False)
    assert live(machine) == 0
    assert machine.clock.seconds > 20
    assert labels(machine) == {"example.com/pool": "t4"}
    assert machine.cluster.node
    assert machine.cluster.node["spec"]["taints"] == []
    found = status.look(machine.host())
    assert (found["state"], found["code"]) == ("degraded", "GB110")
    assert agent.MONITOR not in machine.active  # there is nothing that it could watch


def test_by_default_a_node_without_a_card_stays_out(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.gpu = False
    machine.boot()
    assert agent.walk_once(machine.host())[0] == agent.EXIT_RETRY
    machine.clock.seconds += 100_000
    assert agent.walk_once(machine.host())[0] == agent.EXIT_RETRY
    assert machine.cluster.node is None
    assert not machine.path("/run/gpuboot/ready").exists()


def test_a_card_that_comes_later_brings_its_labels_and_tells_of_the_taint(folder: Path) -> None:
    machine = node(folder / "node", gpu=False)
    assert live(machine) == 0
    machine.gpu = True
    assert live(machine) == 0
    assert labels(machine) == LABELS
    found = status.look(machine.host())
    assert found["state"] == "degraded"
    assert "kubectl taint node gpu-1" in found["drift"][0]
    assert agent.MONITOR in machine.active


@pytest.mark.parametrize("again", [False, True])
def test_a_card_that_is_lost_takes_its_labels_along(folder: Path, *, again: bool) -> None:
    machine = node(folder / "node", gpu=True)
    assert live(machine) == 0
    assert labels(machine) == LABELS
    machine.gpu = False
    assert live(machine) == 0
    assert labels(machine) == {"example.com/pool": "t4"}
    assert status.look(machine.host())["state"] == "degraded"
    if again:  # in the same boot, on what is now a live node
        assert agent.walk_once(machine.host())[0] == 0
        assert labels(machine) == {"example.com/pool": "t4"}


def test_a_reboot_that_is_due_is_no_reason_to_join_bare(folder: Path) -> None:
    machine = node(folder / "node", gpu=True)
    busy(machine)
    assert live(machine) == 0
    assert machine.boots == 2
    assert labels(machine) == LABELS
    assert status.look(machine.host())["state"] == "ready"
