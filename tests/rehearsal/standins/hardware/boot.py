#!/usr/bin/python3
"""Puts the pretended hardware in place, before anything else of the boot looks for it.

Stands in for the firmware, the PCI bus and the first second of the kernel: /etc/lab/hardware.json
says which GPUs are there and which kernel this pretends to be. Every place that is bound over was
tried in a container (facts/rig.md). Then come the two moments in which a real machine loads
nouveau: the initramfs, which knows only the blacklist of the last update-initramfs, and udev's
coldplug, which goes by modprobe.d as it is now (facts/nvidia.md 3.3). `boot.py --plug` puts GPUs
on the bus that were added to hardware.json later.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
    from tests.rehearsal.standins.hardware import modprobe
else:
    import lab_kernel as kernel
    import modprobe

SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
BARS = {0: (0xFD000000, 0x1000000, 0x40200), 1: (0xE0000000, 0x10000000, 0x14220C),
        3: (0xF0000000, 0x2000000, 0x14220C)}  # fmt: skip
UNSET = 0x20000000  # IORESOURCE_UNSET


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def cover(target: str, source: Path) -> None:
    """Lay a file or folder of ours over a place of /proc or /sys, if the place exists."""
    if Path(target).exists() and not os.path.ismount(target):
        mount("--bind", str(source), target)


def resource(fault: str) -> str:
    lines = []
    for number in range(13):
        start, size, flags = BARS.get(number, (0, 0, 0))
        if size and fault == "bar-unset":
            start, flags = 0, (flags | UNSET)
        end = start + size - 1 if size else 0
        lines.append(f"0x{start:016x} 0x{end:016x} 0x{flags:016x}\n")
    return "".join(lines)


def config(gpu: dict[str, str]) -> bytes:
    space = bytearray(256)
    space[0:2] = int("10de", 16).to_bytes(2, "little")
    space[2:4] = int(gpu["device"], 16).to_bytes(2, "little")
    space[4:6] = (0x0007).to_bytes(2, "little")  # memory, io, bus master
    space[8] = 0xA1
    space[9:12] = int(gpu["class"], 16).to_bytes(3, "little")
    for number, (start, _, flags) in BARS.items():
        unset = gpu.get("fault") == "bar-unset"
        low = (0 if unset else start) | (flags & 0xF)
        space[16 + 4 * number : 20 + 4 * number] = low.to_bytes(4, "little")
    space[44:46] = int("10de", 16).to_bytes(2, "little")
    space[46:48] = int(gpu["subsystem"], 16).to_bytes(2, "little")
    return bytes(space)


def plug(gpu: dict[str, str]) -> None:
    """One device folder, as sysfs has it. Does nothing for a GPU that is there already."""
    folder = kernel.DEVICES / gpu["slot"]
    if folder.exists():
        return
    folder.mkdir(parents=True)
    fault = gpu.get("fault", "")
    device, subsystem, kind = gpu["device"], gpu["subsystem"], gpu["class"]
    alias = (
        f"pci:v000010DEd0000{device.upper()}sv000010DEsd0000{subsystem.upper()}"
        f"bc{kind[0:2].upper()}sc{kind[2:4].upper()}i{kind[4:6].upper()}"
    )
    # fmt: off
    texts = {"vendor": "0x10de", "device": f"0x{device}", "class": f"0x{kind}", "irq": "24",
             "subsystem_vendor": "0x10de", "subsystem_device": f"0x{subsystem}",
             "revision": "0xa1", "enable": "0", "numa_node": "-1", "modalias": alias}
    # fmt: on
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    (folder / "resource").write_text(resource(fault))
    (folder / "config").write_bytes(config(gpu))
    if fault:
        (kernel.STATE / "faults" / gpu["slot"]).write_text(f"{fault}\n")
    if gpu.get("held"):
        kernel.bind(gpu["slot"], gpu["held"])
    kernel.say(f"pci {gpu['slot']}: [10de:{device}] type 00 class 0x{kind}", 6)
    if fault == "bar-unset":
        kernel.say(f"pci {gpu['slot']}: BAR 1: no space for [mem size 0x10000000 64bit pref]")
        kernel.say(f"pci {gpu['slot']}: BAR 1: failed to assign [mem size 0x10000000 64bit pref]")


def plug_all() -> None:
    listed = kernel.settings()["gpus"]
    assert isinstance(listed, list)
    for gpu in listed:
        plug(gpu)


def prepare() -> None:
    for folder in (kernel.DEVICES, kernel.DRIVERS, kernel.PROC,
                   kernel.STATE / "faults", kernel.STATE / "persistence"):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
    release = kernel.STATE / "osrelease"
    release.write_text(f"{kernel.release()}\n")
    cover("/proc/sys/kernel/osrelease", release)
    cover("/proc/driver", kernel.PROC)
    cover("/sys/bus/pci/devices", kernel.DEVICES)
    cover("/sys/bus/pci/drivers", kernel.DRIVERS)
    prepare_log()
    prepare_sys()


def prepare_log() -> None:
    kernel.LOG.touch()
    if kernel.KMSG.is_fifo():
        # Held open while this runs: what is logged must wait for the journal, which comes later.
        os.open(kernel.KMSG, os.O_RDWR | os.O_NONBLOCK)


def prepare_sys() -> None:
    """/sys/module and /sys/firmware of our own.

    /sys itself goes back to read-only: udev skips a container by exactly that sign.
    """
    mount("-o", "remount,rw", "/sys")
    kernel.MODULES.mkdir(exist_ok=True)
    firmware = Path("/sys/firmware")
    firmware.mkdir(exist_ok=True)
    if not os.path.ismount(kernel.MODULES):
        mount("-t", "tmpfs", "-o", "mode=0755", "lab-modules", str(kernel.MODULES))
        mount("-t", "tmpfs", "-o", "mode=0755", "lab-firmware", str(firmware))
    if kernel.settings().get("efi"):
        variables = firmware / "efi" / "efivars"
        variables.mkdir(parents=True, exist_ok=True)
        on = 1 if kernel.settings().get("secure_boot") else 0
        (variables / SECURE_BOOT).write_bytes(bytes((6, 0, 0, 0, on)))
    mount("-o", "remount,ro", "/sys")


def initramfs() -> None:
    """The pretended initramfs: it holds nouveau or nova unless the blacklist went into it."""
    held = bool(kernel.settings().get("initramfs", True))
    record = kernel.blacklisted_at_start(kernel.release())
    recorded = record.read_text().split() if record.exists() else []
    stuck = kernel.settings()["nouveau"] == "stuck"
    if held and kernel.gpus() and (stuck or kernel.rival() not in recorded):
        modprobe.main(["-q", kernel.rival()])


def coldplug() -> None:
    """udev loads by alias whatever is not blacklisted: the kernel's own driver first."""
    for slot in kernel.gpus():
        modprobe.main(["-b", "-q", kernel.rival()])
        modprobe.main(["-b", "-q", (kernel.DEVICES / slot / "modalias").read_text().strip()])


def main() -> int:
    if sys.argv[1:] == ["--plug"]:
        plug_all()
        coldplug()
        return 0
    os.umask(0o022)
    prepare()
    release = os.uname().release
    kernel.say(f"Linux version {kernel.release()} (rehearsal node; really {release})", 5)
    plug_all()
    initramfs()
    coldplug()
    return 0


if __name__ == "__main__":
    sys.exit(main())
