"""What a walk on the virtual machine must have shown, by what its probe and its console said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rehearsal import verdict
from tests.rehearsal.expect import ExpectedNode
from tests.vm.guest import SLOT

NAME = "gpu-worker-1"  # the machine's and the Node's
BLACKLIST = "etc/modprobe.d/gpuboot.conf"
# What the console shows, in this order: kernel, udev, gpuboot's journal, firmware.
CONSOLE = (
    (r"Linux version \d", "the first boot"),
    (rf"nouveau {SLOT}: .*taken by nouveau", "nouveau takes the card"),
    (r"gpuboot.*the initramfs of kernel \S+ is made anew", "the blacklist goes into the initramfs"),
    (r"gpuboot.*nouveau cannot be unloaded", "gpuboot finds that nouveau is in use"),
    (r"reboot: Restarting system", "the reboot"),
    (r"Linux version \d", "the second boot"),
    (r"nvidia: loading out-of-tree module", "modprobe loads what DKMS has built"),
    (r"NVRM: loading NVIDIA UNIX x86_64 Kernel Module", "the driver has the card"),
    (r"reboot: Power down", "the end"),
)


@dataclass(frozen=True)
class Evidence:
    """What was seen of the machine and of the cluster."""

    console: str
    looks: Sequence[Mapping[str, Any]]  # of each boot, and last that of the end
    nodes: Mapping[str, Any]  # the API server's, by name


def evidence(console: Path, looks: Path, nodes: Path) -> Evidence:
    """The evidence in these files; a look that was cut off is none."""
    lines = looks.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = [line for line in lines if line.startswith("{") and line.rstrip().endswith("}")]
    known = json.loads(nodes.read_text(encoding="utf-8")) if nodes.is_file() else {}
    text = console.read_text(encoding="utf-8", errors="replace")
    return Evidence(text, [json.loads(line) for line in whole], known)


def findings(seen: Evidence, node: ExpectedNode) -> Iterator[str]:
    """One line for each thing that was not as it must be; the Node is to be that one."""
    yield from _console(seen.console)
    if [look["when"] for look in seen.looks] != ["boot", "boot", "end"]:
        yield f"two boots and an end were expected / {[look['when'] for look in seen.looks]}"
        return
    first, second, end = seen.looks
    checks = {
        "the boot ids differ": first["boot"] != second["boot"] == end["boot"],
        "lspci: nouveau has the card at first": _driver(first) == "nouveau",
        "nouveau is in use": first["modules"].get("nouveau", 0) > 0,
        "the first initramfs has nouveau": _has(first, "nouveau.ko"),
        "and nothing forbids it there": not _has(first, BLACKLIST),
        "the second initramfs has nouveau still": _has(second, "nouveau.ko"),
        "and the blacklist": _has(second, BLACKLIST),
        "nouveau is not loaded in the second boot": "nouveau" not in second["modules"],
        "the kernel does not speak of it then": "nouveau" not in _spoken(end["log"]),
        "lspci: nvidia has the card at the end": _driver(end) == "nvidia",
        "nvidia and nvidia_uvm are loaded": {"nvidia", "nvidia_uvm"} <= set(end["modules"]),
        "/proc tells of the driver": "NVIDIA UNIX x86_64 Kernel Module" in end["nvrm"],
        "DKMS has built it for this kernel": _by_dkms(end),
        "modprobe's settings forbid nouveau": bool(end["forbidden"]),
        "gpuboot says ready": end["status"].get("state") == "ready",
        "it has spent one reboot": end["status"].get("reboots", {}).get("spent") == 1,
        "and counts one GPU": len(end["status"].get("gpus", [])) == 1,
    }
    yield from (f"not so: {told}" for told, held in checks.items() if not held)
    yield from verdict.node(node, NAME, seen.nodes)


def happened(console: str) -> list[str]:
    """What of CONSOLE has been seen, in its order, up to the first thing that has not."""
    place, seen = 0, []
    for pattern, told in CONSOLE:
        match = re.compile(pattern).search(console, place)
        if match is None:
            break
        place = match.end()
        seen.append(told)
    return seen


def _console(text: str) -> Iterator[str]:
    for pattern, told in CONSOLE[len(happened(text)) :][:1]:
        yield f"the console does not show, after what came before: {told} (/{pattern}/)"


def _driver(look: Mapping[str, Any]) -> str:
    match = re.search(r"Kernel driver in use: (\S+)", look["card"])
    return match[1] if match else ""


def _has(look: Mapping[str, Any], name: str) -> bool:
    return any(name in entry for entry in look["initramfs"])


def _spoken(log: str) -> str:
    """The kernel's words, without its own command line."""
    return "\n".join(line for line in log.splitlines() if "ommand line" not in line)


def _by_dkms(look: Mapping[str, Any]) -> bool:
    kernel = re.escape(look["kernel"])
    return bool(re.search(rf"^nvidia-current/\S+, {kernel}, x86_64: installed", look["dkms"], re.M))
