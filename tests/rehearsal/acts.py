"""acts.yaml: what happens to a node after it has settled, one act after the other."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import yaml

from tests.rehearsal import hardware, kubectl, rancher
from tests.rehearsal.expect import Expectation, expectation
from tests.rehearsal.node import Node
from tests.rehearsal.table import ScenarioError, Table

COMMAND = 600.0  # seconds a command of an act may take; apt needs a while
RESTART = 120.0  # seconds until a node that was told to reboot is switched on again
ANSWERS = 60.0  # seconds until systemd in a node that has booted answers
POLL = 0.5
MAIN_PROCESS = ("systemctl", "show", "--property=MainPID", "--value", "gpuboot.service")
DPKGS_PARENT = ("pgrep", "--oldest", "--exact", "apt-get")


@dataclass
class Stage:
    """What an act may lay hands on."""

    node: Node
    servers: Path
    hardware: hardware.Hardware
    fill: Callable[[str], str]  # puts the values in for the placeholders
    written: list[tuple[str, str]] = field(default_factory=list)  # path and content
    rebooted: list[str] = field(default_factory=list)  # the boots that the node itself has ended
    corrected: bool = False  # the machine is not the one any more that the first plan was for


class Action(Protocol):
    """Something that is done to the node; what went wrong with it is returned."""

    def perform(self, stage: Stage) -> list[str]: ...


@dataclass(frozen=True)
class Act:
    """One entry of the list."""

    name: str  # what a difference begins with
    action: Action
    expect: Expectation | None
    deadline: float | None
    why: str
    during: str | None = None  # the step that must be running; only before expect.yaml

    @property
    def told(self) -> str:
        """The act as a person reads it."""
        return f"{self.name}: {self.why}" if self.why else self.name


@dataclass(frozen=True)
class Run:
    """A command in the node, as root."""

    argv: tuple[str, ...]
    exit: int

    def perform(self, stage: Stage) -> list[str]:
        argv = [stage.fill(word).removesuffix("\n") for word in self.argv]
        command = " ".join(argv)
        try:
            done = stage.node.run(*argv, timeout=COMMAND)
        except subprocess.TimeoutExpired:
            return [f"{command}: expected an end / found none after {COMMAND:.0f} s"]
        if done.returncode == self.exit:
            return []
        said = (done.stdout + done.stderr).strip()[-2000:]
        return [
            f"{command}: expected exit status {self.exit} / found {done.returncode}"
            + (f"\n{said}" if said else "")
        ]


@dataclass(frozen=True)
class Write:
    """A file in the node."""

    path: str
    content: str
    mode: int

    def perform(self, stage: Stage) -> list[str]:
        content = stage.fill(self.content)
        file = stage.node.root / self.path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        file.chmod(self.mode)
        stage.written.append((self.path, content))
        stage.corrected |= self.path.startswith("/etc/gpuboot/")
        return []


@dataclass(frozen=True)
class Remove:
    """A file or folder of the node goes away."""

    path: str

    def perform(self, stage: Stage) -> list[str]:
        return Run(("rm", "-r", "--", self.path), 0).perform(stage)


@dataclass(frozen=True)
class Restart:
    """The node is rebooted in order, unplugged, or switched off in order; then it boots again."""

    kind: str

    def perform(self, stage: Stage) -> list[str]:
        node = stage.node
        if self.kind == "reboot":
            node.run("systemctl", "reboot")
            if not _rebooted(node):
                return [f"systemctl reboot: expected a new boot within {RESTART:.0f} s"]
        else:
            node.power_cut() if self.kind == "power-cut" else node.power_off()
            node.boot()
        return _answers(node)


@dataclass(frozen=True)
class Gpus:
    """The GPUs that are there from the next boot on."""

    gpus: tuple[Mapping[str, str], ...]

    def perform(self, stage: Stage) -> list[str]:
        stage.hardware = replace(stage.hardware, gpus=tuple(map(hardware.gpu, self.gpus)))
        stage.corrected = True
        hardware.configure(stage.node.tree, stage.hardware)
        return []


@dataclass(frozen=True)
class Faults:
    """What is wrong with the servers from now on."""

    faults: Mapping[str, object]

    def perform(self, stage: Stage) -> list[str]:
        file = stage.servers / "faults.json"
        new = file.with_name("faults.new")
        new.write_text(json.dumps(dict(self.faults)), encoding="utf-8")
        new.replace(file)  # the servers read it whenever they are asked
        return []


@dataclass(frozen=True)
class Rancher:
    """Somebody edits the node's pool in Rancher, or Rancher behaves otherwise from now on."""

    settings: Mapping[str, object]

    def perform(self, stage: Stage) -> list[str]:
        rancher.change(stage.servers, self.settings)
        return []


@dataclass(frozen=True)
class Network:
    """The node's network cable is pulled or put in; so it stays over reboots."""

    whole: bool

    def perform(self, stage: Stage) -> list[str]:
        stage.node.wire(whole=self.whole)
        return []


@dataclass(frozen=True)
class Kill:
    """SIGKILL for gpuboot's main process, or for the apt-get that is dpkg's parent."""

    target: str
    patience: float = 20.0  # seconds in which there must be such a process

    def perform(self, stage: Stage) -> list[str]:
        if not _until(self.patience, lambda: self.killed(stage)):
            return [f"kill {self.target}: expected a process / found none"]
        return []

    def killed(self, stage: Stage) -> bool:
        """Kill it, if it is there and does not just end by itself; whether it is gone by that."""
        found = self.process(stage)
        if not found or stage.node.run("kill", "-KILL", found).returncode != 0:
            return False
        return _until(5.0, lambda: self.process(stage) != found)

    def process(self, stage: Stage) -> str:
        """Its id in the node; empty if there is none."""
        question = MAIN_PROCESS if self.target == "gpuboot" else DPKGS_PARENT
        return stage.node.run(*question).stdout.strip().removeprefix("0")


@dataclass(frozen=True)
class Kubectl:
    """What an administrator of the cluster does to a Node."""

    argv: tuple[str, ...]

    def perform(self, stage: Stage) -> list[str]:
        return kubectl.run(stage.servers, self.argv)


@dataclass(frozen=True)
class Wait:
    """Time passes; the node may reboot meanwhile."""

    seconds: float

    def perform(self, stage: Stage) -> list[str]:
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            if stage.node.wait(left):
                stage.rebooted.append(stage.node.boots[-2])
        return []


def _rebooted(node: Node) -> bool:
    end = time.monotonic() + RESTART
    while time.monotonic() < end:
        if node.wait(POLL):
            return True
    return False


def _answers(node: Node) -> list[str]:
    """Waits until commands can be run in a node that has just been switched on."""
    words = ["starting", "running", "degraded", "maintenance"]
    if not node.wired:  # the boot's first part waits two minutes for the network
        words.append("initializing")

    def answered() -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return node.run("systemctl", "is-system-running").stdout.strip() in words
        return False

    return [] if _until(ANSWERS, answered) else ["systemd: expected an answer / found none"]


def _until(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


# -- reading ----------------------------------------------------------------------------------


def load(file: Path) -> tuple[Act, ...]:
    """The acts in order; none if the file does not exist. Raises ScenarioError."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except yaml.YAMLError as error:
        raise ScenarioError(f"{file}: {error}") from None
    rows = Table(file, "", {"acts": data}).rows("acts")
    found = tuple(_act(number, row) for number, row in enumerate(rows, 1))
    for earlier, later in itertools.pairwise(found):
        if later.during and not earlier.during:
            raise ScenarioError(f"{file}: {later.name}: acts with during stand before all others")
    return found


def _act(number: int, table: Table) -> Act:
    named = [key for key in table if key in READERS]
    if len(named) != 1:
        known = " | ".join(READERS)
        found = ", ".join(table) or "nothing"
        raise ScenarioError(f"{table.place('')}: expected exactly one of {known}; found {found}")
    expect = table.table("expect")
    deadline = expect.optional_seconds("deadline") if expect else None
    act = Act(
        name=f"act {number} ({named[0]})",
        action=READERS[named[0]](table),
        expect=expectation(expect, state=expect.optional_text("state")) if expect else None,
        deadline=deadline,
        why=table.text("why", ""),
        during=table.optional_text("during"),
    )
    table.end()
    return act


def _run(table: Table) -> Action:
    argv = table.texts("run")
    if not argv:
        raise ScenarioError(f"{table.place('run')}: expected a program and its arguments")
    return Run(argv, table.number("exit") or 0)


def _kubectl(table: Table) -> Action:
    argv = table.texts("kubectl") or ()
    if len(argv) < 3 or argv[0] not in kubectl.VERBS or argv[1] != "node":
        verbs = " | ".join(kubectl.VERBS)
        raise ScenarioError(f"{table.place('kubectl')}: expected [{verbs}, node, NAME, …]")
    return Kubectl(argv)


def _write(table: Table) -> Action:
    file = table.table("write")
    if file is None:
        raise ScenarioError(f"{table.place('write')}: expected a mapping with path and content")
    mode = file.text("mode", "0644")
    try:
        wanted = Write(_absolute(file, "path"), file.text("content"), int(mode, 8))
    except ValueError:
        raise ScenarioError(f"{file.place('mode')}: expected octal digits, found {mode}") from None
    file.end()
    return wanted


def _absolute(table: Table, key: str) -> str:
    path = table.text(key)
    if not path.startswith("/"):
        raise ScenarioError(f"{table.place(key)}: expected a path from the root, found {path}")
    return path


def _restart(kind: str) -> Callable[[Table], Action]:
    def read(table: Table) -> Action:
        if not table.flag(kind):
            raise ScenarioError(f"{table.place(kind)}: expected true")
        return Restart(kind)

    return read


def _gpus(table: Table) -> Action:
    return Gpus(tuple(gpu(row) for row in table.rows("gpus")))


def gpu(table: Table) -> Mapping[str, str]:
    """One card, its keys checked."""
    found = table.strings()
    for key in found:
        if key not in hardware.GPU_FIELDS:
            known = ", ".join(sorted(hardware.GPU_FIELDS))
            raise ScenarioError(f"{table.place(key)}: unknown key; known keys: {known}")
    return found


def _settings(table: Table) -> Mapping[str, object]:
    found = table.table("rancher")
    if found is None:
        raise ScenarioError(f"{table.place('rancher')}: expected a mapping")
    return rancher.settings(found)


READERS: Mapping[str, Callable[[Table], Action]] = {
    "run": _run,
    "write": _write,
    "remove": lambda table: Remove(_absolute(table, "remove")),
    "reboot": _restart("reboot"),
    "power-cut": _restart("power-cut"),
    "power-cycle": _restart("power-cycle"),
    "gpus": _gpus,
    "faults": lambda table: Faults(table.mapping("faults")),
    "rancher": lambda table: Rancher(_settings(table)),
    "network": lambda table: Network(table.choice("network", ("cut", "whole"), "cut") == "whole"),
    "kill": lambda table: Kill(table.choice("kill", ("gpuboot", "apt"), "gpuboot")),
    "kubectl": _kubectl,
    "wait": lambda table: Wait(table.seconds("wait", 0.0)),
}
