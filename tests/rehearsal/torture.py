"""`make torture`: nodes that are killed at random instants, and must all end as an uncut one does.

Each life is a node in a lab of its own. In it the plug is pulled, gpuboot's process is killed and
dpkg's parent is killed, at moments that the seed decides, again and again; then it is left in
peace, has to become ready, and its files are compared with those of two nodes that nobody touched.
What differs between those two (keys, times, random ids) is compared by existence and mode only.
"""

from __future__ import annotations

import hashlib
import json
import random
import stat
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.rehearsal import acts, lab, runs, scenario
from tests.rehearsal.expect import Expectation
from tests.rehearsal.report import Watch, say
from tests.rehearsal.settle import Settle
from tests.rehearsal.stage import Stage, staged

SCENARIO = "clean"
KILLS_A_LIFE = 5  # of the whole machine
# Seconds until the next kill: of the machine, whose boot and walk take about 20; and of a process,
# since it is there.
SPAN, SHORT = (0.3, 12.0), (0.0, 5.0)
APPEARS = 45.0  # seconds in which the process to be killed must turn up
PEACE = 300.0  # seconds in which a node that is left alone must become ready
READY = Expectation("ready", exit=0)
# A journal that was cut off is renamed, and the next one begins: that is journald's own healing.
# apt keeps a diary and makes its caches anew. What cloud-init was cut off in it does once more, and
# adds to these files with the time of day.
LIVING = ("var/log/journal/", "var/log/apt/", "var/cache/apt/pkgcache", "var/cache/apt/srcpkgcache",
          "etc/sudoers")  # fmt: skip

IN_ANY_ORDER = ("var/lib/apt/extended_states",)  # paragraphs, in the order of their making

Seen = Mapping[str, list[str]]  # a file's name: kind with mode and owner, content


@dataclass(frozen=True)
class Life:
    """What befalls one node."""

    seed: int
    kills: tuple[str, ...]  # machine | gpuboot | apt, in this order


def lives(seed: int, kills: int) -> list[Life]:
    """Lives with so many kills of the whole machine in all; each also has the two lesser ones."""
    source = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    found = []
    while kills > 0:
        number = min(KILLS_A_LIFE, kills)
        kills -= number
        order = ["machine"] * number
        # Both are at work early in a life: later there may be nothing of them left to kill.
        order.insert(source.randint(0, 2), "gpuboot")
        order.insert(source.randint(0, 1), "apt")
        found.append(Life(source.randrange(1 << 32), tuple(order)))
    return found


def torture(seed: int, kills: int) -> int:
    """Two uncut lives, then the others, two at a time; exit status 1 if one ended otherwise."""
    say(f"Torture with seed {seed}: {kills} kills of the whole machine, two nodes at a time.")
    chosen = scenario.load(scenario.find(SCENARIO))
    runs.fetch(chosen.setup.kind)
    watch = Watch()
    with ThreadPoolExecutor(runs.AT_A_TIME) as pool:
        first, second = pool.map(_lived, (Life(0, ()), Life(1, ())))
        if first is None or second is None:
            say("An uncut node did not become ready: there is nothing to compare with.")
            return 1
        told = [pool.submit(_judged, life, first, second) for life in lives(seed, kills)]
        results = [one.result() for one in told]
    dealt = sum((dealt for dealt, _ in results), Counter[str]())
    wrong = sum(bool(found) for _, found in results)
    say(
        f"torture: seed {seed}: {dealt['machine']} kills of the machine, {dealt['gpuboot']} of"
        f" gpuboot, {dealt['apt']} of dpkg's parent in {len(results)} lives; {wrong} ended"
        f" otherwise than an uncut node; {watch.seconds:.0f} s"
    )
    return int(wrong > 0)


@dataclass(frozen=True)
class Lived:
    """How a life ended."""

    dealt: Counter[str]
    boots: int
    files: Seen
    found: list[str]


def _judged(life: Life, first: Lived, second: Lived) -> tuple[Counter[str], list[str]]:
    lived = _lived(life)
    if lived is None:
        found = ["the node did not become ready"]
        lived = Lived(Counter(), 0, {}, found)
    else:
        found = lived.found + compare(first.files, second.files, lived.files)
    dealt = ", ".join(f"{number} {kind}" for kind, number in sorted(lived.dealt.items()))
    end = "as an uncut node" if not found else "DIFFERENT"
    say(f"life {life.seed}: {dealt}; {lived.boots} boots; {end}")
    for line in found[:20]:
        say(f"  {line}")
    return lived.dealt, found


def _lived(life: Life) -> Lived | None:
    """One life in a lab of its own; None if it did not end."""
    with runs.folder(f"torture-{life.seed}", keep=False) as folder:
        process = lab.enter(["life", str(folder), str(life.seed), ",".join(life.kills)])
        said, _ = process.communicate()
        result = folder / "life.json"
        if process.returncode != 0 or not result.is_file():
            say(said.decode(errors="replace")[-4000:])
            return None
        told = json.loads(result.read_text(encoding="utf-8"))
        return Lived(Counter(told["dealt"]), told["boots"], told["files"], told["found"])


def inside(folder: Path, seed: int, kills: tuple[str, ...]) -> int:
    """The life itself, first process of its lab; leaves life.json in the folder."""
    chosen = scenario.load(scenario.find(SCENARIO))
    # nouveau holds the card, so that a reboot is due too.
    chosen = replace(chosen, setup=replace(chosen.setup, nouveau="busy"))
    source = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    with staged(chosen, folder) as (stage, *_):
        stage.node.boot()
        dealt = Counter(kind for kind in kills if _killed(stage, kind, source))
        found = Settle(stage, READY).until(PEACE)
        # One more boot for every life: what an agent writes at its second start is not the first's.
        found = found or acts.Restart("reboot").perform(stage.acted)
        found = found or Settle(stage, READY).until(PEACE)
        status, code = stage.node.status() or ({}, -1)
        if code != 0:
            say(f"expected ready / found {json.dumps(status, indent=1)}")
            return 1
        boots = len(stage.node.boots)
        stage.node.power_off()
        told = {"dealt": dealt, "boots": boots, "files": fingerprint(stage.disk), "found": found}
        (folder / "life.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def _killed(stage: Stage, kind: str, source: random.Random) -> bool:
    """Lets the node live for a random while, then kills; whether there was something to kill."""
    if kind == "machine":
        _live(stage, source.uniform(*SPAN))
        stage.node.power_cut()
        stage.node.boot()
        return True
    if not _appears(stage, acts.Kill(kind)):
        return False
    _live(stage, source.uniform(*SHORT))
    return not acts.Kill(kind, patience=0.0).perform(stage.acted)


def _live(stage: Stage, seconds: float) -> None:
    end = stage.watch.seconds + seconds
    while (left := end - stage.watch.seconds) > 0:
        stage.passes(min(left, 1.0))


def _appears(stage: Stage, kill: acts.Kill) -> bool:
    end = stage.watch.seconds + APPEARS
    while stage.watch.seconds < end:
        if kill.process(stage.acted):
            return True
        stage.passes(0.2)
    return False


# -- comparing --------------------------------------------------------------------------------


def fingerprint(disk: Path) -> dict[str, list[str]]:
    """Every file that a node has written: name to kind with mode and owner, and content."""
    found = {}
    for path in sorted(disk.rglob("*")):
        name = str(path.relative_to(disk))
        seen = path.lstat()
        if stat.S_ISDIR(seen.st_mode) or name.startswith(LIVING):
            continue
        if stat.S_ISLNK(seen.st_mode):
            content = str(path.readlink())
        elif path.suffix == ".log":  # with the time of day, which two nodes may chance to share
            content = "a log"
        elif stat.S_ISREG(seen.st_mode):
            data = path.read_bytes()
            if name in IN_ANY_ORDER:
                data = b"\n\n".join(sorted(data.strip().split(b"\n\n")))
            content = hashlib.sha256(data).hexdigest()
        else:
            content = str(seen.st_rdev)  # 0: something of the layers below that was removed
        found[name] = [f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid}", content]
    return found


def compare(first: Seen, second: Seen, found: Seen) -> list[str]:
    """Where a node's files differ from what two uncut nodes have in common."""
    lines = [f"/{name} is missing" for name in sorted(first.keys() & second.keys() - found.keys())]
    lines += [f"/{name} is there" for name in sorted(found.keys() - first.keys() - second.keys())]
    for name in sorted(first.keys() & second.keys() & found.keys()):
        kind, content = found[name]
        if kind != first[name][0]:
            lines.append(f"/{name} is {kind}, expected {first[name][0]}")
        elif first[name] == second[name] and content != first[name][1]:
            lines.append(f"/{name} has another content")
    return lines
