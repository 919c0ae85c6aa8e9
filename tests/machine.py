"""A Debian tree that a test may install into, boot with systemd-nspawn, reboot and unplug."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.rehearsal.node import enter

BOOT = 60.0  # seconds; about five are usual

# What nspawn needs around it, in namespaces that end with it: see tests/rehearsal/lab.py.
SURROUND = """
set -e
name=$1 lower=$2 upper=$3; shift 3
mkdir -p "$upper" "$upper.work" "$upper.tree"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$upper.work" "$upper.tree"
mount -t tmpfs tmpfs /run
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$name"
echo 0 > "/sys/fs/cgroup/$name/cgroup.procs"
status=0
systemd-nspawn --quiet --register=no --keep-unit --resolv-conf=off --private-network \\
    --link-journal=no --timezone=off --directory="$upper.tree" "$@" || status=$?
echo 0 > /sys/fs/cgroup/cgroup.procs
find "/sys/fs/cgroup/$name" -depth -type d -exec rmdir {} +
exit $status
"""

# What is left of an unplugged node: its cgroup, as soon as the kernel has ended what was in it.
TIDY = """
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd "/sys/fs/cgroup/$1" || exit 0
echo 1 > cgroup.kill
until grep -q "populated 0" cgroup.events; do sleep 0.05; done
find "$PWD" -depth -type d -exec rmdir {} +
"""


def surrounded(lower: tuple[Path, ...], upper: Path, *nspawn: str) -> list[str]:
    """The command line of systemd-nspawn over an overlay of `lower` (topmost first) and `upper`."""
    return [
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "sh", "-c", SURROUND, "sh", cgroup(upper), ":".join(map(str, lower)), str(upper), *nspawn,
    ]  # fmt: skip


def cgroup(upper: Path) -> str:
    return f"gpuboot-test-{os.getpid()}-{upper.parent.name}"


def call(argv: list[str], **environment: str) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Machine:
    """A Debian of its own for one test; `run` is for while it is booted."""

    def __init__(self, lower: tuple[Path, ...], upper: Path) -> None:
        self.lower = lower
        self.upper = upper
        self.console = upper.with_name(upper.name + ".console")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def offline(self, *argv: str) -> str:
        """Runs a command in the tree without booting it."""
        pipe = ("--pipe", "--setenv=DEBIAN_FRONTEND=noninteractive", "--setenv=LC_ALL=C.UTF-8")
        return call(surrounded(self.lower, self.upper, *pipe, *argv))

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        root = f"/proc/{self._leader}/root" if self._process else str(self.upper)
        file = Path(root + name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def boot(self) -> None:
        with self.console.open("ab") as log:
            self._process = subprocess.Popen(
                surrounded(self.lower, self.upper, "--boot"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._leader = self._find_init()
        self.until("systemctl", "is-system-running", said=r"running|degraded")

    def reboot(self) -> None:
        self.power_off()
        self.boot()

    def power_off(self) -> None:
        if self._process:
            self.run("systemctl", "poweroff")
            self._process.wait(timeout=BOOT)
            self._process = None

    def pull_the_plug(self) -> None:
        if self._process:
            self._process.kill()  # unshare --kill-child takes the node along
            self._process.wait()
            self._process = None
            call(["unshare", "--mount", "sh", "-c", TIDY, "sh", cgroup(self.upper)])

    def attempt(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*enter(self._leader), *argv], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=BOOT, check=False,
        )  # fmt: skip

    def run(self, *argv: str) -> str:
        done = self.attempt(*argv)
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def until(self, *argv: str, said: str) -> None:
        deadline = time.monotonic() + BOOT
        while not re.fullmatch(said, (answer := self.attempt(*argv)).stdout.strip()):
            gone = self._process is None or self._process.poll() is not None
            if gone or time.monotonic() > deadline:
                jobs = self.attempt("systemctl", "list-jobs").stdout
                console = self.console.read_text(errors="replace")[-3000:]
                said_last = f"{argv} still says {answer.stdout}{answer.stderr}"
                raise AssertionError(f"{said_last}\n{jobs}\n{console}")
            time.sleep(0.1)

    def show(self, unit: str, what: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={what}", unit)

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")

    def _find_init(self) -> int:
        deadline = time.monotonic() + BOOT
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.console.read_text(errors="replace")
            for pid in descendants(self._process.pid):
                if is_init(pid):
                    return pid
            time.sleep(0.02)
        raise AssertionError("the node did not boot")


def descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def is_init(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    spaces = re.search(r"^NSpid:\t(.*)$", status, re.MULTILINE)
    return status.startswith("Name:\tsystemd\n") and bool(spaces and spaces[1].endswith("\t1"))
