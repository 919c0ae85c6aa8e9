"""What the machine is: everything that cannot change while one walk runs."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuboot import cloudinit, existing, kernel, pci

if TYPE_CHECKING:
    from gpuboot.host import Host

# Five bytes, the last one is 1 when Secure Boot is on (nvidia-installer misc.c).
EFI_VARIABLE = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True)
class Facts:
    """The machine, as `gpuboot facts` prints it and `plan.build` takes it."""

    os_id: str  # debian, ubuntu …
    os_version: str
    codename: str
    architecture: str  # as dpkg says it
    kernel: str  # the running kernel's release
    next_kernel: str  # the one that boots next, by GRUB's files where they are there
    firmware: str  # efi or bios
    secure_boot: bool | None  # None: unknown
    vendor: str  # who made the machine, from DMI; empty if there is none
    product_uuid: str
    machine_id: str
    instance_id: str
    boot_id: str
    hostname: str
    gpus: tuple[pci.Gpu, ...]
    lockdown: str = ""  # none, integrity or confidentiality; empty: unknown
    driver: existing.Driver | None = None  # that is there already, whoever has put it there

    @property
    def signed_only(self) -> bool:
        """Whether only signed modules are loaded. Lockdown alone means it too (facts: nvidia 4)."""
        return bool(self.secure_boot) or self.lockdown in ("integrity", "confidentiality")


def gather(host: Host) -> Facts:
    """Look at the machine; only reads."""
    release = os_release(host.read("/etc/os-release") or host.read("/usr/lib/os-release") or "")
    efi = host.exists("/sys/firmware/efi")
    return Facts(
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        codename=release.get("VERSION_CODENAME", ""),
        architecture=host.run(["dpkg", "--print-architecture"]).out.strip(),
        kernel=kernel.running(host),
        next_kernel=kernel.next_boot(host),
        firmware="efi" if efi else "bios",
        secure_boot=_secure_boot(host) if efi else False,
        vendor=_line(host, "/sys/class/dmi/id/sys_vendor"),
        product_uuid=_line(host, "/sys/class/dmi/id/product_uuid").lower(),
        machine_id=_line(host, "/etc/machine-id"),
        instance_id=cloudinit.instance_id(host),
        boot_id=boot_id(host),
        hostname=_line(host, "/proc/sys/kernel/hostname"),
        gpus=pci.gpus(host),
        lockdown=_lockdown(host),
        driver=existing.look(host),
    )


def boot_id(host: Host) -> str:
    """The kernel's id of this boot; another one means there was a reboot."""
    return _line(host, "/proc/sys/kernel/random/boot_id")


def os_release(text: str) -> dict[str, str]:
    """The variables of an os-release file; lines that a shell could not read are left out."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            with suppress(ValueError):
                values[name.strip()] = " ".join(shlex.split(value))
    return values


def _line(host: Host, name: str) -> str:
    return (host.read(name) or "").strip()


def _secure_boot(host: Host) -> bool | None:
    text = host.read(EFI_VARIABLE)
    return text.endswith("\x01") if text else None


def _lockdown(host: Host) -> str:
    """The mode in brackets, as in `none [integrity] confidentiality`."""
    match = re.search(r"\[(\w+)\]", host.read("/sys/kernel/security/lockdown") or "")
    return match[1] if match else ""


def parse(content: dict[str, Any]) -> Facts:
    """Facts as `gpuboot facts --json` printed them, also an older one's, which had fewer keys.

    Raises ValueError, TypeError or KeyError.
    """
    gpus = tuple(pci.Gpu(**gpu) for gpu in content["gpus"])
    found = Facts(**{**content, "gpus": gpus, "driver": _driver(content.get("driver"))})
    for name, value in content.items():
        if name not in ("gpus", "secure_boot", "driver") and not isinstance(value, str):
            raise TypeError(f"{name} is no text")
    return found


def _driver(content: dict[str, Any] | None) -> existing.Driver | None:
    if content is None:
        return None
    found = existing.Driver(**{**content, "missing": tuple(content["missing"])})
    for name, value in content.items():
        if name not in ("missing", "dkms") and not isinstance(value, str):
            raise TypeError(f"driver.{name} is no text")
    if not re.fullmatch(r"(\d+(\.\d+)*)?", found.version):
        raise ValueError(f"driver.version is no version: {found.version}")
    return found
