"""The GPUs on the PCI bus, as lspci sees them, or sysfs where lspci is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

DEVICES = "/sys/bus/pci/devices"
NVIDIA = "10de"
# VGA and 3D controllers; the vendor also makes bridges, audio functions and chipsets
# (open-gpu-kernel-modules osapi.c, rm_is_supported_pci_device).
GPU_CLASSES = ("0300", "0302")
UNSET = 0x20000000  # IORESOURCE_UNSET: the firmware gave this region no address

MODELS = {"1eb8": "Tesla T4"}  # for display before NVML answers; rules go by the id


@dataclass(frozen=True)
class Gpu:
    """A GPU on the bus. `slot` is domain:bus:device.function in lower case."""

    slot: str
    device: str  # four hex digits
    driver: str | None  # the kernel driver that holds it
    answers: bool = True  # False: its configuration space reads all ones
    subsystem: str = ""  # vendor and device of the board, such as 10de:12a2; empty: unknown

    @property
    def id(self) -> str:
        """Vendor and device, such as 10de:1eb8."""
        return f"{NVIDIA}:{self.device}"

    @property
    def regions(self) -> tuple[int, ...]:
        """The memory regions that it has for certain."""
        return (0, 1, 3) if self.device in MODELS else (0, 1)

    @property
    def model(self) -> str:
        """A name where we know one, else the id."""
        return MODELS.get(self.device, self.id)


def gpus(host: Host) -> tuple[Gpu, ...]:
    """NVIDIA's GPUs in the order of their slots; none is an answer."""
    result = host.run(["lspci", "-D", "-vmm", "-nn", "-k"], timeout=30)
    found = parse(result.out) if result.code == 0 else _from_sysfs(host)
    return tuple(sorted(found, key=lambda gpu: gpu.slot))


def parse(text: str) -> list[Gpu]:
    """The GPUs in the output of `lspci -D -vmm -nn -k` (facts: names hold brackets themselves)."""
    found = []
    for record in re.split(r"\n\s*\n", text):
        values = dict(re.findall(r"^(\w+):\t(.*)$", record, re.MULTILINE))
        if _id(values.get("Vendor")) == NVIDIA and _id(values.get("Class")) in GPU_CLASSES:
            found.append(
                Gpu(
                    values.get("Slot", "").lower(),
                    _id(values.get("Device")) or "ffff",
                    values.get("Driver"),
                    answers=values.get("Rev") != "ff",
                    subsystem=_both(_id(values.get("SVendor")), _id(values.get("SDevice"))),
                )
            )
    return found


def _both(vendor: str | None, device: str | None) -> str:
    return f"{vendor}:{device}" if vendor and device else ""


def _id(value: str | None) -> str | None:
    """The id in the last brackets: `TU104GL [Tesla T4] [1eb8]` is 1eb8."""
    match = re.search(r"\[([0-9a-fA-F]{4})\]\s*$", value or "")
    return match[1].lower() if match else None


def _from_sysfs(host: Host) -> list[Gpu]:
    found = []
    for slot in host.names(DEVICES):
        folder = f"{DEVICES}/{slot}"
        vendor, device, kind, *board = (
            (host.read(f"{folder}/{name}") or "").strip().removeprefix("0x").lower()
            for name in ("vendor", "device", "class", "subsystem_vendor", "subsystem_device")
        )
        if vendor == NVIDIA and kind[:4] in GPU_CLASSES:
            driver = (host.link(f"{folder}/driver") or "").rpartition("/")[2]
            revision = (host.read(f"{folder}/revision") or "").strip()
            answers = revision != "0xff"
            found.append(Gpu(slot, device, driver or None, answers, _both(*board)))
    return found


def unassigned(host: Host, gpu: Gpu) -> list[int]:
    """The numbers of the memory regions that have no address.

    One that the firmware could not place keeps its size and a flag; one that the kernel could not
    place either is all noughts, as one that the card has not is (facts: vm 4).
    """
    bad = []
    lines = (host.read(f"{DEVICES}/{gpu.slot}/resource") or "").splitlines()[:6]
    for number, line in enumerate(lines):
        words = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", line)]
        if len(words) == 3 and (words[2] & UNSET or (number in gpu.regions and not any(words))):
            bad.append(number)
    return bad


def slot(bus_id: str) -> str:
    """NVML's 00000000:03:00.0 as sysfs and lspci write it, 0000:03:00.0."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"
