"""The driver that a machine has already, whoever has put it there."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import kernel, nvml

if TYPE_CHECKING:
    from gpuboot.host import Host

DKMS = "/var/lib/dkms"
LISTS = "/var/lib/dpkg/info"  # what dpkg has put where: NAME.list, or NAME:ARCHITECTURE.list
STEM = "libnvidia-ml.so"
CUDA = "libcuda.so.1"
# What the walk calls, and NVIDIA's CDI service: they belong to every way to install the driver.
PROGRAMS = ("nvidia-modprobe", "nvidia-smi")
RULES = "71-nvidia.rules"  # Ubuntu's udev makes the device files itself, without nvidia-modprobe


@dataclass(frozen=True)
class Driver:
    """A driver as its files on the disk say; nothing of it need be loaded.

    `version` is the module's, or what DKMS would build; empty where there are libraries only.
    `module` is the file for the running kernel, empty where it is still to be built.
    """

    version: str
    kernel_module_type: str  # proprietary or open; empty: unknown
    module: str
    package: str  # what has brought it; empty: no package, such as NVIDIA's .run installer
    dkms: bool  # DKMS can build it for other kernels
    library: str  # NVML's version, which must be the module's; empty: none
    missing: tuple[str, ...]  # what else belongs to a driver and is not there

    @property
    def branch(self) -> str:
        """580 of 580.126.20."""
        return self.version.partition(".")[0]

    @property
    def name(self) -> str:
        """The module file's name without its suffixes, such as nvidia-current."""
        return posixpath.basename(self.module).partition(".ko")[0]

    @property
    def origin(self) -> str:
        """Whose it is, for a person."""
        return f"package {self.package}" if self.package else "no package"

    @property
    def fault(self) -> str:
        """Why it does not work as it is; empty for a healthy one."""
        if not self.version or not (self.module or self.dkms):
            return "there is no module for the running kernel"
        if self.library != self.version:
            found = f"of version {self.library}" if self.library else "missing"
            return f"the module is {self.version}, {STEM}.1 is {found}"
        if self.missing:
            return f"{' and '.join(self.missing)} missing"
        return ""


def look(host: Host) -> Driver | None:
    """The driver that is there, whole or not; None for a machine without any.

    Cheap, for every walk asks it: modinfo of one file, the rest is reading of names.
    """
    release = kernel.running(host)
    module = kernel.nvidia_module(host, release)
    library = nvml.library(host) or ""
    trees = [(name, version) for name in host.names(DKMS) if name.startswith("nvidia")
             for version in host.names(f"{DKMS}/{name}")
             if host.link(f"{DKMS}/{name}/{version}") is None]  # fmt: skip
    version = module.version if module else ""
    # Of several that DKMS has, the one whose module or library is there.
    built = [tree for tree in trees if tree[1] == (version or library)]
    tree = next(iter(built), None)
    if module is None and tree:
        version = tree[1]
    if not version and not library:
        return None
    path = module.path if module else ""
    name = posixpath.basename(path).partition(".ko")[0] or (tree[0] if tree else "")
    return Driver(
        version=version,
        kernel_module_type=_module_type(host, name, version, path),
        module=path,
        package=_owner(host, _own_files(tree, path, library)),
        dkms=tree is not None,
        library=library,
        missing=tuple(_missing(host)),
    )


def _module_type(host: Host, name: str, version: str, path: str) -> str:
    """By Debian's names, by what the loaded one says, else by the licence in the file."""
    if name.startswith(("nvidia-current", "nvidia-tesla")):
        return "open" if name.endswith("-open") else "proprietary"
    if kernel.loaded_version(host, "nvidia") == version:
        said = host.read("/proc/driver/nvidia/version") or ""
        if "NVRM version" in said:
            return "open" if "Open Kernel Module" in said else "proprietary"
    if not path:
        return ""
    licence = host.run(["modinfo", "--field", "license", str(host.path(path))]).out.strip()
    return "open" if "GPL" in licence else "proprietary" if licence == "NVIDIA" else ""


def _own_files(tree: tuple[str, str] | None, path: str, library: str) -> list[str]:
    """Patterns of files that only the driver's packages have, the module's own first.

    DKMS builds from sources of a package; what Ubuntu's packages link on the node is of none.
    """
    found = [re.escape(f"/usr/src/{tree[0]}-{tree[1]}/dkms.conf")] if tree else []
    found += [rf"(?:/usr)?{re.escape(path)}"] if path and not tree else []
    return [*found, rf"/\S*/{re.escape(f'{STEM}.{library}')}"] if library else found


def _owner(host: Host, patterns: Iterable[str]) -> str:
    """The package that the first of these files is of, that is of any.

    Read from dpkg's own lists of NVIDIA's packages: to search, dpkg-query reads all packages',
    which takes half a second from a cold disk.
    """
    lists = {name: host.read(f"{LISTS}/{name}") or "" for name in host.names(LISTS)
             if "nvidia" in name and name.endswith(".list")}  # fmt: skip
    for pattern in patterns:
        line = re.compile(rf"^{pattern}$", re.MULTILINE)
        for name, text in lists.items():
            if line.search(text):
                return name.removesuffix(".list").partition(":")[0]
    return ""


def _missing(host: Host) -> Iterable[str]:
    if not any(host.exists(f"{folder}/{CUDA}") for folder in nvml.FOLDERS):
        yield CUDA
    wanted = PROGRAMS[1:] if by_udev(host) else PROGRAMS
    yield from (name for name in wanted if not host.exists(f"/usr/bin/{name}"))


def by_udev(host: Host) -> bool:
    """Whether udev's rules make the device files, as Ubuntu's packages have it."""
    folders = ("/lib/udev/rules.d", "/usr/lib/udev/rules.d")
    return any(host.exists(f"{folder}/{RULES}") for folder in folders)
