"""apt's locks: their holder is asked of the kernel, named, and waited for so long and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuboot import apt, aptlock
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.secret import Secret
from tests.unit.node import Node

FRONTEND = "/var/lib/dpkg/lock-frontend"
REFUSED = Result(
    100,
    err="E: Could not get lock /var/lib/apt/lists/lock. It is held by process 9 (apt-get)\n"
    "E: Unable to lock directory /var/lib/apt/lists/\n",
)
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Another process has the lock, as apt and dpkg take it: by fcntl(2)."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def locks(node: Node) -> Node:
    for name in aptlock.LOCKS:
        node.put(name)
    return node


def described(node: Node, pid: int, *words: str, unit: str = "") -> None:
    """What /proc tells of a process."""
    node.put(f"/proc/{pid}/cmdline", "".join(f"{word}\0" for word in words))
    node.put(f"/proc/{pid}/comm", "comm\n")
    node.put(f"/proc/{pid}/cgroup", f"0::/system.slice/{unit}\n" if unit else "0::/\n")


@pytest.mark.parametrize(
    "name",
    ["/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock", "/var/lib/dpkg/lock-frontend",
     "/var/lib/dpkg/lock"],
)  # fmt: skip
def test_the_holder_of_each_lock_is_named_with_its_process_and_unit(locks: Node, name: str) -> None:
    with held(locks.root / name.lstrip("/")) as pid:
        described(
            locks,
            pid,
            "/usr/bin/apt-get",
            "-qq",
            "-o",
            "A::B=c",
            "update",
            unit="apt-daily.service",
        )
        found = aptlock.holder(locks.host)
    assert str(found) == f"apt-get update (pid {pid}, apt-daily.service), which holds {name}"
    assert found
    assert found.look == "systemctl status apt-daily.service"


def test_an_apt_in_somebodys_session_is_named_by_its_process(locks: Node) -> None:
    with held(locks.root / FRONTEND.lstrip("/")) as pid:
        described(locks, pid, "apt", "upgrade", unit="session-3.scope")
        found = aptlock.holder(locks.host)
    assert found
    assert (found.unit, found.look) == ("session-3.scope", f"ps -fp {pid}")


def test_a_process_of_which_nothing_is_known_is_still_a_holder(locks: Node) -> None:
    with held(locks.root / FRONTEND.lstrip("/")) as pid:
        found = aptlock.holder(locks.host)
    assert found == aptlock.Holder(FRONTEND, pid, "a process", None)


def test_a_secret_in_a_holders_words_is_masked(locks: Node) -> None:
    locks.host.mask.add(Secret("correct-horse"))
    with held(locks.root / FRONTEND.lstrip("/")) as pid:
        described(locks, pid, "apt-get", "install", "http://me:correct-horse@p/x.deb")
        assert "correct-horse" not in str(aptlock.holder(locks.host))


def test_free_locks_and_missing_ones_have_no_holder(node: Node) -> None:
    assert aptlock.holder(node.host) is None
    node.put(FRONTEND)
    assert aptlock.holder(node.host) is None


def test_looking_takes_no_lock_away_from_anybody(locks: Node) -> None:
    aptlock.holder(locks.host)
    for name in aptlock.LOCKS:
        with held(locks.root / name.lstrip("/")):
            pass


def test_it_says_whom_it_waits_for_and_then_goes_on(locks: Node) -> None:
    said: list[str] = []
    with held(locks.root / "var/lib/apt/lists/lock") as pid:
        described(locks, pid, "unattended-upgrade", unit="apt-daily-upgrade.service")

        def tell(text: str) -> None:
            if not said:
                os.kill(pid, 9)  # he ends while he is waited for
                os.waitpid(pid, 0)
            said.append(text)

        locks.host.tell = tell
        aptlock.wait(locks.host)
    who = f"unattended-upgrade (pid {pid}, apt-daily-upgrade.service)"
    assert said == [f"waiting for {who}, which holds /var/lib/apt/lists/lock", ""]
    assert 0 < locks.host.waited < 10


def test_the_waiting_is_bounded_and_ends_with_the_holders_name(locks: Node) -> None:
    with held(locks.root / FRONTEND.lstrip("/")) as pid:
        described(locks, pid, "apt", "upgrade", unit="ssh.service")
        with pytest.raises(GpubootError) as caught:
            aptlock.wait(locks.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB201", True)
    assert error.message == (
        f"apt upgrade (pid {pid}) of ssh.service was waited for 10 min"
        " and still holds /var/lib/dpkg/lock-frontend"
    )
    assert error.hint == "systemctl status ssh.service"
    assert aptlock.PATIENCE <= locks.host.waited < aptlock.PATIENCE + 10


def test_all_commands_of_a_walk_share_one_patience_and_the_next_walk_has_its_own(
    locks: Node,
) -> None:
    locks.answers["apt-get"] = Result(0)
    locks.host.waited = aptlock.PATIENCE - 5
    before = locks.clock.seconds
    with held(locks.root / FRONTEND.lstrip("/")), pytest.raises(GpubootError, match="10 min"):
        apt.install(locks.host, ["dkms"], {})
    assert locks.clock.seconds - before < 10
    locks.host.rest(1)
    assert locks.host.waited == 0


@pytest.mark.parametrize(
    "call",
    [lambda host: apt.update(host, {}), lambda host: apt.install(host, ["dkms"], {}),
     lambda host: apt.hold(host, ["dkms"])],
    ids=["update", "install", "hold"],
)  # fmt: skip
def test_whoever_is_quicker_than_we_are_is_waited_for_too(locks: Node, call: object) -> None:
    tries: list[Command] = []

    def answer(command: Command) -> Result:
        tries.append(command)
        return REFUSED if len(tries) < 4 else Result(0)

    locks.answers |= {"apt-get": answer, "apt-mark": answer}
    assert callable(call)
    call(locks.host)
    assert len(tries) == 4
    assert 2 < locks.host.waited < 10


def test_who_is_always_quicker_is_waited_for_no_longer_than_that(locks: Node) -> None:
    locks.answers["apt-get"] = REFUSED
    with pytest.raises(GpubootError) as caught:
        apt.install(locks.host, ["dkms"], {})
    assert caught.value.code.id == "GB201"
    assert "held by process 9 (apt-get)" in caught.value.evidence
