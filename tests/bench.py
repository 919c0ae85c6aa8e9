"""How fast gpuboot is, each figure beside what it is measured against, both in one run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests import cold, day
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
# Runs in the node: the monitor looks once a second for a while; what that costs, and what it says.
WATCH = """
import glob, json, os, subprocess, sys, time
seconds = int(sys.argv[1])
def say(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout
def show(name):
    return int(say("systemctl", "show", "--value", "--property=" + name, "gpuboot-monitor"))
def resident():
    lines = open("/proc/%d/status" % show("MainPID")).read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
def size():
    return sum(os.path.getsize(name) for name in glob.glob("/run/gpuboot/*"))
def words():
    return say("journalctl", "-u", "gpuboot-condition", "-o", "cat").count("GPUHealthy=True: ")
with open("/etc/gpuboot/config.d/bench.yaml", "w") as file:
    file.write("monitor: {interval: 1s}\\n")
os.chmod("/etc/gpuboot/config.d/bench.yaml", 0o600)
subprocess.run(["systemctl", "restart", "gpuboot-monitor"])
time.sleep(10)
cpu, files, told = show("CPUUsageNSec"), size(), words()
begun = time.monotonic()
time.sleep(seconds)
spent = (show("CPUUsageNSec") - cpu) / 1e9 / (time.monotonic() - begun)
late = resident()
os.remove("/etc/gpuboot/config.d/bench.yaml")
subprocess.run(["systemctl", "restart", "gpuboot-monitor"])
print(json.dumps([late, spent, size() - files, words() - told]))
"""
WATCHED = 60  # seconds, each with a look
INTERVAL = 15  # seconds between two looks, where nothing else is configured
RESIDENT_GOAL, CORE_GOAL = 30, 0.1  # MiB, and percent of one core
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
        found.append(monitored(leader))
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


def monitored(leader: int) -> bool:
    """Print what the monitor costs and leaves behind; whether that is within its goals."""
    argv = [*node.enter(leader), "python3", "-c", WATCH, str(WATCHED)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    resident, spent, files, words = json.loads(done.stdout)
    mib, percent = resident / 1024, 100 * spent / INTERVAL
    within: bool = mib <= RESIDENT_GOAL and percent <= CORE_GOAL
    say(
        f"gpuboot-monitor: {mib:.1f} MiB resident, goal at most {RESIDENT_GOAL}; a look every"
        f" {INTERVAL} s takes {percent:.3f} % of one core, goal at most {CORE_GOAL}"
        f" ({'reached' if within else 'MISSED'}; {WATCHED} looks); files grown by {files} bytes,"
        f" {words} words to the API server"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = day.measured(Path(folder))
    say(
        f"a day of looks, compressed, with {day.LOSSES} losses of a card: resident memory grown by"
        f" {found.grown_kib} KiB, files by {found.files_grown} bytes; {found.words} words to the"
        " API server"
    )
    return within


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
