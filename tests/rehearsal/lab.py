"""The lab: private namespaces with a bridge, the servers, and nodes; none of it survives.

The rehearsal runs itself again in new mount, network and process namespaces. When the first process
in there ends, however it ends, the kernel ends all others and takes every mount and link along.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.rehearsal.command import run
from tests.rehearsal.report import LIVE, RigError

ADDRESS = "10.88.0.1"
BRIDGE = "lab0"
CGROUPS = Path("/sys/fs/cgroup")
# Cgroups are the machine's: another clone's rehearsal beside ours must not be taken for ours.
OURS = f"gpuboot-{hashlib.sha256(__file__.encode()).hexdigest()[:8]}-"
SERVERS_START = 30.0  # seconds; they make keys and read the archive first


def enter(
    arguments: Sequence[str], *, module: str = "tests.rehearsal", outlive: bool = False
) -> subprocess.Popen[bytes]:
    """Runs `python -m MODULE ARGUMENTS` in a lab of its own; what it says is piped."""
    # If we are killed the lab must go too, unless it is to be kept for `make shell`.
    tie = [] if outlive else ["setpriv", "--pdeathsig", "KILL"]
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.Popen(
        [*tie, *unshare, sys.executable, "-m", module, *arguments],
        env={**os.environ, LIVE: "1" if sys.stdout.isatty() else ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        close_fds=False,  # the lab holds the lock of its folder as long as it lives
    )


def furnish() -> None:
    """Makes the new namespaces a lab: an own /run, unified cgroups, a bridge."""
    # nspawn refuses to clean up under a /run that it shares with the machine.
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("umount", "--lazy", str(CGROUPS))
    run("mount", "-t", "cgroup2", "cgroup2", str(CGROUPS))
    run("ip", "link", "set", "lo", "up")
    # Without a delay: a new port of a bridge is mute for 15 seconds otherwise, in every boot.
    run("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    run("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # The first process of a process namespace dies of no signal that it has not asked for.
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def disk(lower: Sequence[Path], folder: Path, size: str | None) -> Iterator[Path]:
    """A machine's root over `lower`; what it writes is in FOLDER/disk, at most `size` of it."""
    if size is None:
        with overlay(lower, folder / "disk", folder / "tree") as root:
            yield root
        return
    small = folder / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(small))
    (folder / "disk").symlink_to(small / "disk")
    try:
        with overlay(lower, small / "disk", folder / "tree") as root:
            yield root
    finally:
        run("umount", "--lazy", str(small))


@contextlib.contextmanager
def overlay(lower: Sequence[Path], upper: Path, at: Path) -> Iterator[Path]:
    """`lower` (topmost first) at `at`, writes going to `upper`."""
    work = upper.with_name(upper.name + ".work")
    for folder in (upper, work, at):
        folder.mkdir(parents=True, exist_ok=True)
    # volatile: fsync inside costs nothing. A power cut of ours leaves the page cache alone anyway.
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work},volatile"
    try:
        run("mount", "-t", "overlay", "overlay", "-o", options, str(at))
    except RigError as error:
        raise RigError(
            str(error), hint="overlay mounts need a plain file system below .cache"
        ) from None
    try:
        yield at
    finally:
        run("umount", "--lazy", str(at))


def cgroup(run: Path) -> Path:
    """A cgroup for the node of the run with that folder, beside those of other rehearsals."""
    folder = CGROUPS / f"{_prefix(run.parent)}{run.name}"
    folder.mkdir(exist_ok=True)
    return folder


def _prefix(runs: Path) -> str:
    # The machine may have other clones of this project, and other users of cgroups.
    return f"rehearsal-{hashlib.sha256(str(runs).encode()).hexdigest()[:12]}-"


def sweep_cgroups(runs: Path) -> None:
    """Removes the empty cgroups of this clone's runs whose folder below `runs` is gone."""
    prefix = _prefix(runs)
    for folder in CGROUPS.glob(f"{prefix}*"):
        if not (runs / folder.name.removeprefix(prefix)).is_dir() and not _populated(folder):
            _remove(folder)


def end_cgroup(folder: Path) -> None:
    """Kills what runs in a node's cgroup, and removes it."""
    (folder / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + 5
    while _populated(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    _remove(folder)


def _populated(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "populated 1" in (folder / "cgroup.events").read_text(encoding="ascii")
    return False


def _remove(folder: Path) -> None:
    # Another rehearsal may be sweeping too; what still has processes stays.
    for path, _folders, _files in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()


@contextlib.contextmanager
def servers(state: Path, archive: Path, releases: Path) -> Iterator[subprocess.Popen[str]]:
    """The archive, the releases, the supervisor and the API server on the lab's address."""
    process = _start_servers(state, archive, releases)
    try:
        _until_ready(process, state / "servers.log")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()


def _start_servers(state: Path, archive: Path, releases: Path) -> subprocess.Popen[str]:
    with (state / "servers.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [
                sys.executable, "-m", "tests.rehearsal.cluster", "--folder", str(state),
                "--address", ADDRESS, "--archive", str(archive), "--releases", str(releases),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip


def _until_ready(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None
    timer = signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, SERVERS_START)
    try:
        line = process.stdout.readline().strip()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, timer)
    if line != "ready":
        raise RigError(f"the servers did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


def _too_slow(_signal: int, _frame: object) -> None:
    raise RigError(f"the servers were not ready after {SERVERS_START:.0f} s")
