"""What a scenario expects of its node: expect.yaml, and the `expect` of an act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.rehearsal.table import ScenarioError, Table


@dataclass(frozen=True)
class ExpectedNode:
    """What the API server's Node must be."""

    name: str | None
    absent: bool
    ready: bool | None
    labels: Mapping[str, str]
    without_labels: tuple[str, ...]
    taints: tuple[str, ...] | None


@dataclass(frozen=True)
class ExpectedFile:
    """What a file of the node must be."""

    mode: str | None
    contains: tuple[str, ...]
    lacks: tuple[str, ...]
    absent: bool


@dataclass(frozen=True)
class Expectation:
    """How the node must end; None and empty are not compared."""

    state: str | None
    exit: int | None = None
    step: str | None = None
    code: str | None = None
    boots: int | None = None
    reboots_spent: int | None = None
    reboot_reasons: tuple[str, ...] | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    gpus: int | None = None
    node: ExpectedNode | None = None
    files: Mapping[str, ExpectedFile] = field(default_factory=dict)
    cloud_init: str = "done"
    journal: tuple[str, ...] = ()
    journal_lacks: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    requests_lacks: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    starts_within: float | None = None


def expectation(table: Table, *, state: str | None) -> Expectation:
    """The mapping, read to its end by the caller; `state` is what it says of it."""
    reboots = table.table("reboots")
    node = table.table("node")
    files = table.table("files")
    steps = table.table("steps")
    found = Expectation(
        state=state,
        exit=table.number("exit"),
        step=table.optional_text("step"),
        code=table.optional_text("code"),
        boots=table.number("boots"),
        reboots_spent=reboots.number("spent") if reboots else None,
        reboot_reasons=reboots.patterns("reasons") if reboots else None,
        steps=steps.strings() if steps else {},
        gpus=table.number("gpus"),
        node=_expected_node(node) if node else None,
        files={path: _expected_file(files, path) for path in files} if files else {},
        cloud_init=table.text("cloud-init", "done"),
        journal=table.patterns("journal") or (),
        journal_lacks=table.patterns("journal-lacks") or (),
        requests=table.patterns("requests") or (),
        requests_lacks=table.patterns("requests-lacks") or (),
        says=table.patterns("says") or (),
        starts_within=table.optional_seconds("starts-within"),
    )
    for part in (reboots, files, table):
        if part:
            part.end()
    return found


def _expected_node(table: Table) -> ExpectedNode:
    labels = table.table("labels")
    node = ExpectedNode(
        name=table.optional_text("name"),
        absent=table.flag("absent", default=False),
        ready=table.flag("ready") if "ready" in table else None,
        labels=labels.strings() if labels else {},
        without_labels=table.texts("without-labels") or (),
        taints=table.texts("taints"),
    )
    table.end()
    return node


def _expected_file(files: Table, path: str) -> ExpectedFile:
    table = files.table(path)
    if table is None:
        raise ScenarioError(f"{files.place(path)}: expected a mapping, such as {{mode: '0600'}}")
    file = ExpectedFile(
        mode=table.optional_text("mode"),
        contains=table.patterns("contains") or (),
        lacks=table.patterns("lacks") or (),
        absent=table.flag("absent", default=False),
    )
    table.end()
    return file
