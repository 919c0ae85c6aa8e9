"""What a support bundle holds: each text, what it tells, and where it comes from.

Everything here only looks. A command is not waited for long, a file is read from its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click
import yaml

from gpuboot import (
    chart,
    checkpoint,
    config,
    dropin,
    facts,
    findings,
    gauges,
    kernel,
    news,
    nvml,
    picture,
    planview,
    preview,
    progress,
    rancher,
    redaction,
    rke2,
    status,
    statusview,
    survey,
    timeline,
)
from gpuboot.process import NOT_FOUND

if TYPE_CHECKING:
    from gpuboot.host import Host

PATIENCE = 20.0  # seconds for a command
LIMIT = 256 << 10  # bytes of one text; of a longer one the end is kept
LONG = 1 << 20  # of a journal
LINES = 5000  # of a journal
DKMS = "/var/lib/dkms"


class Absent(Exception):
    """There is no such thing on this machine: no trouble, but to be told."""


@dataclass(frozen=True)
class Item:
    """One file of the bundle. `read` raises Absent, GpubootError or OSError if it cannot be had."""

    name: str
    tells: str
    read: Callable[[Host], str]
    limit: int = LIMIT


def said(*argv: str, timeout: float = PATIENCE) -> Callable[[Host], str]:
    """What a command says, and its exit status where that is not 0."""

    def read(host: Host) -> str:
        done = host.run(argv, timeout=timeout)
        if done.code == NOT_FOUND:
            raise Absent(f"there is no {argv[0]} here")
        end = "" if done.code == 0 else f"[exit status {done.code}]\n"
        return "\n".join(filter(None, (done.out.rstrip("\n"), done.err.rstrip("\n"), end)))

    return read


def end_of(name: str, size: int = LIMIT) -> Callable[[Host], str]:
    """The end of a file."""

    def read(host: Host) -> str:
        if not host.exists(name):
            raise Absent(f"there is no {name}")
        return host.tail(name, size)

    return read


def document(name: str) -> Callable[[Host], str]:
    """A file of JSON, one value a line: as one long line it would be cut."""

    def read(host: Host) -> str:
        text = end_of(name)(host)
        try:
            return _json(json.loads(text))
        except ValueError:  # damaged: as it is
            return text

    return read


def all_of(*places: str, suffix: str = "") -> Callable[[Host], str]:
    """Several files one after the other; a folder stands for what lies in it."""

    def read(host: Host) -> str:
        names = [name for place in places for name in _below(host, place, suffix)]
        if not names:
            raise Absent(f"there is nothing at {', '.join(places) or 'any place'}")
        return "\n".join(f"==> {name} <==\n{host.tail(name, LIMIT)}" for name in names)

    return read


def _below(host: Host, place: str, suffix: str) -> list[str]:
    names = [f"{place}/{name}" for name in host.names(place) if name.endswith(suffix)]
    return names or ([place] if host.exists(place) and host.path(place).is_file() else [])


def journal(unit: str) -> Callable[[Host], str]:
    """The last entries of a unit, of all boots."""
    return said("journalctl", "--no-pager", "--output=short-iso", f"--lines={LINES}",
                f"--unit={unit}", timeout=60)  # fmt: skip


# -- gpuboot's own --------------------------------------------------------------------------------


def _status(host: Host) -> str:
    return click.unstyle(statusview.text(status.look(host), 100))


def _plan(host: Host) -> str:
    found = preview.preview(host, findings.Looking(offline=True))
    return click.unstyle(planview.text(found, 100))


def _preflight(host: Host) -> str:
    troubles = survey.survey(host, root=True)
    told = [f"{one.code}  {one.message}\n        next: {one.hint}" for one in troubles]
    return "\n".join(told) or "nothing stands in the way of a walk"


def _settings(host: Host) -> str:
    return yaml.safe_dump(config.effective(config.load(host)), sort_keys=False)


def _make_logs(host: Host) -> str:
    """Of builds that failed, and of the last good one for each kernel (dkms(8))."""
    done = host.run(["find", DKMS, "-name", "make.log", "-size", "+0"], timeout=PATIENCE)
    return all_of(*sorted(done.out.split()))(host)


def _modules(host: Host) -> str:
    found = [f"{release}: {name}" for release in host.names("/lib/modules")
             for name in kernel.module_files(host, release)]  # fmt: skip
    return "\n".join(found) or "no kernel has an NVIDIA module"


def _agent(host: Host) -> str:
    """Where RKE2's agent has its files."""
    return f"{redaction.data_dir(host)}/agent"


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


OWN: Sequence[Item] = (
    Item("gpuboot/status.txt", "where the node stands, as `gpuboot status` says it",
         _status),
    Item("gpuboot/status.json", "the same as data", lambda host: _json(status.look(host))),
    Item("gpuboot/facts.json", "the machine; `gpuboot plan --facts` takes this file",
         lambda host: _json(asdict(facts.gather(host)))),
    Item("gpuboot/config.yaml", "the configuration in force, with every default", _settings),
    Item("gpuboot/config-files.txt", "its files as they were written",
         all_of("/etc/gpuboot/config.yaml", "/etc/gpuboot/config.d", suffix=".yaml")),
    Item("gpuboot/plan.txt", "what a walk would do now (offline)", _plan),
    Item("gpuboot/preflight.txt", "what stands in a walk's way", _preflight),
    Item("gpuboot/timeline.txt", "where the time went, in all boots",
         lambda host: click.unstyle(chart.text(timeline.read(host), 120))),
    Item("gpuboot/timeline.svg", "the same as a picture",
         lambda host: picture.svg(timeline.read(host))),
    Item("gpuboot/checkpoint.json", "attempts, times, reboots, boots", document(checkpoint.FILE)),
    Item("gpuboot/progress.json", "what the agent wrote last", document(progress.FILE)),
    Item("gpuboot/health.json", "what the monitor saw last", document(status.HEALTH)),
    Item("gpuboot/node.json", "what of the own Node was seen last", document(news.NODE)),
)  # fmt: skip
GPU: Sequence[Item] = (
    Item("gpu/lspci.txt", "NVIDIA's devices on the PCI bus, in full",
         said("lspci", "-vvv", "-nn", "-k", "-d", "10de:")),
    Item("gpu/pci-bus.txt", "the whole bus as a tree", said("lspci", "-tvnn")),
    Item("gpu/nvidia-smi.txt", "everything that the driver says of the cards",
         said("nvidia-smi", "-q")),
    Item("gpu/gauges.csv", "temperature and memory now", said(*gauges.QUESTION)),
    Item("gpu/driver.txt", "what the loaded module says of itself",
         all_of("/proc/driver/nvidia/version", "/proc/driver/nvidia/params",
                "/proc/driver/nvidia/registry", "/sys/module/nvidia/version")),
    Item("gpu/libraries.txt", "NVML's installed version",
         lambda host: f"libnvidia-ml.so.1: {nvml.library(host) or 'not there'}\n"),
    Item("gpu/devices.txt", "the device files",
         said("find", "/dev", "-maxdepth", "2", "-name", "nvidia*", "-ls")),
    Item("gpu/cdi.txt", "the devices for containers",
         all_of("/var/run/cdi", "/etc/cdi", suffix=".yaml")),
    Item("gpu/modprobe.txt", "what modprobe is told",
         all_of("/etc/modprobe.d", "/etc/modules-load.d", suffix=".conf")),
)  # fmt: skip
KERNEL: Sequence[Item] = (
    Item("kernel/nvidia.txt", "the kernel's lines about GPUs: NVRM, Xid, nouveau, PCI resources",
         said("journalctl", "--no-pager", "--output=short-iso", "--dmesg", "--boot=all",
              f"--lines={LINES}",
              "--grep=NVRM|Xid|nvidia|nouveau|vfio|10de|BAR [0-9]|pcieport|lockdown|Secure Boot")),
    Item("kernel/dmesg.txt", "all that the kernel has said in this boot", said("dmesg")),
    Item("kernel/running.txt", "the kernel, and how it was started",
         all_of("/proc/version", "/proc/cmdline", "/proc/sys/kernel/osrelease",
                "/proc/sys/kernel/tainted", "/sys/kernel/security/lockdown")),
    Item("kernel/boot.txt", "the kernels there are", said("ls", "-l", "/boot")),
    Item("kernel/modules.txt", "NVIDIA's modules, by kernel", _modules),
    Item("kernel/loaded.txt", "the loaded modules", said("lsmod")),
    Item("kernel/dkms.txt", "what DKMS has built", said("dkms", "status")),
    Item("kernel/make.log", "how the last builds went", _make_logs, LONG),
)  # fmt: skip
PACKAGES: Sequence[Item] = (
    Item("packages/installed.txt", "all packages with versions",
         said("dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\\n")),
    Item("packages/audit.txt", "those that are half installed", said("dpkg", "--audit")),
    Item("packages/held.txt", "those that are held", said("apt-mark", "showhold")),
    Item("packages/sources.txt", "the package sources",
         all_of("/etc/apt/sources.list", "/etc/apt/sources.list.d")),
    Item("packages/preferences.txt", "their order of preference",
         all_of("/etc/apt/preferences", "/etc/apt/preferences.d")),
    Item("packages/policy.txt", "which versions there are", said("apt-cache", "policy")),
    Item("packages/apt.conf.txt", "apt's settings", said("apt-config", "dump")),
    Item("packages/apt-history.log", "what apt has done", end_of("/var/log/apt/history.log")),
    Item("packages/apt-term.log", "what it said then", end_of("/var/log/apt/term.log")),
    Item("packages/dpkg.log", "what dpkg has done", end_of("/var/log/dpkg.log")),
)  # fmt: skip
RKE2: Sequence[Item] = (
    Item("rke2/config.txt", "RKE2's configuration, gpuboot's drop-in and Rancher's among it",
         all_of(dropin.MAIN, dropin.FOLDER)),
    Item("rke2/registries.txt", "its registries", all_of("/etc/rancher/rke2/registries.yaml")),
    Item("rke2/environment.txt", "its environment", all_of(
        *rke2.ENVIRONMENT, "/etc/rancher/rke2/gpuboot-proxy.env")),
    Item("rke2/units.txt", "the units and their drop-ins",
         said("systemctl", "cat", "--no-pager", "gpuboot.service", rke2.AGENT,
              "rke2-server.service", rancher.SYSTEM_AGENT)),
    Item("rke2/version.txt", "its version", said("rke2", "--version")),
    Item("rke2/kubelet.log", "the kubelet",
         lambda host: end_of(f"{_agent(host)}/logs/kubelet.log", LONG)(host), LONG),
    Item("rke2/containerd.log", "containerd",
         lambda host: end_of(f"{_agent(host)}/containerd/containerd.log", LONG)(host), LONG),
    Item("rke2/containerd.toml", "containerd's configuration, as RKE2 has generated it",
         lambda host: all_of(f"{_agent(host)}/etc/containerd")(host)),
    Item("rke2/images.txt", "image archives",
         lambda host: said("ls", "-l", f"{_agent(host)}/images")(host)),
)  # fmt: skip
JOURNAL: Sequence[Item] = (
    Item("journal/gpuboot.txt", "gpuboot, in all boots", journal("gpuboot.service"), LONG),
    Item("journal/gpuboot-monitor.txt", "the monitor, and what it told the cluster",
         said("journalctl", "--no-pager", "--output=short-iso", f"--lines={LINES}",
              "--unit=gpuboot-monitor.service", "--unit=gpuboot-condition.service")),
    Item("journal/rke2-agent.txt", "rke2-agent", journal(rke2.AGENT), LONG),
    Item("journal/rancher-system-agent.txt", "Rancher's system-agent",
         journal(rancher.SYSTEM_AGENT)),
    Item("journal/nvidia.txt", "the driver's and the toolkit's services",
         said("journalctl", "--no-pager", "--output=short-iso", f"--lines={LINES}",
              "--unit=nvidia-persistenced.service", "--unit=nvidia-cdi-refresh.service",
              "--unit=systemd-modules-load.service")),
    Item("journal/errors.txt", "errors of this boot, whoever's",
         said("journalctl", "--no-pager", "--output=short-iso", f"--lines={LINES}", "--boot",
              "--priority=err")),
    Item("journal/cloud-init-output.log", "what cloud-init's commands have said",
         end_of("/var/log/cloud-init-output.log")),
    Item("journal/cloud-init.txt", "how cloud-init has done",
         said("cloud-init", "status", "--long")),
)  # fmt: skip
SYSTEM: Sequence[Item] = (
    Item("system/release.txt", "the system", all_of("/etc/os-release", "/usr/lib/os-release")),
    Item("system/failed-units.txt", "units that failed",
         said("systemctl", "--no-pager", "--failed", "--full")),
    Item("system/boots.txt", "the boots there were", said("journalctl", "--list-boots")),
    Item("system/disks.txt", "space", said("df", "-h")),
    Item("system/mounts.txt", "file systems", said("findmnt")),
    Item("system/memory.txt", "memory", said("free", "-m")),
    Item("system/processes.txt", "what runs",
         said("ps", "-eo", "pid,ppid,user,stat,etime,rss,comm")),
    Item("system/network.txt", "addresses", said("ip", "address")),
    Item("system/routes.txt", "routes", said("ip", "route")),
    Item("system/names.txt", "how names are resolved", all_of("/etc/resolv.conf", "/etc/hosts")),
    Item("system/clock.txt", "the clock", said("timedatectl")),
    Item("system/machine.txt", "the virtual machine",
         said("systemd-detect-virt")),
)  # fmt: skip
ITEMS = (*OWN, *GPU, *KERNEL, *PACKAGES, *RKE2, *JOURNAL, *SYSTEM)
