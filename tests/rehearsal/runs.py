"""Starting rehearsals from outside the lab: one, many, or a shell in the one that was kept."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rehearsal import cache, lab, node, rehearse, scenario, stage, tree
from tests.rehearsal.report import RigError, Watch, say

RUNS = cache.CACHE / "run"
KEPT = cache.CACHE / "kept.json"
AT_A_TIME = 2  # a node keeps about one core busy


def outside(name: str, *, keep: bool) -> int:
    """Rehearses one scenario in a lab of its own; its exit status."""
    chosen = scenario.load(scenario.find(name))
    if keep:
        stop()  # only one node is kept at a time
    say(f"Rehearsing {chosen.name}: {chosen.setup.description}")
    fetch(chosen.setup.kind)
    signal.signal(signal.SIGTERM, _terminated)
    with folder(chosen.name, keep=keep) as place:
        arguments = ["inside", str(chosen.folder), str(place), *(["--keep"] if keep else [])]
        process = lab.enter(arguments, outlive=keep)
        status = result(process, place)
        if keep and process.poll() is None:
            KEPT.write_text(json.dumps({"pid": process.pid, "folder": str(place)}))
            say("The node is kept: `make shell` opens a shell in it, `make clean` ends it.")
    return status


def inside(name: str, folder_name: str, *, keep: bool) -> int:
    """The rehearsal itself, first process of the lab; keeps the lab open after it if asked."""
    chosen, place = scenario.load(Path(name)), Path(folder_name)
    with stage.staged(chosen, place) as stages:
        status = 1 if rehearse.together(stages) else 0
        if keep:
            _detach()
            (place / "result").write_text(str(status), encoding="ascii")
            while stages[0].node.running:
                stages[0].node.wait(3600)
    return status


def many(*, core: bool) -> int:
    """Rehearses all scenarios, or the core ones, two at a time, and prints a table."""
    chosen = [scenario.load(folder) for folder in scenario.folders()]
    wanted = [one for one in chosen if one.setup.core or not core]
    say(f"Rehearsing {len(wanted)} scenarios, {AT_A_TIME} at a time.")
    for kind in sorted({one.setup.kind for one in wanted}, key=str):
        fetch(kind)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(_one_of_many, wanted))
    say(f"\n{'scenario':<32} {'result':<8} seconds")
    for one, (status, seconds) in zip(wanted, results, strict=True):
        say(f"{one.name:<32} {'passed' if status == 0 else 'FAILED':<8} {seconds:7.0f}")
    return int(any(status for status, _seconds in results))


def _one_of_many(chosen: scenario.Scenario) -> tuple[int, float]:
    watch = Watch()
    folder = stage.LAST / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.rehearsal", "run", str(chosen.folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    lines = log.read_text(encoding="utf-8").splitlines()
    shown = lines if done.returncode else lines[-1:]
    say("\n".join(shown))
    return done.returncode, watch.seconds


def shell() -> int:
    """A root shell in the node that KEEP=1 has left."""
    leader = kept_leader()
    if leader is None:
        raise RigError("no node is kept", hint="make rehearsal KEEP=1 leaves one")
    say("A root shell in the node; it keeps running when you leave.")
    return subprocess.run([*node.enter(leader), "bash", "-l"], check=False).returncode


def stop() -> int:
    """Ends the lab that KEEP=1 has left, if there is one."""
    if KEPT.is_file():
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        if _is_lab(kept["pid"]):
            os.kill(kept["pid"], signal.SIGKILL)  # the kernel ends all that runs in the lab
            say("The node that was kept is switched off.")
        KEPT.unlink()
    return 0


def fetch(kind: tree.Kind) -> None:
    """Gets what nodes of that kind need from the network, if it is not there."""
    if not tree.fetched(kind):
        say(
            "First run: a base tree, real packages and stand-ins are built and kept in .cache;\n"
            "that takes two or three minutes, and later runs start at once."
        )
    with cache.building():
        tree.fetch(kind)


@contextmanager
def folder(name: str, *, keep: bool) -> Iterator[Path]:
    """This run's folder; while we or the lab hold its lock nobody sweeps it away."""
    place = RUNS / f"{name}-{os.urandom(3).hex()}"
    with cache.building():
        _sweep()
        place.mkdir(parents=True)
        lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    try:
        yield place
    finally:
        os.close(lock)
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _sweep() -> None:
    """Removes what rehearsals that were killed have left."""
    for folder in RUNS.glob("*"):
        with (folder / "lock").open("w", encoding="ascii") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def result(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The rehearsal's exit status; a lab that is kept tells it in a file and lives on."""
    result = folder / "result"
    try:
        while _relay(process) and not result.exists():
            pass
        _relay(process)
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)  # Ctrl-C has reached the lab as well
        process.kill()
        process.wait()
        raise
    if result.exists():
        return int(result.read_text(encoding="ascii"))
    return process.wait()


def _relay(process: subprocess.Popen[bytes]) -> bool:
    """Hands on what the lab says, as it comes; False when it has said all.

    A lab that is kept must not hold our standard output: whoever reads it would wait for ever.
    """
    assert process.stdout is not None
    while select.select([process.stdout], [], [], 0.1)[0]:
        said = os.read(process.stdout.fileno(), 1 << 16)
        if not said:
            return False
        sys.stdout.buffer.write(said)
        sys.stdout.flush()
    return True


def _detach() -> None:
    """Lets go of the terminal: whoever started us goes on."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _terminated(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _is_lab(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "unshare"
    return False


def kept_leader() -> int | None:
    """The process id of the kept node's PID 1; None if no node is kept."""
    if not KEPT.is_file():
        return None
    pid = json.loads(KEPT.read_text(encoding="utf-8"))["pid"]
    return node.find_init(pid) if _is_lab(pid) else None
