"""What the driver's Xid errors mean, and what is to be done about each.

From NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors) and the driver's nverror.h; for a T4,
which has page retirement and neither NVLink nor row remapping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# What somebody has to do, the gentlest first; the monitor itself does none of it.
NONE, RESET, REBOOT, DRAIN, REPLACE = "none", "reset", "reboot", "drain and reboot", "replace"
ACTIONS = (NONE, RESET, REBOOT, DRAIN, REPLACE)
ADVICE: Mapping[str, str] = {
    NONE: "nothing, if it passes; journalctl -u gpuboot-monitor -n 50",
    RESET: "drain the node, then reset the GPU (nvidia-smi --gpu-reset) or reboot",
    REBOOT: "reboot",
    DRAIN: "drain the node, then reboot",
    REPLACE: "drain the node, power the VM off and on; if it comes again, check passthrough"
             " and replace the card",
}  # fmt: skip


@dataclass(frozen=True)
class Xid:
    """A kind of error. One with the action none is counted, and makes no GPU unhealthy."""

    name: str  # nverror.h's, in words
    meaning: str
    action: str


XIDS: Mapping[int, Xid] = {
    13: Xid("graphics engine exception", "a program made an illegal access or instruction", NONE),
    31: Xid("memory page fault", "a program accessed memory that is not its own", NONE),
    43: Xid("stopped processing", "a program's error ended its work on the GPU", NONE),
    45: Xid("preemptive cleanup", "work was taken off the GPU after an error or a kill", NONE),
    48: Xid("double-bit ECC error", "memory holds an error that cannot be corrected", DRAIN),
    62: Xid("micro-controller halt", "the card's power management has stopped", RESET),
    63: Xid("page retirement recorded",
            "a bad page of memory is taken out of use at the next reset", NONE),
    64: Xid("page retirement failed", "a bad page of memory could not be taken out of use", RESET),
    68: Xid("video processor exception", "a program's error in the video engine", NONE),
    74: Xid("NVLink error", "a link between GPUs failed; a T4 has none", RESET),
    79: Xid("fallen off the bus", "the card does not answer on PCI Express any more", REPLACE),
    92: Xid("many single-bit ECC errors", "memory is corrected unusually often", NONE),
    94: Xid("contained ECC error", "a program was ended by an error in its memory", NONE),
    95: Xid("uncontained ECC error", "an error in memory may have reached other programs", DRAIN),
    109: Xid("context switch timeout", "a program did not let go of the GPU", RESET),
    119: Xid("GSP RPC timeout", "the card's GSP firmware does not answer", RESET),
    120: Xid("GSP error", "the card's GSP firmware has failed", RESET),
    140: Xid("unrecovered ECC error", "an error in memory was not recovered from", RESET),
    143: Xid("initialisation failed", "the card could not be initialised", RESET),
    158: Xid("fatal GPU timeout", "the card has timed out for good", RESET),
    167: Xid("PCIe fatal timeout", "the PCI Express link has timed out for good", REPLACE),
}  # fmt: skip
UNKNOWN = Xid("not in the catalogue", "an error that this gpuboot does not know", DRAIN)
RECOVERY = 154  # not an error: the driver says which recovery it wants by now

# `NVRM: Xid (PCI:0000:13:00 GPU-I:..): 79, pid=…, text` (kernel_rc.c): the address has no function.
_LINE = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+),?\s*(.*)")
_OFF_BUS = re.compile(r"NVRM: GPU (?:at PCI:)?([0-9a-fA-F:.]+?):? GPU has fallen off the bus")
_RECOVERY = re.compile(r"recovery action changed from 0x\w+ \([^)]*\) to 0x\w+ \(([^)]*)\)")
# The driver's words in Xid 154, and what they ask for.
_WANTED: Mapping[str, str] = {
    "None": NONE, "GPU Reset Required": RESET, "Node Reboot Required": REBOOT,
    "Drain P2P": DRAIN, "Drain and Reset": DRAIN,
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """An Xid that happened. `pci` is domain:bus:device, without the function, in lower case."""

    pci: str
    number: int
    text: str = ""

    @property
    def kind(self) -> Xid:
        """What it means."""
        return XIDS.get(self.number, UNKNOWN)

    @property
    def action(self) -> str:
        """What is to be done; of Xid 154 what the driver itself asks for."""
        if self.number == RECOVERY:
            match = _RECOVERY.search(self.text)
            return _WANTED.get(match[1], DRAIN) if match else NONE
        return self.kind.action

    def concerns(self, slot: str) -> bool:
        """Whether this is about the card at domain:bus:device.function."""
        return slot.rpartition(".")[0] == self.pci


def read(line: str) -> Event | None:
    """The error that a line of the kernel's log tells of; None for any other line."""
    if match := _LINE.search(line):
        return Event(_place(match[1]), int(match[2]), match[3].strip())
    if match := _OFF_BUS.search(line):
        return Event(_place(match[1]), 79, "GPU has fallen off the bus")
    return None


def _place(text: str) -> str:
    """domain:bus:device as sysfs writes it, whatever the driver's spelling."""
    domain, bus, device = text.lower().partition(".")[0].rjust(10, "0").split(":")[-3:]
    return f"{int(domain, 16):04x}:{bus}:{device}"
