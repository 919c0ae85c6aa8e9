"""Where the time went, across boots: what the checkpoint remembers, and systemd of this boot."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gpuboot import boots, checkpoint
from gpuboot.boots import Boot
from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_TIMELINE = Code(
    "GB040",
    "there is no timeline yet",
    (
        "gpuboot has not walked on this machine.",
        "Its record was deleted, or is of another machine that this one was cloned from.",
    ),
    ("gpuboot run", "gpuboot status", "journalctl -u gpuboot"),
    evidence="/var/lib/gpuboot/checkpoint.json",
)

SCHEMA = 1
SEEN = 0.05  # seconds
LOOKING = 1.5  # seconds between the end of what is waited for and the next look
TOUCHING = 0.5  # seconds between two bars of which the second is taken to follow on the first


@dataclass(frozen=True)
class Bar:
    """One row of the picture; `kind` is machine or step, `state` a step's, in seconds of its boot.

    `critical`: had it been shorter, the boot would have come to its end sooner.
    """

    name: str
    kind: str
    state: str
    begin: float
    end: float
    critical: bool
    reason: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True)
class Chart:
    """One boot as a picture; `ended` is empty for one whose walk is not over or was cut off."""

    boot_id: str
    kernel: str
    began: str
    ended: str
    over: float | None
    bars: tuple[Bar, ...]

    @property
    def shown(self) -> tuple[Bar, ...]:
        """What a picture has room for: not what took no time and went well."""
        return tuple(bar for bar in self.bars if bar.seconds >= SEEN or bar.state != "ok")

    @property
    def begin(self) -> float:
        """The first instant that there is something of, in seconds; before zero the firmware's."""
        return min((bar.begin for bar in self.bars), default=0.0)

    @property
    def end(self) -> float:
        """The last one."""
        return max((bar.end for bar in self.bars), default=0.0)


@dataclass(frozen=True)
class Timeline:
    """All boots that are remembered, the oldest first."""

    host: str
    seconds_to_ready: float | None
    reboots: int
    boots: tuple[Chart, ...]

    def document(self) -> dict[str, Any]:
        """The content of `gpuboot timeline --json`."""
        return {"schema": SCHEMA, **asdict(self)}


def read(host: Host) -> Timeline:
    """The timeline of this machine. Raises GB040 where nothing is remembered."""
    record = checkpoint.remembered(host)
    if record is None or not record.history:
        raise GpubootError(NO_TIMELINE, "nothing is remembered of any boot of this machine")
    boot_id = (host.read("/proc/sys/kernel/random/boot_id") or "").strip()
    charts = []
    for boot in record.history:
        now = boots.phases(host) if boot.boot_id == boot_id else []
        # A unit that was started again meanwhile has other instants by now.
        known = {phase.name for phase in boot.phases}
        phases = [*boot.phases, *(phase for phase in now if phase.name not in known)]
        charts.append(chart(boot, phases))
    return Timeline(
        socket.gethostname(), record.seconds_to_ready, len(record.reboots), tuple(charts)
    )


def chart(boot: Boot, phases: Sequence[boots.Phase]) -> Chart:
    """One boot's bars in the order of their beginning, the critical path marked; pure."""
    bars = [Bar(one.name, "machine", "ok", one.begin, one.end, critical=False) for one in phases]
    bars += [
        Bar(one.step, "step", one.state, one.begin, one.end, critical=False, reason=one.reason)
        for one in boot.spans
    ]
    path = _critical(bars)
    marked = (Bar(**{**asdict(bar), "critical": bar in path}) for bar in bars)
    ordered = sorted(marked, key=lambda bar: (bar.begin, bar.end))
    return Chart(boot.boot_id, boot.kernel, boot.began, boot.ended, boot.over, tuple(ordered))


def _critical(bars: Sequence[Bar]) -> set[Bar]:
    """The chain that led to the end: back from the last step, each time what had just ended."""
    path: set[Bar] = set()
    last = max((bar for bar in bars if bar.kind == "step"), key=lambda bar: bar.end, default=None)
    if last and last.state == "waiting":
        last = _waited_for(last, bars) or last
    while last:
        path.add(last)
        before = [bar for bar in bars if bar not in path and bar.end <= last.begin + TOUCHING
                  and bar.begin < last.begin]  # fmt: skip
        last = max(before, key=lambda bar: bar.end, default=None)
    return path


def _waited_for(wait: Bar, bars: Sequence[Bar]) -> Bar | None:
    """The part of the machine with whose end the wait ended: a reboot waits for cloud-init."""
    machine = (bar for bar in bars if bar.kind == "machine" and bar.begin < wait.end)
    ended = (bar for bar in machine if 0 <= wait.end - bar.end <= LOOKING)
    return max(ended, key=lambda bar: bar.end, default=None)
