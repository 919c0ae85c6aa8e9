"""What the machine cannot tell: attempts, seconds, reboots spent and the boot they were asked in.

Evidence, not truth: delete the file and the node still converges.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpuboot.clock import stamp

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host

log = logging.getLogger(__name__)

FILE = "/var/lib/gpuboot/checkpoint.json"
FOREIGN = "/var/lib/gpuboot/checkpoint.foreign.json"
CORRUPT = "/var/lib/gpuboot/checkpoint.corrupt.json"
SCHEMA = 1


@dataclass(frozen=True)
class Spent:
    """A reboot that was asked for."""

    boot_id: str  # the boot that asked
    step: str
    reason: str


@dataclass(frozen=True)
class Effort:
    """What one step took so far, over all boots. `seconds` is of CLOCK_BOOTTIME."""

    attempts: int = 0
    seconds: float = 0.0


@dataclass
class Checkpoint:
    """The file's content. Whoever changes it calls `save`."""

    machine_id: str
    instance_id: str
    product_uuid: str
    boot_id: str = ""
    boots: int = 0
    rung: int = 0  # where on the ladder of retries we stand
    doing: str | None = None  # the step whose apply was begun
    steps: dict[str, Effort] = field(default_factory=dict)
    reboots: list[Spent] = field(default_factory=list)  # since the node was last ready
    surcharge: int = 0  # reboots counted as spent because the record of them was lost
    started: str | None = None
    ready_at: str | None = None
    seconds_to_ready: float | None = None
    elapsed: float = 0.0  # seconds of this road in boots that are over
    since: float = 0.0  # CLOCK_BOOTTIME when this boot's share began
    seen: float = 0.0  # CLOCK_BOOTTIME at the last save

    @property
    def spent(self) -> int:
        """Reboots that count against the budget."""
        return len(self.reboots) + self.surcharge

    def save(self, host: Host) -> None:
        """Write it durably. Raises GB012."""
        self.seen = host.clock.boottime()
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False)
        host.write(FILE, text + "\n")

    def seconds(self, host: Host) -> float:
        """How long this road has taken, over all its boots."""
        return self.elapsed + host.clock.boottime() - self.since

    def begin(self, host: Host, step: str) -> None:
        """Record, before it starts, that a step is being applied."""
        effort = self.steps.get(step, Effort())
        self.steps[step] = replace(effort, attempts=effort.attempts + 1)
        self.doing = step
        self.save(host)

    def end(self, host: Host, step: str, seconds: float) -> None:
        """Record that a step was applied and holds."""
        effort = self.steps[step]
        self.steps[step] = replace(effort, seconds=round(effort.seconds + seconds, 3))
        self.doing = None
        self.save(host)

    def arrive(self, host: Host) -> None:
        """Record that the node is ready; nothing is written if it already was."""
        if self.ready_at is not None and self.rung == 0:
            return
        if self.ready_at is None:
            self.ready_at = stamp(host.clock.now())
            self.seconds_to_ready = round(self.seconds(host), 1)
        self.rung = 0
        self.surcharge = 0
        self.save(host)

    def depart(self) -> None:
        """Something has to be done on a node that was ready: a new road begins."""
        self.ready_at = None
        self.seconds_to_ready = None
        self.reboots = []
        self.steps = {}


def load(host: Host, facts: Facts, *, budget: int) -> Checkpoint:
    """This machine's checkpoint, brought up to this boot and saved if that changed it.

    Another machine's is set aside: a clone starts afresh. One that cannot be read counts as
    all but one reboot spent, so that a record that breaks in every boot cannot loop for ever.
    """
    found = _read(host, facts, budget)
    if found.boot_id != facts.boot_id:
        found.elapsed += max(0.0, found.seen - found.since)
        found.since = host.clock.boottime() if not found.boot_id else 0.0
        found.boot_id = facts.boot_id
        found.boots += 1
        found.started = found.started or stamp(host.clock.now())
        found.save(host)
    return found


def peek(host: Host) -> dict[str, Any] | None:
    """The file's plain content for display; None if it is missing or cannot be read."""
    try:
        content = json.loads(host.read(FILE) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def _read(host: Host, facts: Facts, budget: int) -> Checkpoint:
    fresh = Checkpoint(facts.machine_id, facts.instance_id, facts.product_uuid)
    text = host.read(FILE)
    if text is None:
        return fresh
    try:
        found = parse(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("checkpoint: cannot be read (%s); set aside", error)
        host.write(CORRUPT, text)
        return replace(fresh, surcharge=max(0, budget - 1))
    if not _same_machine(found, facts):
        log.warning("checkpoint: belongs to another machine; set aside")
        host.write(FOREIGN, text)
        return fresh
    return found


def parse(text: str) -> Checkpoint:
    """A checkpoint from its JSON. Raises ValueError, TypeError or KeyError."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}")
    steps = {name: Effort(**effort) for name, effort in content["steps"].items()}
    reboots = [Spent(**spent) for spent in content["reboots"]]
    found = Checkpoint(**{**content, "steps": steps, "reboots": reboots})
    for name in ("boots", "rung", "surcharge", "elapsed", "since", "seen"):
        if not isinstance(getattr(found, name), (int, float)):
            raise TypeError(f"{name} is no number")
    return found


def _same_machine(found: Checkpoint, facts: Facts) -> bool:
    """An instance-id counts only when both sides have one: the file may precede cloud-init."""
    if found.machine_id != facts.machine_id or found.product_uuid != facts.product_uuid:
        return False
    if not found.instance_id:
        found.instance_id = facts.instance_id
    return not facts.instance_id or found.instance_id == facts.instance_id
