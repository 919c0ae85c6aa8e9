"""One rehearsal inside the lab: boot the node, watch it, collect the evidence, judge it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from tests.rehearsal import acts, hardware, journal, lab, rerun, secrecy, tree, verdict
from tests.rehearsal.acts import Act
from tests.rehearsal.expect import Expectation
from tests.rehearsal.node import Node
from tests.rehearsal.report import TERMINAL, RigError, Watch, say
from tests.rehearsal.scenario import Scenario, fill, fill_text

NODE_ADDRESS = "10.88.0.11"
POLL = 1.0  # seconds between two looks at `gpuboot status`
FINAL = ("ready", "degraded", "failed")  # what a walk may end with
UNIT = "gpuboot.service"
AT_WORK = ("active", "activating", "reloading", "deactivating")
QUIET = 15.0  # seconds without any change after which such an end is one
LAST = tree.CACHE / "last"


@dataclass(frozen=True)
class Stage:
    """Everything that stands while a node is rehearsed."""

    scenario: Scenario
    ground: tree.Ground
    folder: Path  # of this run
    user_data: str
    acted: acts.Stage  # what acts lay hands on, and what came of it
    watch: Watch = field(default_factory=Watch)

    @property
    def node(self) -> Node:
        """The node."""
        return self.acted.node

    @property
    def servers(self) -> Path:
        """The servers' folder: nodes.json, requests.log."""
        return self.folder / "servers"

    def passes(self, seconds: float) -> None:
        """Lets time pass, and takes down if the node has rebooted meanwhile."""
        if self.node.wait(seconds):
            self.acted.rebooted.append(self.node.boots[-2])
            say(f"{self.watch.seconds:6.1f} s  the node has rebooted: boot {len(self.node.boots)}")


@contextlib.contextmanager
def staged(scenario: Scenario, folder: Path) -> Iterator[Stage]:
    """The lab with servers running and the scenario's node ready to be booted."""
    lab.furnish()
    with tree.building():
        ground = tree.prepare(scenario.setup.release)
    config, user_data = fill(scenario, ground.values())
    shutil.copytree(ground.identity, folder / "servers")
    faults = json.dumps(dict(scenario.setup.faults))
    (folder / "servers/faults.json").write_text(faults, encoding="utf-8")
    _artifacts(scenario, {"config.yaml": config.replace(ground.token, "<token>")})

    def fill_act(text: str) -> str:
        return fill_text(scenario.folder / "acts.yaml", text, config, ground.values())

    lab.sweep_cgroups(folder.parent)
    group = lab.cgroup(folder)
    with (
        lab.servers(folder / "servers", ground.archive, ground.releases),
        lab.overlay(ground.layers, folder / "disk", folder / "tree") as root,
    ):
        machine = _hardware(scenario, ground.kernel)
        hardware.configure(root, machine)
        tree.seed(root, scenario.setup.hostname, NODE_ADDRESS, user_data)
        node = Node(scenario.setup.hostname, root, folder / "console.log", group)
        try:
            acted = acts.Stage(node, folder / "servers", machine, fill_act)
            yield Stage(scenario, ground, folder, user_data, acted)
        finally:
            node.power_cut()
            lab.end_cgroup(group)


def _hardware(scenario: Scenario, kernel: str) -> hardware.Hardware:
    setup = scenario.setup
    return hardware.Hardware(
        kernel=kernel if setup.kernel == "auto" else setup.kernel,
        gpus=tuple(map(hardware.gpu, setup.gpus)),
        # The reader has checked that it is one of these words.
        nouveau=cast('Literal["absent", "idle", "busy"]', setup.nouveau),
        initramfs=setup.initramfs,
        efi=setup.efi,
        secure_boot=setup.secure_boot,
    )


def rehearse(stage: Stage) -> list[str]:
    """Boots the node and returns what differs from the scenario's expectation."""
    setup = stage.scenario.setup
    processes = secrecy.ProcessWatch(stage.ground.token)
    stage.node.boot()
    processes.start()
    say(f"The node {stage.node.name} boots; its cloud-init calls gpuboot.")
    settle = Settle(stage, stage.scenario.expect, cuts=list(setup.power_cuts))
    settle.until(setup.deadline)
    evidence = collect(stage)
    found = verdict.differences(stage.scenario.expect, evidence)
    found += _again(stage, evidence)
    if not found and stage.scenario.acts:
        evidence, found = _perform(stage, evidence)
    found += [
        *journal.early_reboots(evidence.journal, stage.acted.rebooted),
        *processes.findings(),
        *_secrecy(stage),
    ]
    _save(stage, evidence, found)
    _summary(stage, evidence, found)
    return found


def _perform(stage: Stage, evidence: verdict.Evidence) -> tuple[verdict.Evidence, list[str]]:
    """The acts one after the other; the first that differs is the last."""
    for act in stage.scenario.acts:
        told = f": {act.why}" if act.why else ""
        say(f"{stage.watch.seconds:6.1f} s  {act.name}{told}")
        found = act.action.perform(stage.acted)
        if act.expect and not found:
            evidence, found = _compare(stage, act, act.expect, evidence)
        if found:
            return collect(stage), [f"{act.name}: {line}" for line in found]
    return collect(stage), []


def _compare(
    stage: Stage, act: Act, expect: Expectation, before: verdict.Evidence
) -> tuple[verdict.Evidence, list[str]]:
    Settle(stage, expect).until(act.deadline or stage.scenario.setup.deadline)
    give_up = stage.watch.seconds + QUIET
    while True:
        evidence = collect(stage)
        since = replace(
            evidence,
            journal=evidence.journal[len(before.journal) :],
            requests=evidence.requests[len(before.requests) :],
        )
        found = verdict.differences(expect, since)
        # What follows from the state, such as a Node that turns ready, may take a moment.
        if not found or stage.watch.seconds > give_up:
            return evidence, found
        stage.passes(POLL)


@dataclass
class Settle:
    """Shows the node's progress until it is where it should be, or will not get there."""

    stage: Stage
    expect: Expectation
    cuts: list[str] = field(default_factory=list)  # steps in which the plug is pulled

    def until(self, deadline: float) -> None:
        """Waits so many seconds at most."""
        stage, node = self.stage, self.stage.node
        end = stage.watch.seconds + deadline
        shown, changed = "", stage.watch.seconds
        while stage.watch.seconds < end:
            stage.passes(POLL)
            status = (node.status() or ({}, 0))[0]
            line = _line(status, len(node.boots))
            if line != shown and status:
                say(f"{stage.watch.seconds:6.1f} s  {line}")
            if line != shown:
                shown, changed = line, stage.watch.seconds
            TERMINAL.live(f"{stage.watch.seconds:6.1f} s  {line}")
            if status.get("state") == "running" and status.get("step") in self.cuts:
                self._cut(str(status["step"]))
            elif not self.cuts and self._settled(status, stage.watch.seconds - changed):
                return
        say(f"{stage.watch.seconds:6.1f} s  the deadline is over")

    def _cut(self, step: str) -> None:
        self.cuts.remove(step)
        say(f"{self.stage.watch.seconds:6.1f} s  the plug is pulled while {step} runs")
        self.stage.node.power_cut()
        self.stage.node.boot()

    def _settled(self, status: Mapping[str, object], quiet: float) -> bool:
        over = status.get("state") in FINAL and quiet > QUIET
        return (self._as_expected(status) or over) and self._cloud_init_ended()

    def _as_expected(self, status: Mapping[str, object]) -> bool:
        expect, node = self.expect, self.stage.node
        wanted = {"state": expect.state, "step": expect.step, "code": expect.code}
        if any(value is not None and status.get(key) != value for key, value in wanted.items()):
            return False
        if expect.boots is not None and len(node.boots) < expect.boots:
            return False
        if expect.state is None:
            return _said(node, "is-system-running") in ("running", "degraded")
        # A walk that has just been asked for may not have begun to tell of itself.
        return expect.state not in FINAL or _said(node, "is-active", UNIT) not in AT_WORK

    def _cloud_init_ended(self) -> bool:
        found = _cloud_init(self.stage.node).get("status")
        return found == self.expect.cloud_init or found not in ("running", "not run")


def _said(node: Node, *question: str) -> str:
    try:
        return node.run("systemctl", *question).stdout.strip() if node.running else ""
    except subprocess.TimeoutExpired:
        return ""


def _line(status: Mapping[str, object], boot: int) -> str:
    if not status:
        return f"boot {boot}"
    progress = status.get("progress")
    of = f"{progress.get('done')}/{progress.get('total')}" if isinstance(progress, dict) else ""
    step, reason = status.get("step") or "", status.get("reason") or ""
    return f"boot {boot}  {status.get('state')!s:<9} {of:>5}  {step!s:<20} {reason}".rstrip()


def _cloud_init(node: Node) -> dict[str, object]:
    done = node.run("cloud-init", "status", "--format=json")
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"status": done.stdout.strip() or done.stderr.strip()}
    return answer if isinstance(answer, dict) else {}


def collect(stage: Stage) -> verdict.Evidence:
    """What can be seen of the node now, from inside and from the servers."""
    if not stage.node.running:
        raise RigError("the node is switched off; it has powered itself off")
    status, code = stage.node.status() or ({}, -1)
    lines = stage.node.run("journalctl", "--output=json", "--all", "--no-pager").stdout
    return verdict.Evidence(
        status=status,
        exit=code,
        boots=list(stage.node.boots),
        rebooted=list(stage.acted.rebooted),
        cloud_init=_cloud_init(stage.node),
        nodes=_nodes(stage.servers / "nodes.json"),
        journal=journal.parse(lines.splitlines()),
        requests=_read(stage.servers / "requests.log"),
        root=stage.node.root,
    )


def _nodes(file: Path) -> dict[str, dict[str, object]]:
    found = json.loads(_read(file) or "{}")
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _again(stage: Stage, evidence: verdict.Evidence) -> list[str]:
    if evidence.look("state") != "ready" or stage.scenario.expect.state != "ready":
        return []
    return rerun.findings(stage.node, stage.folder / "disk")


def _secrecy(stage: Stage) -> list[str]:
    token, node = stage.ground.token, stage.node
    allowed = secrecy.told_to_write(stage.user_data, token)
    allowed |= {path for path, content in stage.acted.written if token in content}
    disk = stage.folder / "disk"
    shown = node.run("journalctl", "--output=export", "--all", "--no-pager").stdout
    return [
        *secrecy.in_files(disk, [disk], token, allowed),
        *secrecy.in_files(node.root, [node.root / "run", node.root / "dev/shm"], token, allowed),
        *secrecy.in_text("the journal", shown, token),
    ]


def _save(stage: Stage, evidence: verdict.Evidence, found: list[str]) -> None:
    """What a person wants to look at afterwards, in .cache/last/SCENARIO."""
    texts = {
        "status.json": json.dumps(evidence.status, indent=2) + "\n",
        "cloud-init.json": json.dumps(evidence.cloud_init, indent=2) + "\n",
        "nodes.json": json.dumps(evidence.nodes, indent=2) + "\n",
        "boots.txt": "".join(f"{boot}\n" for boot in evidence.boots),
        "journal.txt": "".join(f"{entry}\n" for entry in evidence.journal),
        "requests.log": evidence.requests,
        "servers.log": _read(stage.servers / "servers.log"),
        "console.log": _read(stage.folder / "console.log"),
        "cloud-init-output.log": _read(stage.node.root / "var/log/cloud-init-output.log"),
        "files.txt": "".join(f"{line}\n" for line in rerun.listing(stage.folder / "disk")),
        "differences.txt": "".join(f"{line}\n" for line in found),
    }
    _artifacts(stage.scenario, texts)


def _artifacts(scenario: Scenario, texts: dict[str, str]) -> None:
    folder = LAST / scenario.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _summary(stage: Stage, evidence: verdict.Evidence, found: list[str]) -> None:
    for difference in found:
        say(f"  {difference}")
    reasons = evidence.look("reboots", "reasons")
    why = f" ({'; '.join(map(str, reasons))})" if isinstance(reasons, list) and reasons else ""
    counted = "1 boot id" if len(evidence.boots) == 1 else f"{len(evidence.boots)} boot ids"
    end = "passed" if not found else f"FAILED, {len(found)} differences"
    say(
        f"{stage.scenario.name}: {end} in {stage.watch.seconds:.0f} s: {evidence.look('state')} "
        f"after {counted}, {evidence.look('reboots', 'spent')} reboots spent{why}"
    )
