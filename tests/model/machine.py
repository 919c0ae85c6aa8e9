"""A stand-in for a Debian 12 node with a T4: real files below a folder, commands interpreted.

It stands in for what cannot be had in a unit test: dpkg, systemd, the kernel and its modules,
NVIDIA's tools and RKE2, each reduced to what the walk can see of it. Its `fuse` cuts the power,
its `disk` refuses writes.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from gpuboot.process import Command, Result
from tests.model.cluster import Cluster
from tests.model.disk import HALF, Disk, Fuse, ModelHost, Scrap
from tests.model.words import refusal

KERNEL = "6.1.0-50-amd64"
DRIVER = "535.309.01"
SLOT = "0000:03:00.0"
RKE2 = "v1.35.7+rke2r1"
VOLATILE = ("run", "sys", "dev", "proc", "var/run")
KERNELS_OWN = ("/proc/", "/sys/", "/dev/")  # what is written there needs no room
MODULE = f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko"
DKMS = "/var/lib/dkms/nvidia-current"
DEFERRED = "/var/lib/gpuboot/initramfs-deferred"
SOURCE = f"/usr/src/nvidia-current-{DRIVER}"
BUILT = f"{DKMS}/{DRIVER}/{KERNEL}/x86_64/module/nvidia-current.ko"
BASE = {"gpg", "pciutils", "kmod"}
# What may take the GPU, or the node, from a running workload (DESIGN §7).
DISRUPTIVE = re.compile(
    r"apt-get .*install|dpkg .*--configure|modprobe|rmmod|nvidia-modprobe|update-initramfs"
    r"|systemctl (?:reboot|daemon-reload|(?:stop|restart) (?!nvidia-cdi-refresh))"
)


@dataclass
class FakeClock:
    """Time that passes only by sleeping, and a little with every look at it."""

    seconds: float = 10.0
    true: bool = True

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.seconds)

    def boottime(self) -> float:
        self.seconds += 0.01
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        assert self.seconds < 1_000_000, "it sleeps for ever"

    def wake(self) -> None:
        """Nobody sleeps here."""

    def synchronised(self) -> bool:
        return self.true


@dataclass
class Machine:
    """One node. What a power cut takes is in `_volatile`; everything else is in files."""

    root: Path
    cluster: Cluster
    nouveau: str = "absent"  # or idle, busy, stuck (busy, and no blacklist keeps it out)
    gpu: bool = True
    card: str = "1eb8"  # its PCI device id
    uuid: str = "4206A5A4-0000-0000-0000-000000000001"
    boots: int = 0
    rebooting: bool = False
    notices: socket.socket | None = None  # where the agent tells systemd its STATUS=
    told: str = ""  # the last of them
    commands: list[str] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    masked: str = ""  # a unit that is not to be started
    fuse: Fuse = field(default_factory=Fuse)
    disk: Disk = field(default_factory=Disk)
    scraps: Sequence[Scrap] = HALF
    clock: FakeClock = field(default_factory=FakeClock)
    changes: int = 0  # to what survives a power cut

    # -- the machine's own life

    def make(self) -> None:
        """A fresh installation."""
        self.put("/etc/os-release", 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n')
        self.put("/etc/machine-id", "a" * 32)
        hold = Path(__file__).parents[2] / "systemd/rke2-agent.service.d/10-gpuboot.conf"
        self.put("/usr/lib/systemd/system/rke2-agent.service.d/10-gpuboot.conf", hold.read_text())
        self.put("/usr/lib/systemd/system/gpuboot.service", "")
        self.put("/keys/archive.gpg", "a key")
        self.put("/usr/sbin/update-initramfs", "")
        self.save("packages", dict.fromkeys(sorted(BASE), "installed"))
        self.save("holds", [])
        self.save("initramfs", [])
        self.save("triggers", [])

    def boot(self) -> None:
        """Power on: volatile state is gone, modules load, enabled units start."""
        for name in VOLATILE:
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.boots += 1
        self.rebooting = False
        self.active = set()
        self.clock = self.cluster.clock = FakeClock()
        self.cluster.agent_gone()
        self.put("/sys/class/dmi/id/product_uuid", f"{self.uuid}\n")
        self.put("/proc/sys/kernel/osrelease", KERNEL + "\n")
        self.put("/proc/sys/kernel/hostname", "gpu-1\n")
        self.put("/proc/sys/kernel/random/boot_id", f"boot-{self.boots}\n")
        blocked = "nouveau" in self.load("initramfs") and self.nouveau != "stuck"
        if self.nouveau != "absent" and not blocked:
            self.put("/sys/module/nouveau/refcnt", "0" if self.nouveau == "idle" else "1")
        if self.path("/etc/modules-load.d/gpuboot.conf").exists():
            self._modprobe(["nvidia"])
            self._modprobe(["nvidia-uvm"])
        self._start_agent()

    def host(self) -> ModelHost:
        """A host on this machine whose effects all go through the fuse."""
        host = ModelHost(
            self.root, runner=self, clock=self.clock, web=self.cluster,
            owner=self.root.stat().st_uid,
        )  # fmt: skip
        host.machine = self
        return host

    # -- files

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def put(self, name: str, text: str) -> None:
        """A file, as if it had always been there, or as a command writes it."""
        if not name.startswith(KERNELS_OWN):
            self.disk.write(name)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.changed(name)

    def changed(self, name: str) -> None:
        """Something was written: count it if it survives a power cut."""
        self.changes += not name.startswith(tuple(f"/{folder}/" for folder in VOLATILE))

    def text(self, name: str) -> str:
        """A file's text, empty if there is none."""
        path = self.path(name)
        return path.read_text(errors="replace") if path.is_file() else ""

    def save(self, name: str, value: object) -> None:
        """State of a database that is a file on a real node too."""
        self.put(f"/var/lib/model/{name}.json", json.dumps(value))

    def load(self, name: str) -> list[str]:
        """A list that `save` wrote."""
        found: list[str] = json.loads(self.text(f"/var/lib/model/{name}.json"))
        return found

    @property
    def packages(self) -> dict[str, str]:
        """Package names with installed, or unpacked where dpkg was cut off."""
        found: dict[str, str] = json.loads(self.text("/var/lib/model/packages.json"))
        return found

    def persistent(self) -> dict[str, str]:
        """Every file that survives a power cut, but for the checkpoints and their times."""
        return dict(sorted(_files(str(self.root), skip=(*VOLATILE, "var/lib/gpuboot"))))

    # -- commands

    def __call__(self, command: Command) -> Result:
        """Run a command as far as the walk can see it."""
        self.fuse.burn()
        self._listen()
        self.commands.append(" ".join(command.argv))
        program, *rest = command.argv
        name = Path(program).name
        try:
            if name.startswith("python"):
                result = self._probe(rest[-1])
            else:
                result = getattr(self, "_" + name.replace("-", "_"))(rest)
        except TimeoutError:
            raise
        except OSError as error:
            result = refusal([name, *rest], error)
        self.fuse.burn()
        assert isinstance(result, Result)
        return result

    def _listen(self) -> None:
        """Read what the agent has told systemd."""
        with suppress(BlockingIOError):
            while self.notices:
                said = self.notices.recv(4096).decode()
                self.told = said.removeprefix("STATUS=") if said.startswith("STATUS=") else ""

    def _lspci(self, _: list[str]) -> Result:
        if not self.gpu:
            return Result(0)
        driver = ""
        if self.path("/sys/module/nvidia").exists() and not self._nouveau_holds():
            driver = "Driver:\tnvidia\n"
        elif self._nouveau_holds():
            driver = "Driver:\tnouveau\n"
        return Result(0, (
            f"Slot:\t{SLOT}\nClass:\t3D controller [0302]\nVendor:\tNVIDIA Corporation [10de]\n"
            f"Device:\tTU104GL [Tesla T4] [{self.card}]\nRev:\ta1\n{driver}\n"
        ))  # fmt: skip

    def _nouveau_holds(self) -> bool:
        return self.path("/sys/module/nouveau").exists()

    def _dpkg(self, argv: list[str]) -> Result:
        if argv == ["--print-architecture"]:
            return Result(0, "amd64\n")
        if argv == ["--audit"]:
            broken = [n for n, s in self.packages.items() if s != "installed"]
            return Result(0, "".join([*broken, *self.load("triggers")]))
        if argv[1] == "--unpack":
            unpacked = {n: "unpacked" if s == "messed" else s for n, s in self.packages.items()}
            self.save("packages", unpacked)
            return Result(0)
        assert argv[1:] == ["--configure", "--pending"], argv
        self._configure()
        return Result(0)

    def _env(self, argv: list[str]) -> Result:
        assert argv[1] == "apt-get", argv
        return Result(0)

    def _dpkg_query(self, argv: list[str]) -> Result:
        packages = self.packages
        if "Status-Want" in argv[2]:
            return Result(0, "".join(f"hold\t{name}\n" for name in self.load("holds")))
        if "Status-Eflag" in argv[2]:
            flags = {"messed": "reinstreq"}
            return Result(0, "".join(f"{flags.get(s, 'ok')}\t{n}\n" for n, s in packages.items()))
        names = argv[3:] or list(packages)
        lines = [f"{n}\t{packages[n]}\t{_version(n)}\n" for n in names if n in packages]
        return Result(0 if len(lines) == len(names) else 1, "".join(lines))

    def _apt_mark(self, argv: list[str]) -> Result:
        if argv[0] == "manual":
            return Result(0)
        assert argv[0] == "hold", argv
        self.save("holds", sorted({*self.load("holds"), *argv[1:]}))
        return Result(0)

    def _apt_cache(self, argv: list[str]) -> Result:
        names = argv[argv.index("policy") + 1 :]
        return Result(0, "".join(
            f"{name}:\n  Installed: (none)\n  Candidate: {_version(name)}\n" for name in names
        ))  # fmt: skip

    def _apt_get(self, argv: list[str]) -> Result:
        if argv[0] == "indextargets":
            return Result(0)
        if argv[-1] == "update":
            assert self.path("/etc/apt/sources.list.d/gpuboot.sources").exists()
            self.disk.write("/var/lib/apt/lists/archive_InRelease")
            return Result(0)
        wanted = argv[argv.index("install") + 1 :]
        if "--simulate" in argv or "--print-uris" in argv:
            names = [word.partition("=")[0] for word in wanted]
            missing = [name for name in names if self.packages.get(name) != "installed"]
            return Result(
                0, "".join(f"Inst {n} ({_version(n)} Debian:12 [all])\n" for n in missing)
            )
        for word in wanted:
            packages = self.packages
            name = word.partition("=")[0]
            packages.setdefault(name, "unpacked")
            assert packages[name] != "messed", "apt passes it over"
            self.save("packages", packages)
            self.fuse.burn()
        self._configure()
        return Result(0)

    def _configure(self) -> None:
        """Maintainer scripts: DKMS builds the module when its package is configured."""
        for name, state in self.packages.items():
            if state == "unpacked":
                if name == "nvidia-kernel-dkms":
                    self.put(f"{SOURCE}/dkms.conf", "AUTOINSTALL=yes\n")
                    if not self.path("/etc/dkms/no-autoinstall").exists():
                        self._dkms(["install"])
                    self.save("triggers", ["initramfs-tools"])
                self.fuse.burn()
                self.save("packages", {**self.packages, name: "installed"})
        if self.load("triggers"):
            self._asked_for_initramfs()
            self.fuse.burn()
            self.save("triggers", [])

    def _asked_for_initramfs(self) -> None:
        """As initramfs-tools' script has it, by way of packaging/path/update-initramfs."""
        if self.path(DEFERRED).exists():
            self.fuse.burn()
            self.put(DEFERRED, f"{self.text(DEFERRED)}asked\n")
        else:
            self._update_initramfs([])

    def _dkms(self, argv: list[str]) -> Result:
        """It believes its own tree: what it once built and installed it does not look at again.

        Without headers it says so, and does nothing.
        """
        known = self.path(BUILT).exists()
        if not known and f"linux-headers-{KERNEL}" not in self.packages:
            return Result(0, "Error! Your kernel headers cannot be found")
        self.fuse.burn()
        if "--force" not in argv and known:
            return Result(5, err="Error! This module/version combo is already installed\n")
        if argv[0] == "build" or not known:
            self._torn(BUILT, "built")
        if argv[0] == "install":
            try:
                self._torn(MODULE, self.text(BUILT))
            except OSError as error:  # its cp fails, and it still counts as installed
                return Result(0, f"cp: error writing '{MODULE}': {error.strerror}\n")
        return Result(0)

    def _torn(self, name: str, text: str) -> None:
        """Write as programs do that do not care for power cuts: half of it is there first."""
        self.put(name, text[: len(text) // 2])
        self.fuse.burn()
        self.put(name, text)

    def _modinfo(self, argv: list[str]) -> Result:
        if Path(argv[-1]).read_bytes() != b"built":
            return Result(1, err="modinfo: ERROR: Exec format error")
        return Result(0, f"version:        {DRIVER}\nvermagic:       {KERNEL} SMP\n")

    def _modprobe(self, argv: list[str]) -> Result:
        if self.text(MODULE) != "built":
            return Result(1, err=f"modprobe: FATAL: Module {argv[0]} not found")
        if self._nouveau_holds():
            return Result(1, err=f"modprobe: ERROR: could not insert '{argv[0]}': No such device")
        self.put(f"/sys/module/{argv[0].replace('-', '_')}/version", DRIVER + "\n")
        return Result(0)

    def _rmmod(self, argv: list[str]) -> Result:
        if self.text(f"/sys/module/{argv[0]}/refcnt") == "1":
            return Result(1, err=f"rmmod: ERROR: Module {argv[0]} is in use")
        shutil.rmtree(self.path(f"/sys/module/{argv[0]}"), ignore_errors=True)
        return Result(0)

    def _nvidia_modprobe(self, argv: list[str]) -> Result:
        assert self.path("/sys/module/nvidia").exists()
        minors = [word for word in argv if word.isdigit()]
        names = ["nvidia-uvm"] if "-u" in argv else [f"nvidia{minor}" for minor in minors]
        for name in names:
            self.put(f"/dev/{name.replace('nvidia255', 'nvidiactl')}", "")
        return Result(0)

    def _update_initramfs(self, _: list[str]) -> Result:
        self.fuse.burn()
        listed = re.findall(r"^blacklist (\w+)", self.text("/etc/modprobe.d/gpuboot.conf"), re.M)
        self.save("initramfs", listed)
        return Result(0)

    def _lsinitramfs(self, _: list[str]) -> Result:
        """It has nouveau, and all of modprobe.d as it was when it was made."""
        blocked = "nouveau" in self.load("initramfs")
        names = ["usr/lib/modules/nouveau.ko", "etc/modprobe.d/gpuboot.conf"]
        return Result(0, "\n".join(names[: 1 + blocked]))

    def _probe(self, library: str) -> Result:
        if not self.gpu or not self.path("/dev/nvidia0").exists():
            return Result(1, json.dumps({"error": "Driver Not Loaded", "value": 9}))
        if library == "cuda":
            return Result(0, json.dumps({"count": 1}))
        gpu = {"pci": SLOT, "name": "Tesla T4", "uuid": "GPU-1", "memory_mib": 15360}
        return Result(0, json.dumps({"driver": DRIVER, "gpus": [gpu]}))

    def _nvidia_smi(self, _: list[str]) -> Result:
        return Result(0, f"0000{SLOT}, 37, 448\n")

    def _nvidia_ctk(self, _: list[str]) -> Result:
        return Result(0, self.text("/var/run/cdi/nvidia.yaml"))

    def _ip(self, _: list[str]) -> Result:
        return Result(0, '[{"dst": "192.0.2.1", "dev": "eth0", "prefsrc": "10.0.0.5"}]')

    def _rke2(self, _: list[str]) -> Result:
        return Result(0, f"rke2 version {self.text('/usr/local/bin/rke2').strip()} (abc)\n")

    def _journalctl(self, _: list[str]) -> Result:
        return Result(0)

    def _systemctl(self, argv: list[str]) -> Result:
        verb, unit = argv[0], argv[-1]
        if verb == "show":
            return Result(0, self.told if "--value" in argv else self._show(unit))
        if verb == "enable":
            link = self.path(f"/etc/systemd/system/multi-user.target.wants/{unit}")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                self.disk.write(str(link))
                link.symlink_to(f"/usr/lib/systemd/system/{unit}")
                self.changed(str(link))
        elif verb == "start" and unit == self.masked:
            return Result(1, err=f"Failed to start {unit}: Unit {unit} is masked.")
        elif verb == "start" and unit == "gpuboot-monitor.service":
            self.active.add(unit)
        elif verb == "stop":
            self.active.discard(unit)
        elif verb == "start" and unit == "rke2-agent.service":
            self._start_agent(by_hand=True)
        elif verb == "restart" and unit == "nvidia-cdi-refresh.service":
            self.put("/var/run/cdi/nvidia.yaml", "nvidia.com/gpu=all\nnvidia.com/gpu=0\n")
        elif verb == "reboot":
            self.rebooting = True
        elif verb == "is-enabled":
            link = self.path(f"/etc/systemd/system/multi-user.target.wants/{unit}")
            return Result(0, "enabled\n") if link.is_symlink() else Result(1, "disabled\n")
        elif verb == "is-active":
            return Result(0, "active" if unit in self.active else "inactive")
        return Result(0)

    def _show(self, unit: str) -> str:
        exists = unit in ("gpuboot.service", "nvidia-cdi-refresh.service", *self.active) or bool(
            self.text(f"/usr/local/lib/systemd/system/{unit}")
        )
        return (
            f"LoadState={'loaded' if exists else 'not-found'}\n"
            f"ActiveState={'active' if unit in self.active else 'inactive'}\n"
            "Job=0\nNRestarts=0\n"
        )

    def _start_agent(self, *, by_hand: bool = False) -> None:
        """rke2-agent starts unless its hold stands in the way (DESIGN §8)."""
        unit = "rke2-agent.service"
        wants = self.path("/etc/systemd/system/multi-user.target.wants")
        held = (
            not self.path("/run/gpuboot/ready").exists()
            and (wants / "gpuboot.service").is_symlink()
        )
        wanted = by_hand or (wants / unit).is_symlink()
        if wanted and not held and self.text("/usr/local/bin/rke2"):
            self.active.add(unit)
            self.cluster.agent_started(self.root)
            self.changed("/var/lib/rancher")


def _files(root: str, skip: Sequence[str], below: str = "") -> Iterator[tuple[str, str]]:
    """Names and contents below a folder; plain `os`, as the model spends most of its time here."""
    with os.scandir(f"{root}/{below}") as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_symlink():
                yield name, f"-> {os.readlink(entry.path)}"  # noqa: PTH115 - see above
            elif name in skip:
                continue
            elif entry.is_dir():
                yield from _files(root, skip, f"{name}/")
            else:
                with open(entry.path, "rb") as file:  # noqa: PTH123 - see above
                    yield name, f"{entry.stat().st_mode & 0o777:o} {file.read()!r}"


def _version(package: str) -> str:
    if "container" in package:
        return "1.20.0-1"
    return DRIVER if re.search("nvidia|cuda", package) else "1.0"


def tarball() -> bytes:
    """RKE2's release as far as the walk looks into it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text, mode in (
            ("bin/rke2", RKE2 + "\n", 0o755),
            ("bin/rke2-killall.sh", "#!/bin/sh\n", 0o755),
            ("lib/systemd/system/rke2-agent.service", "[Service]\n", 0o644),
            ("lib/systemd/system/rke2-agent.env", "", 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), mode
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()
