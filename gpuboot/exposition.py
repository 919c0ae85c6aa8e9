"""What the monitor knows, as a Prometheus textfile for node_exporter's collector.

Names and units follow Prometheus' conventions (base units, _total for counters); a card is named by
its place on the PCI bus and its UUID, as DCGM's exporter does, so that the two can be joined.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

Labels = Mapping[str, object]
Samples = Iterable[tuple[Labels, float]]

STATES = ("idle", "running", "waiting", "rebooting", "ready", "degraded", "failed")


NO_FOLDER = "there is no folder"


@dataclass
class Textfile:
    """Where the metrics go. That it cannot be written is told once, and it is tried again."""

    # The sandbox is older than a folder that it could write to: only another start can.
    outgrown: bool = False
    _unwritten: str = ""  # why

    def write(self, host: Host, file: str, metrics: str) -> None:
        """Replace the file; one that cannot be is no error of the node's."""
        folder, why = file.rpartition("/")[0] or "/", ""
        if not host.exists(folder):
            why = f"{NO_FOLDER} {folder}"
        else:
            try:
                host.write(file, metrics)
            except GpubootError as error:
                why = error.message
                self.outgrown = self._unwritten.startswith(NO_FOLDER)
        if why and why != self._unwritten:
            log.warning("textfile: %s", why)
        self._unwritten = why


def text(health: Mapping[str, Any] | None, status: Mapping[str, Any]) -> str:
    """The whole file, from the monitor's document and the one of `gpuboot status --json`.

    Without a monitor, as before a node is ready, it is the walk's part alone.
    """
    families = (*_of_the_walk(status), *(_of_the_cards(health) if health else ()))
    return "".join(_family(*family) for family in families)


def _family(name: str, kind: str, told: str, samples: Samples) -> str:
    lines = [f"{name}{_labels(labels)} {value:.15g}\n" for labels, value in samples]
    if not lines:
        return ""
    return f"# HELP {name} {told}\n# TYPE {name} {kind}\n" + "".join(lines)


def _labels(labels: Labels) -> str:
    told = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


Family = tuple[str, str, str, Samples]


def _of_the_walk(status: Mapping[str, Any]) -> Iterator[Family]:
    steps = [one for one in status["steps"] if "seconds" in one]
    yield ("gpuboot_info", "gauge", "The version of gpuboot.",
           [({"version": status["gpuboot"]}, 1)])  # fmt: skip
    yield ("gpuboot_state", "gauge", "1 for the state that the node is in, else 0.",
           [({"state": one}, status["state"] == one) for one in STATES])  # fmt: skip
    yield ("gpuboot_step_duration_seconds", "gauge", "What a step of the bootstrap took.",
           [({"step": one["name"]}, one["seconds"]) for one in steps])  # fmt: skip
    yield ("gpuboot_step_attempts", "gauge", "How often a step of the bootstrap was applied.",
           [({"step": one["name"]}, one["attempts"]) for one in steps])  # fmt: skip
    yield ("gpuboot_reboots", "gauge", "Reboots that the bootstrap has spent.",
           [({}, status["reboots"]["spent"])])  # fmt: skip
    yield ("gpuboot_boots", "gauge", "Boots in which gpuboot has walked.", [({}, status["boots"])])
    if status["seconds_to_ready"] is not None:
        yield ("gpuboot_bootstrap_duration_seconds", "gauge", "From the first walk to ready.",
               [({}, status["seconds_to_ready"])])  # fmt: skip


def _of_the_cards(health: Mapping[str, Any]) -> Iterator[Family]:
    cards = [({"pci": one["pci"], "uuid": one["uuid"]}, one) for one in health["gpus"]]
    yield ("gpuboot_gpus_expected", "gauge", "GPUs that were proven when the node became ready.",
           [({}, health["expected"])])  # fmt: skip
    yield ("gpuboot_gpus_answering", "gauge", "GPUs that answer NVML now.", [({}, len(cards))])
    yield ("gpuboot_gpu_healthy", "gauge", "1 while nothing is known to be wrong with the GPUs.",
           [({}, health["gpu"]["state"] != "unhealthy")])  # fmt: skip
    yield (
        "gpuboot_fault",
        "gauge",
        "1 for each thing that is wrong with a GPU or its node, with what is to be done.",
        [
            ({"check": one["check"], "about": one["about"], "action": one["action"]}, 1)
            for one in health["faults"]
        ],
    )
    yield ("gpuboot_check_blind", "gauge", "1 for each check that cannot see anything.",
           [({"check": check}, 1) for check in health["blind"]])  # fmt: skip
    yield (
        "gpuboot_xid_errors_total",
        "counter",
        "Xid errors of the driver in this boot.",
        [({"pci": one["pci"], "xid": one["xid"]}, one["count"]) for one in health["xids"]],
    )
    for name, told, key, scale in (
        ("gpuboot_gpu_temperature_celsius", "The card's temperature.", "temperature_c", 1),
        ("gpuboot_gpu_memory_used_bytes", "Memory in use.", "memory_used_mib", 1 << 20),
        ("gpuboot_gpu_memory_bytes", "All of its memory.", "memory_mib", 1 << 20),
        ("gpuboot_gpu_power_watts", "The power that it draws.", "power_w", 1),
        (
            "gpuboot_gpu_persistence_mode",
            "1 while its driver stays initialised without a client.",
            "persistence",
            1,
        ),
    ):
        known = [(labels, one[key] * scale) for labels, one in cards if one[key] is not None]
        yield (name, "gauge", told, known)
    yield ("gpuboot_last_look_timestamp_seconds", "gauge", "When the monitor looked last.",
           [({}, health["timestamp"])])  # fmt: skip
