"""The card: present on the PCI bus, kept from nouveau, and answering through its libraries."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gpuboot import kernel, nvml, passthrough, pci
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending, Waiting

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_GPU = Code(
    "GB110",
    "no NVIDIA GPU is on the PCI bus",
    (
        "The VM has no passthrough device: it is added while the VM is powered off.",
        "The pool's template has one, but this VM was cloned without it.",
    ),
    ("lspci -nn -d 10de:", "gpuboot facts"),
    evidence="the devices that lspci lists with vendor 10de and class 0300 or 0302",
)
OTHER_GPU = Code(
    "GB111",
    "the GPUs on the PCI bus are not the wanted ones",
    ("gpu.count or gpu.model asks for something else than the VM has.",),
    ("lspci -nn -d 10de:", "gpuboot config show"),
    evidence="the devices that lspci lists, beside gpu.count and gpu.model",
)
NO_ANSWER = Code(
    "GB303",
    "the driver's libraries do not answer as they should",
    (
        "The card fell off the bus or failed to initialise (journalctl -k -g NVRM).",
        "Library and kernel module are of different versions.",
    ),
    ("nvidia-smi", "journalctl -k -g 'NVRM|Xid'", "gpuboot explain GB302"),
    evidence="the answer of NVML or of libcuda, each in a process of its own",
)

MISMATCH = Code(
    "GB304",
    "the driver's libraries and its loaded module are of different versions",
    (
        "An upgrade has replaced the files of a driver that is loaded; a reboot loads the new one.",
        "Only some of the driver's packages were upgraded: they must all be of one version.",
    ),
    ("cat /sys/module/nvidia/version", "dpkg -l '*nvidia*' '*cuda1'", "gpuboot run"),
    evidence="/sys/module/nvidia/version, and the version in the libraries' file names",
)
FOREIGN_DRIVER = Code(
    "GB305",
    "a GPU is held by a driver that somebody has chosen for it",
    (
        "vfio-pci keeps the card for a virtual machine.",
        "It is bound by driverctl, by an option of vfio-pci or on the kernel's command line.",
    ),
    ("lspci -nnk -d 10de:", "grep -rs vfio /etc/modprobe.d /etc/driverctl.d /proc/cmdline"),
    evidence="the card's driver in sysfs, and who has chosen it",
)

MODPROBE = "/etc/modprobe.d/gpuboot.conf"
# Drivers that take the card by themselves, with their modules in the order of unloading.
# nova_core is nouveau's successor and takes Turing cards on new kernels; its driver's own name is
# NovaCore (facts: nvidia 1.4).
RIVALS: Mapping[str, tuple[str, ...]] = {
    "nouveau": ("nouveau",),
    "nova_core": ("nova_drm", "nova_core"),
    "NovaCore": ("nova_drm", "nova_core"),
}
BLACKLIST = """\
# Written by gpuboot. Keeps nouveau and its successor away from the GPU.
blacklist nouveau
blacklist nova_core
blacklist nova_drm
options nouveau modeset=0
"""
# The GSP firmware is off because it times out on the T4's family (facts: EKS does the same); only
# the proprietary module can do without it. Debian's name for the module is nvidia-current.
WITHOUT_GSP = """\
# Runs the card without the GSP firmware, which times out on the T4's family.
options nvidia NVreg_EnableGpuFirmware=0
options nvidia-current NVreg_EnableGpuFirmware=0
options nvidia-tesla-535 NVreg_EnableGpuFirmware=0
"""


@dataclass(frozen=True)
class GpuPresent:
    """The wanted GPUs are on the PCI bus and have their memory regions."""

    name: ClassVar[str] = "gpu-present"
    disruptive: ClassVar[bool] = False

    count: int | None
    model: str

    def check(self, host: Host) -> Finding:
        gpus = pci.gpus(host)
        if not gpus:
            return Waiting("no NVIDIA GPU is on the PCI bus", NO_GPU)
        for gpu in gpus:
            if wrong := passthrough.unplaced(host, gpu) or passthrough.shared(gpu):
                raise wrong
        if held := foreign(gpus):
            return held
        listing = ", ".join(f"{gpu.model} at {gpu.slot}" for gpu in gpus)
        if self.model != "any" and not all(self._wanted(gpu) for gpu in gpus):
            return Waiting(f"wanted is {self.model}, found {listing}", OTHER_GPU)
        if self.count is not None and len(gpus) != self.count:
            return Waiting(f"wanted are {self.count} GPUs, found {listing}", OTHER_GPU)
        shown = [{"pci": gpu.slot, "id": gpu.id, "name": gpu.model} for gpu in gpus]
        return Ok(listing, shows={"gpus": shown})

    def apply(self, host: Host) -> None:
        """Never called: only someone outside can add a card."""

    def _wanted(self, gpu: pci.Gpu) -> bool:
        return self.model.lower() == gpu.id or self.model.lower() in gpu.model.lower()


def foreign(gpus: Sequence[pci.Gpu]) -> Waiting | None:
    """What is waited for where a driver holds a GPU that does not take one by itself.

    Somebody has bound it there, and it is not ours to unbind.
    """
    for gpu in gpus:
        if gpu.driver and gpu.driver != "nvidia" and gpu.driver not in RIVALS:
            return Waiting(
                f"{gpu.driver} holds {gpu.slot}", FOREIGN_DRIVER,
                f"unbind it from {gpu.driver}, as with: driverctl unset-override {gpu.slot}",
            )  # fmt: skip
    return None


@dataclass(frozen=True)
class NouveauBlocked:
    """nouveau is kept from loading, and the NVIDIA module has its parameters."""

    name: ClassVar[str] = "nouveau-blocked"
    disruptive: ClassVar[bool] = True

    gsp_off: bool = True

    @property
    def _text(self) -> str:
        return BLACKLIST + (WITHOUT_GSP if self.gsp_off else "")

    def check(self, host: Host) -> Finding:
        if host.read(MODPROBE) != self._text:
            return Pending(f"{MODPROBE} is not written")
        return Ok(f"{MODPROBE} keeps nouveau out")

    def apply(self, host: Host) -> None:
        host.write(MODPROBE, self._text)

    def writes(self, host: Host) -> Mapping[str, str]:
        return {MODPROBE: self._text}


@dataclass(frozen=True)
class GpusAnswer:
    """NVML and CUDA see exactly the GPUs that are on the PCI bus."""

    name: ClassVar[str] = "gpus-answer"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        if differing := mismatch(host):
            raise differing
        slots = [gpu.slot for gpu in pci.gpus(host)]
        seen = _probe(host, "nvml")
        found = sorted(gpu["pci"] for gpu in seen["gpus"])
        if found != slots:
            raise passthrough.diagnose(host, pci.gpus(host)) or _disagreement("NVML", found, slots)
        cuda = _probe(host, "cuda")
        if cuda["count"] != len(slots):
            raise passthrough.diagnose(host, pci.gpus(host)) or GpubootError(
                NO_ANSWER,
                f"CUDA sees {cuda['count']} GPUs, the PCI bus has {len(slots)}",
                evidence=kernel.messages(host, "NVRM"),
            )
        ids = {gpu.slot: gpu.id for gpu in pci.gpus(host)}
        gpus = [{"id": ids[gpu["pci"]], **gpu} for gpu in seen["gpus"]]
        names = ", ".join(f"{gpu['name']} {gpu['uuid']}" for gpu in gpus)
        return Ok(f"NVML and CUDA answer: {names}", shows={"gpus": gpus})

    def apply(self, host: Host) -> None:
        """Never called: the check answers or raises."""


def mismatch(host: Host, said: str = "") -> GpubootError | None:
    """The error for libraries of another version than the loaded module's; None if they agree.

    NVML is not asked: its file's name tells. Where NVML has `said` so itself, that is believed.
    """
    library, loaded = nvml.library(host), kernel.loaded_version(host, "nvidia")
    if not said and (library is None or loaded is None or library == loaded):
        return None
    built = kernel.nvidia_module(host, kernel.running(host))
    hint = "drain the node, then reboot: the next boot loads what is installed"
    if library and built and built.version != library:
        hint = "bring the driver's packages to one version (dpkg -l '*nvidia*'), then: gpuboot run"
    return GpubootError(
        MISMATCH,
        f"the driver's libraries are {library or 'unknown'}, its loaded module is {loaded}",
        hint=hint,
        evidence="\n".join(filter(None, [said, kernel.messages(host, "API mismatch")])),
        retry=True,  # the rest of an upgrade may be on its way
    )


def _disagreement(who: str, found: list[str], slots: list[str]) -> GpubootError:
    return GpubootError(
        NO_ANSWER,
        f"{who} sees {', '.join(found) or 'no GPU'}, the PCI bus has {', '.join(slots)}",
    )


def _probe(host: Host, library: str) -> dict[str, Any]:
    """What a library says, asked in a process of its own: it stays loaded, and may hang.

    Raises GB303.
    """
    result = host.run([sys.executable, "-m", "gpuboot.nvml", library], timeout=90)
    try:
        answer = json.loads(result.out)
    except ValueError:
        answer = {"error": result.said or f"the probe ended with status {result.code}"}
    if answer.get("value") == nvml.VERSION_MISMATCH and (error := mismatch(host, answer["error"])):
        raise error
    if "error" in answer:
        # What passes by itself is worth another try, whatever the kernel has said before.
        lasting = None if answer.get("transient") else passthrough.diagnose(host, pci.gpus(host))
        raise lasting or GpubootError(
            NO_ANSWER,
            f"{library}: {answer['error']}",
            evidence=kernel.messages(host, "NVRM|Xid"),
            retry=bool(answer.get("transient")),
        )
    found: dict[str, Any] = answer
    return found
