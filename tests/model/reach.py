"""The states that power cuts can leave: found by walking, each driven on to its end once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuboot import agent, checkpoint, config, status
from tests.model.cluster import Cluster
from tests.model.disk import HALF, Fuse, Scrap
from tests.model.life import MOST_BOOTS, RELEASE, prepare, uncut
from tests.model.machine import Machine

Start = Callable[[Machine], None]
BUDGET = config.Reboot().budget
# What no decision hangs on: it only grows from boot to boot, or is shown to people.
COUNTED = (
    "elapsed", "since", "seen", "boots", "rung", "started", "boot_id", "seconds_to_ready",
    "history",
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """What a power cut left: a disk, the Node in the cluster, and how it came to that."""

    root: Path
    node: dict[str, Any] | None
    story: tuple[int, ...] = ()  # the instants of the cuts, each counted from the one before


@dataclass
class Reach:
    """Walks on from every state that up to `depth` cuts can leave, breadth first.

    What follows a cut depends on the state alone, so the same state is driven only once; and
    where no new one turns up, any number of cuts has been tried. The starts have one end.
    """

    folder: Path
    starts: Sequence[Start]
    depth: int
    scraps: Sequence[Scrap] = HALF
    known: set[str] = field(default_factory=set)
    deepest: int = 0
    instants: int = 0
    _queue: deque[State] = field(default_factory=deque)
    _machine: Machine | None = None
    _story: tuple[int, ...] = ()
    _changes: int = -1

    def explore(self) -> str:
        """Drive every state to its end, which must be that of an uncut walk; the figures."""
        began = time.monotonic()
        wanted = uncut(self.folder / "uncut", self.starts[0])
        for number, start in enumerate(self.starts):
            first = prepare(self.folder / f"start-{number}", start)
            assert first.nouveau == wanted.nouveau
            self._queue.append(State(first.root, None))
        while self._queue:
            state = self._queue.popleft()
            self._drive(state, wanted)
            shutil.rmtree(state.root)
        cuts = f"up to {self.depth}" if self.deepest == self.depth else "any number of"
        return (
            f"{'/'.join(start.__name__ for start in self.starts)}: {cuts} cuts"
            f" (the deepest new state after {self.deepest}): {len(self.known)} states,"
            f" {self.instants} instants, {time.monotonic() - began:.0f} s"
        )

    def _drive(self, state: State, wanted: Machine) -> None:
        cuts = len(state.story)
        machine = Machine(
            state.root, Cluster(RELEASE, node=state.node), wanted.nouveau, boots=1000 * cuts,
            scraps=self.scraps,
        )  # fmt: skip
        if cuts < self.depth:
            self._machine, self._story, self._changes = machine, state.story, -1
            machine.fuse = Fuse(self._take)
        live_within_budget(machine)
        assert machine.persistent() == wanted.persistent(), f"after cuts at {state.story}"
        assert machine.cluster.node == wanted.cluster.node, f"after cuts at {state.story}"
        assert status.look(machine.host())["state"] == "ready", f"after cuts at {state.story}"
        self.deepest = max(self.deepest, cuts)
        self.instants += machine.fuse.count

    def _take(self, instant: int) -> None:
        """Keep the state at this instant, unless it was seen before."""
        machine = self._machine
        assert machine
        if self._changes == machine.changes:
            return
        self._changes = machine.changes
        key = state_key(machine)
        if key in self.known:
            return
        self.known.add(key)
        copy = self.folder / str(len(self.known))
        shutil.copytree(machine.root, copy, symlinks=True)
        node = json.loads(json.dumps(machine.cluster.node))
        self._queue.append(State(copy, node, (*self._story, instant)))


def state_key(machine: Machine) -> str:
    """Everything of the machine that decides how it goes on after a power cut."""
    text = machine.text(checkpoint.FILE)
    try:
        record = json.loads(text)
    except ValueError:
        remembered = text
    else:
        for step in record["steps"].values():
            step.clear()
        for spent in record["reboots"]:
            spent.pop("boot_id")
        plain = {name: value for name, value in record.items() if name not in COUNTED}
        remembered = json.dumps({**plain, "ready_at": bool(record.get("ready_at"))})
    whole = repr((machine.persistent(), remembered, machine.cluster.node))
    return hashlib.sha256(whole.encode()).hexdigest()


def live_within_budget(machine: Machine) -> None:
    """Boot until the agent is done. Each reboot was on record before, and within the budget."""
    for _ in range(MOST_BOOTS):
        before = spent(machine)
        machine.boot()
        assert agent.live_forever(machine.host()) == 0
        if not machine.rebooting:
            return
        assert before < spent(machine) <= BUDGET
    raise AssertionError(f"not converged after {MOST_BOOTS} boots: {machine.commands[-20:]}")


def spent(machine: Machine) -> int:
    """The reboots that its own checkpoint counts; none if it has none, or it cannot be read."""
    record = checkpoint.peek(machine.host())
    if not record or record.get("machine_id") != machine.text("/etc/machine-id"):
        return 0
    return len(record.get("reboots", ())) + int(record.get("surcharge", 0))
