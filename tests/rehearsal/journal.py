"""What the node's journal tells about the order of events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHUTDOWN = ("graphical.target", "multi-user.target")  # the first to be stopped


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    boot: str
    seconds: float  # since that boot
    program: str
    unit: str  # the unit that systemd speaks about, if it does
    job: str  # start or stop, likewise
    result: str
    message: str

    def __str__(self) -> str:
        return f"{self.boot[:8]} {self.seconds:10.3f} {self.program}: {self.message}"


def parse(lines: Iterable[str]) -> list[Entry]:
    """The output of `journalctl --output=json`."""
    return [_entry(json.loads(line)) for line in lines if line.startswith("{")]


def _entry(fields: dict[str, object]) -> Entry:
    def text(name: str) -> str:
        value = fields.get(name, "")
        if isinstance(value, list):  # bytes that are not text
            return bytes(value).decode(errors="replace")
        return str(value)

    return Entry(
        boot=text("_BOOT_ID"),
        seconds=int(text("__MONOTONIC_TIMESTAMP") or 0) / 1e6,
        program=text("SYSLOG_IDENTIFIER") or text("_COMM"),
        unit=text("UNIT"),
        job=text("JOB_TYPE"),
        result=text("JOB_RESULT"),
        message=text("MESSAGE"),
    )


def early_reboots(entries: Sequence[Entry], rebooted: Sequence[str]) -> list[str]:
    """Findings for boots that were ended by a reboot before cloud-final had ended."""
    findings = []
    for boot in rebooted:
        of_boot = [entry for entry in entries if entry.boot == boot.replace("-", "")]
        stops = (e.seconds for e in of_boot if e.unit in SHUTDOWN and e.job == "stop")
        stopped = next(stops, float("inf"))
        ended = next((e.seconds for e in of_boot if _cloud_final_ended(e)), None)
        if ended is None or ended > stopped:
            findings.append(f"boot {boot}: expected a reboot after cloud-final / found one before")
    return findings


def _cloud_final_ended(entry: Entry) -> bool:
    """It has ended, or never will: on Debian 13 it waits for a process that was killed."""
    killed = entry.message == "cloud-init-main.service: Failed with result 'signal'."
    done = entry.unit == "cloud-final.service" and entry.job == "start" and bool(entry.result)
    return done or killed


def walk_delay(entries: Sequence[Entry], boot: str) -> float | None:
    """Seconds from the start of cloud-final (so of runcmd) to gpuboot.service's."""
    of_boot = [entry for entry in entries if entry.boot == boot.replace("-", "")]
    asked = _first(of_boot, "cloud-final.service", "Starting")
    began = _first(of_boot, "gpuboot.service", "Started")
    return None if asked is None or began is None else began - asked


def _first(entries: Sequence[Entry], unit: str, word: str) -> float | None:
    found = (e.seconds for e in entries if e.unit == unit and e.message.startswith(word))
    return next(found, None)
