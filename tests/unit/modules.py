"""The kernel's modules on a small node with one T4: which are loaded, and who uses them."""

from __future__ import annotations

import shutil

from gpuboot.process import Command, Result
from tests.unit.node import ABSENT, KERNEL, SLOT, Node

DRIVER = "535.309.01"
OLD = "525.147.05"
SERVICES = ("gpuboot-monitor", "nvidia-persistenced", "nvidia-dcgm", "dcgm", "dcgm-exporter",
            "nvidia-fabricmanager", "nvidia-powerd")  # fmt: skip
# Which module each stands on; a module with users cannot be unloaded (init_module(2)).
NEEDS = {"nvidia_uvm": "nvidia", "nvidia_modeset": "nvidia", "nvidia_drm": "nvidia_modeset",
         "nvidia_peermem": "nvidia",
         "nova_drm": "nova_core"}  # fmt: skip


class Modules:
    """Answers for the commands that load and unload; `in_use` is what the kernel itself uses."""

    def __init__(self, node: Node, *loaded: str, version: str = DRIVER) -> None:
        self.node = node
        self.in_use: set[str] = set()
        self.refuses: Result | None = None
        self.active: set[str] = set()
        for name in loaded:
            self.load(name, version)
        node.put("/proc/sys/kernel/osrelease", KERNEL)
        node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
        node.answers |= {
            "lspci": self.lspci, "modprobe": self.modprobe, "modinfo": self.modinfo,
            "rmmod": self.rmmod, "nvidia-modprobe": self.nodes, "journalctl": "NVRM: a line\n",
            "systemctl reset-failed": "", "systemctl start --no-block": self.start,
            "systemctl stop": self.stop,
        }  # fmt: skip
        for service in SERVICES:
            node.unit(f"{service}.service", **ABSENT)
        node.unit("nvidia-persistenced.service")

    # -- modules

    def load(self, name: str, version: str = DRIVER) -> None:
        plain = name.replace("-", "_")
        self.node.put(f"/sys/module/{plain}/version", f"{version}\n")
        self.node.put(f"/sys/module/{plain}/refcnt", "0\n")
        if below := NEEDS.get(plain):
            self.node.put(f"/sys/module/{below}/holders/{plain}")

    def loaded(self, name: str) -> str | None:
        """The version that is loaded."""
        return (self.node.text(f"/sys/module/{name}/version") or "").strip() or None

    def rmmod(self, command: Command) -> Result:
        name = command.argv[-1]
        holders = self.node.host.names(f"/sys/module/{name}/holders")
        if name in self.in_use or holders or self.users():
            return Result(1, err=f"rmmod: ERROR: Module {name} is in use")
        shutil.rmtree(self.node.host.path(f"/sys/module/{name}"))
        if below := NEEDS.get(name):
            self.node.host.remove(f"/sys/module/{below}/holders/{name}")
        return Result(0)

    def modprobe(self, command: Command) -> Result:
        if self.refuses:
            return self.refuses
        self.load(command.argv[-1])
        return Result(0)

    def modinfo(self, command: Command) -> Result:
        fields = {"version": DRIVER, "vermagic": f"{KERNEL} SMP preempt mod_unload modversions"}
        if command.argv[1] == "--field":
            return Result(0, f"{fields[command.argv[2]]}\n")
        return Result(0, "".join(f"{name + ':':16}{text}\n" for name, text in fields.items()))

    def lspci(self, _: Command) -> Result:
        names = {"nouveau": "nouveau", "nova_core": "nova_core", "vfio_pci": "vfio-pci"}
        rivals = [driver for name, driver in names.items() if self.loaded(name)]
        driver = (rivals or ["nvidia" if self.loaded("nvidia") else ""])[0]
        self.node.bus((SLOT, driver))
        text, self.node.answers["lspci"] = self.node.answers["lspci"], self.lspci
        assert isinstance(text, str)
        return Result(0, text)

    def nodes(self, command: Command) -> Result:
        names = {"255": "nvidiactl", "0": "nvidia-uvm" if "-u" in command.argv else "nvidia0"}
        for word in command.argv:
            if word in names:
                self.node.put(f"/dev/{names[word]}")
        return Result(0)

    # -- who uses them

    def opens(self, pid: int, device: str, command: str, group: str = "") -> None:
        """A process that has a device file open."""
        self.node.link(f"/proc/{pid}/fd/0", "/dev/null")
        self.node.link(f"/proc/{pid}/fd/7", device)
        self.node.put(f"/proc/{pid}/comm", f"{command}\n")
        self.node.put(f"/proc/{pid}/cgroup", f"0::{group}\n")

    def ends(self, pid: int) -> None:
        shutil.rmtree(self.node.host.path(f"/proc/{pid}"))

    def users(self) -> list[str]:
        return [name for name in self.node.host.names("/proc") if name.isdigit()]

    def serves(self, service: str, pid: int) -> None:
        """A service of NVIDIA's that runs and keeps the driver open."""
        self.node.unit(f"{service}.service", ActiveState="active")
        self.opens(pid, "/dev/nvidiactl", service, f"/system.slice/{service}.service")
        self.active.add(f"{service}.service")

    def stop(self, command: Command) -> Result:
        name = command.argv[-1]
        for pid in self.users():
            if name in (self.node.text(f"/proc/{pid}/cgroup") or ""):
                self.ends(int(pid))
        self.active.discard(name)
        return Result(0)

    def start(self, command: Command) -> Result:
        self.active.add(command.argv[-1])
        return Result(0)
