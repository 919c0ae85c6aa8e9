"""What the machine cannot tell: attempts, seconds, reboots spent and the boot they were asked in.

Evidence, not truth: delete the file and the node still converges.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from gpuboot.boots import KEPT, Boot, Phase, Span
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
    helped: bool = False  # the step held afterwards


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
    trouble: str | None = None  # what was waited for last: step and code
    rung: int = 0  # where on the ladder of retries we stand with it
    missing: float | None = None  # `seconds` when the GPU was first found missing
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
    history: list[Boot] = field(default_factory=list)  # the last boots, this one at the end

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

    def meet(self, trouble: str) -> None:
        """Something has to be waited for; another trouble than the last begins the ladder anew."""
        if trouble != self.trouble:
            self.trouble, self.rung = trouble, 0

    def holds(self, step: str) -> None:
        """A step holds: if it asked for the last reboot, that one helped. `save` comes later."""
        if self.reboots and self.reboots[-1].step == step:
            self.reboots[-1] = replace(self.reboots[-1], helped=True)

    def arrive(self, host: Host, *, noted: bool = False) -> None:
        """Record that the node is ready; nothing is written if it already was.

        Unless something is `noted`, which has to be written anyway.
        """
        if self.ready_at is not None and self.trouble is None and not noted:
            return
        if self.ready_at is None:
            self.ready_at = stamp(host.clock.now())
            self.seconds_to_ready = round(self.seconds(host), 1)
        self.trouble, self.rung, self.missing = None, 0, None
        self.surcharge = 0
        if host.exists(CORRUPT):
            host.remove(CORRUPT)  # its warning is given: see _lost
        self.save(host)

    def depart(self) -> None:
        """Something has to be done on a node that was ready: a new road begins."""
        self.ready_at = None
        self.seconds_to_ready = None
        self.reboots = []
        self.steps = {}


def load(host: Host, facts: Facts, *, budget: int) -> Checkpoint:
    """This machine's checkpoint, brought up to this boot and saved if that changed it.

    Another machine's is set aside: a clone starts afresh. For one that cannot be read, see
    `_lost`. None at all is a fresh machine: whoever deletes the file in every boot is believed,
    because nothing else on the machine tells a deleted record from one that never was. Only
    where it cannot last over a reboot is that known (`reboot.volatile`).
    """
    found = _read(host, facts, budget)
    new = found.boot_id != facts.boot_id
    if new:
        found.elapsed += max(0.0, found.seen - found.since)
        found.since = host.clock.boottime() if not found.boot_id else 0.0
        found.boot_id = facts.boot_id
        found.boots += 1
        found.started = found.started or stamp(host.clock.now())
    if new or not found.history:  # an older gpuboot's record has none
        began = host.clock.now() - timedelta(seconds=host.clock.boottime())
        this = Boot(facts.boot_id, facts.kernel, stamp(began))
        found.history = [*found.history[1 - KEPT :], this]
    if new:
        found.save(host)
    return found


def peek(host: Host) -> dict[str, Any] | None:
    """The file's plain content for display; None if it is missing or cannot be read."""
    try:
        content = json.loads(host.read(FILE) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def remembered(host: Host) -> Checkpoint | None:
    """What is remembered of whichever machine this was, to be shown; None if that is nothing."""
    try:
        return parse(host.read(FILE) or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(host: Host, facts: Facts, budget: int) -> Checkpoint:
    fresh = Checkpoint(facts.machine_id, facts.instance_id, facts.product_uuid)
    text = host.read(FILE)
    if text is None and not host.exists(FILE):
        return fresh
    try:
        found = parse(text or "")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("checkpoint: cannot be read (%s); set aside", error)
        return _lost(host, fresh, text or "", budget)
    if _same_machine(found, facts):
        return found
    log.warning("checkpoint: belongs to another machine; set aside")
    host.write(FOREIGN, text or "")
    if host.exists(CORRUPT):
        host.remove(CORRUPT)  # the other machine's too
    if found.product_uuid and _hardware(found) == _hardware(fresh) and not found.ready_at:
        # Only the instance-id is another one: this very machine, begun anew. One whose id
        # changes in every boot must not reboot for ever.
        fresh.reboots, fresh.surcharge = found.reboots, found.surcharge
    return fresh


def _lost(host: Host, fresh: Checkpoint, text: str, budget: int) -> Checkpoint:
    """What stands in for a record that cannot be read.

    All but one reboot count as spent. The copy that is set aside stays until the node is
    ready: a second loss finds it and leaves none, for a disk may break the record in every boot.
    """
    again = host.exists(CORRUPT)
    fresh.surcharge = budget if again else max(0, budget - 1)
    fresh.save(host)  # before the copy: cut off in between, the next loss is the first
    host.write(CORRUPT, text)
    return fresh


def parse(text: str) -> Checkpoint:
    """A checkpoint from its JSON. Raises ValueError, TypeError, KeyError, AttributeError."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}")
    steps = {name: _checked(Effort(**effort)) for name, effort in content["steps"].items()}
    reboots = [_checked(Spent(**spent)) for spent in content["reboots"]]
    history = [_boot(one) for one in content.get("history", [])]
    own = {"steps": steps, "reboots": reboots, "history": history}
    return _checked(Checkpoint(**{**content, **own}))


def _boot(content: dict[str, Any]) -> Boot:
    phases = [_checked(Phase(**one)) for one in content["phases"]]
    spans = [_checked(Span(**one)) for one in content["spans"]]
    return _checked(Boot(**{**content, "phases": phases, "spans": spans}))


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, NoneType),
    "float | None": (int, float, NoneType),
}
R = TypeVar("R", Checkpoint, Effort, Spent, Boot, Phase, Span)
LONGEST = 1e12  # seconds
_LEAST: dict[type, float] = {Phase: -LONGEST}  # firmware is at work before the kernel starts


def _checked(record: R) -> R:
    """The same, if each plain value is of its field's type. Raises TypeError or ValueError."""
    for item in fields(record):
        value = getattr(record, item.name)
        types = _TYPES.get(str(item.type))
        if types is None:  # steps, reboots and history, whose own values are checked
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{item.name} is no {item.type}")
        least = _LEAST.get(type(record), 0.0)
        if isinstance(value, (int, float)) and not least <= value < LONGEST:  # nor not-a-number
            raise ValueError(f"{item.name} is out of range")
    return record


def _hardware(record: Checkpoint) -> tuple[str, str]:
    return record.machine_id, record.product_uuid


def _same_machine(found: Checkpoint, facts: Facts) -> bool:
    """Whether the record is this machine's; what its ids lacked it learns.

    Instance-id and UUID count only where both sides have one: the file may precede cloud-init,
    and a hypervisor may begin to tell a UUID. A record without machine-id is foreign to every
    machine that has one.
    """
    for ours, theirs in (
        (facts.instance_id, found.instance_id),
        (facts.product_uuid, found.product_uuid),
    ):
        if ours and theirs and ours != theirs:
            return False
    found.instance_id = found.instance_id or facts.instance_id
    found.product_uuid = found.product_uuid or facts.product_uuid
    return found.machine_id == facts.machine_id
