"""One rehearsal inside the lab: boot the node, watch it, collect the evidence, judge it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast

from tests.rehearsal import hardware, journal, lab, rerun, secrecy, tree, verdict
from tests.rehearsal.node import Node
from tests.rehearsal.report import TERMINAL, RigError, Watch, say
from tests.rehearsal.scenario import Scenario, fill
from tests.rehearsal.table import ScenarioError

NODE_ADDRESS = "10.88.0.11"
POLL = 1.0  # seconds between two looks at `gpuboot status`
FINAL = ("ready", "degraded", "failed")  # what a walk may end with
QUIET = 15.0  # seconds without any change after which such an end is one
LAST = tree.CACHE / "last"


@dataclass(frozen=True)
class Stage:
    """Everything that stands while a node is rehearsed."""

    scenario: Scenario
    ground: tree.Ground
    folder: Path  # of this run
    node: Node
    user_data: str

    @property
    def servers(self) -> Path:
        """The servers' folder: nodes.json, requests.log."""
        return self.folder / "servers"


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
    lab.sweep_cgroups(folder.parent)
    group = lab.cgroup(folder)
    with (
        lab.servers(folder / "servers", ground.archive, ground.releases),
        lab.overlay(ground.layers, folder / "disk", folder / "tree") as root,
    ):
        hardware.configure(root, _hardware(scenario, ground.kernel))
        tree.seed(root, scenario.setup.hostname, NODE_ADDRESS, user_data)
        node = Node(scenario.setup.hostname, root, folder / "console.log", group)
        try:
            yield Stage(scenario, ground, folder, node, user_data)
        finally:
            node.power_cut()
            lab.end_cgroup(group)


def _hardware(scenario: Scenario, kernel: str) -> hardware.Hardware:
    setup = scenario.setup
    known = {field.name for field in fields(hardware.Gpu)}
    for index, gpu in enumerate(setup.gpus):
        for key in set(gpu) - known:
            raise ScenarioError(
                f"{scenario.folder}/node.yaml: gpus[{index}].{key}: unknown key; "
                f"known keys: {', '.join(sorted(known))}"
            )
    return hardware.Hardware(
        kernel=kernel if setup.kernel == "auto" else setup.kernel,
        gpus=tuple(hardware.Gpu(**gpu) for gpu in setup.gpus),  # type: ignore[arg-type]
        # The reader has checked that it is one of these words.
        nouveau=cast('Literal["absent", "idle", "busy"]', setup.nouveau),
        initramfs=setup.initramfs,
        efi=setup.efi,
        secure_boot=setup.secure_boot,
    )


def rehearse(stage: Stage) -> list[str]:
    """Boots the node and returns what differs from the scenario's expectation."""
    watch = Watch()
    processes = secrecy.ProcessWatch(stage.ground.token)
    stage.node.boot()
    processes.start()
    say(f"The node {stage.node.name} boots; its cloud-init calls gpuboot.")
    rebooted = _watch(stage, watch)
    evidence = collect(stage, rebooted)
    found = [
        *verdict.differences(stage.scenario.expect, evidence),
        *journal.early_reboots(evidence.journal, rebooted),
        *_again(stage, evidence),
        *processes.findings(),
        *_secrecy(stage),
    ]
    _save(stage, evidence, found)
    _summary(stage, evidence, found, watch.seconds)
    return found


def _watch(stage: Stage, watch: Watch) -> list[str]:
    """Shows the node's progress until it is where it should be; the boots that rebooted."""
    node, setup = stage.node, stage.scenario.setup
    cuts = list(setup.power_cuts)
    rebooted: list[str] = []
    shown = ""
    changed = 0.0
    while watch.seconds < setup.deadline:
        if node.wait(POLL):
            rebooted.append(node.boots[-2])
            say(f"{watch.seconds:6.1f} s  the node has rebooted: boot {len(node.boots)}")
        answered = node.status()
        if answered is None:
            TERMINAL.live(f"{watch.seconds:6.1f} s  boot {len(node.boots)}")
            continue
        status, _exit = answered
        line = _line(status, len(node.boots))
        if line != shown:
            say(f"{watch.seconds:6.1f} s  {line}")
            shown, changed = line, watch.seconds
        TERMINAL.live(f"{watch.seconds:6.1f} s  {line}")
        if status.get("state") == "running" and status.get("step") in cuts:
            cuts.remove(str(status["step"]))
            say(f"{watch.seconds:6.1f} s  the plug is pulled while {status['step']} runs")
            node.power_cut()
            node.boot()
        elif not cuts and settled(stage, status, quiet=watch.seconds - changed):
            return rebooted
    say(f"{watch.seconds:6.1f} s  the scenario's deadline is over")
    return rebooted


def _line(status: dict[str, object], boot: int) -> str:
    progress = status.get("progress")
    of = f"{progress.get('done')}/{progress.get('total')}" if isinstance(progress, dict) else ""
    step, reason = status.get("step") or "", status.get("reason") or ""
    return f"boot {boot}  {status.get('state')!s:<9} {of:>5}  {step!s:<20} {reason}".rstrip()


def settled(stage: Stage, status: dict[str, object], *, quiet: float) -> bool:
    """Whether the node is where the scenario wants it, or will not get there any more."""
    over = status.get("state") in FINAL and quiet > QUIET
    return (_as_expected(stage, status) or over) and _cloud_init_ended(stage)


def _as_expected(stage: Stage, status: dict[str, object]) -> bool:
    expect = stage.scenario.expect
    wanted = {"state": expect.state, "step": expect.step, "code": expect.code}
    if any(value is not None and status.get(key) != value for key, value in wanted.items()):
        return False
    return expect.boots is None or len(stage.node.boots) >= expect.boots


def _cloud_init_ended(stage: Stage) -> bool:
    found = _cloud_init(stage.node).get("status")
    return found == stage.scenario.expect.cloud_init or found not in ("running", "not run")


def _cloud_init(node: Node) -> dict[str, object]:
    done = node.run("cloud-init", "status", "--format=json")
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"status": done.stdout.strip() or done.stderr.strip()}
    return answer if isinstance(answer, dict) else {}


def collect(stage: Stage, rebooted: list[str]) -> verdict.Evidence:
    """What can be seen of the node now, from inside and from the servers."""
    if not stage.node.running:
        raise RigError("the node is switched off; it has powered itself off")
    status, code = stage.node.status() or ({}, -1)
    lines = stage.node.run("journalctl", "--output=json", "--all", "--no-pager").stdout
    return verdict.Evidence(
        status=status,
        exit=code,
        boots=list(stage.node.boots),
        rebooted=rebooted,
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


def _summary(stage: Stage, evidence: verdict.Evidence, found: list[str], seconds: float) -> None:
    for difference in found:
        say(f"  {difference}")
    reasons = evidence.look("reboots", "reasons")
    why = f" ({'; '.join(map(str, reasons))})" if isinstance(reasons, list) and reasons else ""
    counted = "1 boot id" if len(evidence.boots) == 1 else f"{len(evidence.boots)} boot ids"
    end = "passed" if not found else f"FAILED, {len(found)} differences"
    say(
        f"{stage.scenario.name}: {end} in {seconds:.0f} s: {evidence.look('state')} after "
        f"{counted}, {evidence.look('reboots', 'spent')} reboots spent{why}"
    )
