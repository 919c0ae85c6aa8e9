"""The health daemon: looks at a ready node's GPUs and says where people look; repairs nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuboot import config, dropin, exposition, news, nvml, sensors, status, systemd, xids
from gpuboot.clock import stamp
from gpuboot.config import ConfigError
from gpuboot.errors import GpubootError
from gpuboot.health import BLIND, FINE, UNHEALTHY, Fault, Health, Verdict, unseen
from gpuboot.kmsg import Kmsg
from gpuboot.sensors import QUIET, Errors, Nvml

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.health import Sign
    from gpuboot.host import Host

log = logging.getLogger(__name__)

FILE = "/run/gpuboot/health.json"
KMSG = "/dev/kmsg"
DRILL = "/run/gpuboot/drill"  # lines of the kernel's, as an operator pretends them
SCHEMA = 1
SURROUNDINGS = 4  # looks at the cards for one at what they live on


def ask() -> Nvml:
    """NVML through pynvml, or what stands in for it."""
    return sensors.ask(nvml.binding())


@dataclass
class Monitor:
    """Everything that is remembered from look to look; `look` is one of them."""

    host: Host
    wanted: Config
    ask: Callable[[], Nvml] = ask
    health: Health = field(default_factory=Health)
    errors: Errors = field(default_factory=Errors)
    textfile: exposition.Textfile = field(default_factory=exposition.Textfile)
    looks: int = 0
    # This process has a library that was replaced since: systemd has to start us anew.
    stale: bool = False
    _kmsg: Kmsg | None = None
    _around: frozenset[str] = frozenset()  # the checks that are made at some looks only
    _announced: dict[str, str] = field(default_factory=dict)
    _refused: str = ""  # why the configuration as it is now was not taken

    @property
    def outgrown(self) -> bool:
        """Whether only another start can go on."""
        return self.stale or self.textfile.outgrown

    def resume(self) -> None:
        """Go on from what a monitor before us saw in this boot: a restart is no recovery."""
        try:
            found = json.loads(self.host.read(FILE) or "")
            if found["boot_id"] != status.told(self.host)["boot_id"]:
                return
            faults = [
                Fault(one["check"], one["reason"], one["action"], one["since"], one["advice"])
                for one in found["faults"]
            ]
            self.health.resume(faults, found["blind"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # not there yet, or not ours

    def look(self) -> dict[str, Any]:
        """Look once, and write down what there is to know; the document of health.json."""
        standing = status.told(self.host)
        found = self._look(standing)
        self.host.write(FILE, json.dumps(found, ensure_ascii=False) + "\n")
        if self.wanted.monitor.textfile:
            metrics = exposition.text(found, {**standing, "state": found["node"]})
            self.textfile.write(self.host, self.wanted.monitor.textfile, metrics)
        self._announce(news.of(found))
        return found

    def seen(self) -> dict[str, Any]:
        """Look once, and only say it."""
        return self._look(status.told(self.host))

    def _look(self, standing: dict[str, Any]) -> dict[str, Any]:
        seen = self.ask()
        signs = {"kernel log": self._read_kernel()}
        signs |= sensors.signs(self.host, standing["gpus"], seen, self.errors)
        if self.looks % SURROUNDINGS == 0:  # a look that was not made is no second one
            if self.looks:
                self._reread()
            around = self._surroundings(standing)
            self._around = frozenset((*around, *news.CHECKS))
            signs |= around
        self.looks += 1
        # Not at once: what a library that is being replaced says for a moment is no reason yet.
        self.stale = self.looks >= BLIND and sensors.stale(self.host, seen)
        for text in self.health.look(self.host.clock.boottime(), signs, self._around):
            log.warning("%s", text)
        return self._document(seen, standing)

    def close(self) -> None:
        """Let go of the kernel's log."""
        if self._kmsg:
            self._kmsg.close()

    def _reread(self) -> None:
        """Take the configuration as it is now; one that is wrong is told once."""
        why = ""
        try:
            self.wanted = config.load(self.host)
        except ConfigError as error:
            why = error.message
            if why != self._refused:
                log.warning("the configuration is not taken: %s", why)
        self._refused = why

    def _surroundings(self, standing: dict[str, Any]) -> dict[str, Sign]:
        try:
            data = dropin.data_dir(self.host, self.wanted.rke2.config.data_dir)
        except GpubootError as error:
            return {"runtime": unseen(error.message)}
        joins = self.wanted.mode != "none"
        found = sensors.surroundings(self.host, joined=joins, data=data)
        if joins:
            found |= news.signs(self.host, standing)
        return found

    def _read_kernel(self) -> Sign:
        """Take in what the kernel has said since the last look."""
        sign, said, now = FINE, [], self.host.clock.boottime()
        try:
            self._kmsg = self._kmsg or Kmsg(self.host.path(KMSG))
            said = self._kmsg.lines()
        except OSError as error:
            sign = unseen(f"{KMSG}: {error.strerror}")
        fresh = now - QUIET * self.wanted.monitor.interval
        for when, line in [*said, *((now, line) for line in self._pretended())]:
            event = xids.read(line)
            if event is None:
                continue
            self.errors.take(event, fresh=when > fresh)
            if when > fresh:  # the kernel's log begins with the boot, and we may be started late
                log.warning("Xid %d of %s: %s", event.number, event.pci, event.kind.meaning)
        return sign

    def _pretended(self) -> list[str]:
        """What `gpuboot monitor --drill` has laid down; taken once."""
        text = self.host.read(DRILL)
        if text:
            self.host.remove(DRILL)
        return (text or "").splitlines()

    def _document(self, seen: Nvml, standing: dict[str, Any]) -> dict[str, Any]:
        whole = self.health.verdict()
        now = self.host.clock.now()
        return {
            "schema": SCHEMA,
            **_told(whole),
            # The cards by themselves: where a node lacks something else, they can still work.
            "gpu": _told(self.health.verdict(lambda check: check not in sensors.AROUND)),
            "boot_id": standing["boot_id"],
            "node": _together(standing["state"], whole.state),
            "faults": [_shown(fault) for fault in self.health.faults.values()],
            "blind": dict(self.health.blind),
            "expected": len(standing["gpus"]),
            "gpus": [card.shown() for card in seen.cards],
            "xids": [{"pci": place, "xid": number, "count": count}
                     for (place, number), count in self.errors.counts.items()],
            "checked": stamp(now),
            "timestamp": round(now.timestamp(), 3),
            "boottime": round(self.host.clock.boottime(), 2),
            "interval": self.wanted.monitor.interval,
        }  # fmt: skip

    def _announce(self, told: dict[str, str]) -> None:
        """Leave what the cluster is to be told to whoever has a network, when it is news."""
        if told == self._announced:
            return
        self.host.write(news.FILE, json.dumps(told, ensure_ascii=False) + "\n")
        self._announced = told
        if self.host.exists(news.FEATURES):
            with suppress(GpubootError):  # the sandbox of a node that got NFD later: the next start
                self.host.write(f"{news.FEATURES}/gpuboot", news.features(told))


def _told(verdict: Verdict) -> dict[str, str]:
    worst = verdict.worst
    return {
        "state": verdict.state,
        "reason": worst.reason if worst else "",
        "action": worst.action if worst else xids.NONE,
        "advice": worst.advice if worst else "",
    }


def _shown(fault: Fault) -> dict[str, Any]:
    return {
        "check": fault.check,
        "about": "node" if fault.check in sensors.AROUND else "gpu",
        "reason": fault.reason,
        "action": fault.action,
        "advice": fault.advice,
        "since": fault.since,
    }


def _together(standing: str, health: str) -> str:
    """The node's state: what the walk said of it, unless something has happened since."""
    return "degraded" if (standing, health) == ("ready", UNHEALTHY) else standing


def run(host: Host) -> None:
    """Look until Stopped is raised, or until systemd has to start us anew. Raises ConfigError."""
    monitor = Monitor(host, config.load(host))
    monitor.resume()
    systemd.notify("READY=1")
    unwritten = ""
    try:
        while not monitor.outgrown:
            try:
                found = monitor.look()
                told, unwritten = f"{found['state']} {found['reason']}", ""
            except GpubootError as error:  # a full /run: the next look may be told again
                told = error.message
                if told != unwritten:
                    log.warning("what was seen cannot be told: %s", told)
                unwritten = told
            systemd.notify(f"WATCHDOG=1\nSTATUS={told}"[:400])
            host.sleep(monitor.wanted.monitor.interval)
    finally:
        monitor.close()
