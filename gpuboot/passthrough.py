"""What is wrong with a card that the hypervisor has given the VM, seen from inside the VM.

By the memory regions on the PCI bus and by the kernel's log of this boot. No reboot and no other
package mends what is found here: these errors are final, and the remedy is the hypervisor's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import kernel, pci
from gpuboot.errors import Code, Elsewhere, GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

_LOOK = ("journalctl -k -g 'NVRM|pci 0000'", "lspci -vv -d 10de:", "gpuboot facts")
GPU_UNUSABLE = Code(
    "GB112",
    "a GPU is on the PCI bus and cannot be used",
    (
        "Its memory regions have no address: give the VM EFI firmware and reserve its memory.",
        "It has no interrupt, or another driver holds its memory.",
        "The card does not answer: power the VM off and on, a reboot is not enough.",
    ),
    _LOOK,
    evidence="the card's regions and interrupt in sysfs, its configuration space",
)
INIT_FAILED = Code(
    "GB113",
    "the driver could not initialise a GPU",
    (
        "The VM boots by BIOS, or its memory is not fully reserved.",
        "The card was not reset when its last VM let go of it: power the VM off and on.",
        "The host's firmware or the card itself is at fault, if another VM fails as well.",
    ),
    _LOOK,
    evidence="the kernel's NVRM lines of this boot",
)
OFF_BUS = Code(
    "GB114",
    "a GPU has fallen off the bus",
    ("The card lost power or its PCI Express link (Xid 79).",),
    (Elsewhere("power the VM off and on: a reboot inside it is not enough"), *_LOOK),
    evidence="the kernel's Xid and NVRM lines, and a configuration space that reads all ones",
)
VGPU = Code(
    "GB115",
    "the card is a share of a card (vGPU), which needs NVIDIA's GRID driver",
    ("The VM was given a vGPU profile, and no card by passthrough.",),
    ("lspci -nnv -d 10de:", "gpuboot facts"),
    evidence="the card's subsystem id, by which a share of a card differs from the card",
)
GSP_FAILED = Code(
    "GB116",
    "the card's GSP firmware does not answer",
    (
        "On Turing cards, the T4 among them, the GSP firmware is known to time out (Xid 119, 120).",
        "The open module needs that firmware; the proprietary one can do without.",
    ),
    ("journalctl -k -g 'NVRM|Xid'", "grep EnableGpuFirmware: /proc/driver/nvidia/params",
     "gpuboot plan"),
 evidence="the kernel's Xid and NVRM lines of this boot",)  # fmt: skip


@dataclass(frozen=True)
class Sign:
    """Lines of the kernel's log, and what they say of a card; {0} is the first group."""

    pattern: str
    code: Code
    told: str


# The first that fits counts. Texts: facts nvidia 1.4, read in the module's source.
SIGNS = (
    Sign(r"fallen off the bus|NVRM: Xid \([^)]*\): 79,", OFF_BUS, "it has fallen off the bus"),
    Sign(r"NVRM: Xid \([^)]*\)[^:]*: (119|120),", GSP_FAILED,
         "its GSP firmware does not answer (Xid {0})"),
    Sign(r"NVRM: .*(?:GSP|gsp).*(?:init\w* failed|failed to (?:init|boot|load)|timed? ?out)",
         GSP_FAILED, "its GSP firmware does not start"),
    Sign(r"PCI I/O region assigned to your NVIDIA device is invalid|NVRM: BAR\d is 0M",
         GPU_UNUSABLE, "its memory regions are invalid"),
    Sign(r"NVRM: Can't find an IRQ", GPU_UNUSABLE, "it has no interrupt"),
    Sign(r"NVRM: request_mem_region failed", GPU_UNUSABLE, "another driver holds its memory"),
    Sign(r"RmInitAdapter failed!? ?(\(\S+\))?|rm_init_adapter failed", INIT_FAILED,
         "it could not be initialised {0}"),
    Sign(r"NVRM: The NVIDIA probe routine was not called for (\d+)", GPU_UNUSABLE,
         "another driver has it"),
)  # fmt: skip
T4 = "1eb8"
PASSED_THROUGH = "10de:12a2"  # a T4's own subsystem (facts: nvidia 1.1)
UNSET = "10de:0000"  # a hypervisor that hands none through
VMWARE = "VMware, Inc."


def diagnose(host: Host, gpus: Sequence[pci.Gpu]) -> GpubootError | None:
    """What the kernel has said of the cards in this boot; None where it has not complained."""
    lines = kernel.messages(host, "NVRM")
    for sign in SIGNS:
        if match := re.search(sign.pattern, lines):
            found = next((word or "" for word in match.groups()), "")
            line = _line(lines, match)
            # A line of an Xid names the card without its function (facts: nvidia 1.4).
            where = next((gpu for gpu in gpus if gpu.slot.rpartition(".")[0] in line), None)
            name = f"GPU {where.slot}" if where else _listed(gpus)
            return GpubootError(
                sign.code,
                f"{name}: {sign.told.format(found).strip()}",
                hint=remedy(host, sign.code, gpus),
                evidence=lines,
            )
    return None


def unplaced(host: Host, gpu: pci.Gpu) -> GpubootError | None:
    """That memory regions of a card have no address, or that it does not answer at all."""
    if not gpu.answers:
        message = f"GPU {gpu.slot} does not answer (rev ff)"
        return GpubootError(GPU_UNUSABLE, message, hint="power the VM off and on, not just reboot")
    regions = pci.unassigned(host, gpu)
    if not regions:
        return None
    return GpubootError(
        GPU_UNUSABLE,
        f"GPU {gpu.slot}: memory region {', '.join(map(str, regions))} has no address",
        hint=remedy(host, GPU_UNUSABLE, [gpu]),
        evidence=kernel.messages(host, rf"{re.escape(gpu.slot)}.*BAR"),
    )


def shared(gpu: pci.Gpu) -> GpubootError | None:
    """That a T4 is a vGPU: NVIDIA gives each profile a subsystem of its own, below its vendor id.

    Another maker's subsystem proves nothing and is let pass: it may be a card of his.
    """
    own = gpu.subsystem.startswith("10de:") and gpu.subsystem not in (PASSED_THROUGH, UNSET)
    if gpu.device != T4 or not own:
        return None
    return GpubootError(
        VGPU,
        f"GPU {gpu.slot} is a vGPU profile of a T4 (subsystem {gpu.subsystem}), no whole card",
        hint="give the VM a whole T4 by PCI passthrough: gpuboot does not set up NVIDIA's GRID"
        " driver, which a share of a card needs",
    )


def remedy(host: Host, code: Code, gpus: Sequence[pci.Gpu]) -> str:
    """What to do, in the hypervisor's own words where it is vSphere."""
    if code is GSP_FAILED:
        return _without_gsp(host)
    if code is OFF_BUS:
        return "power the VM off and on (a reboot is not enough); if it returns, change the card"
    bios = not host.exists("/sys/firmware/efi")
    vendor = (host.read("/sys/class/dmi/id/sys_vendor") or "").strip()
    if vendor != VMWARE:
        firmware = "the VM boots by BIOS: give it EFI firmware and" if bios else "power it off and"
        return f"{firmware} pin all of its memory, in the hypervisor's settings"
    firmware = "it boots by BIOS, so install it anew with firmware EFI" if bios else "firmware EFI"
    needed = f"in the VM's settings: {firmware}, all guest memory reserved"
    if all(gpu.device == T4 for gpu in gpus):
        return (
            f"{needed}; a T4 needs no pciPassthru.use64bitMMIO, no memory mapping above 4G and no"
            " hypervisor.cpuid.v0=FALSE"
        )
    return (
        f"{needed}; a card with more than 16 GB needs pciPassthru.use64bitMMIO=TRUE and"
        " pciPassthru.64bitMMIOSizeGB"
    )


def _without_gsp(host: Host) -> str:
    """The other kind of module, where the loaded one cannot do without the firmware."""
    if "Open Kernel Module" in (host.read("/proc/driver/nvidia/version") or ""):
        return (
            "set driver.kernel-module-type: proprietary, which runs the card without that firmware,"
            " then: gpuboot run"
        )
    return "power the VM off and on; NVreg_EnableGpuFirmware=0 must be in /etc/modprobe.d"


def _line(text: str, match: re.Match[str]) -> str:
    begin = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return text[begin:] if end < 0 else text[begin:end]


def _listed(gpus: Sequence[pci.Gpu]) -> str:
    return f"GPU {', '.join(gpu.slot for gpu in gpus)}" if gpus else "a GPU"
