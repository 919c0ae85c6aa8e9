"""The live picture of the walk: what `gpuboot status` shows, kept in /run for everyone to read."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpuboot import __version__, boots, exposition, status
from gpuboot.checkpoint import Effort
from gpuboot.clock import stamp
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuboot.checkpoint import Checkpoint
    from gpuboot.config import Config
    from gpuboot.engine import Outcome
    from gpuboot.host import Host
    from gpuboot.secret import Mask
    from gpuboot.step import Step

FILE = "/run/gpuboot/progress.json"
SCHEMA = 1


class Progress:
    """Keeps /run/gpuboot/progress.json; the schema is the one of `gpuboot status --json`."""

    def __init__(
        self, host: Host, record: Checkpoint, config: Config | None, steps: Sequence[Step]
    ) -> None:
        self._host = host
        self._record = record
        self._config = config  # None: it could not be read
        self._steps: dict[str, dict[str, Any]] = {
            step.name: {"name": step.name, "state": "pending", "reason": ""} for step in steps
        }
        self._walk = round(host.clock.boottime(), 2)
        self._usual = {**boots.TYPICAL, **boots.usual(record.history)}
        self._since: float | None = None  # when the step that is being applied began
        self._shows: dict[str, Any] = {}
        self._head: dict[str, Any] = {"state": "running", "step": None, "reason": "looking"}

    def begin(self) -> None:
        """The walk begins. Raises GB012, Stopped."""
        self.save()
        self._expose()

    def watch(self, step: Step, state: str, reason: str) -> None:
        """The engine's news: one step has a new state."""
        self._steps[step.name].update(state=state, reason=reason)
        if state != "running":
            self._since = None
        elif self._since is None:
            self._since = self._host.clock.boottime()
        shown = reason if state != "ok" else f"{step.name} holds"
        self._head = {"state": "running", "step": step.name, "reason": shown}
        self.save()

    def rebooting(self, reason: str) -> None:
        """A reboot is due; the reason says what it still waits for."""
        self._head = {**self._head, "state": "rebooting", "reason": reason}
        self.save()

    def end(self, outcome: Outcome, next_attempt: str | None) -> None:
        """The walk ended."""
        self._shows.update(outcome.shows)
        self._head = {
            "state": outcome.state,
            "step": outcome.step,
            "reason": outcome.reason,
            "code": outcome.code,
            "hint": outcome.hint,
            "evidence": outcome.evidence or None,
            "drift": list(outcome.drift),
            "next_attempt": next_attempt,
        }
        self.save()
        self._expose()

    def save(self) -> None:
        """Write it, secrets masked. Raises GB012, Stopped."""
        self._host.write(FILE, _written(self._host, self.document()))

    def _expose(self) -> None:
        """The metrics of a node that no monitor watches yet: a walk that is stuck is to be seen."""
        file = self._config.monitor.textfile if self._config else None
        if file is None or status.last_look(self._host, self._record.boot_id):
            return
        if self._host.exists(file.rpartition("/")[0] or "/"):
            with suppress(GpubootError):
                self._host.write(file, exposition.text(None, self.document()))

    def document(self) -> dict[str, Any]:
        """The content: `gpuboot status --json` without what only looking can tell."""
        record, host = self._record, self._host
        head = {"code": None, "hint": None, "next_attempt": None, **self._head}
        return {
            "schema": SCHEMA,
            **head,
            "mode": self._config.mode if self._config else None,
            "boot_id": record.boot_id,
            "walk": self._walk,  # when it began, in seconds of this boot: no two are the same
            "checked": stamp(host.clock.now()),
            "boottime": round(host.clock.boottime(), 2),  # of this document
            "progress": self._counted(),
            "steps": [self._step(item) for item in self._steps.values()],
            "reboots": {
                "spent": record.spent,
                "budget": self._config.reboot.budget if self._config else None,
                "reasons": [spent.reason for spent in record.reboots],
            },
            "boots": record.boots,
            "gpus": self._shows.get("gpus", []),
            "driver": self._shows.get("driver"),
            "node": self._shows.get("node"),
            "started": record.started,
            "ready_at": record.ready_at,
            "seconds_to_ready": record.seconds_to_ready,
            "gpuboot": __version__,
        }

    def _step(self, item: dict[str, Any]) -> dict[str, Any]:
        effort = self._record.steps.get(item["name"], Effort())
        took = effort.seconds + (self._spent() if item["state"] == "running" else 0.0)
        return {**item, "attempts": effort.attempts, "seconds": round(took, 3)}

    def _spent(self) -> float:
        """Seconds since the step that is being applied began."""
        return 0.0 if self._since is None else self._host.clock.boottime() - self._since

    def _counted(self) -> dict[str, Any]:
        open_steps = [name for name, item in self._steps.items() if item["state"] != "ok"]
        left = sum(self._usual.get(name, 1.0) for name in open_steps)
        if self._since is not None:  # one that takes longer than usual is about to end
            left -= min(self._spent(), self._usual.get(str(self._head["step"]), 1.0))
        running = self._head["state"] == "running"
        return {
            "done": len(self._steps) - len(open_steps),
            "total": len(self._steps),
            "eta_seconds": round(left) if running else None,
        }


def tell(host: Host, trouble: GpubootError, next_attempt: str) -> None:
    """Say that the walk waits, for a reason outside any step; the rest stays as it was told.

    Where /run takes no file the old one goes, which would tell of a walk that is over.
    """
    document = {
        **status.look(host),
        "state": "waiting",
        "step": None,
        "reason": trouble.message,
        "code": trouble.code.id,
        "hint": trouble.hint,
        "evidence": trouble.evidence or None,
        "next_attempt": next_attempt,
        "checked": stamp(host.clock.now()),
    }
    try:
        host.write(FILE, _written(host, document))
    except GpubootError:
        with suppress(GpubootError):
            host.remove(FILE)


def _written(host: Host, document: dict[str, Any]) -> bytes:
    """The file's content; half of a character, which a name or a log may hold, becomes a `?`."""
    text = json.dumps(_masked(host.mask, document), ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace")


def _masked(mask: Mask, value: object, *, keys: bool = False) -> object:
    """The same without secrets in its texts; of the keys only those of labels are not our own."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {
            mask(key) if keys else key: _masked(mask, one, keys=key == "labels")
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked(mask, one) for one in value]
    return value
