#!/usr/bin/python3
"""Runs on the node, once: what `gpuboot plan` and `gpuboot preflight` say, and what they changed.

The node is looked at before and after each: every file of its disk with mode, owner, size, times
and, below /etc and for dpkg's status, its content; every unit file and every unit. Nothing may
differ. Only the standard library; the rig puts it into the node.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

RESULT = Path("/var/lib/lab/plan.json")
STATUS = Path("/var/lib/dpkg/status")
DPKG_LOG = Path("/var/log/dpkg.log")
UNIT = "lab-plan.service"

# What changes by itself on any machine: the journal, logins, the timers' stamps; and our own.
LIVING = ("/var/log/journal", "/var/log/wtmp", "/var/log/lastlog", "/var/lib/systemd/timers",
          "/var/lib/lab")  # fmt: skip
# Everybody writes there: what lies in it counts, and when its folder was last used does not.
SCRATCH = ("/tmp", "/var/tmp", "/var/log")  # noqa: S108 - looked at, never written to
FACTS = ("mode", "owner", "group", "size", "mtime", "ctime", "content")
QUIET = 60.0  # seconds we wait for the rest of the boot to end
COMMAND = 300.0  # seconds one of the two commands may take

Seen = dict[str, tuple[object, ...]]


def main() -> None:
    """Write the result, at once: a probe that was cut off is run again at the next boot."""
    wait_until_quiet()
    before = {"etc": contents("/etc"), "held": held(), "dpkg_log": size(DPKG_LOG)}
    plan = observed(["gpuboot", "plan", "--json"])
    preflight = observed(["gpuboot", "preflight", "--json"])
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    scratch = RESULT.with_suffix(".new")
    text = json.dumps({**plan, "preflight": preflight, "before": before}, indent=1)
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(RESULT)


def wait_until_quiet() -> None:
    """Until no job of systemd's runs but ours; the units would change without anybody's doing."""
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        jobs = [line.split() for line in lines("systemctl", "list-jobs", "--no-legend", "--plain")]
        if not any(job[-1] == "running" and job[1] != UNIT for job in jobs):
            return
        time.sleep(0.1)


def observed(argv: list[str]) -> dict[str, object]:
    """How the command ended, what it said, how long it took, and what is different after it."""
    before, begun = seen(), time.monotonic()
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, out, err = -1, "", f"took longer than {COMMAND:.0f} s"
    seconds = round(time.monotonic() - begun, 2)
    changed = list(differences(before, seen()))
    try:
        answer = json.loads(out)
    except ValueError:
        answer = None
    return {"exit": code, argv[1]: answer, "stderr": err, "seconds": seconds, "changed": changed}


def seen() -> Seen:
    """Everything that can be looked at."""
    found: Seen = dict(files("/", read="/etc/"))
    found[f"{STATUS} (content)"] = (digest(str(STATUS)),)
    for kind, argv in (
        ("unit file", ("list-unit-files",)),
        ("unit", ("list-units", "--all")),
    ):
        for line in lines("systemctl", *argv, "--no-legend", "--plain", "--full"):
            name, *states = line.split()
            # The description is of any length; load, active and sub are three words.
            if states[0] != "not-found":  # merely asked for, and forgotten soon
                found[f"{kind} {name}"] = tuple(states[:3])
    return found


def files(folder: str, *, read: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Every file and folder of this file system, by its name; with content below `read`."""
    device = os.lstat(folder).st_dev
    for entry in os.scandir(folder):
        if entry.path.startswith(LIVING):
            continue
        facts = entry.stat(follow_symlinks=False)
        is_folder = stat.S_ISDIR(facts.st_mode)
        if is_folder and facts.st_dev != device:
            continue
        used = is_folder and entry.path in SCRATCH
        times = (0, 0) if used else (facts.st_mtime_ns, facts.st_ctime_ns)
        size = 0 if is_folder else facts.st_size
        content = digest(entry.path) if entry.path.startswith(read) else None
        yield entry.path, (facts.st_mode, facts.st_uid, facts.st_gid, size, *times, content)
        if is_folder:
            yield from files(entry.path, read=read)


def digest(name: str) -> str | None:
    """A file's SHA-256, or where a link leads; None for anything else."""
    path = Path(name)
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def differences(before: Seen, after: Seen) -> Iterator[str]:
    """One line for each thing that appeared, vanished or changed."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{name}: {'appeared' if old is None else 'vanished'}"
        elif old != new and name.startswith("/"):
            what = [fact for fact, a, b in zip(FACTS, old, new, strict=False) if a != b]
            yield f"{name}: {', '.join(what)}"
        elif old != new:
            yield f"{name}: {' '.join(map(str, old))} became {' '.join(map(str, new))}"


def contents(folder: str) -> dict[str, str]:
    """The digest of every file below the folder, by its name."""
    found = {}
    for place, _folders, names in os.walk(folder):
        for name in names:
            if shown := digest(f"{place}/{name}"):
                found[f"{place}/{name}"] = shown
    return found


def held() -> list[str]:
    """The packages that apt may not change."""
    text = STATUS.read_text(encoding="utf-8", errors="replace")
    return re.findall(r"^Package: (\S+)\nStatus: hold ", text, re.MULTILINE)


def size(path: Path) -> int:
    """A file's size in bytes; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def lines(*argv: str) -> list[str]:
    """What a command prints."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return [line for line in done.stdout.splitlines() if line.strip()]


if __name__ == "__main__":
    main()
