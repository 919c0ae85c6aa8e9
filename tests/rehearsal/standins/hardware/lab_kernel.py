"""The pretended kernel: which modules are loaded, who drives which GPU, and what it logs.

Stands in for a Debian kernel on a machine with NVIDIA GPUs. In a container no module can be
loaded (facts/rig.md), so its outside is played here: /sys/module, the `driver` links on the PCI
bus, /proc/driver/nvidia and the kernel log. The texts are those of nvidia.ko and of the kernel's
module loader (facts/nvidia.md 1.4 and 4, facts/vm.md 2).
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/etc/lab/hardware.json")
STATE = Path("/run/lab")
DEVICES = STATE / "pci"  # bound over /sys/bus/pci/devices
DRIVERS = STATE / "drivers"  # bound over /sys/bus/pci/drivers
MODULES = Path("/sys/module")
PROC = STATE / "proc-driver"  # bound over /proc/driver
DRM = Path("/dev/dri")
LOG = STATE / "dmesg"
KMSG = Path("/dev/kmsg")
MONITORS_KMSG = Path("/dev/lab-kmsg-monitor")  # as kmsg.py has it
RULES = Path("/lib/udev/rules.d/71-nvidia.rules")
# Whose certificates are built into the releases' kernels: what they have signed is let in.
BUILT_IN = ("Canonical Ltd.", "Debian Secure Boot")

# What Debian's kernel has and a walk or RKE2 may ask for; headers alone bring no such file.
INCLUDED = frozenset(
    [
        "overlay",
        "br_netfilter",
        "nf_conntrack",
        "iptable_nat",
        "iptable_filter",
        "ip_tables",
        "ip6_tables",
        "vxlan",
        "ip_vs",
        "ip_vs_rr",
        "ip_vs_wrr",
        "ip_vs_sh",
        "xt_conntrack",
        "nf_tables",
        "tun",
        "bridge",
        "drm",
        "ttm",
    ]
)

# The cloud flavour has no graphics at all (facts/nvidia.md 2.4).
GRAPHICS = frozenset(["drm", "ttm"])


def included(name: str) -> bool:
    """Whether the kernel of this boot brings a module along that is named here."""
    return name in INCLUDED and not (name in GRAPHICS and "-cloud-" in release())


MODELS = {"1eb8": "Tesla T4", "1db6": "Tesla V100-PCIE-32GB", "20b5": "NVIDIA A100 80GB PCIe"}

BUILT = "Mon Feb  2 10:12:13 UTC 2026"


class Refused(Exception):
    """The kernel said no; the text is strerror's."""


@dataclass(frozen=True)
class Module:
    """A module file, as modinfo shows it."""

    name: str
    version: str
    vermagic: str
    options: Mapping[str, str]
    needs: tuple[str, ...] = ()
    signer: str = ""
    licence: str = "NVIDIA"

    @property
    def kind(self) -> str:
        """As the module says it of itself: the open one is licensed otherwise."""
        return "Open Kernel Module for x86_64" if "GPL" in self.licence else "x86_64 Kernel Module"


def settings() -> dict[str, object]:
    loaded: dict[str, object] = json.loads(SETTINGS.read_text())
    return loaded


def release() -> str:
    """The kernel of this boot; before boot.py has run, the one the boot loader has picked."""
    booted = STATE / "osrelease"
    return booted.read_text().strip() if booted.exists() else str(settings()["kernel"])


def blacklisted_at_start(release: str) -> Path:
    """What is blacklisted in that kernel's pretended initramfs, one name a line."""
    return Path(f"/var/lib/lab/initramfs-blacklist-{release}")


def say(text: str, level: int = 4) -> None:
    """One line of the kernel log: for dmesg, and through /dev/kmsg for journal and monitor."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with LOG.open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(f"[{now:12.6f}] {text}\n")
        number = sum(1 for _ in LOG.open())
        for reader in (KMSG, MONITORS_KMSG):
            with suppress(OSError):
                _record(reader, f"{level},{number},{int(now * 1e6)},-;{text}\n")


def _record(reader: Path, line: str) -> None:
    # Packet mode keeps two lines apart: one record is read at a time.
    handle = os.open(reader, os.O_WRONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)
        os.write(handle, line.encode())
    finally:
        os.close(handle)


@contextmanager
def locked() -> Iterator[None]:
    """The module loader's own lock: two modprobe do not insert at the same time."""
    with (STATE / "modules.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- the PCI bus ------------------------------------------------------------------------------


def gpus() -> list[str]:
    """The slots of what nvidia.ko takes for a GPU: vendor 10de, VGA or 3D controller."""
    found = []
    for device in sorted(DEVICES.iterdir()):
        vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        if vendor.strip() == "0x10de" and kind.strip()[:6] in ("0x0300", "0x0302"):
            found.append(device.name)
    return found


def driver_of(slot: str) -> str | None:
    link = DEVICES / slot / "driver"
    return link.readlink().name if link.is_symlink() else None


def bind(slot: str, driver: str) -> None:
    (DRIVERS / driver).mkdir(parents=True, exist_ok=True)
    (DEVICES / slot / "driver").symlink_to(f"../../drivers/{driver}")
    (DRIVERS / driver / slot).symlink_to(f"../../devices/{slot}")


def unbind_all(driver: str) -> None:
    for slot in gpus():
        if driver_of(slot) == driver:
            _undraw(slot)
            (DEVICES / slot / "driver").unlink()
            (DRIVERS / driver / slot).unlink(missing_ok=True)


def fault(slot: str) -> str:
    """What is wrong with this GPU: a word of hardware.json, or nothing."""
    path = STATE / "faults" / slot
    return path.read_text().strip() if path.exists() else ""


# -- modules ----------------------------------------------------------------------------------


def canonical(name: str) -> str:
    return name.replace("-", "_")


def loaded(name: str) -> bool:
    return (MODULES / canonical(name)).is_dir()


def device_files(name: str) -> list[str]:
    """Which device files are the module's: what has one open keeps the module in use."""
    if name == "nvidia":
        return ["/dev/nvidiactl", *(f"/dev/nvidia{minor}" for minor in range(len(gpus())))]
    if name == "nvidia_uvm":
        return ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    if name == rival():
        cards = [entry for slot in gpus() if driver_of(slot) == rival_driver()
                 for entry in (DEVICES / slot / "drm").glob("*")]  # fmt: skip
        return [str(DRM / entry.name) for entry in cards]
    return []


def opened(files: list[str]) -> int:
    """How often these files are open. A pretended device cannot be opened: O_PATH is enough."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/fd/*") if files else ():
        with suppress(OSError):
            count += str(entry.readlink()) in files
    return count


def count_references(name: str) -> int:
    """Its holders, and how often its devices are open; kept in refcnt."""
    folder = MODULES / canonical(name)
    users = len(list((folder / "holders").iterdir())) if (folder / "holders").is_dir() else 0
    users += opened(device_files(canonical(name)))
    (folder / "refcnt").write_text(f"{users}\n")
    return users


def _appear(module: Module) -> None:
    folder = MODULES / module.name
    (folder / "holders").mkdir(parents=True)
    if module.version:
        (folder / "version").write_text(f"{module.version}\n")
    (folder / "initstate").write_text("live\n")
    if module.options:
        (folder / "parameters").mkdir()
        for key, value in module.options.items():
            (folder / "parameters" / key).write_text(f"{value}\n")
    for needed in module.needs:
        if loaded(needed):
            (MODULES / needed / "holders" / module.name).touch()
            count_references(needed)
    count_references(module.name)


def rival() -> str:
    """The module of the kernel's own that takes the card: nouveau, or its successor nova_core."""
    return str(settings().get("rival") or "nouveau")


def rival_driver() -> str:
    """The name by which it stands on the bus."""
    return {"nova_core": "NovaCore"}.get(rival(), rival())


def insert_rival() -> None:
    """What udev's coldplug does on a machine where nothing forbids it."""
    if loaded(rival()):
        return
    _appear(Module(rival(), "", release(), {}))
    for slot in gpus():
        if driver_of(slot) is None and fault(slot) != "bar-unset":
            bind(slot, rival_driver())
            _draw(slot)
            say(f"{rival_driver()} {slot}: NVIDIA TU104 (164000a1)", 6)
    if rival() == "nova_core":
        _appear(Module("nova_drm", "", release(), {}, ("nova_core",)))
    count_references(rival())


def _draw(slot: str) -> None:
    """The DRM device of a card; udev, which a container has not, would make its file."""
    DRM.mkdir(exist_ok=True)
    number = len(list(DRM.glob("card*")))
    (DEVICES / slot / "drm" / f"card{number}").mkdir(parents=True)
    os.mknod(DRM / f"card{number}", 0o600 | stat.S_IFCHR, os.makedev(226, number))


def _undraw(slot: str) -> None:
    for entry in (DEVICES / slot / "drm").glob("*"):
        (DRM / entry.name).unlink(missing_ok=True)
    _erase(DEVICES / slot / "drm")


def insert(module: Module) -> None:
    """Load a module file. Raises Refused with the text that modprobe would print."""
    if loaded(module.name):
        return
    if module.vermagic.split(" ")[0] != release():
        say(f"{module.name}: version magic '{module.vermagic}' should be '{release()} SMP'", 3)
        raise Refused("Exec format error")
    if settings().get("secure_boot") and not module.signer.startswith(BUILT_IN):
        say("Loading of module with unavailable key is rejected", 5)
        raise Refused("Key was rejected by service")
    say(f"{module.name}: module verification failed: signature and/or required key missing")
    if module.name == "nvidia":
        _probe(module)
    _appear(module)
    if module.name == "nvidia":
        _proc(module)
        for slot in gpus():
            _complain(slot)
    if RULES.exists():
        _make_devices(module.name)


def _make_devices(name: str) -> None:
    """What udev does on Ubuntu as soon as a module is loaded; Debian has nvidia-modprobe do it."""
    numbers = {"nvidia_uvm": {"nvidia-uvm": (511, 0), "nvidia-uvm-tools": (511, 1)}}
    numbers["nvidia"] = {f"nvidia{minor}": (195, minor) for minor in range(len(gpus()))}
    numbers["nvidia"]["nvidiactl"] = (195, 255)
    for file, (major, minor) in numbers.get(name, {}).items():
        with suppress(FileExistsError):
            os.mknod(f"/dev/{file}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
            Path(f"/dev/{file}").chmod(0o666)  # past the umask


def _complain(slot: str) -> None:
    """What the module says of a broken card once somebody opens it; here when it is loaded."""
    if fault(slot) == "init-fails":
        say(f"NVRM: GPU {slot}: RmInitAdapter failed! (0x26:0x56:1463)", 3)
        say(f"NVRM: GPU {slot}: rm_init_adapter failed, device minor number 0", 3)
    elif fault(slot) == "lost":
        lost = "GPU has fallen off the bus."
        say(f"NVRM: Xid (PCI:{slot.rpartition('.')[0]}): 79, pid='<unknown>', {lost}", 3)
        say(f"NVRM: GPU {slot}: {lost}", 3)


def _probe(module: Module) -> None:
    """nvidia.ko's init: it refuses to stay if it got no device."""
    found = gpus()
    taken = [slot for slot in found if driver_of(slot) is not None]
    if not found:
        say("NVRM: No NVIDIA GPU found.", 3)
        raise Refused("No such device")
    for slot in taken:
        say(f"NVRM: GPU {slot} is already bound to {driver_of(slot)}.", 3)
    if taken:
        say(f"NVRM: The NVIDIA probe routine was not called for {len(taken)} device(s).")
        say("NVRM: This can occur when another driver was loaded and ")
        say("NVRM: obtained ownership of the NVIDIA device(s).")
    for slot in found:
        if slot not in taken and _probe_device(slot):
            bind(slot, "nvidia")
    if not any(driver_of(slot) == "nvidia" for slot in found):
        say("NVRM: No NVIDIA devices probed.")
        raise Refused("No such device")
    say(f"NVRM: loading NVIDIA UNIX {module.kind}  {module.version}  {BUILT}", 5)


def _probe_device(slot: str) -> bool:
    if fault(slot) != "bar-unset":
        return True
    say("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:", 3)
    say(f"NVRM: BAR1 is 0M @ 0x0 (PCI:{slot})", 3)
    say(f"nvidia: probe of {slot} failed with error -1", 3)
    return False


def remove(name: str) -> None:
    """Unload a module that nobody uses. Raises Refused if it is in use."""
    name = canonical(name)
    if count_references(name) > 0:
        raise Refused(f"Module {name} is in use.")
    if name in ("nvidia", rival()):
        unbind_all("nvidia" if name == "nvidia" else rival_driver())
    if name == "nvidia":
        _erase(PROC / "nvidia")
    _erase(MODULES / name)
    for other in MODULES.iterdir():
        if (other / "holders" / name).exists():
            (other / "holders" / name).unlink()
            count_references(other.name)


def _erase(folder: Path) -> None:
    if not folder.is_dir() or folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    for child in folder.iterdir():
        _erase(child)
    folder.rmdir()


# -- /proc/driver/nvidia ----------------------------------------------------------------------


def uuid(slot: str) -> str:
    """Stable for a slot; the same sum as in lab_gpu.h."""
    total = 0xCBF29CE484222325
    digits = ""
    for turn in range(2):
        for byte in f"{turn}{slot}".encode():
            total = ((total ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        digits += f"{total:016x}"
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _proc(module: Module) -> None:
    folder = PROC / "nvidia"
    (folder / "gpus").mkdir(parents=True)
    (folder / "version").write_text(
        f"NVRM version: NVIDIA UNIX {module.kind}  {module.version}  {BUILT}\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1) \n"
    )
    given = {key.removeprefix("NVreg_"): value for key, value in module.options.items()}
    parameters = {"EnableMSI": "1", "EnableGpuFirmware": "18", "ModifyDeviceFiles": "1"} | given
    (folder / "params").write_text("".join(f"{k}: {v}\n" for k, v in parameters.items()))
    for minor, slot in enumerate(s for s in gpus() if driver_of(s) == "nvidia"):
        _information(folder / "gpus" / slot, slot, minor)


def _information(folder: Path, slot: str, minor: int) -> None:
    folder.mkdir()
    device = (DEVICES / slot / "device").read_text().strip().removeprefix("0x")
    (folder / "information").write_text(
        f"Model: \t\t {MODELS.get(device, 'NVIDIA Graphics Device')}\n"
        f"IRQ:   \t\t 24\nGPU UUID: \t {uuid(slot)}\nVideo BIOS: \t 90.04.38.00.03\n"
        "Bus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n"
        f"Bus Location: \t {slot}\nDevice Minor: \t {minor}\nGPU Firmware: \t N/A\n"
        "GPU Excluded:\t No\n"
    )
