"""The power is cut at every instant of the walk, one by one: it always converges to the same."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuboot import agent, status
from tests.model.cluster import TOKEN, Cluster
from tests.model.machine import DISRUPTIVE, KERNEL, Fuse, Machine, PowerCut, tarball

CONFIG = f"""\
driver: {{source: distribution}}
rke2:
  version: v1.35.7+rke2r1
  config: {{server: "https://supervisor:9345", token: "{TOKEN}"}}
sources:
  apt: {{url: http://archive/debian, key: /keys/archive.gpg}}
  toolkit: {{url: http://archive/toolkit, key: /keys/archive.gpg}}
  rke2: {{url: https://releases}}
"""
MOST_BOOTS = 8
RELEASE = tarball()


def fresh(machine: Machine) -> None:
    """Nothing of ours was done yet; no nouveau."""


def busy(machine: Machine) -> None:
    """nouveau holds the card and cannot be unloaded."""
    machine.nouveau = "busy"


def idle(machine: Machine) -> None:
    """nouveau holds the card and lets go of it."""
    machine.nouveau = "idle"


def interrupted(machine: Machine) -> None:
    """Somebody's dpkg was cut off, with the driver unpacked."""
    machine.nouveau = "busy"
    machine.save("packages", {**machine.packages, "nvidia-kernel-dkms": "unpacked"})


def baked(machine: Machine) -> None:
    """A template that has the driver's packages and module already."""
    names = ("nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-modprobe")
    machine.save("packages", {**machine.packages, **dict.fromkeys(names, "installed")})
    machine.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko", "built")


def cloned(machine: Machine) -> None:
    """The checkpoint of another machine, which had spent all its reboots."""
    machine.nouveau = "busy"
    spent = [{"boot_id": "theirs", "step": "driver-loaded", "reason": f"{n}"} for n in range(3)]
    content = {"schema": 1, "machine_id": "other", "instance_id": "", "product_uuid": ""}
    record = {**content, "reboots": spent, "steps": {}}
    machine.put("/var/lib/gpuboot/checkpoint.json", json.dumps(record))


def corrupt(machine: Machine) -> None:
    """A checkpoint that cannot be read; one reboot is left."""
    machine.nouveau = "busy"
    machine.put("/var/lib/gpuboot/checkpoint.json", '{"schema": 1, "rebo')


def older_rke2(machine: Machine) -> None:
    """Another release of RKE2 is installed."""
    machine.put("/usr/local/bin/rke2", "v1.34.1+rke2r1\n")
    machine.put("/usr/local/lib/systemd/system/rke2-agent.service", "[Service]\n")


STARTS = [fresh, busy, idle, interrupted, baked, cloned, corrupt, older_rke2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs wait for no disk there."""
    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def prepare(root: Path, start: Callable[[Machine], None]) -> Machine:
    machine = Machine(root, Cluster(RELEASE))
    machine.make()
    machine.put("/etc/gpuboot/config.yaml", CONFIG)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    start(machine)
    return machine


def live(machine: Machine, *, boots: int = MOST_BOOTS) -> int:
    """Boot and walk until the agent ends without asking for a reboot; its exit status."""
    for _ in range(boots):
        machine.boot()
        try:
            result = agent.live_forever(machine.host())
        except PowerCut:
            continue
        if not machine.rebooting:
            return result
    raise AssertionError(f"not converged after {boots} boots: {machine.commands[-20:]}")


def uncut(root: Path, start: Callable[[Machine], None]) -> Machine:
    machine = prepare(root, start)
    assert live(machine) == 0
    assert status.look(machine.host())["state"] == "ready"
    return machine


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
    lock = agent.take_lock(host)
    assert lock
    with lock:
        agent.walk_once(host)
        found = status.look(host)
    assert not [line for line in machine.commands if DISRUPTIVE.match(line)]
    assert found["state"] in ("degraded", "waiting")
    assert found["drift"]
