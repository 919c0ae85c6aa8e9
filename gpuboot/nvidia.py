"""The card and its driver: present on PCI, nouveau kept out, module loaded, libraries answering."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gpuboot import kernel, pci, systemd
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending, Reboot, Waiting

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
)
OTHER_GPU = Code(
    "GB111",
    "the GPUs on the PCI bus are not the wanted ones",
    ("gpu.count or gpu.model asks for something else than the VM has.",),
    ("lspci -nn -d 10de:", "gpuboot config show"),
)
GPU_UNUSABLE = Code(
    "GB112",
    "a GPU is on the PCI bus and cannot be used",
    (
        "Its memory regions have no address: give the VM EFI firmware and reserve its memory.",
        "The card does not answer: power the VM off and on, a reboot is not enough.",
    ),
    ("lspci -vv -d 10de:", "journalctl -k -g 'NVRM|pci 0000'"),
)
MODULE_REFUSED = Code(
    "GB302",
    "the kernel refuses the NVIDIA module",
    (
        "Secure Boot is on and the module is not signed with a key the firmware knows.",
        "The card could not be initialised; the kernel's NVRM lines say why.",
    ),
    ("journalctl -k -g NVRM", "mokutil --sb-state", "lspci -nnk -d 10de:"),
)
NO_ANSWER = Code(
    "GB303",
    "the driver's libraries do not answer as they should",
    (
        "The card fell off the bus or failed to initialise (journalctl -k -g NVRM).",
        "Library and kernel module are of different versions.",
    ),
    ("nvidia-smi", "journalctl -k -g 'NVRM|Xid'", "gpuboot explain GB302"),
)

MODPROBE = "/etc/modprobe.d/gpuboot.conf"
MODULES_LOAD = "/etc/modules-load.d/gpuboot.conf"
# nova_core is nouveau's successor and takes Turing cards on new kernels. The GSP firmware is
# off because it times out on this family (facts: EKS does the same for the T4); only the
# proprietary module can do without it. Debian's name for the module is nvidia-current.
BLACKLIST = """\
# Written by gpuboot. Keeps nouveau and its successor away from the GPU.
blacklist nouveau
blacklist nova_core
blacklist nova_drm
options nouveau modeset=0
"""
WITHOUT_GSP = """\
# Runs the card without the GSP firmware, which times out on the T4's family.
options nvidia NVreg_EnableGpuFirmware=0
options nvidia-current NVreg_EnableGpuFirmware=0
options nvidia-tesla-535 NVreg_EnableGpuFirmware=0
"""
MODULES_LOAD_TEXT = """\
# Written by gpuboot: the NVIDIA driver is loaded at every boot.
nvidia
nvidia-uvm
"""
# Loading nvidia-uvm makes no /dev/nvidia-uvm, and without that CUDA fails in every container of a
# boot in which gpuboot does not walk.
DEVICES = "/etc/systemd/system/systemd-modules-load.service.d/gpuboot.conf"
DEVICES_TEXT = """\
# Written by gpuboot: CUDA's device file is there at every boot, as soon as the modules are loaded.
[Service]
ExecStartPost=-/usr/bin/nvidia-modprobe -u -c 0
"""
BOOT_FILES = {MODULES_LOAD: MODULES_LOAD_TEXT, DEVICES: DEVICES_TEXT}
RIVALS = ("nouveau", "nova_core")
PERSISTENCED = "nvidia-persistenced.service"
STACK = ("nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia")  # in the order of unloading


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
            if not gpu.answers:
                raise GpubootError(GPU_UNUSABLE, f"GPU {gpu.slot} does not answer (rev ff)")
            if regions := pci.unassigned(host, gpu.slot):
                places = ", ".join(str(region) for region in regions)
                raise GpubootError(
                    GPU_UNUSABLE, f"GPU {gpu.slot}: memory region {places} has no address"
                )
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


@dataclass(frozen=True)
class NouveauBlocked:
    """nouveau is kept from loading, and the NVIDIA module has its parameters."""

    name: ClassVar[str] = "nouveau-blocked"
    disruptive: ClassVar[bool] = True

    kernel_module_type: str = "proprietary"

    @property
    def _text(self) -> str:
        return BLACKLIST + (WITHOUT_GSP if self.kernel_module_type == "proprietary" else "")

    def check(self, host: Host) -> Finding:
        if host.read(MODPROBE) != self._text:
            return Pending(f"{MODPROBE} is not written")
        return Ok(f"{MODPROBE} keeps nouveau out")

    def apply(self, host: Host) -> None:
        host.write(MODPROBE, self._text)

    def writes(self, host: Host) -> Mapping[str, str]:
        return {MODPROBE: self._text}


@dataclass(frozen=True)
class DriverLoaded:
    """The built module is loaded, holds every GPU, and its device files are there."""

    name: ClassVar[str] = "driver-loaded"
    disruptive: ClassVar[bool] = True

    def check(self, host: Host) -> Finding:
        loaded = kernel.loaded_version(host, "nvidia")
        built = kernel.nvidia_module(host, kernel.running(host))
        for gpu in pci.gpus(host):
            if gpu.driver and gpu.driver != "nvidia":
                return Pending(f"{gpu.driver} holds {gpu.slot}")
        if loaded is None:
            return Pending("the nvidia module is not loaded")
        if built and built.version != loaded:
            return Pending(f"nvidia {loaded} is loaded, {built.version} is installed")
        for name, text in BOOT_FILES.items():
            if host.read(name) != text:
                return Pending(f"{name} is not written")
        if missing := _missing_devices(host):
            return Pending(f"{', '.join(missing)} missing")
        driver = {"version": loaded, "kernel_module_type": _module_type(host)}
        return Ok(f"nvidia {loaded} holds every GPU", shows={"driver": driver})

    def writes(self, host: Host) -> Mapping[str, str]:
        return BOOT_FILES

    def apply(self, host: Host) -> Reboot | None:
        for name, text in BOOT_FILES.items():
            host.write(name, text)
        if reboot := _make_way(host) or _load(host):
            _renew_initramfs(host)
            return reboot
        # With -u the numbers are UVM's devices, without it the cards'; 255 is nvidiactl.
        minors = ["255", *map(str, range(len(pci.gpus(host))))]
        host.must(["nvidia-modprobe", *(word for minor in minors for word in ("-c", minor))])
        host.must(["nvidia-modprobe", "-u", "-c", "0"])
        if systemd.unit(host, PERSISTENCED).exists:  # NVIDIA's .run installer brings none
            systemd.start(host, PERSISTENCED)
        return None


def _missing_devices(host: Host) -> list[str]:
    wanted = ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    wanted += [f"/dev/nvidia{minor}" for minor in range(len(pci.gpus(host)))]
    return [name for name in wanted if not host.exists(name)]


def _module_type(host: Host) -> str:
    text = host.read("/proc/driver/nvidia/version") or ""
    return "open" if "Open Kernel Module" in text else "proprietary"


def _make_way(host: Host) -> Reboot | None:
    """Unload what stands in the way of the built module; a Reboot if it cannot be unloaded."""
    for rival in RIVALS:
        if kernel.loaded(host, rival):
            held = [gpu.slot for gpu in pci.gpus(host) if gpu.driver == rival]
            result = host.run(["modprobe", "-r", rival])
            if result.code != 0 and held:
                return Reboot(f"{rival} holds {', '.join(held)}")
    loaded = kernel.loaded_version(host, "nvidia")
    built = kernel.nvidia_module(host, kernel.running(host))
    if loaded and built and loaded != built.version:
        systemd.stop(host, "nvidia-persistenced.service")
        present = [module for module in STACK if kernel.loaded(host, module)]
        if host.run(["modprobe", "-r", *present]).code != 0:
            return Reboot(f"nvidia {loaded} is in use, {built.version} is installed")
    return None


def _load(host: Host) -> Reboot | None:
    """Load nvidia and nvidia-uvm; a Reboot if another driver took the card. Raises GB302."""
    for module in ("nvidia", "nvidia-uvm"):
        result = host.run(["modprobe", module], timeout=120)
        if result.code != 0:
            for gpu in pci.gpus(host):
                if gpu.driver in RIVALS:
                    return Reboot(f"{gpu.driver} holds {gpu.slot}")
            said = "\n".join([result.said, kernel.messages(host, "NVRM")]).strip()
            raise GpubootError(
                MODULE_REFUSED, f"modprobe {module}: {_first_line(result.said)}", evidence=said
            )
    return None


def _renew_initramfs(host: Host) -> None:
    """Put the blacklist into the initramfs, which may hold nouveau, before we reboot."""
    if host.exists("/usr/sbin/update-initramfs"):
        host.must(["update-initramfs", "-u"], timeout=1800, patient=True)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


@dataclass(frozen=True)
class GpusAnswer:
    """NVML and CUDA see exactly the GPUs that are on the PCI bus."""

    name: ClassVar[str] = "gpus-answer"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        slots = [gpu.slot for gpu in pci.gpus(host)]
        seen = _probe(host, "nvml")
        found = sorted(gpu["pci"] for gpu in seen["gpus"])
        if found != slots:
            raise _disagreement("NVML", found, slots)
        cuda = _probe(host, "cuda")
        if cuda["count"] != len(slots):
            raise GpubootError(
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
    if "error" in answer:
        raise GpubootError(
            NO_ANSWER,
            f"{library}: {answer['error']}",
            evidence=kernel.messages(host, "NVRM|Xid"),
            retry=bool(answer.get("transient")),
        )
    found: dict[str, Any] = answer
    return found
