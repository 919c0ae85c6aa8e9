"""How fast gpuboot is, each figure beside what it is measured against, both in one run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from tests import cold
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


# Runs in the node: seconds from the start of gpuboot's process until the gate was there, and until
# rke2-agent's process was started.
GATE = """
import os, subprocess, time
def since_boot(unit):
    show = ["systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic", unit]
    return int(subprocess.run(show, capture_output=True, text=True).stdout) / 1e6
begin = since_boot("gpuboot.service")
opened = os.stat("/run/gpuboot/ready").st_mtime - time.time() + time.monotonic()
print(opened - begin, since_boot("rke2-agent.service") - begin)
"""
# Takes the network away from the next boot on, and the two minutes for which Debian waits for one.
UNPLUG = """
rm /etc/systemd/network/10-lab.network
folder=/etc/systemd/system/systemd-networkd-wait-online.service.d
mkdir -p $folder
printf '[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --timeout=5\n' \
    > $folder/short.conf
"""
GATE_GOAL = 1.5  # seconds
BOOT = 120.0  # seconds until a rebooted node must have opened its gate


@dataclass(frozen=True)
class Ratio:
    """What is measured, against what, and how much of it is allowed."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    goal: float


RATIOS = (Ratio(("gpuboot", "status"), ("cloud-init", "status"), 0.35),)


def main() -> int:
    """Measure a converged node, and then how one is made; 1 if a goal was missed."""
    converged = _converged()
    return int(not cold.compare()) or converged


def _converged() -> int:
    """Boot a node, let it join, and measure on it; 1 if a goal was missed."""
    if runs.outside("clean", keep=True) != 0:
        return 1
    try:
        leader = runs.kept_leader()
        if leader is None:
            raise RigError("the node that was to be measured is gone")
        found = [measured(leader, ratio) for ratio in RATIOS]
        leader, within = gate_opened(leader, "with its network")
        found.append(within)
        subprocess.run([*node.enter(leader), "sh", "-ec", UNPLUG], check=True)
        _, within = gate_opened(leader, "without any network")
        return int(not all([*found, within]))
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


def gate_opened(leader: int, how: str) -> tuple[int, bool]:
    """Reboot the converged node and print how long gpuboot took to the gate.

    The node's new leader, and whether that was in time.
    """
    subprocess.run([*node.enter(leader), "systemctl", "reboot"], check=False)
    deadline = time.monotonic() + BOOT
    while time.monotonic() < deadline:
        time.sleep(1)
        again = runs.kept_leader()
        if again is None or again == leader or not _agent_started(again):
            continue
        argv = [*node.enter(again), "python3", "-c", GATE]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        gate, agent = map(float, done.stdout.split())
        say(
            f"boot of a converged node {how}: {gate:.2f} s of gpuboot until the gate opens, goal at"
            f" most {GATE_GOAL} s ({'reached' if gate <= GATE_GOAL else 'MISSED'}); rke2-agent"
            f" starts after {agent:.2f} s"
        )
        return again, gate <= GATE_GOAL
    raise RigError(f"the node that was rebooted {how} did not start rke2-agent")


def _agent_started(leader: int) -> bool:
    asked = "systemctl show --value --property=ExecMainStartTimestampMonotonic rke2-agent"
    argv = [*node.enter(leader), "sh", "-c", f"test -e /run/gpuboot/ready && {asked}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and int(done.stdout.strip() or 0) > 0


if __name__ == "__main__":
    sys.exit(main())
