"""One rehearsal inside the lab: boot the node, watch it, collect the evidence, judge it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.rehearsal import bundle, journal, planned, rancher, rerun, secrecy, verdict
from tests.rehearsal.acts import Act
from tests.rehearsal.expect import Expectation
from tests.rehearsal.report import RigError, say
from tests.rehearsal.settle import POLL, QUIET, Settle, cloud_init
from tests.rehearsal.stage import Stage

LOOKS = 4  # at least, for on a busy machine one of them takes long
PLAN = 60.0  # seconds until the node's probe has asked for the plan


def together(stages: list[Stage]) -> list[str]:
    """Rehearses all nodes of a scenario side by side; what differs, for each node."""
    with ThreadPoolExecutor(len(stages)) as pool:
        return [line for found in pool.map(rehearse, stages) for line in found]


def rehearse(stage: Stage) -> list[str]:
    """Boots the node and returns what differs from the scenario's expectation."""
    expect, setup = stage.scenario.expect, stage.scenario.setup
    processes = secrecy.ProcessWatch(stage.ground.token)
    stage.node.boot()
    processes.start()
    say(f"The node {stage.node.name} boots.")
    during = [act for act in stage.scenario.acts if act.during]
    found = Settle(stage, expect, during).until(setup.deadline)
    evidence, differing = _look(stage, expect)
    found = found or [*differing, *_planned(stage, evidence)]
    found += _again(stage, evidence)
    if not found and stage.scenario.acts:
        first = evidence.look("state")
        evidence, found = _perform(stage, evidence)
        if not found and first != "ready" and evidence.look("state") == "ready":
            found = _planned(stage, evidence, corrected=stage.acted.corrected)
    found += [
        *verdict.published(evidence.status),
        *_early_reboots(stage, evidence),
        *_reported(stage, evidence),
        *processes.findings(),
        *_secrecy(stage),
    ]
    _save(stage, evidence, found)
    _summary(stage, evidence, found)
    return found


def _perform(stage: Stage, evidence: verdict.Evidence) -> tuple[verdict.Evidence, list[str]]:
    """The acts one after the other; the first that differs is the last."""
    for act in stage.scenario.acts:
        if act.during:
            continue
        say(stage.line(act.told))
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
    return _look(stage, expect, before)


def _look(
    stage: Stage, expect: Expectation, before: verdict.Evidence | None = None
) -> tuple[verdict.Evidence, list[str]]:
    """The evidence, and what differs; of journal and requests only what came after `before`.

    What follows from the state, such as a Node that turns ready, may take a moment; and a node
    that waits looks again just now and then.
    """
    give_up = stage.watch.seconds + QUIET
    looks = 0
    while True:
        looks += 1
        evidence = collect(stage, expect)
        since = evidence
        if before:
            since = replace(
                evidence,
                journal=evidence.journal[len(before.journal) :],
                requests=evidence.requests[len(before.requests) :],
            )
        found = verdict.differences(expect, since)
        if not found or (looks >= LOOKS and stage.watch.seconds > give_up):
            return evidence, found
        stage.passes(POLL)


def collect(stage: Stage, expect: Expectation | None = None) -> verdict.Evidence:
    """What can be seen of the node now, from inside and from the servers.

    With an expectation, a moment at which its state is the expected one is waited for a little.
    """
    if not stage.node.running:
        raise RigError("the node is switched off; it has powered itself off")
    status, code = _status(stage, expect)
    said = _said(stage, status.get("code")) if expect and expect.says else ""
    lines = stage.node.run("journalctl", "--output=json", "--all", "--no-pager").stdout
    return verdict.Evidence(
        name=stage.node.name,
        status=status,
        exit=code,
        boots=list(stage.node.boots),
        rebooted=list(stage.acted.rebooted),
        cloud_init=cloud_init(stage.node),
        nodes=_nodes(stage.servers / "nodes.json"),
        journal=journal.parse(lines.splitlines()),
        requests=_read(stage.servers / "requests.log"),
        root=stage.node.root,
        said=said,
    )


def _status(stage: Stage, expect: Expectation | None) -> tuple[dict[str, object], int]:
    wanted = {"state": expect.state, "step": expect.step, "code": expect.code} if expect else {}
    give_up = stage.watch.seconds + QUIET
    while True:
        status, code = stage.node.status() or ({}, -1)
        as_wanted = all(value in (None, status.get(key)) for key, value in wanted.items())
        if as_wanted or stage.watch.seconds > give_up:
            return status, code
        stage.passes(POLL)


def _said(stage: Stage, code: object) -> str:
    questions = [("status",), *([("explain", str(code))] if code else [])]
    answers = [stage.node.run("gpuboot", *question) for question in questions]
    return "\n".join(answer.stdout + answer.stderr for answer in answers)


def _nodes(file: Path) -> dict[str, dict[str, object]]:
    found = json.loads(_read(file) or "{}")
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _again(stage: Stage, evidence: verdict.Evidence) -> list[str]:
    if evidence.look("state") != "ready" or stage.scenario.expect.state != "ready":
        return []
    return rerun.findings(stage.node, stage.disk)


def _planned(stage: Stage, evidence: verdict.Evidence, *, corrected: bool = False) -> list[str]:
    """The walk stays within what the plan had said, unless acts have changed what it rests on."""
    end = stage.watch.seconds + PLAN
    while not (stage.node.root / planned.RESULT).exists() and stage.watch.seconds < end:
        stage.passes(POLL)  # on a node that waits for nothing else the probe may not have ended
    ready = evidence.look("state") == "ready"
    rebooted = len(evidence.rebooted)
    return planned.findings(stage.node.root, ready=ready, rebooted=rebooted, corrected=corrected)


def _early_reboots(stage: Stage, evidence: verdict.Evidence) -> list[str]:
    if stage.scenario.setup.cloud_init == "absent":
        return []
    return journal.early_reboots(evidence.journal, stage.acted.rebooted)


def _reported(stage: Stage, evidence: verdict.Evidence) -> list[str]:
    """What is wrong with the support bundle of the node as it is now."""
    node, rows = stage.node, evidence.look("steps")
    stage.artifacts.mkdir(parents=True, exist_ok=True)
    found = bundle.findings(node, _secrets(stage), stage.artifacts)
    if rows and evidence.look("state") == "ready":
        found += bundle.commands(node)
    return found


def _secrets(stage: Stage) -> dict[str, str]:
    ground = stage.ground
    others = rancher.tokens(stage.servers, ground)
    return bundle.secrets(stage.node.root, ground.token, ground.proxy, others)


def _secrecy(stage: Stage) -> list[str]:
    token, node = stage.ground.token, stage.node
    allowed = secrecy.told_to_write(stage.user_data, token)
    allowed |= {path for path, content in stage.acted.written if token in content}
    shown = node.run("journalctl", "--output=export", "--all", "--no-pager").stdout
    ours = node.run("journalctl", "--unit=gpuboot", "--output=export", "--no-pager").stdout
    secrets = _secrets(stage)
    said = {"gpuboot's journal": ours, "gpuboot status": _said(stage, None)}
    return [
        *secrecy.in_files(stage.disk, [stage.disk], token, allowed),
        *secrecy.in_files(node.root, [node.root / "run", node.root / "dev/shm"], token, allowed),
        *secrecy.in_text("the journal", shown, token),
        *secrecy.said_by_gpuboot(node.root, ours, rancher.tokens(stage.servers, stage.ground)),
        *(line for name, text in said.items() for line in bundle.leaks(name, text, secrets)),
    ]


def _save(stage: Stage, evidence: verdict.Evidence, found: list[str]) -> None:
    texts = {
        "status.json": json.dumps(evidence.status, indent=2) + "\n",
        "cloud-init.json": json.dumps(evidence.cloud_init, indent=2) + "\n",
        "nodes.json": json.dumps(evidence.nodes, indent=2) + "\n",
        "boots.txt": "".join(f"{boot}\n" for boot in evidence.boots),
        "plan.json": _read(stage.node.root / planned.RESULT),
        "journal.txt": "".join(f"{entry}\n" for entry in evidence.journal),
        "requests.log": evidence.requests,
        "servers.log": _read(stage.servers / "servers.log"),
        "console.log": _read(stage.node.console),
        "cloud-init-output.log": _read(stage.node.root / "var/log/cloud-init-output.log"),
        "files.txt": "".join(f"{line}\n" for line in rerun.listing(stage.disk)),
        "differences.txt": "".join(f"{line}\n" for line in found),
    }
    for name, text in texts.items():
        stage.keep(name, text)


def _summary(stage: Stage, evidence: verdict.Evidence, found: list[str]) -> None:
    for difference in found:
        say(f"  {difference}")
    reasons = evidence.look("reboots", "reasons")
    why = f" ({'; '.join(map(str, reasons))})" if isinstance(reasons, list) and reasons else ""
    counted = "1 boot id" if len(evidence.boots) == 1 else f"{len(evidence.boots)} boot ids"
    end = "passed" if not found else f"FAILED, {len(found)} differences"
    who = f" {stage.node.name}" if stage.scenario.setup.nodes > 1 else ""
    say(
        f"{stage.scenario.name}{who}: {end} in {stage.watch.seconds:.0f} s: "
        f"{evidence.look('state')} after {counted}, "
        f"{evidence.look('reboots', 'spent')} reboots spent{why}"
    )
