"""What was found of a node, and where that differs from what its scenario expects."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonschema

from tests.rehearsal import journal
from tests.rehearsal.expect import Expectation, ExpectedFile, ExpectedNode
from tests.rehearsal.table import Table

SCHEMA = Path(__file__).resolve().parents[2] / "docs/status.schema.json"


@dataclass(frozen=True)
class Evidence:
    """What a rehearsal has seen of its node."""

    name: str  # the node's host name
    status: Mapping[str, object]
    exit: int
    boots: Sequence[str]
    rebooted: Sequence[str]  # the boots that ended with a reboot, not with a power cut
    cloud_init: Mapping[str, object]  # `cloud-init status --format=json`
    nodes: Mapping[str, Mapping[str, object]]  # the API server's, by name
    journal: Sequence[journal.Entry]
    requests: str
    root: Path  # the node's files
    said: str = ""  # what a person is told: `gpuboot status`, and `gpuboot explain` of its code

    def look(self, *keys: str) -> object:
        """A value of `gpuboot status --json`."""
        found: object = self.status
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found


def differences(expect: Expectation, found: Evidence) -> list[str]:
    """One line for each expectation that is not met."""
    return [
        *_status(expect, found),
        *_steps(expect.steps, found),
        *_cloud_init(expect, found),
        *(node(expect.node, found.name, found.nodes) if expect.node else ()),
        *(line for path, file in expect.files.items() for line in _file(path, file, found.root)),
        *_texts(expect, found),
        *_delay(expect, found),
    ]


def published(status: Mapping[str, object]) -> Iterator[str]:
    """Where the document of `gpuboot status --json` is not as its published schema says."""
    if not status:
        return  # it could not be asked, which is told as differences of its own
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for error in jsonschema.Draft202012Validator(schema).iter_errors(status):
        place = ".".join(map(str, error.path)) or "the document"
        yield f"status.schema.json: {place}: {error.message[:200]}"


def _differ(what: str, expected: object, found: object) -> Iterator[str]:
    if expected is not None and expected != found:
        yield f"{what}: expected {_plain(expected)} / found {_plain(found)}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _status(expect: Expectation, found: Evidence) -> Iterator[str]:
    yield from _differ("state", expect.state, found.look("state"))
    yield from _differ("exit status of gpuboot status", expect.exit, found.exit)
    yield from _differ("step", expect.step, found.look("step"))
    yield from _differ("code", expect.code, found.look("code"))
    yield from _differ("boot ids", expect.boots, len(set(found.boots)))
    if expect.boots is not None:
        yield from _differ("boots", expect.boots, found.look("boots"))
    yield from _differ("reboots.spent", expect.reboots_spent, found.look("reboots", "spent"))
    if expect.reboot_reasons is not None:
        yield from _reasons(expect.reboot_reasons, found.look("reboots", "reasons"))
    if expect.gpus is not None:
        gpus = found.look("gpus")
        yield from _differ("gpus", expect.gpus, len(gpus) if isinstance(gpus, list) else gpus)


def _reasons(expected: Sequence[str], found: object) -> Iterator[str]:
    reasons = [str(reason) for reason in found] if isinstance(found, list) else []
    alike = len(reasons) == len(expected) and all(map(re.search, expected, reasons))
    if not alike:
        yield f"reboots.reasons: expected {_plain(list(expected))} / found {_plain(reasons)}"


def _steps(expected: Mapping[str, str], found: Evidence) -> Iterator[str]:
    steps = found.look("steps")
    states = {step["name"]: step["state"] for step in steps} if isinstance(steps, list) else {}
    for name, state in expected.items():
        yield from _differ(f"step {name}", state, states.get(name))


def _cloud_init(expect: Expectation, found: Evidence) -> Iterator[str]:
    yield from _differ("cloud-init", expect.cloud_init, found.cloud_init.get("status"))
    if expect.cloud_init == "done":
        yield from _differ("cloud-init errors", [], found.cloud_init.get("errors", []))


def node(
    expect: ExpectedNode, name: str, nodes: Mapping[str, Mapping[str, object]]
) -> Iterator[str]:
    """Where the Node of that name differs; `nodes` are the API server's, by name."""
    name = expect.name or name
    if expect.absent:
        if name in nodes:
            yield f"Node {name}: expected none on the API server / found it"
        return
    if name not in nodes:
        yield f"Node {name}: expected on the API server / found {_plain(sorted(nodes))}"
        return
    found = Table(Path("nodes.json"), "", nodes[name])
    metadata, spec, status = map(found.mapping, ("metadata", "spec", "status"))
    labels = metadata.get("labels") or {}
    assert isinstance(labels, dict)
    for key, value in expect.labels.items():
        yield from _differ(f"Node {name}: label {key}", value, labels.get(key))
    for key in expect.without_labels:
        if key in labels:
            yield f"Node {name}: expected no label {key} / found {labels[key]}"
    if expect.taints is not None:
        taints = sorted(_taint(taint) for taint in _rows(spec.get("taints")))
        yield from _differ(f"Node {name}: taints", sorted(expect.taints), taints)
    conditions = {row.get("type"): row.get("status") for row in _rows(status.get("conditions"))}
    yield from _differ(f"Node {name}: ready", expect.ready, conditions.get("Ready") == "True")


def _rows(found: object) -> list[Mapping[str, object]]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _taint(taint: Mapping[str, object]) -> str:
    value = taint.get("value")
    return f"{taint.get('key')}{f'={value}' if value else ''}:{taint.get('effect')}"


def _file(name: str, expect: ExpectedFile, root: Path) -> Iterator[str]:
    file = root / name.lstrip("/")
    if not os.path.lexists(file):  # an absolute link leads out of the node, so it is not followed
        if not expect.absent:
            yield f"file {name}: expected / found nothing"
        return
    if expect.absent:
        yield f"file {name}: expected nothing / found it"
        return
    yield from _differ(f"mode of {name}", expect.mode, f"{file.lstat().st_mode & 0o7777:04o}")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    yield from _patterns(f"file {name}", text, expect.contains, expect.lacks)


def _texts(expect: Expectation, found: Evidence) -> Iterator[str]:
    entries = "\n".join(f"{entry.program}: {entry.message}" for entry in found.journal)
    yield from _patterns("journal", entries, expect.journal, expect.journal_lacks)
    yield from _patterns("what gpuboot says", found.said, expect.says, ())
    yield from _patterns("requests", found.requests, expect.requests, expect.requests_lacks)


def _patterns(what: str, text: str, contains: Sequence[str], lacks: Sequence[str]) -> Iterator[str]:
    for pattern in contains:
        if not re.search(pattern, text, re.MULTILINE):
            yield f"{what}: expected {pattern} / found no such text"
    for pattern in lacks:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            yield f"{what}: expected nothing like {pattern} / found {match[0]}"


def _delay(expect: Expectation, found: Evidence) -> Iterator[str]:
    if expect.starts_within is None:
        return
    delay = journal.walk_delay(found.journal, found.boots[0])
    if delay is None or delay > expect.starts_within:
        shown = "that it never did" if delay is None else f"{delay:.1f} s"
        yield f"walk starts after runcmd: expected {expect.starts_within:.0f} s / found {shown}"
