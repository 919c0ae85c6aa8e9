"""The health daemon: looks at a ready node's GPUs and says where people look; repairs nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gpuboot import condition, config, dropin, exposition, nvml, sensors, status, systemd, xids
from gpuboot.clock import stamp
from gpuboot.errors import GpubootError
from gpuboot.health import FINE, UNHEALTHY, Health, unseen
from gpuboot.kmsg import Kmsg
from gpuboot.sensors import Errors, Nvml

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.health import Sign
    from gpuboot.host import Host

log = logging.getLogger(__name__)

FILE = "/run/gpuboot/health.json"
KMSG = "/dev/kmsg"
# Where Node Feature Discovery looks for features of a host (its source "local").
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"
DRILL = "/run/gpuboot/drill"  # lines of the kernel's, as an operator pretends them
SCHEMA = 1
NO_FOLDER = "there is no folder"
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
    looks: int = 0
    _kmsg: Kmsg | None = None
    _around: frozenset[str] = frozenset()  # the checks that are made at some looks only
    # The sandbox is older than a folder that it could write to: systemd has to start us anew.
    outgrown: bool = False
    _announced: dict[str, str] = field(default_factory=dict)
    _unwritten: str = ""  # why the textfile could not be written, told once

    def look(self) -> dict[str, Any]:
        """Look once, and write down what there is to know; the document of health.json."""
        standing = status.told(self.host)
        found = self._look(standing)
        self.host.write(FILE, json.dumps(found, ensure_ascii=False) + "\n")
        self._expose(found, standing)
        self._announce(condition.news(found))
        return found

    def seen(self) -> dict[str, Any]:
        """Look once, and only say it."""
        return self._look(status.told(self.host))

    def _look(self, standing: dict[str, Any]) -> dict[str, Any]:
        seen = self.ask()
        signs = {"kernel log": self._read_kernel()}
        signs |= sensors.signs(self.host, standing["gpus"], seen, self.errors)
        if self.looks % SURROUNDINGS == 0:  # a look that was not made is no second one
            around = self._surroundings()
            self._around = frozenset(around)
            signs |= around
        self.looks += 1
        for text in self.health.look(self.host.clock.boottime(), signs, self._around):
            log.warning("%s", text)
        return self._document(seen, standing)

    def close(self) -> None:
        """Let go of the kernel's log."""
        if self._kmsg:
            self._kmsg.close()

    def _surroundings(self) -> dict[str, Sign]:
        try:
            data = dropin.data_dir(self.host, self.wanted.rke2.config.data_dir)
        except GpubootError as error:
            return {"runtime": unseen(error.message)}
        return sensors.surroundings(self.host, joined=self.wanted.mode != "none", data=data)

    def _read_kernel(self) -> Sign:
        """Take in what the kernel has said since the last look."""
        sign, said = FINE, []
        try:
            self._kmsg = self._kmsg or Kmsg(self.host.path(KMSG))
            said = self._kmsg.lines()
        except OSError as error:
            sign = unseen(f"{KMSG}: {error.strerror}")
        for line in [*said, *self._pretended()]:
            if event := xids.read(line):
                log.warning("Xid %d of %s: %s", event.number, event.pci, event.kind.meaning)
                self.errors.take(event)
        return sign

    def _pretended(self) -> list[str]:
        """What `gpuboot monitor --drill` has laid down; taken once."""
        text = self.host.read(DRILL)
        if text:
            self.host.remove(DRILL)
        return (text or "").splitlines()

    def _document(self, seen: Nvml, standing: dict[str, Any]) -> dict[str, Any]:
        worst = self.health.worst
        now = self.host.clock.now()
        return {
            "schema": SCHEMA,
            "state": self.health.state,
            "boot_id": standing["boot_id"],
            "node": _together(standing["state"], self.health.state),
            "reason": worst.reason if worst else "",
            "action": worst.action if worst else xids.NONE,
            "advice": xids.ADVICE[worst.action] if worst else "",
            "faults": [asdict(fault) for fault in self.health.faults.values()],
            "blind": dict(self.health.blind),
            "expected": len(standing["gpus"]),
            "gpus": [asdict(card) for card in seen.cards],
            "xids": [{"pci": place, "xid": number, "count": count}
                     for (place, number), count in self.errors.counts.items()],
            "checked": stamp(now),
            "timestamp": round(now.timestamp(), 3),
            "boottime": round(self.host.clock.boottime(), 2),
            "interval": self.wanted.monitor.interval,
        }  # fmt: skip

    def _announce(self, news: dict[str, str]) -> None:
        """Leave what the cluster is to be told to whoever has a network, when it is news."""
        if news == self._announced:
            return
        self.host.write(condition.FILE, json.dumps(news, ensure_ascii=False) + "\n")
        self._announced = news
        if self.host.exists(FEATURES):
            with suppress(GpubootError):  # the sandbox of a node that got NFD later: the next start
                self.host.write(f"{FEATURES}/gpuboot", _features(news))

    def _expose(self, found: dict[str, Any], standing: dict[str, Any]) -> None:
        """Write the textfile. Where it cannot be, that is told once and tried again."""
        file = self.wanted.monitor.textfile
        if not file:
            return
        folder = file.rpartition("/")[0]
        try:
            if not self.host.exists(folder or "/"):
                why = f"{NO_FOLDER} {folder}"
            else:
                told = {**standing, "state": found["node"]}
                self.host.write(file, exposition.text(found, told))
                why = ""
        except GpubootError as error:
            why = error.message
            self.outgrown = self._unwritten.startswith(NO_FOLDER)
        if why and why != self._unwritten:
            log.warning("textfile: %s", why)
        self._unwritten = why


def _features(news: dict[str, str]) -> str:
    """Labels below feature.node.kubernetes.io, for who schedules by them."""
    action = news["action"].replace(" ", "-")
    return f"gpuboot-gpus.state={news['state']}\ngpuboot-gpus.action={action}\n"


def _together(standing: str, health: str) -> str:
    """The node's state: what the walk said of it, unless something has happened since."""
    return "degraded" if (standing, health) == ("ready", UNHEALTHY) else standing


def run(host: Host) -> None:
    """Look until Stopped is raised, or until systemd has to start us anew. Raises ConfigError."""
    monitor = Monitor(host, config.load(host))
    systemd.notify("READY=1")
    try:
        while not monitor.outgrown:
            found = {}
            with suppress(GpubootError):  # a full /run: the next look may be told again
                found = monitor.look()
            systemd.notify(f"WATCHDOG=1\nSTATUS={found.get('state', 'cannot write')}"
                           f" {found.get('reason', '')}"[:400])  # fmt: skip
            host.sleep(monitor.wanted.monitor.interval)
    finally:
        monitor.close()
