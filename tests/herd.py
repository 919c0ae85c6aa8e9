"""A pool that starts all at once, before a supervisor that serves 20 requests at a time.

Each agent is the real one: the whole walk on a machine of tests/model, over real TLS to the
stand-in supervisor, its retries by its own ladder. Only time is handed in: one clock for them all
and for the supervisor, which goes on when all of them sleep. So 200 agents do begin in the same
instant, however slow this machine is, and minutes last no longer than the work in them.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import math
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from gpuboot import agent, kubernetes, status
from gpuboot.errors import Stopped
from gpuboot.web import SYSTEM, Answer, Proxy, RequestsWeb, Trust
from tests.model import life
from tests.model.cluster import TOKEN, Cluster
from tests.rehearsal import cluster, pki
from tests.rehearsal.report import say
from tests.rehearsal.standins.rke2.server import supervisor
from tests.rehearsal.standins.rke2.server.faults import Faults
from tests.rehearsal.standins.rke2.server.serving import RequestLog, Server, server_context
from tests.rehearsal.standins.rke2.server.store import Store

AGENTS = 200
IN_FLIGHT = 20  # reads at once: RKE2's own limit
BUSY = 0.5  # seconds for each of them: 40 a second can be served, and no more
LATENCY = 0.01  # seconds on the way to the supervisor
AT_ONCE = 4  # agents that compute at the same time; the others' turn comes in the same instant
DEVIATIONS = 5  # how far chance may lead from what is expected
WIDTH = 2 * agent.JITTER * agent.LADDER[0]  # seconds over which the first rung spreads a burst
COLUMNS = 60
LOST = 0  # the status of a question that got no answer
PATIENCE = 300.0  # real seconds for an answer; meanwhile no time passes on the nodes' clocks


class Time:
    """A clock for many threads; when all of them sleep it goes on to the next one's waking."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._awake = 0

    def sleep(self, seconds: float) -> None:
        """For a thread of `run`, or a server's thread while one of those waits for its answer."""
        woken = self._lie_down(seconds)
        self._leave()
        woken.wait()

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run them all to their ends, each in its thread, from this same instant on."""
        threads = [threading.Thread(target=self._live, args=(work, self._lie_down(0)))
                   for work in works]  # fmt: skip
        for thread in threads:
            thread.start()
        self._awake += 1
        self._leave()
        for thread in threads:
            thread.join()

    def _live(self, work: Callable[[], None], begin: threading.Event) -> None:
        begin.wait()
        try:
            work()
        finally:
            self._leave()

    def _lie_down(self, seconds: float) -> threading.Event:
        woken = threading.Event()
        with self._lock:
            heapq.heappush(self._sleepers, (self.seconds + seconds, next(self._order), woken))
        return woken

    def _leave(self) -> None:
        """One thread fewer is awake: those may wake whose turn it is."""
        with self._lock:
            self._awake -= 1
            while self._sleepers and self._awake < AT_ONCE:
                due = self._sleepers[0][0]
                if due > self.seconds and self._awake:
                    return
                self.seconds = max(self.seconds, due)
                heapq.heappop(self._sleepers)[2].set()
                self._awake += 1


@dataclass
class Clock:
    """A node's clock, handed to its agent."""

    time: Time

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.time.seconds)

    def boottime(self) -> float:
        return self.time.seconds

    def sleep(self, seconds: float) -> None:
        self.time.sleep(seconds)

    def wake(self) -> None:
        """No signal comes."""

    def synchronised(self) -> bool:
        return True


@dataclass
class InStep(Clock):
    """One that sleeps what the ladder says, without the jitter, until `end`; then it stops."""

    end: float
    stop: Callable[[], None] = lambda: None
    tries: int = 0

    def sleep(self, seconds: float) -> None:
        if seconds != kubernetes.POLL:
            seconds = agent.LADDER[min(self.tries, len(agent.LADDER) - 1)]
            self.tries += 1
        if self.time.seconds + seconds > self.end:
            self.stop()
        else:
            super().sleep(seconds)


@dataclass
class Asked:
    """A node's question whether the supervisor takes it."""

    second: float
    status: int


@dataclass
class Web:
    """A node's HTTP: real to the supervisor, from memory to everything else."""

    supervisor: str
    clock: Clock
    others: Cluster
    proxy: Proxy = field(default_factory=Proxy)
    asked: list[Asked] = field(default_factory=list)
    _real: RequestsWeb = field(default_factory=lambda: RequestsWeb(timeout=PATIENCE))

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        if not url.startswith(self.supervisor):
            return self.others.get(url, trust=trust, auth=auth, headers=headers)
        self.clock.time.sleep(LATENCY)
        asked = Asked(self.clock.time.seconds, LOST)
        if url.endswith("/readyz"):
            self.asked.append(asked)
        answer = self._real.get(url, trust=trust, auth=auth, headers=headers)
        asked.status = answer.status
        return answer

    def send(self, method: str, url: str, body: str, *, trust: Trust, kind: str) -> Answer:
        return self.others.send(method, url, body, trust=trust, kind=kind)

    def pieces(self, url: str) -> Iterator[bytes]:
        return self.others.pieces(url)


@dataclass
class Member:
    """A node of the pool: what it asked, and when it had joined."""

    web: Web
    joined: float | None = None


def pool(folder: Path, count: int, clock: Callable[[Time], Clock]) -> list[Member]:
    """Let that many nodes live until they have joined, or their clocks stop them."""
    time = Time()
    with serving(folder / "cluster", time) as (address, token):
        works, members = [], []
        for number in range(count):
            member, work = node(folder / f"node-{number}", clock(time), address, token)
            members.append(member)
            works.append(work)
        time.run(works)
    return members


@contextmanager
def serving(folder: Path, time: Time) -> Iterator[tuple[str, str]]:
    """The supervisor on loopback: its address, and the token that it takes."""
    identity = cluster.prepare(folder)
    keys = folder / "pki"
    (folder / "faults.json").write_text(json.dumps({"in-flight": IN_FLIGHT, "busy": BUSY}))
    faults = Faults(folder / "faults.json", time.sleep)
    password = identity.token.rpartition(":")[2]
    shared = supervisor.Cluster(
        pki.load(keys, "server-ca"), pki.load(keys, "client-ca"), password, "127.0.0.1", 6443, 9345
    )
    server = Server(
        "supervisor", ("127.0.0.1", 0), supervisor.app(shared, Store(folder), faults),
        log=RequestLog(folder / "requests.log"), faults=faults,
        context=server_context(keys / "cluster.crt", keys / "cluster.key", keys / "client-ca.crt"),
    )  # fmt: skip
    server.start()
    try:
        yield f"https://127.0.0.1:{server.port}", identity.token
    finally:
        server.stop()


def node(root: Path, clock: Clock, address: str, token: str) -> tuple[Member, Callable[[], None]]:
    """A node of the pool, baked, at its first boot; and what its agent does."""
    machine = life.prepare(root, life.baked)
    machine.put(
        "/etc/gpuboot/config.yaml",
        life.CONFIG.replace("https://supervisor:9345", address).replace(TOKEN, token),
    )
    machine.cluster.token = token
    machine.boot()
    machine.cluster.clock = clock
    host = machine.host()
    host.clock = clock
    host.web = web = Web(address, clock, machine.cluster)
    if isinstance(clock, InStep):
        clock.stop = host.stop
    member = Member(web)

    def work() -> None:
        try:
            ended = agent.live_forever(host)
        except Stopped:
            return
        if ended == agent.EXIT_OK and status.look(host)["state"] == "ready":
            member.joined = clock.time.seconds

    return member, work


# -- what came of it


def told(members: Sequence[Member]) -> None:
    """Print how the pool fared."""
    tries = Counter(len(member.web.asked) for member in members if member.joined is not None)
    asked = [one for member in members for one in member.web.asked]
    answers = Counter(one.status for one in asked)
    joined = [member.joined for member in members if member.joined is not None]
    for number, count in sorted(tries.items()):
        say(f"  {count:4d} accepted at try {number}")
    for status_code, count in sorted(answers.items()):
        say(f"  {count:4d} answers {status_code or 'lost'}")
    say("  asked in each second:")
    seconds = Counter(math.floor(one.second) for one in asked)
    for second in range(max(seconds) + 1):
        count = seconds[second]
        if count or seconds[second - 1]:  # of a longer silence only the first second
            bar = "#" * math.ceil(count * COLUMNS / max(seconds.values()))
            say(f"  {second:4d} s {count:4d} {bar}".rstrip())
    last = f", the last one {max(joined):.0f} s after it booted" if joined else ""
    say(f"  {len(joined)} of {len(members)} joined{last}")


def retries(members: Sequence[Member]) -> list[float]:
    """When somebody asked again, in order."""
    return sorted(one.second for member in members for one in member.web.asked[1:])


def refusals(members: Sequence[Member]) -> int:
    """How many the first burst turned away."""
    return sum(member.web.asked[0].status == 429 for member in members)


def busiest(moments: Sequence[float]) -> int:
    """The most of these moments within one second, wherever it begins."""
    return max((sum(m <= one < m + 1 for one in moments) for m in moments), default=0)


def allowed(refused: int) -> int:
    """How many may ask again within one second.

    The ladder's first rung spreads those whom the burst turned away evenly over 2 x JITTER of its
    seconds; each later rung spreads fewer of them over more.
    """
    share = min(1.0, 1 / WIDTH)
    return math.ceil(refused * share + DEVIATIONS * math.sqrt(refused * share * (1 - share)))


def judged(members: Sequence[Member], control: Sequence[Member]) -> list[str]:
    """What is wrong with the pool, or with this measure."""
    wrong = []
    asked = [one.status for member in (*members, *control) for one in member.web.asked]
    if LOST in asked:
        wrong.append(f"{asked.count(LOST)} questions got no answer: this machine is too busy")
    if missing := sum(member.joined is None for member in members):
        wrong.append(f"{missing} nodes have not joined")
    again, most = retries(members), allowed(refusals(members))
    herd, in_step = busiest(again), busiest(retries(control))
    if herd > most:
        wrong.append(f"{herd} of {len(again)} retries came within one second: a herd")
    if in_step <= most:
        wrong.append("the control shows no herd, so that nothing is proven")
    say(f"busiest second of the retries: {herd} of {len(again)}; without jitter {in_step}")
    say(
        f"allowed: {most}, for the first rung, {agent.LADDER[0]} s +-{agent.JITTER:.0%}, spreads"
        f" the {refusals(members)} refusals of the burst over {WIDTH:.0f} s; with {DEVIATIONS}"
        " standard deviations"
    )
    return wrong


def main(arguments: Sequence[str]) -> int:
    """Let a pool join, and another whose clocks take the jitter away; 1 if there is a herd."""
    parser = argparse.ArgumentParser(prog="tests.herd", description=__doc__)
    parser.add_argument("--agents", type=int, default=AGENTS)
    count = parser.parse_args(arguments).agents
    logging.getLogger("gpuboot").setLevel(logging.CRITICAL)
    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        say(
            f"{count} nodes boot in the same instant; the supervisor serves {IN_FLIGHT} requests at"
            f" once, each in {BUSY} s"
        )
        members = pool(Path(name) / "pool", count, Clock)
        told(members)
        end = max((member.joined or 0.0 for member in members), default=0.0)
        say(f"the same nodes without jitter, as a control, for {end:.0f} s")
        control = pool(Path(name) / "control", count, lambda time: InStep(time, end))
        told(control)
    wrong = judged(members, control)
    for one in wrong:
        say(f"WRONG: {one}")
    say("herd: failed" if wrong else f"herd: all {count} nodes joined, and no second was crowded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
