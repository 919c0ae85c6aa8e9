"""Walks the list of steps: check, record the intent, apply, check again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpuboot.errors import Code, GpubootError
from gpuboot.log import during
from gpuboot.step import Finding, Ok, Pending, Reboot, Step, Waiting

if TYPE_CHECKING:
    from gpuboot.checkpoint import Checkpoint
    from gpuboot.host import Host

log = logging.getLogger(__name__)

STILL_PENDING = Code(
    "GB020",
    "a step was applied and still does not hold",
    (
        "Something else on the node undoes it, such as configuration management.",
        "A program reported success without doing its work.",
    ),
    ("journalctl -u gpuboot -n 50", "gpuboot plan", "gpuboot run"),
    evidence="the step's own check, before and after it was applied",
)


@dataclass(frozen=True)
class Outcome:
    """How a walk ended. `state` is ready, degraded, waiting, rebooting or failed.

    `not_before`: seconds until it may be tried again. `whole`: the node is what was wanted, but
    for its drift.
    """

    state: str
    step: str | None = None
    reason: str = ""
    code: str | None = None
    hint: str | None = None
    evidence: str = ""
    drift: tuple[str, ...] = ()
    shows: dict[str, Any] = field(default_factory=dict)
    not_before: float = 0.0
    whole: bool = True


# Told of every change: the step, its state (running, ok, …) and why.
Watch = Callable[[Step, str, str], None]


@dataclass
class Walk:
    """One walk over the steps. `live` looks whether rke2-agent is active, anew each time."""

    host: Host
    checkpoint: Checkpoint
    live: Callable[[], bool]
    watch: Watch
    drift: list[str] = field(default_factory=list)
    shows: dict[str, Any] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)  # the names of the steps that hold
    _why: tuple[str | None, str | None] = (None, None)  # of the first drift: code and hint

    def run(self, prepare: Sequence[Step], join: Sequence[Step]) -> Outcome:
        """Walk until every step holds, or one has to wait, reboot or fail. Raises Stopped.

        On a live node nothing in `prepare` stops the walk: what does not hold there is drift.
        """
        for step in (*prepare, *join):
            with during(step.name):
                outcome = self._settle(step)
            if outcome and self.live() and (step.disruptive or step in prepare):
                self._differs(step, outcome.reason, outcome.code)
            elif outcome:
                return outcome
        state = "degraded" if self.drift else "ready"
        reason = self.drift[0] if self.drift else "every step holds"
        code, hint = self._why
        if self.drift and hint is None:
            hint = "drain the node, then reboot: the next boot converges"
        return replace(self._outcome(state, None, reason, hint=hint), code=code)

    def _settle(self, step: Step) -> Outcome | None:
        """Make one step hold; otherwise how the walk would end here."""
        try:
            finding = self._finding(step)
        except GpubootError as error:
            return self._failure(step, error)
        self.watch(step, _STATES[type(finding)], finding.reason)
        if isinstance(finding, Ok):
            if finding.drift and not self.drift:
                self._why = finding.code.id if finding.code else None, finding.hint
            self.drift += finding.drift
            self.shows.update(finding.shows)
            self.held.add(step.name)
            self.checkpoint.holds(step.name)
            return None
        if isinstance(finding, Pending):  # only on a live node, else it was applied
            code = finding.code.id if finding.code else None
            self._differs(step, finding.reason, code, finding.hint)
            return None
        if isinstance(finding, Waiting):
            said = {"code": finding.code.id}
            log.info("%s: waiting: %s", step.name, finding.reason, extra=said)
            waiting = self._outcome(
                "waiting", step.name, finding.reason,
                code=finding.code, hint=finding.hint, evidence=finding.evidence,
            )  # fmt: skip
            return replace(waiting, not_before=finding.not_before)
        return self._outcome("rebooting", step.name, finding.reason, evidence=finding.evidence)

    def _finding(self, step: Step) -> Finding:
        """What is the case once everything we may do for the step is done."""
        self.host.proceed()
        finding = step.check(self.host)
        if not isinstance(finding, Pending) or (step.disruptive and self.live()):
            return finding
        log.info("%s: %s", step.name, finding.reason)
        self.watch(step, "running", finding.reason)
        started = self.host.clock.boottime()
        self.checkpoint.begin(self.host, step.name)
        self.host.tell = lambda text: self.watch(step, "running", text or finding.reason)
        if reboot := step.apply(self.host):
            return reboot
        after = step.check(self.host)
        if isinstance(after, Pending):
            raise GpubootError(
                STILL_PENDING, f"{step.name} was applied, and still: {after.reason}", retry=True
            )
        self.checkpoint.end(self.host, step.name, self.host.clock.boottime() - started)
        return after

    def _differs(self, step: Step, reason: str, code: str | None, hint: str | None = None) -> None:
        """On a live node a difference is only noted."""
        if not self.drift:
            self._why = code, hint
        log.warning("%s: not touched, rke2-agent is active: %s", step.name, reason)
        self.drift.append(f"{step.name}: {reason}")

    def _failure(self, step: Step, error: GpubootError) -> Outcome:
        state = "waiting" if error.retry else "failed"
        self.watch(step, state, error.message)
        log.log(
            logging.INFO if error.retry else logging.ERROR,
            "%s: %s [%s]%s", step.name, error.message, error.code.id,
            f"\n{error.evidence}" if error.evidence else "", extra={"code": error.code.id},
        )  # fmt: skip
        return self._outcome(
            state, step.name, error.message,
            code=error.code, hint=error.hint, evidence=error.evidence,
        )  # fmt: skip

    def _outcome(
        self,
        state: str,
        step: str | None,
        reason: str,
        *,
        code: Code | None = None,
        hint: str | None = None,
        evidence: str = "",
    ) -> Outcome:
        if hint is None and code is not None:
            hint = code.commands[0] if code.commands else None
        return Outcome(
            state, step, reason, code.id if code else None, hint, evidence,
            tuple(self.drift), dict(self.shows),
        )  # fmt: skip


_STATES = {Ok: "ok", Pending: "pending", Waiting: "waiting", Reboot: "reboot"}
