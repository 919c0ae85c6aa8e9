"""What the cards say at this moment: temperature and memory, by nvidia-smi.

A program of its own is asked, and not for long: a driver in trouble can hold whoever asks it for
ever, and `gpuboot status` must answer then more than ever.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gpuboot.errors import Code, GpubootError, Stopped
from gpuboot.pci import slot
from gpuboot.process import NOT_EXECUTABLE, NOT_FOUND, Result

if TYPE_CHECKING:
    from gpuboot.host import Host

# By nvidia-smi's names for its --query-gpu, and by ours; degrees Celsius and MiB.
FIELDS = {
    "temperature.gpu": "temperature_c",
    "memory.used": "memory_used_mib",
}
QUESTION = ("nvidia-smi", f"--query-gpu=pci.bus_id,{','.join(FIELDS)}",
            "--format=csv,noheader,nounits")  # fmt: skip
PATIENCE = 2.0  # seconds

NO_ANSWER = Code(
    "GB306",
    "a GPU that worked does not answer any more",
    (
        "The card has fallen off the bus, or its driver has stopped working with it (an Xid).",
        "The driver's packages were replaced while its module stayed loaded.",
    ),
    ("nvidia-smi", "journalctl -k -g 'NVRM|Xid'", "gpuboot run"),
    evidence="what nvidia-smi says, asked by gpuboot status",
)


class Gauges:
    """A question that is asked beside whatever else is done, until somebody wants the answer."""

    def __init__(self, host: Host, patience: float = PATIENCE) -> None:
        self._host = host
        self._patience = patience  # seconds
        self._said: Result | None = None
        self._over = threading.Event()
        host.beside(self._ask)

    def _ask(self) -> None:
        try:
            self._said = self._host.run(QUESTION, timeout=self._patience)
        except (GpubootError, Stopped):
            pass  # no answer in time
        finally:
            self._over.set()

    def read(self) -> dict[str, dict[str, Any]]:
        """For each card, by its place on the PCI bus, the values of FIELDS; None: not known."""
        said = self._answer()
        if said is None or said.code != 0:
            return {}
        rows = (line.split(", ") for line in said.out.splitlines())
        return dict(_card(row) for row in rows if len(row) == len(FIELDS) + 1)

    @property
    def refusal(self) -> str | None:
        """What nvidia-smi said instead of an answer; None where it did answer, or is not there."""
        said = self._answer()
        if said is None or said.code in (0, NOT_EXECUTABLE, NOT_FOUND):
            return None
        return next(iter(said.said.splitlines()), f"ended with status {said.code}")

    def _answer(self) -> Result | None:
        self._over.wait(self._patience)
        return self._said


def _card(row: list[str]) -> tuple[str, dict[str, Any]]:
    values = (int(text) if text.strip().isdigit() else None for text in row[1:])
    return slot(row[0]), dict(zip(FIELDS.values(), values, strict=True))
