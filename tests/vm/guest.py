"""QEMU as Debian has it, without KVM, with the emulated T4 behind a port of its PCI bus."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal.command import environment
from tests.rehearsal.report import RigError

ADDRESS, GATEWAY = "10.0.2.15", "10.0.2.2"  # in QEMU's own network, which leads to the lab's
SLOT = "0000:01:00.0"  # what the firmware numbers the card's port


@dataclass(frozen=True)
class Guest:
    """A running virtual machine: what it says, and whether it is still on."""

    process: subprocess.Popen[bytes]
    console: Path  # firmware, GRUB, kernel, systemd and the journal
    looks: Path  # what its probe tells, one JSON object a line
    log: Path  # QEMU's own

    def wait(self, seconds: float) -> bool:
        """Lets time pass; True as soon as the machine has switched itself off."""
        try:
            status = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        if status != 0:
            said = self.log.read_text(encoding="utf-8", errors="replace")
            raise RigError(f"QEMU ended with {status}:\n{said}{self.tail()}")
        return True

    def told(self, when: str) -> bool:
        """Whether its probe has told of that moment."""
        known = self.looks.read_text(encoding="utf-8") if self.looks.is_file() else ""
        return f'"when": "{when}"' in known

    def tail(self) -> str:
        """The last lines of the console."""
        text = self.console.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-25:])


@contextlib.contextmanager
def started(image: Path, card: Path, folder: Path) -> Iterator[Guest]:
    """The machine, switched on; its plug is pulled at the end."""
    console, looks = folder / "console.log", folder / "looks.jsonl"
    qemu = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", "2048", "-display", "none", "-vga", "none", "-monitor", "none",
        "-drive", f"file={image},format=raw,if=virtio,cache=unsafe",
        "-netdev", "user,id=lab", "-device", "virtio-net-pci,netdev=lab",
        "-device", "virtio-rng-pci",
        "-device", "pcie-root-port,id=riser,chassis=1,slot=1", "-device", "nvt4,bus=riser",
        "-serial", f"file:{console}", "-serial", f"file:{looks}",
    ]  # fmt: skip
    log = folder / "qemu.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            qemu, env={**environment(), "LD_PRELOAD": str(card)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield Guest(process, console, looks, log)
    finally:
        process.kill()
        process.wait()
