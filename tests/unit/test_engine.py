"""The walk: check, record the intent, apply, check again; and the rules of a live node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from gpuboot.checkpoint import Checkpoint
from gpuboot.engine import Outcome, Walk
from gpuboot.errors import Code, GpubootError, Stopped
from gpuboot.host import Host
from gpuboot.step import Finding, Ok, Pending, Reboot, Step, Waiting
from tests.unit.node import Node

TROUBLE = Code("GB999", "trouble", ("Something.",), ("type this", "or that"), evidence="")
OTHER = Code("GB998", "other", (), ("type that",), evidence="")
DRAIN = "drain the node, then reboot: the next boot converges"


@dataclass
class Gentle:
    """A step that gives its findings one after the other, the last one for ever."""

    name: ClassVar[str] = "gentle"
    disruptive: ClassVar[bool] = False

    findings: list[Finding | GpubootError]
    applied: Reboot | GpubootError | None = None
    on_apply: Callable[[], None] = lambda: None
    applies: int = 0

    def check(self, _: Host) -> Finding:
        found = self.findings.pop(0) if len(self.findings) > 1 else self.findings[0]
        if isinstance(found, GpubootError):
            raise found
        return found

    def apply(self, _: Host) -> Reboot | None:
        self.applies += 1
        self.on_apply()
        if isinstance(self.applied, GpubootError):
            raise self.applied
        return self.applied


@dataclass
class Rough(Gentle):
    """The same, and disruptive."""

    name: ClassVar[str] = "rough"
    disruptive: ClassVar[bool] = True


@dataclass
class Road:
    """A walk with its surroundings."""

    node: Node
    live: bool = False
    record: Checkpoint = field(default_factory=lambda: Checkpoint("m", "i", "u"))
    news: list[tuple[str, str, str]] = field(default_factory=list)

    def walk(self, prepare: Sequence[Step], join: Sequence[Step] = ()) -> Outcome:
        def watch(step: Step, state: str, reason: str) -> None:
            self.news.append((step.name, state, reason))

        return Walk(self.node.host, self.record, lambda: self.live, watch).run(prepare, join)


@pytest.fixture
def road(node: Node) -> Road:
    return Road(node)


def error(*, retry: bool) -> GpubootError:
    return GpubootError(TROUBLE, "it broke", evidence="line", retry=retry)


# -- a node that is not live


def test_when_every_step_holds_the_node_is_ready(road: Road) -> None:
    steps = [Gentle([Ok("a", shows={"x": 1})]), Rough([Ok("b", shows={"y": 2})])]
    found = road.walk(steps[:1], steps[1:])
    assert (found.state, found.step, found.shows) == ("ready", None, {"x": 1, "y": 2})
    assert road.news == [("gentle", "ok", "a"), ("rough", "ok", "b")]
    assert [step.applies for step in steps] == [0, 0]


@pytest.mark.parametrize("kind", [Gentle, Rough])
def test_what_is_pending_is_applied_and_looked_at_again(road: Road, kind: type[Gentle]) -> None:
    step = kind([Pending("not yet"), Ok("now")])
    assert road.walk([step]).state == "ready"
    assert step.applies == 1
    assert road.news == [(kind.name, "running", "not yet"), (kind.name, "ok", "now")]
    assert road.record.steps[kind.name].attempts == 1
    assert road.record.steps[kind.name].seconds > 0
    assert road.record.doing is None


def test_what_a_step_says_while_it_is_applied_is_told_at_once(road: Road) -> None:
    def apply() -> None:
        road.node.host.tell("waiting for apt (pid 1)")
        road.node.host.tell("")

    road.walk([Gentle([Pending("not yet"), Ok("now")], on_apply=apply)])
    assert [reason for _, _, reason in road.news] == [
        "not yet", "waiting for apt (pid 1)", "not yet", "now",
    ]  # fmt: skip
    assert {state for _, state, _ in road.news} == {"running", "ok"}


def test_the_intent_is_on_disk_while_a_step_is_applied(road: Road) -> None:
    seen: list[str] = []
    file = "/var/lib/gpuboot/checkpoint.json"
    step = Gentle([Pending("p"), Ok("o")], on_apply=lambda: seen.append(road.node.text(file) or ""))
    road.walk([step])
    assert '"doing": "gentle"' in seen[0]
    assert '"doing": null' in (road.node.text(file) or "")


def test_a_step_that_stays_pending_after_it_was_applied_is_worth_another_try(road: Road) -> None:
    found = road.walk([Gentle([Pending("a"), Pending("b")])])
    assert (found.state, found.step, found.code) == ("waiting", "gentle", "GB020")
    assert found.reason == "gentle was applied, and still: b"
    assert road.record.doing == "gentle"


def test_a_walk_stops_where_something_has_to_be_waited_for(road: Road) -> None:
    later = Gentle([Ok("never seen")])
    found = road.walk([Gentle([Waiting("for Godot", TROUBLE)]), later])
    assert found == Outcome("waiting", "gentle", "for Godot", "GB999", "type this")
    assert [name for name, *_ in road.news] == ["gentle"]


def test_a_waiting_step_may_have_a_hint_and_evidence_of_its_own(road: Road) -> None:
    found = road.walk([Gentle([Waiting("w", TROUBLE, "do this", "seen")])])
    assert (found.hint, found.evidence) == ("do this", "seen")


def test_applying_may_end_in_waiting(road: Road) -> None:
    found = road.walk([Gentle([Pending("p"), Waiting("w", TROUBLE)])])
    assert (found.state, found.reason) == ("waiting", "w")


@pytest.mark.parametrize(
    "step",
    [
        Gentle([Reboot("held")]),
        Rough([Pending("p")], applied=Reboot("held")),
        Rough([Pending("p"), Reboot("held")]),
    ],
    ids=["looking", "trying", "looking again"],
)
def test_a_reboot_is_asked_for_when_looking_or_trying_proves_it(road: Road, step: Gentle) -> None:
    found = road.walk([step])
    assert (found.state, found.step, found.reason, found.code) == (
        "rebooting", step.name, "held", None,
    )  # fmt: skip


@pytest.mark.parametrize(("retry", "state"), [(True, "waiting"), (False, "failed")])
@pytest.mark.parametrize("where", ["check", "apply"])
def test_an_error_says_whether_another_try_helps(
    road: Road, where: str, state: str, *, retry: bool
) -> None:
    trouble = error(retry=retry)
    step = Gentle([trouble]) if where == "check" else Gentle([Pending("p")], applied=trouble)
    found = road.walk([step])
    assert found == Outcome(state, "gentle", "it broke", "GB999", "type this", "line")
    assert road.news[-1] == ("gentle", state, "it broke")


def test_drift_that_has_a_name_is_explained_by_it(road: Road) -> None:
    named = Ok("fine", ("a taint is missing",), code=TROUBLE, hint="kubectl taint")
    found = road.walk([Gentle([Ok("fine")]), Rough([named]), Gentle([Ok("fine", ("later",))])])
    assert (found.state, found.reason) == ("degraded", "a taint is missing")
    assert (found.code, found.hint, found.whole) == ("GB999", "kubectl taint", True)


def test_drift_is_explained_by_the_name_of_the_first_alone(road: Road) -> None:
    named = Ok("fine", ("a taint is missing",), code=TROUBLE, hint="kubectl taint")
    found = road.walk([Gentle([Ok("fine", ("first",))]), Rough([named])])
    assert (found.reason, found.code, found.hint) == ("first", None, DRAIN)


def test_drift_makes_a_node_degraded(road: Road) -> None:
    found = road.walk([Gentle([Ok("fine", drift=("a label is missing", "a taint too"))])])
    assert (found.state, found.reason) == ("degraded", "a label is missing")
    assert found.drift == ("a label is missing", "a taint too")


def test_a_stopped_walk_begins_no_further_step(road: Road) -> None:
    second = Gentle([Pending("p"), Ok("o")])
    first = Rough([Pending("p"), Ok("o")], on_apply=road.node.host.stop)
    with pytest.raises(Stopped):
        road.walk([first, second])
    assert second.applies == 0


# -- a live node


def test_on_a_live_node_a_disruptive_step_is_only_looked_at(road: Road) -> None:
    road.live = True
    rough, gentle = Rough([Pending("old")]), Gentle([Pending("p"), Ok("o")])
    found = road.walk([rough, gentle])
    assert (rough.applies, gentle.applies) == (0, 1)
    assert (found.state, found.reason, found.hint) == ("degraded", "rough: old", DRAIN)
    assert found.drift == ("rough: old",)
    assert road.news[0] == ("rough", "pending", "old")


def test_on_a_live_node_a_difference_may_bring_its_own_command(road: Road) -> None:
    road.live = True
    named = Rough([Pending("no headers", TROUBLE, "apt-get install them")])
    outcome = road.walk([named, Rough([Pending("other")])])
    assert (outcome.state, outcome.code, outcome.hint) == (
        "degraded", "GB999", "apt-get install them",
    )  # fmt: skip
    outcome = road.walk([Rough([Pending("other")]), named])
    assert (outcome.code, outcome.hint) == (None, DRAIN), "the first difference is what is told"


@pytest.mark.parametrize(
    "trouble",
    [error(retry=False), error(retry=True), Waiting("it broke", TROUBLE), Reboot("it broke")],
    ids=["final", "transient", "waiting", "reboot"],
)
def test_on_a_live_node_nothing_in_prepare_stops_the_walk(
    road: Road, trouble: Finding | GpubootError
) -> None:
    road.live = True
    last = Gentle([Ok("seen")])
    found = road.walk([Gentle([trouble])], [last])
    assert (found.state, found.drift) == ("degraded", ("gentle: it broke",))
    assert road.news[-1] == ("gentle", "ok", "seen")


@pytest.mark.parametrize(
    "trouble",
    [Pending("it differs", TROUBLE), GpubootError(TROUBLE, "it differs"), Waiting("w", TROUBLE)],
    ids=["pending", "error", "waiting"],
)
def test_a_difference_on_a_live_node_keeps_its_name_and_is_mended_by_a_drain(
    road: Road, trouble: Finding | GpubootError
) -> None:
    road.live = True
    later = Rough([Pending("later", OTHER)])
    found = road.walk([Rough([trouble]), later])
    assert (found.state, found.code, found.hint) == ("degraded", "GB999", DRAIN)


def test_a_difference_on_a_live_node_may_have_a_hint_of_its_own(road: Road) -> None:
    road.live = True
    found = road.walk([Rough([Pending("it differs", TROUBLE, "do that")])])
    assert (found.code, found.hint) == ("GB999", "do that")


def test_what_a_reboot_is_asked_for_with_is_kept_as_its_evidence(road: Road) -> None:
    found = road.walk([Gentle([Reboot("held", "by pid 812")])])
    assert (found.reason, found.evidence) == ("held", "by pid 812")


def test_on_a_live_node_a_disruptive_step_of_joining_is_drift_too(road: Road) -> None:
    road.live = True
    found = road.walk([], [Rough([error(retry=False)])])
    assert (found.state, found.drift) == ("degraded", ("rough: it broke",))


@pytest.mark.parametrize(("retry", "state"), [(True, "waiting"), (False, "failed")])
def test_on_a_live_node_a_gentle_step_of_joining_stops_the_walk(
    road: Road, state: str, *, retry: bool
) -> None:
    road.live = True
    assert road.walk([], [Gentle([error(retry=retry)])]).state == state


def test_whether_the_node_is_live_is_looked_at_anew_for_each_step(road: Road) -> None:
    def go_live() -> None:
        road.live = True

    first = Rough([Pending("p"), Ok("o")], on_apply=go_live)
    second = Rough([Pending("too late")])
    found = road.walk([first, second])
    assert (first.applies, second.applies) == (1, 0)
    assert found.drift == ("rough: too late",)
