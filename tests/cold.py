"""A new GPU worker, by gpuboot and by a plain script that does the same work, both in one run.

Where the time went, and the floor: the longest chain of work of which each part needs the one
before it. apt, driver and CDI make one, RKE2's release the other; then the node joins.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import cache, node, runs, tree
from tests.rehearsal.report import RigError, say

FOLDER = cache.ROOT / "benchmarks"
SCRIPT = FOLDER / "sequential.sh"
OF_SEQUENTIAL, OF_FLOOR = 0.6, 1.15  # the goal is the larger of the two
LONGEST = 3600.0  # seconds for one worker
# The script's phases that can be done beside the others, and the last that needs all of them.
BESIDE, LAST = ("fetch", "unpack"), ("join",)


@dataclass(frozen=True)
class Timed:
    """How long it took in all, and of that each part, in seconds."""

    seconds: float
    parts: Mapping[str, float]


def compare() -> bool:
    """Print both, and whether the goal was reached."""
    _warm()
    theirs, ours = _by_script(), _by_gpuboot()
    floor = longest_chain(theirs.parts)
    goal = max(OF_SEQUENTIAL * theirs.seconds, OF_FLOOR * floor)
    _table("one thing after the other (benchmarks/sequential.sh)", theirs)
    _table("gpuboot", ours)
    reached = ours.seconds <= goal
    say(
        f"a new GPU worker: gpuboot {ours.seconds:.1f} s, script {theirs.seconds:.1f} s, ratio"
        f" {ours.seconds / theirs.seconds:.2f}; longest chain {floor:.1f} s, goal at most"
        f" {goal:.1f} s ({'reached' if reached else 'MISSED'})"
    )
    return reached


def longest_chain(parts: Mapping[str, float]) -> float:
    """The seconds that even a perfect overlap would take, from the script's own phases."""
    beside = sum(parts.get(name, 0.0) for name in BESIDE)
    last = sum(parts.get(name, 0.0) for name in LAST)
    return max(sum(parts.values()) - beside - last, beside) + last


def _warm() -> None:
    """Read the lab's archive once, so that neither side finds its packages colder."""
    runs.fetch(tree.Kind("bookworm", real=True))
    for file in (cache.CACHE / "archive").rglob("*.deb"):
        with file.open("rb") as content:
            while content.read(1 << 20):
                pass


def _by_script() -> Timed:
    with _fresh() as leader:
        root = Path(f"/proc/{leader}/root")
        (root / "root/sequential.sh").write_text(SCRIPT.read_text(encoding="utf-8"))
        seconds = _timed(leader, "sh", "/root/sequential.sh")
        lines = (root / "root/phases").read_text(encoding="utf-8").splitlines()
        return Timed(seconds, {name: float(took) for name, took in map(str.split, lines)})


def _by_gpuboot() -> Timed:
    with _fresh() as leader:
        seconds = _timed(leader, "gpuboot", "run", "--wait", "--timeout", "1h")
        argv = [*node.enter(leader), "gpuboot", "status", "--json"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        steps = json.loads(said)["steps"]
        return Timed(seconds, {step["name"]: float(step["seconds"] or 0.0) for step in steps})


@contextmanager
def _fresh() -> Iterator[int]:
    """A booted node of which nobody has made anything yet: the process id of its PID 1."""
    if runs.outside(str(FOLDER / "node"), keep=True) != 0:
        raise RigError("the bench's node did not come up")
    try:
        leader = runs.kept_leader()
        if leader is None:
            raise RigError("the node that was to be measured is gone")
        yield leader
    finally:
        runs.stop()


def _timed(leader: int, *argv: str) -> float:
    begin = time.monotonic()
    done = subprocess.run(
        [*node.enter(leader), *argv], timeout=LONGEST, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RigError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.monotonic() - begin


def _table(title: str, timed: Timed) -> None:
    say(f"\n{title}: {timed.seconds:.1f} s")
    for name, seconds in timed.parts.items():
        if seconds >= 0.05:  # the others would fill the screen with noughts
            say(f"  {name:<20} {seconds:7.1f} s  {'#' * round(60 * seconds / timed.seconds)}")
    say(f"  {'between them':<20} {timed.seconds - sum(timed.parts.values()):7.1f} s")
