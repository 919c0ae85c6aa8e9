"""How fast gpuboot is, each figure beside what it is measured against, both in one run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.rehearsal import node, runs
from tests.rehearsal.report import RigError, say

ROUNDS = 15

# Runs in the node: both commands in turn, so that a busy moment of the machine hits both.
MEASURE = """
import json, subprocess, sys, time
commands, rounds = json.loads(sys.argv[1]), int(sys.argv[2])
seconds = [[] for _ in commands]
for _ in range(rounds + 1):
    for took, command in zip(seconds, commands):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took.append(time.perf_counter() - begin)
print(json.dumps([took[1:] for took in seconds]))
"""


# Runs in the node: from the start of gpuboot's process until the gate was there, in seconds.
GATE = """
import os, subprocess, time
show = ["systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic"]
begin = int(subprocess.run([*show, "gpuboot.service"], capture_output=True, text=True).stdout)
opened = os.stat("/run/gpuboot/ready").st_mtime - time.time() + time.monotonic()
print(opened - begin / 1e6)
"""
GATE_GOAL = 1.5  # seconds
BOOT = 120.0  # seconds until a rebooted node must be ready


@dataclass(frozen=True)
class Ratio:
    """What is measured, against what, and how much of it is allowed."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    goal: float


RATIOS = (Ratio(("gpuboot", "status"), ("cloud-init", "status"), 0.35),)


def main() -> int:
    """Boot a node, let it join, and measure on it; 1 if a goal was missed."""
    if runs.outside("clean", keep=True) != 0:
        return 1
    try:
        leader = runs.kept_leader()
        if leader is None:
            raise RigError("the node that was to be measured is gone")
        found = [measured(leader, ratio) for ratio in RATIOS]
        return int(not all([*found, gate_opened(leader)]))
    finally:
        runs.stop()


def measured(leader: int, ratio: Ratio) -> bool:
    """Print one ratio; whether it is within its goal."""
    commands = json.dumps([ratio.ours, ratio.theirs])
    argv = [*node.enter(leader), "python3", "-c", MEASURE, commands, str(ROUNDS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    ours, theirs = (statistics.median(seconds) for seconds in json.loads(done.stdout))
    share: float = ours / theirs
    say(
        f"{' '.join(ratio.ours)}: {ours * 1000:.0f} ms; {' '.join(ratio.theirs)}: "
        f"{theirs * 1000:.0f} ms; ratio {share:.2f}, goal at most {ratio.goal}"
        f" ({'reached' if share <= ratio.goal else 'MISSED'}; medians of {ROUNDS})"
    )
    return share <= ratio.goal


def gate_opened(leader: int) -> bool:
    """Reboot the converged node and print how long gpuboot took to the gate; whether in time."""
    subprocess.run([*node.enter(leader), "systemctl", "reboot"], check=False)
    deadline = time.monotonic() + BOOT
    while time.monotonic() < deadline:
        time.sleep(1)
        again = runs.kept_leader()
        if again is None or again == leader:
            continue
        state = subprocess.run([*node.enter(again), "gpuboot", "status"], capture_output=True)
        if state.returncode == 0:
            argv = [*node.enter(again), "python3", "-c", GATE]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            seconds = float(done.stdout)
            say(
                f"boot of a converged node: {seconds:.2f} s of gpuboot until the gate opens, goal"
                f" at most {GATE_GOAL} s ({'reached' if seconds <= GATE_GOAL else 'MISSED'})"
            )
            return seconds <= GATE_GOAL
    raise RigError("the node was not ready again after its reboot")


if __name__ == "__main__":
    sys.exit(main())
