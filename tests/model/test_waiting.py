"""Waiting and trying again: the ladder, what cuts it short, and the clocks."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuboot import agent, checkpoint, status
from gpuboot.clock import stamp
from gpuboot.errors import GpubootError, Stopped
from gpuboot.kubernetes import POLL
from gpuboot.web import SYSTEM, UNREACHABLE, Answer, Trust
from tests.model.cluster import Cluster
from tests.model.disk import ModelHost
from tests.model.life import CONFIG, RELEASE, fresh, prepare
from tests.model.machine import FakeClock, Machine

SERVER_AWAY = "tcp: lookup supervisor: no such host"


@dataclass
class Away(Cluster):
    """A cluster whose server answers only after some tries, or never."""

    tries: int = 0
    on_try: Callable[[], None] = lambda: None

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        if url.endswith("/cacerts") and self.tries:
            self.on_try()
            self.tries -= 1
            raise GpubootError(UNREACHABLE, SERVER_AWAY, retry=True)
        return super().get(url, trust=trust, auth=auth, headers=headers)


@dataclass
class Night(FakeClock):
    """Keeps the agent's sleeps; `events` happen in them, one in each, from the first on."""

    sleeps: list[float] = field(default_factory=list)
    rungs: list[int] = field(default_factory=list)  # of the ladder, without the polls of a join
    rung: Callable[[], int] = lambda: -1
    events: list[Callable[[], None]] = field(default_factory=list)
    jump: timedelta = timedelta()  # of the wall clock, and of nothing else

    def now(self) -> datetime:
        return super().now() + self.jump

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if seconds != POLL:
            self.rungs.append(self.rung())
        if self.events:
            self.events.pop(0)()
        super().sleep(seconds)


def nothing() -> None:
    """A sleep in which nothing happens."""


@dataclass
class Life:
    """A machine in its first boot, with the night it has before it."""

    machine: Machine
    night: Night
    host: ModelHost

    def attach(self) -> None:
        self.machine.gpu = True

    def live(self) -> int:
        return agent.live_forever(self.host)

    def status(self) -> dict[str, Any]:
        """As it is seen while the agent is at work."""
        with agent.take_lock(self.host):
            return status.look(self.host)


def begin(root: Path, *, gpu: bool = True, tries: int = 0, config: str = CONFIG) -> Life:
    machine = prepare(root, fresh)
    machine.cluster = Away(RELEASE, tries=tries)
    machine.gpu = gpu
    configure(machine, config)
    return boot(machine)


def configure(machine: Machine, text: str) -> None:
    machine.put("/etc/gpuboot/config.yaml", text)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)


def boot(machine: Machine) -> Life:
    machine.boot()
    night = Night()
    machine.clock = machine.cluster.clock = night
    host = machine.host()
    night.rung = lambda: (checkpoint.peek(host) or {}).get("rung", 0) - 1
    return Life(machine, night, host)


# -- the ladder


def test_the_waits_grow_until_the_last_which_repeats(folder: Path) -> None:
    node = begin(folder, gpu=False)
    node.night.events = [nothing] * 9 + [node.attach]
    assert node.live() == 0
    assert node.night.rungs == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert len(set(node.night.sleeps[4:10])) == 6  # no two nodes in step
    for slept, rung in zip(node.night.sleeps, node.night.rungs, strict=False):
        assert agent.LADDER[rung] / 2 <= slept <= agent.LADDER[rung] * 1.5


def test_the_next_attempt_that_is_shown_is_the_one_that_is_made(folder: Path) -> None:
    node = begin(folder, gpu=False)
    shown: list[str] = []
    wanted: list[str] = []

    def note() -> None:
        shown.append(node.status()["next_attempt"])
        wanted.append(stamp(node.night.now() + timedelta(seconds=node.night.sleeps[-1])))

    node.night.events = [note] * 6 + [node.attach]
    assert node.live() == 0
    seconds = [
        abs(datetime.fromisoformat(a[:-1]) - datetime.fromisoformat(b[:-1])).total_seconds()
        for a, b in zip(shown, wanted, strict=True)
    ]
    assert len(seconds) == 6
    assert max(seconds) <= 1


@pytest.mark.parametrize("power", ["restart", "boot"])
def test_another_process_goes_on_where_the_last_stood_on_the_ladder(
    folder: Path, power: str
) -> None:
    node = begin(folder, gpu=False)
    node.night.events = [nothing, nothing, node.host.stop]
    with pytest.raises(Stopped):
        node.live()
    assert node.night.rungs == [0, 1, 2]
    again = boot(node.machine) if power == "boot" else node
    again.host = node.machine.host()
    again.night.rungs, again.night.events = [], [node.attach]
    assert again.live() == 0
    assert again.night.rungs == [3]


def test_another_trouble_begins_the_ladder_anew(folder: Path) -> None:
    node = begin(folder, gpu=False, tries=2)
    node.night.events = [nothing] * 300 + [node.attach]  # a day
    assert node.live() == 0
    assert node.night.rungs[-3:] == [5, 0, 1]


def test_a_node_that_was_ready_begins_the_ladder_anew(folder: Path) -> None:
    node = begin(folder, gpu=False)
    node.night.events = [nothing] * 3 + [node.attach]
    assert node.live() == 0
    node = boot(node.machine)
    node.machine.gpu = False
    node.night.events = [node.attach]
    assert node.live() == 0
    assert node.night.rungs == [0]


def test_a_server_under_siege_is_left_alone_as_long_as_it_asks(folder: Path) -> None:
    node = begin(folder)
    readyz = "https://supervisor:9345/v1-rke2/readyz"
    node.machine.cluster.pages[readyz] = Answer(429, headers={"retry-after": "7"})
    node.night.events = [nothing] * 5 + [node.machine.cluster.pages.clear]
    assert node.live() == 0
    pauses = node.night.sleeps[:6]
    assert all(7 <= pause <= 7 + rung for pause, rung in zip(pauses, agent.LADDER, strict=True))
    assert len(set(pauses)) == 6  # and a pool's nodes come back one by one


# -- what cuts it short


def test_a_wake_in_a_walk_makes_the_next_one_follow_at_once(folder: Path) -> None:
    node = begin(folder, tries=2)
    assert isinstance(node.machine.cluster, Away)
    wakes = [node.host.wake]
    node.machine.cluster.on_try = lambda: wakes.pop()() if wakes else None
    assert node.live() == 0
    assert node.night.sleeps[0] == 0
    assert node.night.sleeps[1] > 1


def test_a_wrong_configuration_ends_the_waiting_and_a_right_one_is_taken(folder: Path) -> None:
    node = begin(folder, gpu=False)
    node.night.events = [
        lambda: configure(node.machine, CONFIG + "gpu: {model: Tesla T4}\n"),
        lambda: configure(node.machine, CONFIG + "gpu: {model: [}\n"),
    ]
    assert node.live() == agent.EXIT_CONFIG
    found = status.look(node.host)
    assert (found["state"], found["code"]) == ("failed", "GB001")
    configure(node.machine, CONFIG)
    node.attach()
    assert node.live() == 0


# -- the clocks

YEARS = [timedelta(days=9000), -timedelta(days=20454)]  # 2050, and 1970


@pytest.mark.parametrize("jump", YEARS, ids=str)
def test_a_wall_clock_that_jumps_changes_only_what_is_shown(folder: Path, jump: timedelta) -> None:
    config = CONFIG + "on-gpu-failure: join\ngpu: {wait: 2m}\n"
    node = begin(folder, gpu=False, config=config)

    def leap() -> None:
        node.night.jump = jump

    node.night.events = [leap]
    assert node.live() == 0
    assert node.night.rungs[:4] == [0, 1, 2, 3]
    # It was given its time, and not more than the longest wait beyond it.
    assert 120 < node.night.seconds < 140 + agent.LADDER[-1] * (1 + agent.JITTER)
    node = boot(node.machine)
    node.night.jump = jump
    node.attach()
    assert node.live() == 0
    assert 100 < status.look(node.host)["seconds_to_ready"] < 400


def test_a_card_that_is_missing_later_has_all_of_its_time(folder: Path) -> None:
    config = CONFIG + "on-gpu-failure: join\ngpu: {wait: 5m}\n"
    node = begin(folder, tries=20, config=config)
    node.night.events = [nothing] * 10 + [node.host.stop]
    with pytest.raises(Stopped):
        node.live()
    assert node.night.seconds > 600
    node = boot(node.machine)
    node.machine.gpu = False
    node.machine.cluster = Cluster(RELEASE, node.night)
    node.host = node.machine.host()
    assert node.live() == 0
    assert node.night.seconds > 300
    assert node.machine.cluster.node


def test_a_card_that_had_its_time_is_not_waited_for_in_every_boot(folder: Path) -> None:
    config = CONFIG + "on-gpu-failure: join\ngpu: {wait: 5m}\n"
    node = begin(folder, config=config)
    assert node.live() == 0
    for waited in (True, False):
        node = boot(node.machine)
        node.machine.gpu = False
        assert node.live() == 0
        assert (node.night.seconds > 300) is waited


# -- trouble that is none of a step's


def test_a_disk_that_takes_no_record_is_waited_for_and_told(folder: Path) -> None:
    node = begin(folder)
    seen: list[dict[str, Any]] = []
    node.machine.put("/var/lib/gpuboot/checkpoint.json/folder", "where the file must be")

    def mend() -> None:
        seen.append(node.status())
        shutil.rmtree(node.machine.path("/var/lib/gpuboot"))

    node.night.events = [mend]
    assert node.live() == 0
    assert (seen[0]["state"], seen[0]["code"]) == ("waiting", "GB012")
    assert seen[0]["next_attempt"]
    assert status.look(node.host)["state"] == "ready"


def test_a_fault_of_gpuboots_own_is_no_end_for_systemd(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = begin(folder, tries=1)
    assert isinstance(node.machine.cluster, Away)

    def fault() -> None:
        raise ImportError("a module was replaced")

    node.machine.cluster.on_try = fault
    assert agent.foreground(node.host, once=False) == agent.EXIT_FAULT
    assert "a module was replaced" in caplog.text
    assert status.look(node.host)["reason"].startswith("the walk was interrupted in ")
    node.machine.cluster.tries = 0
    assert agent.foreground(node.host, once=False) == 0


# -- two processes


def test_a_second_agent_leaves_at_once_and_names_the_status(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = begin(folder)
    with agent.take_lock(node.host):
        assert agent.foreground(node.machine.host(), once=True) == agent.EXIT_BUSY
    assert node.machine.commands == []
    assert "another gpuboot is at work" in caplog.text
    assert "gpuboot status" in caplog.text
    assert agent.foreground(node.host, once=True) == 0


def test_a_look_at_the_lock_in_passing_keeps_no_agent_from_starting(folder: Path) -> None:
    node = begin(folder)
    node.machine.put(agent.LOCK, "")
    looking = node.machine.path(agent.LOCK).open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    node.night.events = [looking.close]
    agent.take_lock(node.host).close()
    assert looking.closed


def test_nothing_of_gpuboot_is_loaded_once_the_walk_has_begun(folder: Path) -> None:
    script = (
        "import pathlib, sys, gpuboot.cli, gpuboot.agent, gpuboot.host, gpuboot.log\n"
        "loaded = set(sys.modules)\n"
        "from tests.model.life import fresh, uncut\n"
        f"uncut(pathlib.Path({str(folder)!r}), fresh)\n"
        "print(*[name for name in set(sys.modules) - loaded if name.startswith('gpuboot')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    # A package that is upgraded meanwhile cannot mix its new modules with the old ones then.
    assert result.stdout.strip() == ""
