"""A throw-away node: a tree booted by systemd-nspawn, rebooted when it asks, and unplugged."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.rehearsal import kernels, lab
from tests.rehearsal.command import run
from tests.rehearsal.report import RigError

REBOOT = 133  # nspawn's exit status when the node asked for a reboot
BOOT_START = 20.0  # seconds until the node's systemd runs; about one is usual
# Seconds between two waking calls for nsenter. A machine on its way down stops all its processes
# for a moment; nsenter stops itself along with its child, and what it does not take off the list
# of processes keeps the machine from ending.
AWAKE = 1.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Node:
    """One machine of the lab; `boots` holds the boot ids it has had."""

    name: str
    tree: Path
    console: Path
    cgroup: Path
    boots: list[str] = field(default_factory=list)
    wired: bool = True  # the network cable is in
    mounts: tuple[str, ...] = ()  # options of systemd-nspawn
    _process: subprocess.Popen[bytes] | None = None
    _leader: int = 0

    def boot(self) -> None:
        """Switches the node on."""
        self._pull_old_cable()
        kernels.boot(self.tree)
        # A veth of its own that hangs on no bridge is a network port without a cable.
        network = f"--network-bridge={lab.BRIDGE}" if self.wired else "--network-veth"
        nspawn = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--resolv-conf=off",
            "--link-journal=no", "--timezone=off", network,
            f"--machine={self.name}", "--boot", f"--directory={self.tree}", *self.mounts,
        ]  # fmt: skip
        # Two nodes side by side must not share a cgroup, so each goes into its own first.
        move = f'echo $$ > {shlex.quote(str(self.cgroup))}/cgroup.procs && exec "$@"'
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", move, "sh", *_new_clocks(), *nspawn],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._leader = self._find_leader(self._process)
        self.boots.append(self._read_boot_id())

    def _pull_old_cable(self) -> None:
        """Take away the port that a node whose plug was pulled leaves behind for a moment."""
        port = f"vb-{self.name}"
        end = time.monotonic() + BOOT_START
        while time.monotonic() < end:
            if port not in {link["ifname"] for link in json.loads(run("ip", "-json", "link"))}:
                return
            with contextlib.suppress(RigError):  # gone meanwhile
                run("ip", "link", "delete", port)
            time.sleep(0.05)

    @property
    def running(self) -> bool:
        """Whether the node is switched on."""
        return self._process is not None and self._process.poll() is None

    @property
    def root(self) -> Path:
        """The node's files as the node sees them, its tmpfs mounts included."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def leader(self) -> int:
        """The process id, out here, of the node's PID 1."""
        return self._leader

    def wait(self, seconds: float) -> bool:
        """Lets time pass; True as soon as the node has rebooted, at most once."""
        if self._process is None:
            time.sleep(seconds)
            return False
        try:
            status = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        if status == REBOOT:
            self.boot()
            return True
        if status != 0:
            tail = self.console.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RigError(f"systemd-nspawn ended with exit status {status}:\n{tail}")
        return False

    def run(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a command in the node as root, as over ssh. Raises TimeoutExpired."""
        words = [*self.enter(), *argv]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace",
        )  # fmt: skip
        end = time.monotonic() + timeout
        while True:
            try:
                out, err = process.communicate(timeout=AWAKE)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGCONT)
                if time.monotonic() > end:
                    _end(process)
                    raise
            else:
                return subprocess.CompletedProcess(words, process.returncode, out, err)

    def enter(self) -> list[str]:
        """The start of a command line that runs the rest in the node."""
        return enter(self._leader)

    def status(self) -> tuple[dict[str, object], int] | None:
        """`gpuboot status --json` and its exit status; None while it cannot answer."""
        if not self.running:
            return None
        try:
            done = self.run("gpuboot", "status", "--json", timeout=20)
            answer = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, json.JSONDecodeError):
            return None
        return (answer, done.returncode) if isinstance(answer, dict) else None

    def wire(self, *, whole: bool) -> None:
        """Pulls the network cable, or puts it in; so it stays when the node reboots."""
        self.wired = whole
        if not self.running:
            return
        index = (self.root / "sys/class/net/host0/iflink").read_text(encoding="ascii").strip()
        links = json.loads(run("ip", "-json", "link", "show"))
        port = next(link["ifname"] for link in links if str(link["ifindex"]) == index)
        run("ip", "link", "set", port, *(("master", lab.BRIDGE, "up") if whole else ("down",)))

    def power_cut(self) -> None:
        """Pulls the plug."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        lab.end_cgroup(self.cgroup)
        process.wait()
        self.cgroup.mkdir(exist_ok=True)

    def power_off(self) -> None:
        """Shuts the node down in order; pulls the plug if that takes too long."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("systemctl", "poweroff", timeout=10)
            self._process.wait(timeout=30)
        self.power_cut()

    def _find_leader(self, process: subprocess.Popen[bytes]) -> int:
        """The node's systemd: a child of nspawn that is PID 1 in a namespace of its own."""
        deadline = time.monotonic() + BOOT_START
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            for child in _children(process.pid):
                if _is_init(child):
                    return child
            time.sleep(0.02)
        tail = self.console.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RigError(f"{self.name} did not boot:\n{tail}")

    def _read_boot_id(self) -> str:
        file = self.root / "proc/sys/kernel/random/boot_id"
        return file.read_text(encoding="ascii").strip()


def _end(process: subprocess.Popen[str]) -> None:
    """End what nsenter has started, which it then takes off the list of the node's processes."""
    for child in _children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:  # a grandchild may hold its other end
            pipe.close()


def _new_clocks() -> list[str]:
    """The start of a command line whose clocks that count from the boot begin at zero now."""
    clocks = {"--boottime": time.CLOCK_BOOTTIME, "--monotonic": time.CLOCK_MONOTONIC}
    offsets = [f"{name}={-int(time.clock_gettime(clock))}" for name, clock in clocks.items()]
    return ["unshare", "--time", *offsets]


def enter(leader: int) -> list[str]:
    """The start of a command line that runs the rest in the node of that PID 1."""
    spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--time",
              "--root", "--wd"]  # fmt: skip
    return [
        "nsenter", f"--target={leader}", *spaces, "--",
        "/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=xterm",
    ]  # fmt: skip


def find_init(pid: int) -> int | None:
    """The PID 1 of a node that descends from the process."""
    for child in _children(pid):
        found = child if _is_init(child) else find_init(child)
        if found:
            return found
    return None


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _is_init(pid: int) -> bool:
    # Before it becomes systemd, nspawn's child still sees this machine's files and boot id.
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    spaces = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    # One whose plug was pulled lies about as a zombie until the lab ends.
    return name == "systemd" and spaces.split()[-1] == "1" and "\nState:\tZ" not in status
