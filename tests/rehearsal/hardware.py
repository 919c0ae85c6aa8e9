"""The pretended hardware of a node: GPUs on its PCI bus, its kernel, and NVIDIA's libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

STANDINS = Path(__file__).parent / "standins"
PROGRAMS = "usr/lib/lab"

# The program that is put aside, and what is put in its place. The names are those that dpkg has
# registered in Debian 12; Debian 13 registers them below /usr.
DIVERTED = {"bin/uname": "uname", "sbin/modprobe": "modprobe.py", "bin/lsmod": "lsmod.py",
            "sbin/lsmod": "lsmod.py", "sbin/rmmod": "rmmod.py", "bin/dmesg": "dmesg.py",
            "usr/sbin/update-initramfs": "update_initramfs.py",
            "usr/sbin/grub-probe": "grub_probe"}  # fmt: skip
SETTINGS = "etc/lab/hardware.json"

Fault = Literal["", "bar-unset", "init-fails", "lost"]


@dataclass(frozen=True)
class Gpu:
    """One GPU as it stands on the bus. A T4 by default; numbers are hexadecimal, as in sysfs."""

    slot: str = "0000:03:00.0"
    device: str = "1eb8"
    subsystem: str = "12a2"
    kind: str = "030200"  # class: 3D controller
    fault: Fault = ""
    held: str = ""  # the driver that somebody has bound to it, such as vfio-pci


GPU_FIELDS = frozenset(field.name for field in fields(Gpu))


def gpu(given: Mapping[str, str]) -> Gpu:
    """The GPU that a scenario describes; its keys are among GPU_FIELDS."""
    return Gpu(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hardware:
    """What /etc/lab/hardware.json says of a node.

    `rival` is the kernel's own driver for the cards, nouveau or nova_core; `nouveau` is what that
    does where nothing forbids it: busy means that it cannot be unloaded;
    stuck, that no blacklist keeps it out either, as in a kernel that has it built in.
    `initramfs`: the first thing to load nouveau is the initramfs, as on real machines.
    """

    kernel: str
    gpus: tuple[Gpu, ...] = (Gpu(),)
    nouveau: Literal["absent", "idle", "busy", "stuck"] = "idle"
    rival: str = "nouveau"
    initramfs: bool = True
    efi: bool = False
    secure_boot: bool = False


def install_programs(tree: Path) -> None:
    """Put the stand-ins into a template: programs, early units, and the diversions."""
    programs = tree / PROGRAMS
    (programs / "real/sbin").mkdir(parents=True, exist_ok=True)
    for source in sorted((STANDINS / "hardware").iterdir()):
        if source.is_file() and source.suffix in (".py", ""):
            _write(programs / source.name, source.read_text(), 0o755)
    for original, replacement in DIVERTED.items():
        _divert(tree, original, replacement)
    for folder in ("postinst.d", "postrm.d"):
        hook = (STANDINS / "hardware/update_grub").read_text()
        _write(tree / "etc/kernel" / folder / "zz-lab-update-grub", hook, 0o755)
    _build_clock(programs / "libclock.so")
    units = tree / "usr/lib/systemd/system"
    for name in ("lab-kmsg.service", "lab-hardware.service", "lab-display.service"):
        _write(units / name, (STANDINS / "hardware" / name).read_text())
        wants = units / "sysinit.target.wants" / name
        wants.parent.mkdir(parents=True, exist_ok=True)
        if not wants.is_symlink():
            wants.symlink_to(f"../{name}")
    _drop_in(tree, "systemd-modules-load.service",
             (STANDINS / "hardware/modules-load.conf").read_text())  # fmt: skip
    _drop_in(tree, "gpuboot-monitor.service",
             (STANDINS / "hardware/monitor.conf").read_text())  # fmt: skip


def stand_in_front(tree: Path, built: Path, files: Iterable[Path]) -> None:
    """Put files in the places of real ones that packages bring later: those go aside.

    dpkg unpacks what is diverted to /usr/lib/lab/real, whatever version comes.
    """
    for file in files:
        place = file.relative_to(built)
        aside = f"/{PROGRAMS}/real/{place.name}"
        _register(tree, f"/{place}", aside)
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, tree / place)


def configure(tree: Path, hardware: Hardware) -> None:
    """Say what machine this node is: its kernel, its GPUs, and what is wrong with them."""
    settings = asdict(hardware)
    for gpu in settings["gpus"]:
        gpu["class"] = gpu.pop("kind")
    _write(tree / SETTINGS, json.dumps(settings, indent=1) + "\n")
    _kernel_files(tree, hardware)
    kernel_units(tree, hardware.kernel)


def kernel_units(tree: Path, release: str) -> None:
    """systemd's %v is the host's release: the units that name it get the node's own."""
    modules = f"/lib/modules/{release}"
    _drop_in(tree, "dkms.service",
             "[Service]\nExecStart=\n"
             f"ExecStart=/bin/sh -c 'dkms autoinstall --verbose --kernelver {release}'\n",
             )  # fmt: skip
    _drop_in(tree, "nvidia-cdi-refresh.path",
             f"[Path]\nPathChanged=\nPathChanged={modules}/modules.dep\n"
             f"PathChanged={modules}/modules.dep.bin\n")  # fmt: skip
    found = rf"/usr/bin/grep -qE '/(nvidia|nvidia-current)[.]ko' {modules}/modules.dep"
    _drop_in(tree, "nvidia-cdi-refresh.service",
             f"[Service]\nExecCondition=\nExecCondition={found}\n")  # fmt: skip


def build_libraries(out: Path, version: str) -> None:
    """Compile libnvidia-ml.so.VERSION and libcuda.so.VERSION into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    major = int(version.split(".")[0])
    for name in ("nvidia-ml", "cuda"):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wno-format-truncation",
             f'-DDRIVER_VERSION="{version}"', f"-DDRIVER_MAJOR={major}",
             f"-Wl,-soname,lib{name}.so.1", "-o", str(out / f"lib{name}.so.{version}"),
             str(STANDINS / "libraries" / f"{name.replace('-', '_')}.c")],
            check=True,
        )  # fmt: skip


def _build_clock(out: Path) -> None:
    """The wrong wall clock, for scenarios that preload it."""
    source = STANDINS / "libraries/clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", out, source], check=True)


def _kernel_files(tree: Path, hardware: Hardware) -> None:
    """What linux-image would have left behind, as far as somebody looks at it.

    DKMS 3.2 runs depmod only where there is a modules.dep already.
    """
    modules = tree / "lib/modules" / hardware.kernel
    modules.mkdir(parents=True, exist_ok=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo", "modules.dep"):
        if not (modules / name).exists():
            (modules / name).touch()
    boot = tree / "boot"
    boot.mkdir(exist_ok=True)
    for name in ("vmlinuz", "initrd.img"):
        if not (boot / f"{name}-{hardware.kernel}").exists():
            (boot / f"{name}-{hardware.kernel}").write_text(f"a pretended {name}\n")


def _divert(tree: Path, original: str, replacement: str) -> None:
    lists = list((tree / "var/lib/dpkg/info").glob("*.list"))
    registered = f"/{original}"
    if not any(f"\n{registered}\n" in path.read_text() for path in lists):
        registered = f"/usr/{original.removeprefix('usr/')}"
    # kmod goes by the name it is called by, so the name is kept.
    folder = "real/sbin" if original == "sbin/lsmod" else "real"
    aside = f"/{PROGRAMS}/{folder}/{Path(original).name}"
    _register(tree, registered, aside)
    put = tree / aside.lstrip("/")
    if put.is_symlink():  # a relative one would lead elsewhere from there
        target = Path(registered).parent / put.readlink()
        put.unlink()
        put.symlink_to(target)
    place = tree / original
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(f"/{PROGRAMS}/{replacement}")


def _register(tree: Path, original: str, aside: str) -> None:
    subprocess.run(
        ["dpkg-divert", "--root", str(tree), "--local", "--quiet", "--rename",
         "--divert", aside, "--add", original],
        check=True, stderr=subprocess.PIPE,  # it warns of Essential packages every time
    )  # fmt: skip


def _drop_in(tree: Path, unit: str, text: str) -> None:
    _write(tree / "usr/lib/systemd/system" / f"{unit}.d" / "50-lab.conf", text)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
