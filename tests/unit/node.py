"""A small node: real files below a folder, commands and HTTP answered from tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gpuboot.errors import Code, GpubootError
from gpuboot.facts import Facts
from gpuboot.host import Host
from gpuboot.process import NOT_FOUND, Command, Result
from gpuboot.step import Finding, Ok, Pending, Reboot, Step, Waiting
from gpuboot.web import SYSTEM, UNREACHABLE, Answer, Proxy, Trust
from tests.model.machine import FakeClock

DATA = Path(__file__).parents[1] / "data"
KERNEL = "6.1.0-50-amd64"
SLOT = "0000:03:00.0"

Reply = str | Result | Callable[[Command], Result]
Page = Answer | GpubootError | Callable[["Asked"], Answer]


@dataclass(frozen=True)
class Asked:
    """One GET, as the web was asked for it."""

    url: str
    trust: Trust
    auth: tuple[str, str] | None
    headers: Mapping[str, str]


@dataclass
class Pages:
    """HTTP from memory: an address that is not in a table cannot be reached."""

    pages: dict[str, Page] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    proxy: Proxy = field(default_factory=Proxy)

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        asked = Asked(url, trust, auth, headers or {})
        self.asked.append(asked)
        page = self.pages.get(url, unreachable(url))
        if isinstance(page, GpubootError):
            raise page
        return page if isinstance(page, Answer) else page(asked)

    def send(self, method: str, url: str, body: str, *, trust: Trust, kind: str) -> Answer:
        return self.get(url, trust=trust, headers={method: body, "Content-Type": kind})

    def pieces(self, url: str) -> Iterator[bytes]:
        if url not in self.files:
            raise unreachable(url)
        content = self.files[url]
        yield content[: len(content) // 2]
        yield content[len(content) // 2 :]


def unreachable(url: str) -> GpubootError:
    return GpubootError(UNREACHABLE, f"{url} cannot be reached", retry=True)


class Node:
    """A node's root folder. A command is answered by the longest known prefix of its words."""

    def __init__(self, root: Path, answers: Mapping[str, Reply] | None = None) -> None:
        self.root = root
        self.answers = dict(answers or {})
        self.web = Pages()
        self.clock = FakeClock()
        self.ran: list[str] = []
        self.host = Host(
            root, runner=self._run, clock=self.clock, web=self.web, owner=os.getuid()
        )  # fmt: skip

    def _run(self, command: Command) -> Result:
        words = list(command.argv)
        self.ran.append(" ".join(words))
        for count in range(len(words), 0, -1):
            reply = self.answers.get(" ".join(words[:count]))
            if reply is not None:
                if isinstance(reply, str):
                    return Result(0, reply)
                return reply if isinstance(reply, Result) else reply(command)
        return Result(NOT_FOUND, err=f"{words[0]}: command not found")

    def put(self, name: str, content: str | bytes = "", *, mode: int = 0o644) -> None:
        """A file, as if it had always been there."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def text(self, name: str) -> str | None:
        """A file's text; None if it is not there."""
        path = self.root / name.lstrip("/")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def files(self) -> list[str]:
        """Every file's absolute name."""
        found = (path for path in self.root.rglob("*") if not path.is_dir())
        return sorted("/" + str(path.relative_to(self.root)) for path in found)

    def bus(self, *gpus: tuple[str, str]) -> None:
        """T4s on the PCI bus, each a slot and the driver that holds it ("" for none)."""
        self.answers["lspci"] = "\n".join(
            f"Slot:\t{slot}\nClass:\t3D controller [0302]\nVendor:\tNVIDIA Corporation [10de]\n"
            "Device:\tTU104GL [Tesla T4] [1eb8]\nRev:\ta1\n"
            + (f"Driver:\t{driver}\n" if driver else "")
            for slot, driver in gpus
        )

    def unit(self, name: str, **properties: str) -> None:
        """A unit as `systemctl show` tells of it, by systemd's names; unnamed ones are usual."""
        usual = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled"}
        told = "".join(f"{key}={value}\n" for key, value in {**usual, **properties}.items())
        for asked in (SHOWN, STARTED):
            self.answers[f"systemctl show --property {asked} {name}"] = told
        state = {**usual, **properties}["UnitFileState"]
        self.answers[f"systemctl is-enabled {name}"] = Result(state != "enabled", f"{state}\n")


STARTED = "InvocationID,MainPID,ExecMainStartTimestampMonotonic"
SHOWN = "LoadState,ActiveState,SubState,Job,NRestarts,ConditionResult"
ABSENT = {"LoadState": "not-found", "UnitFileState": ""}


def reason(finding: Finding, kind: type[Ok | Pending | Waiting | Reboot]) -> str:
    """What a finding says, once it is known to be of this kind."""
    assert isinstance(finding, kind), finding
    return finding.reason


def code(finding: Finding) -> Code:
    """What a Waiting waits for."""
    assert isinstance(finding, Waiting), finding
    return finding.code


def module_text(release: str, version: str = "535.309.01") -> str:
    """What modinfo says of an NVIDIA module that was built for this kernel."""
    return (
        f"filename:       /lib/modules/{release}/updates/dkms/nvidia-current.ko\n"
        f"alias:          char-major-195-*\nversion:        {version}\nlicense:        NVIDIA\n"
        "depends:        drm\nname:           nvidia\n"
        f"vermagic:       {release} SMP preempt mod_unload modversions \n"
        "parm:           NVreg_RmMsg:charp\n"
    )


def settled(node: Node, step: Step) -> Finding:
    """Apply a step and look again, as the engine does."""
    assert step.apply(node.host) is None
    return step.check(node.host)


def facts(**changes: object) -> Facts:
    """A supported machine's facts."""
    usual: dict[str, object] = {
        "os_id": "debian", "os_version": "12", "codename": "bookworm", "architecture": "amd64",
        "kernel": KERNEL, "next_kernel": KERNEL, "firmware": "efi", "secure_boot": False,
        "vendor": "VMware, Inc.", "product_uuid": "4206a5a4", "machine_id": "m" * 32,
        "instance_id": "i-1", "boot_id": "boot-1", "hostname": "gpu-1", "gpus": (),
    }  # fmt: skip
    return Facts(**{**usual, **changes})  # type: ignore[arg-type] # each of its field's own type


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, also where the tests have them."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
