"""What a power cut leaves of a write: scratch files, torn targets, half a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuboot import agent, checkpoint, progress, status
from tests.model.cluster import Cluster
from tests.model.disk import SCRAPS
from tests.model.life import RELEASE, STARTS, busy, fresh, live, prepare, uncut
from tests.model.machine import BUILT, MODULE, Machine
from tests.model.reach import BUDGET, Reach, Start, live_within_budget, spent

SHAPES = pytest.mark.parametrize(
    "scrap", SCRAPS, ids=["empty", "half", "whole", "with garbage"]
)  # fmt: skip
# Written by programs that rename nothing and wait for no disk; a power cut up to half a minute
# later may leave them so.
TARGETS = [
    (MODULE,), (MODULE, BUILT),
    ("/var/lib/rancher/rke2/agent/kubelet.kubeconfig",),
    ("/var/lib/rancher/rke2/agent/etc/containerd/config.toml",),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("start", STARTS)
def test_whatever_is_left_of_a_write_is_used_again(
    folder: Path, start: Start, figure: Callable[[str], None]
) -> None:
    reach = Reach(folder, [start], depth=1, scraps=SCRAPS)
    figure(f"torn writes, {reach.explore()}")
    assert len(reach.known) > 90


@SHAPES
def test_a_scratch_file_of_the_checkpoint_is_no_checkpoint(
    folder: Path, scrap: Callable[[bytes], bytes]
) -> None:
    wanted = uncut(folder / "wanted", busy)
    machine = prepare(folder / "node", busy)
    record = wanted.path(checkpoint.FILE).read_bytes()
    scratch = machine.path("/var/lib/gpuboot/.checkpoint.json.gpuboot-new")
    scratch.parent.mkdir(parents=True)
    scratch.write_bytes(scrap(record))
    assert live(machine) == 0
    assert not scratch.exists()
    assert machine.persistent() == wanted.persistent()


@SHAPES
@pytest.mark.parametrize("names", TARGETS, ids=lambda names: "+".join(Path(n).name for n in names))
def test_a_torn_file_of_another_program_is_made_whole(
    folder: Path, scrap: Callable[[bytes], bytes], names: tuple[str, ...]
) -> None:
    machine = uncut(folder / "node", fresh)
    wanted = machine.persistent()
    for name in names:
        machine.path(name).write_bytes(scrap(machine.path(name).read_bytes()))
    assert live(machine) == 0
    assert machine.persistent() == wanted
    assert status.look(machine.host())["state"] == "ready"


@pytest.mark.parametrize("names", [(MODULE,), (MODULE, BUILT)], ids=["module", "module and tree"])
def test_a_module_that_is_gone_is_built_again(folder: Path, names: tuple[str, ...]) -> None:
    machine = uncut(folder / "node", fresh)
    wanted = machine.persistent()
    for name in names:
        machine.path(name).unlink()
    assert live(machine) == 0
    assert machine.persistent() == wanted


# -- the checkpoint itself


def rebooting(root: Path) -> Machine:
    """A node whose reboot is recorded and under way: its record matters most now."""
    machine = prepare(root, busy)
    machine.boot()
    assert agent.live_forever(machine.host()) == 0
    assert machine.rebooting
    return machine


def with_record(before: Machine, root: Path, record: bytes) -> Machine:
    """The same node at its next boot, with this record."""
    shutil.copytree(before.root, root, symlinks=True)
    (root / checkpoint.FILE.lstrip("/")).write_bytes(record)
    return Machine(root, Cluster(RELEASE), before.nouveau, boots=before.boots)


def converges(machine: Machine, wanted: dict[str, str], what: str) -> None:
    live_within_budget(machine)
    assert machine.persistent() == wanted, what
    assert spent(machine) <= BUDGET
    assert status.look(machine.host())["state"] == "ready", what
    shutil.rmtree(machine.root)


@pytest.mark.long
def test_a_checkpoint_cut_at_any_length_costs_no_more_than_its_reboots(folder: Path) -> None:
    wanted = uncut(folder / "wanted", busy).persistent()
    before = rebooting(folder / "before")
    record = before.path(checkpoint.FILE).read_bytes()
    for length in range(len(record)):
        machine = with_record(before, folder / "node", record[:length])
        converges(machine, wanted, f"cut to {length} bytes")


def garbled(record: bytes) -> dict[str, bytes]:
    """What a disk may make of a record: blocks that were never written, bits that fell over."""
    found = {
        "zeros": b"\0" * len(record),
        "zeros at the end": record[: len(record) // 2] + b"\0" * (len(record) // 2),
        "another file's end": record + b'": 3}\n',
        "twice": record + record,
        "a line more": record + b"\n\n",
        "no text": b"\xff\xfe" + record,
    }
    for place in range(0, len(record), 5):
        flipped = bytes([record[place] ^ (1 << place % 7)])
        found[f"bit {place % 7} of byte {place}"] = record[:place] + flipped + record[place + 1 :]
    return found


@pytest.mark.long
def test_a_garbled_checkpoint_costs_no_more_than_its_reboots(folder: Path) -> None:
    wanted = uncut(folder / "wanted", busy).persistent()
    before = rebooting(folder / "before")
    record = before.path(checkpoint.FILE).read_bytes()
    for what, text in garbled(record).items():
        converges(with_record(before, folder / "node", text), wanted, what)


def test_a_progress_file_cut_at_any_length_is_no_progress_file(folder: Path) -> None:
    machine = uncut(folder / "node", fresh)
    whole = machine.path(progress.FILE).read_bytes()
    assert json.loads(whole)["state"] == "ready"
    for length in range(len(whole) - 1):
        machine.path(progress.FILE).write_bytes(whole[:length])
        assert status.look(machine.host())["state"] == "idle"
