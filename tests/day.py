"""A day of the monitor's looks, compressed: a clock of its own, real files, a card that is lost.

In a process of its own, as it measures its memory: `python -m tests.day FOLDER` prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gpuboot import news, sensors
from tests.unit import watched as rig
from tests.unit.node import Node
from tests.unit.test_status import boot

ROOT = Path(__file__).parents[1]
LOOKS = 24 * 3600 // 15
EARLY = 1000  # looks after which nothing may grow any more
LOST_EVERY, LOST_FOR = 480, 40  # looks: every two hours, for ten minutes
LOSSES = LOOKS // LOST_EVERY
XID_EVERY = 100


@dataclass(frozen=True)
class Day:
    """What a day comes to."""

    grown_kib: int  # resident memory
    files_grown: int  # bytes
    words: int  # to the API server
    cpu_ms: float  # of one look, all that stands in for the machine included


def measured(folder: Path) -> Day:
    """Run it in a process of its own."""
    argv = [sys.executable, "-m", "tests.day", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    return Day(**json.loads(done.stdout))


def resident() -> int:
    """KiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4


def size(node: Node) -> int:
    """Bytes of all the files of the node."""
    return sum((node.root / name.lstrip("/")).lstat().st_size for name in node.files())


def day(folder: Path) -> Day:
    """Look and look, and count."""
    node = Node(folder)
    watched = rig.watch(boot(node), rig.GPUS)
    told, words, early, before, begun = "", 0, 0, 0, time.process_time()
    for look in range(LOOKS):
        lost = look % LOST_EVERY >= LOST_EVERY - LOST_FOR
        watched.nvml.gpus[0].error = sensors.LOST if lost else 0
        if look % XID_EVERY == 0:
            watched.drill("NVRM: Xid (PCI:0000:03:00): 31, pid=1, x")
        watched.looks(1)
        text = node.text(news.FILE) or ""
        words, told = words + (text != told), text
        if look == EARLY:
            early, before = resident(), size(node)
    spent = 1000 * (time.process_time() - begun) / LOOKS
    return Day(resident() - early, size(node) - before, words, spent)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(day(Path(sys.argv[1])))))
