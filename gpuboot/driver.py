"""The driver in the kernel: loaded in the installed version, holding every GPU, without a reboot
wherever there is another way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import existing, holders, initramfs, kernel, passthrough, pci, systemd
from gpuboot.errors import Code, GpubootError
from gpuboot.nvidia import MISMATCH, RIVALS, foreign
from gpuboot.step import Finding, Ok, Pending, Reboot

if TYPE_CHECKING:
    from gpuboot.host import Host

MODULE_REFUSED = Code(
    "GB302",
    "the kernel refuses the NVIDIA module",
    (
        "Secure Boot is on and the module is not signed with a key the firmware knows.",
        "The card could not be initialised; the kernel's NVRM lines say why.",
    ),
    ("journalctl -k -g NVRM", "gpuboot facts", "lspci -nnk -d 10de:"),
    evidence="what modprobe says, and the kernel's NVRM lines",
)

MODULES_LOAD = "/etc/modules-load.d/gpuboot.conf"
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
UVM_TOOLS = "/dev/nvidia-uvm-tools"
CARDS = "195"  # the major number of the cards' device files, by the kernel's own list
PERSISTENCED = "nvidia-persistenced.service"
# In the order of unloading: each before what it stands on, and first the one that a console uses.
STACK = ("nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidia_peermem", "nvidia")


@dataclass(frozen=True)
class DriverLoaded:
    """The built module is loaded, holds every GPU, and its device files are there.

    `kernel_module_type` is proprietary or open where only that one will do: both have one version.
    """

    name: ClassVar[str] = "driver-loaded"
    disruptive: ClassVar[bool] = True

    kernel_module_type: str | None = None

    def check(self, host: Host) -> Finding:
        gpus = pci.gpus(host)
        if found := foreign(gpus):
            return found
        for gpu in gpus:
            if gpu.driver in RIVALS:
                return Pending(f"{gpu.driver} holds {gpu.slot}")
        loaded = kernel.loaded_version(host, "nvidia")
        if loaded is None:
            return Pending("the nvidia module is not loaded")
        if other := self._other(host, loaded):
            return Pending(f"nvidia {loaded} is loaded, {other} is installed", MISMATCH)
        if not kernel.loaded(host, "nvidia_uvm"):
            return Pending("the nvidia-uvm module is not loaded")
        for name, text in BOOT_FILES.items():
            if host.read(name) != text:
                return Pending(f"{name} is not written")
        if missing := _missing_devices(host, len(gpus)):
            return Pending(f"{', '.join(missing)} missing")
        driver = {"version": loaded, "kernel_module_type": _module_type(host) or "proprietary"}
        return Ok(f"nvidia {loaded} holds every GPU", shows={"driver": driver})

    def writes(self, host: Host) -> Mapping[str, str]:
        return BOOT_FILES

    def apply(self, host: Host) -> Reboot | None:
        for name, text in BOOT_FILES.items():
            host.write(name, text)
        loaded = kernel.loaded_version(host, "nvidia")
        other = self._other(host, loaded) if loaded else None
        with holders.services_stopped(host) if other else nullcontext():
            if reboot := _unload_rivals(host):
                return reboot
            if other and (reboot := _unload_old(host, f"nvidia {loaded}", other)):
                return reboot
            if reboot := _load(host):
                return reboot
            _make_devices(host)
        if systemd.unit(host, PERSISTENCED).exists:  # NVIDIA's .run installer brings none
            systemd.start(host, PERSISTENCED)
        return None

    def _other(self, host: Host, loaded: str) -> str | None:
        """The version, and the kind, of the installed module, where it is not the loaded one."""
        built = kernel.nvidia_module(host, kernel.running(host))
        if built and built.version != loaded:
            return built.version
        kind = _module_type(host)
        if built and self.kernel_module_type and kind and kind != self.kernel_module_type:
            return f"{built.version} ({self.kernel_module_type})"
        return None


def _missing_devices(host: Host, count: int) -> list[str]:
    wanted = ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    wanted += [f"/dev/nvidia{minor}" for minor in range(count)]
    return [name for name in wanted if not host.exists(name)]


def _module_type(host: Host) -> str | None:
    """What the loaded module says it is; None if it does not say."""
    text = host.read("/proc/driver/nvidia/version")
    return text and ("open" if "Open Kernel Module" in text else "proprietary")


def _unload_rivals(host: Host) -> Reboot | None:
    """Take the GPUs from nouveau and its like; a Reboot that names who holds on to them."""
    for rival, stack in RIVALS.items():
        slots = [gpu.slot for gpu in pci.gpus(host) if gpu.driver == rival]
        names = [name for slot in slots for name in host.names(f"{pci.DEVICES}/{slot}/drm")]
        devices = [f"/dev/dri/{name}" for name in names]
        if slots:
            found = holders.unload(host, stack, devices)
            initramfs.renew(host, stack[-1])  # or it takes them again at the next boot
            if found:
                return _reboot(f"{rival} holds {', '.join(slots)}", found)
    return None


def _unload_old(host: Host, old: str, new: str) -> Reboot | None:
    """Unload a driver of another version; a Reboot that names who uses it."""
    if found := holders.unload(host, STACK, ["/dev/nvidia"]):
        initramfs.renew(host, "nvidia")
        return _reboot(f"{old} is loaded, {new} is installed", found)
    return None


def _reboot(why: str, found: list[holders.Holder]) -> Reboot:
    evidence = "\n".join(f"in use by {holder}" for holder in found)
    return Reboot(f"{why}; in use by {holders.listed(found)}", evidence)


def _load(host: Host) -> Reboot | None:
    """Load nvidia and nvidia-uvm; a Reboot if another driver took the card. Raises GB302."""
    for module in ("nvidia", "nvidia-uvm"):
        result = host.run(["modprobe", module], timeout=120)
        if result.code != 0:
            gpus = pci.gpus(host)
            for gpu in gpus:
                if gpu.driver and gpu.driver in RIVALS:
                    initramfs.renew(host, RIVALS[gpu.driver][-1])
                    return Reboot(f"{gpu.driver} holds {gpu.slot}")
            if "No such device" in result.said and (wrong := passthrough.diagnose(host, gpus)):
                raise wrong
            said = "\n".join([result.said, kernel.messages(host, "NVRM")]).strip()
            raise GpubootError(
                MODULE_REFUSED, f"modprobe {module}: {_first_line(result.said)}", evidence=said
            )
    return None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _make_devices(host: Host) -> None:
    """The device files, which the modules do not make themselves.

    Ubuntu's udev rules make them, and it has no nvidia-modprobe: what lacks even so is made here.
    """
    count = len(pci.gpus(host))
    if host.exists("/usr/bin/nvidia-modprobe") or not existing.by_udev(host):
        # With -u the numbers are UVM's devices, without it the cards'; 255 is nvidiactl.
        minors = ["255", *map(str, range(count))]
        host.must(["nvidia-modprobe", *(word for minor in minors for word in ("-c", minor))])
        host.must(["nvidia-modprobe", "-u", "-c", "0"])
        return
    majors = dict(re.findall(r"^ *(\d+) (nvidia\S*)$", host.read("/proc/devices") or "", re.M))
    known = {name: major for major, name in majors.items()}
    for name in _missing_devices(host, count):
        uvm = name == "/dev/nvidia-uvm"
        major = known.get("nvidia-uvm") if uvm else known.get("nvidia", CARDS)
        minor = "0" if uvm else name.removeprefix("/dev/nvidia").replace("ctl", "255")
        if major:
            host.must(["mknod", "--mode=0666", name, "c", major, minor])
        if major and uvm and not host.exists(UVM_TOOLS):
            host.must(["mknod", "--mode=0666", UVM_TOOLS, "c", major, "1"])
