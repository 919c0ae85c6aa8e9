"""The NVIDIA Container Toolkit: the devices that containers may ask for (CDI)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import kernel, pci, systemd
from gpuboot.errors import Code, GpubootError
from gpuboot.host import COMMAND_TIMEOUT
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

NO_CDI = Code(
    "GB310",
    "the toolkit generates no devices for containers",
    (
        "nvidia-cdi-refresh failed: it needs a driver that answers nvidia-smi -L.",
        "It started five times before the driver was up, and systemd gave up on it.",
        "It is masked, and nvidia-ctk cdi generate failed by itself too.",
    ),
    ("systemctl status nvidia-cdi-refresh", "nvidia-ctk cdi list", "nvidia-smi -L"),
    evidence="nvidia-ctk cdi list, and the state of nvidia-cdi-refresh",
)
REFRESH = "nvidia-cdi-refresh.service"
WATCH = "nvidia-cdi-refresh.path"
SPEC = "/var/run/cdi/nvidia.yaml"  # on tmpfs: made anew at every boot
SPECS = (SPEC, "/etc/cdi/nvidia.yaml")  # the first that is there counts (CDI's own rule)
PATIENCE = 60  # seconds; the unit waits for multi-user.target, and that for every slow service


@dataclass(frozen=True)
class Cdi:
    """`nvidia-ctk cdi list` names every GPU and `all`, with the libraries of the loaded driver."""

    name: ClassVar[str] = "cdi"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        if lack := _lack(host):
            return Pending(lack)
        if names := _unlinked(host):
            return Pending(f"/dev/char has no link to {', '.join(names)}")
        return Ok(f"containers can ask for {', '.join(_wanted(host))}")

    def apply(self, host: Host) -> None:
        if _unlinked(host):
            # nvidia-modprobe makes them since 525.105.17. Without them a daemon-reload takes the
            # GPU from the containers that have it (gpu-operator#430).
            argv = ["nvidia-ctk", "system", "create-dev-char-symlinks", "--create-all"]
            host.run(argv, timeout=60)
        if not _lack(host):
            return
        said = ""
        if _usable(host):
            _restart(host)
            said = systemd.journal(host, REFRESH, lines=12).strip()
        if _lack(host):
            generated = host.run(["nvidia-ctk", "cdi", "generate", f"--output={SPEC}"], timeout=120)
            said = f"{said}\n{generated.said}".strip()
        if lack := _lack(host):
            raise GpubootError(NO_CDI, lack, evidence=said, retry=True)


def _wanted(host: Host) -> list[str]:
    count = len(pci.gpus(host))
    return ["nvidia.com/gpu=all", *(f"nvidia.com/gpu={index}" for index in range(count))]


def _lack(host: Host) -> str | None:
    """What is wrong with what containers can ask for."""
    listed = _devices(host)
    if missing := [device for device in _wanted(host) if device not in listed]:
        return f"containers cannot ask for {', '.join(missing)}"
    text = next(filter(None, map(host.read, SPECS)), "")
    named = set(re.findall(r"\blib(?:nvidia-ml|cuda)\.so\.(\d+\.\d+(?:\.\d+)?)\b", text))
    loaded = kernel.loaded_version(host, "nvidia")
    if loaded and named - {loaded}:
        others = ", ".join(sorted(named - {loaded}))
        return f"containers would get the libraries of driver {others}, {loaded} is loaded"
    return None


def _devices(host: Host) -> set[str]:
    """The devices that `nvidia-ctk cdi list` prints, one a line."""
    result = host.run(["nvidia-ctk", "--quiet", "cdi", "list"])
    words = result.out.split() if result.code == 0 else []
    return {word for word in words if word.startswith("nvidia.com/gpu=")}


def _usable(host: Host) -> bool:
    """Whether the toolkit's own unit may write the file; older toolkits have none."""
    unit = systemd.unit(host, REFRESH)
    return unit.exists and unit.load != "masked"


def _restart(host: Host) -> None:
    """Have the toolkit's own unit write the file: an operator's settings for it are with the unit.

    A modprobe does not trigger it (toolkit#1395). After five failures, which come quickly before
    the driver is up, systemd gives up on it, and so on the unit that watches for new drivers.
    What became of it is looked at, not believed: it ends well where its conditions do not hold.
    """
    for name in (REFRESH, WATCH):
        host.run(["systemctl", "reset-failed", name])
    try:
        host.run(["systemctl", "restart", REFRESH], timeout=PATIENCE)
    except GpubootError as error:
        if error.code is not COMMAND_TIMEOUT:
            raise
    if systemd.enabled(host, WATCH):
        host.run(["systemctl", "start", "--no-block", WATCH])


def _unlinked(host: Host) -> list[str]:
    """The driver's device files without the link by their numbers that runc and systemd use."""
    files = [f"/dev/{name}" for name in host.names("/dev") if name.startswith("nvidia")]
    numbers = {name: host.device(name) for name in files}
    return [n for n, number in numbers.items() if number and not host.exists(f"/dev/char/{number}")]
