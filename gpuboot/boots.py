"""What took how long in each boot: the machine's own phases around the steps of the walk.

Seconds count from the start of the kernel (CLOCK_BOOTTIME); firmware and boot loader lie before it.
The phases of the boot that runs are asked of systemd, whose clocks end with it; those of earlier
boots were asked before they ended, and lie in the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuboot.host import Host

KEPT = 12  # boots; a node that is rebooted for ever must not grow its record
SPANS = 80  # of one boot
NOTEWORTHY = 0.5  # seconds; a check that takes less is not told of
APPLYING = "running"
QUIET = ("ok", "pending")  # pending without being applied: a live node, which is only looked at

# systemd's own instants of the boot (systemd.directives(7), org.freedesktop.systemd1(5)).
_MANAGER = ("FirmwareTimestampMonotonic", "LoaderTimestampMonotonic",
            "InitRDTimestampMonotonic", "UserspaceTimestampMonotonic")  # fmt: skip
_UNIT = ("Id", "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic",
         "ActiveExitTimestampMonotonic")  # fmt: skip
# cloud-init's stages; cloud-init 24.3 has renamed two of them.
STAGES = ("cloud-init-local.service", "cloud-init-main.service", "cloud-init.service",
          "cloud-init-network.service", "cloud-config.service", "cloud-final.service")  # fmt: skip
OWN = "gpuboot.service"  # ready before its first step: until then it starts
AGENT = "rke2-agent.service"


# How long the steps take on a fresh node, in seconds, where this machine's own times are not known.
# Measured on two cores; everything else is instant.
TYPICAL: Mapping[str, float] = {
    "packages": 90.0,
    "driver-built": 150.0,
    "rke2-installed": 20.0,
    "node-joined": 60.0,
}
REBOOT = 40.0  # seconds from one walk to the next, as a virtual machine with BIOS takes


@dataclass(frozen=True)
class Phase:
    """A part of a boot that is not gpuboot's: firmware, kernel, a stage of cloud-init …"""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Span:
    """What one step took in one go; `state` is how that ended, running where it was cut off."""

    step: str
    state: str
    begin: float
    end: float
    reason: str = ""


@dataclass
class Boot:
    """One boot, as far as it was seen."""

    boot_id: str
    kernel: str
    began: str  # the wall clock when the kernel started, as stamp() writes it
    phases: list[Phase] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    ended: str = ""  # how the walk did: ready, degraded, failed, waiting, or the reboot's reason
    over: float | None = None  # when it ended so


@dataclass
class Recorder:
    """Turns the walk's news into spans of this boot; whoever saves the checkpoint writes them."""

    boot: Boot
    last: float  # the time of the last news
    begun: tuple[str, float] | None = None  # the step that is being applied, and since when

    def resume(self, now: float) -> None:
        """Another walk begins. What the one before it had waited for went on until now."""
        self.last = now
        if self._waiting():
            self._end(now)

    def hear(self, now: float, step: str, state: str, reason: str) -> None:
        """A step has a new state."""
        if state == APPLYING:
            if self.begun is None:
                self.begun = (step, now)
                self._add(Span(step, APPLYING, now, now, reason))
            return
        if self.begun is not None:
            self.boot.spans.pop()
            self._add(Span(step, state, self.begun[1], now, reason))
        elif state not in QUIET or (now - self.last >= NOTEWORTHY and not self._waiting()):
            self._add(Span(step, state, self.last, now, reason))
        self.begun, self.last = None, now

    def _add(self, span: Span) -> None:
        """One that waits for the same again, or still, is one long wait."""
        spans = self.boot.spans
        if self._waiting() and span.state == "waiting" and span.step == spans[-1].step:
            self._end(span.end)
        elif len(spans) < SPANS:
            spans.append(span)
        else:
            spans[-1] = span

    def _waiting(self) -> bool:
        """Whether the last thing was to wait: what is looked at again then is no news."""
        return bool(self.boot.spans) and self.boot.spans[-1].state == "waiting"

    def _end(self, now: float) -> None:
        last = self.boot.spans[-1]
        self.boot.spans[-1] = Span(last.step, last.state, last.begin, now, last.reason)


def usual(history: Sequence[Boot]) -> dict[str, float]:
    """How long each step took on this machine when it was last done, in seconds."""
    done = (span for boot in history for span in boot.spans if span.state == "ok")
    return {span.step: span.end - span.begin for span in done}


def reboot(history: Sequence[Boot]) -> float:
    """How long this machine takes to be back at its walk, its firmware included, in seconds."""
    begun = [boot for boot in history if boot.spans]
    if not begun:
        return REBOOT
    firmware = min((phase.begin for phase in begun[-1].phases), default=0.0)
    return begun[-1].spans[0].begin - min(firmware, 0.0)


def waited(boot: Boot, name: str, begin: float, end: float) -> None:
    """Note what was waited for outside any step, if it took long enough to be told of."""
    if end - begin >= NOTEWORTHY:
        boot.spans.append(Span(name, "waiting", begin, end))


def phases(host: Host) -> list[Phase]:
    """The phases of this boot, in order; none where systemd does not answer."""
    said = host.run(["systemctl", "show", f"--property={','.join(_MANAGER)}"]).out
    instants = {name: int(value) / 1e6 for name, value in re.findall(r"^(\w+)=(\d+)$", said, re.M)}
    wanted = f"--property={','.join(_UNIT)}"
    units = host.run(["systemctl", "show", wanted, *STAGES, OWN, AGENT]).out
    return [*_before_systemd(instants), *_of_units(units)]


def _before_systemd(instants: dict[str, float]) -> list[Phase]:
    """Firmware and loader count back from the kernel's start; zero is unknown."""
    firmware, loader, initrd, userspace = (instants.get(name, 0.0) for name in _MANAGER)
    found = []
    if firmware > loader:
        found.append(Phase("firmware", -firmware, -loader))
    if loader:
        found.append(Phase("boot loader", -loader, 0.0))
    if initrd or userspace:
        found.append(Phase("kernel", 0.0, initrd or userspace))
    if initrd and userspace:
        found.append(Phase("initramfs", initrd, userspace))
    return found


def _of_units(text: str) -> list[Phase]:
    found = []
    for block in text.split("\n\n"):
        values = dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE))
        begin, entered, left = (int(values.get(name) or 0) / 1e6 for name in _UNIT[1:])
        unit = values.get("Id", "")
        # A oneshot that stays active was done when it entered; one that does not, when it left.
        end = entered or left
        if unit and begin and end >= begin:
            name = unit.removesuffix(".service")
            found.append(Phase(f"{name} starts" if unit == OWN else name, begin, end))
    return sorted(found, key=lambda phase: phase.begin)
