"""The disk is full, or read-only, at each write of the walk: it is told, waited for, and heals."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ENOSPC, EROFS, errorcode
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gpuboot import agent, checkpoint, status
from gpuboot.errors import GpubootError
from tests.conftest import Figure
from tests.model.disk import Disk
from tests.model.life import MOST_BOOTS, STARTS, busy, fresh, prepare, uncut
from tests.model.machine import Machine
from tests.model.reach import Start

# A file or a command could not write; the disk is full; packages could not be installed; the
# toolkit has not written its specification.
CODES = {"GB010", "GB012", "GB205", "GB206", "GB310"}
PATIENCE = 2  # tries that see the trouble, before somebody comes
ERRORS = pytest.mark.parametrize("error", [ENOSPC, EROFS], ids=["full", "read-only"])


def volatile(name: str) -> bool:
    """On the tmpfs below /run, and not on the disk."""
    return name.startswith(("/run/", "/var/run/"))


@dataclass
class Refusal:
    """Refuses the n-th write; with `lasting` everything on its file system until it is healed."""

    number: int
    error: int
    lasting: bool
    name: str | None = None  # the file that was refused first

    def __call__(self, number: int, name: str) -> int:
        if self.error == EROFS and volatile(name):
            return 0  # no tmpfs becomes read-only
        if number == self.number:
            self.name = name
            return self.error
        after = self.lasting and self.name is not None and volatile(self.name) == volatile(name)
        return self.error if after else 0


@pytest.fixture
def notices(folder: Path) -> Iterator[socket.socket]:
    """systemd's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(folder / "notify"))
        channel.setblocking(False)
        yield channel


def live(machine: Machine, *, reboot: bool) -> int:
    """Boot and walk to the end. After some tries the disk has room, or somebody reboots.

    Every try in between says what it waits for. How many there were.
    """
    tries = 0
    for _ in range(MOST_BOOTS):
        machine.boot()
        host = machine.host()
        with agent.take_lock(host):
            while (ended := agent.walk_once(host)[0]) == agent.EXIT_RETRY:
                waiting(status.look(host))
                tries += 1
                assert tries < 8
                if tries == PATIENCE:
                    machine.disk.refuse = lambda *_: 0
                    if reboot:
                        break
                host.sleep(60)
        if ended == agent.EXIT_RETRY:
            continue
        assert ended == agent.EXIT_OK
        if not machine.rebooting:
            return tries
    raise AssertionError(f"not converged: {machine.commands[-20:]}")


def waiting(found: dict[str, Any]) -> None:
    assert found["state"] == "waiting"
    assert found["code"] in CODES, found["reason"]
    assert found["reason"]
    assert found["hint"]
    assert status.exit_code(found) == status.IN_PROGRESS


def refused_at(
    folder: Path, start: Start, number: int, error: int, how: str, notices: socket.socket
) -> tuple[Refusal, Machine]:
    """The node after a walk whose n-th write was refused."""
    machine = prepare(folder / "node", start)
    machine.notices = notices
    refusal = Refusal(number, error, lasting=how != "once")
    machine.disk = Disk(refusal)
    where = f"write {number}, {how}"
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NOTIFY_SOCKET", notices.getsockname())
            tries = live(machine, reboot=how == "reboot")
    except AssertionError as failure:
        raise AssertionError(f"{where}, {refusal.name}: {failure}") from failure
    assert tries == 0 or refusal.name, where
    return refusal, machine


def made_up_for(
    folder: Path,
    start: Start,
    numbers: Iterable[int],
    error: int,
    how: str,
    notices: socket.socket,
) -> int:
    """Refuse each of these writes in a walk of its own, until there is no such write; how many."""
    wanted = uncut(folder / "uncut", start)
    for done, number in enumerate(numbers):
        refusal, machine = refused_at(folder, start, number, error, how, notices)
        where = f"write {number}, {refusal.name}"
        assert machine.persistent() == wanted.persistent(), where
        assert machine.cluster.node == wanted.cluster.node, where
        assert status.look(machine.host())["state"] == "ready", where
        if how != "reboot":
            assert machine.boots == wanted.boots, where
        shutil.rmtree(machine.root)
        if number > machine.disk.count:
            return done
    raise AssertionError("there are more writes than numbers")


@pytest.mark.long
@ERRORS
@pytest.mark.parametrize("how", ["once", "lasting", "reboot"])
@pytest.mark.parametrize("start", STARTS)
def test_every_write_that_is_refused_is_told_and_made_up_for(
    folder: Path, start: Start, error: int, how: str, notices: socket.socket, figure: Figure
) -> None:
    began = time.monotonic()
    done = made_up_for(folder, start, count(1), error, how, notices)
    seconds = time.monotonic() - began
    name = errorcode[error]
    figure(f"refused writes, {start.__name__}, {name}, {how}: {done}, {seconds:.0f} s")
    assert done > 80


@ERRORS
@pytest.mark.parametrize("first", range(1, 11))
def test_some_writes_that_are_refused_are_told_and_made_up_for(
    folder: Path, first: int, error: int, notices: socket.socket
) -> None:
    start, how = (busy, "lasting") if first % 2 else (fresh, "once")
    assert made_up_for(folder, start, count(first, 30), error, how, notices) >= 3


# -- around the walk


def full(machine: Machine) -> None:
    machine.disk = Disk(lambda _, name: 0 if volatile(name) else ENOSPC)


def test_one_walk_by_hand_on_a_full_disk_is_worth_another_try(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    full(machine)
    machine.boot()
    assert agent.foreground(machine.host(), once=True) == agent.EXIT_RETRY


def test_what_was_told_before_the_trouble_stays_beside_it(folder: Path) -> None:
    machine = uncut(folder / "node", fresh)
    machine.path(checkpoint.FILE).write_text("{")
    full(machine)
    host = machine.host()
    with agent.take_lock(host):
        assert agent.walk_once(host)[0] == agent.EXIT_RETRY
        found = status.look(host)
    assert (found["state"], found["code"]) == ("waiting", "GB012")
    assert found["reason"] == f"{checkpoint.FILE}: No space left on device"
    assert found["gpus"][0]["name"] == "Tesla T4"


def test_a_disk_that_cannot_be_read_ends_no_agent(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    loop = machine.path("/etc/gpuboot/config.d")
    loop.symlink_to("config.d")  # ELOOP: as much an OSError as a broken disk's EIO
    machine.boot()
    host = machine.host()
    with agent.take_lock(host):
        assert agent.walk_once(host)[0] == agent.EXIT_RETRY
        assert "config.d: Too many levels" in status.look(host)["reason"]
        loop.unlink()
        assert agent.walk_once(host)[0] == agent.EXIT_OK


def test_a_lock_that_cannot_be_made_is_told(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.boot()
    machine.put("/run/gpuboot", "a file where the folder must be")
    with pytest.raises(GpubootError, match="/run/gpuboot/lock: ") as caught:
        agent.take_lock(machine.host())
    assert caught.value.code.id == "GB012"
