"""What the virtual machine must have shown: each piece of evidence that lacks is a finding."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.expect import ExpectedNode
from tests.vm import story
from tests.vm.guest import SLOT

KERNEL = "6.1.0-56-amd64"
CONSOLE = f"""\
[    0.0] Linux version 6.1.0
[    5.1] nouveau {SLOT}: NVIDIA TU104, taken by nouveau
[   90.0] gpuboot[487]: the initramfs of kernel {KERNEL} is made anew: it would load nouveau again
[  240.0] gpuboot[487]: nouveau cannot be unloaded: in use by the kernel itself
[  250.0] reboot: Restarting system
[    0.0] Linux version 6.1.0
[   60.0] nvidia: loading out-of-tree module taints kernel.
[   60.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.309.01
[   99.0] reboot: Power down
"""
NOUVEAU = f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/nouveau/nouveau.ko"
BLACKLIST = "etc/modprobe.d/gpuboot.conf"


def look(when: str, boot: str, **more: object) -> dict[str, Any]:
    rest = {
        "when": when, "boot": boot, "kernel": KERNEL, "modules": {"nvkeep": 0},
        "card": "", "initramfs": [NOUVEAU, BLACKLIST], "log": "Kernel command line: nouveau=x\n",
    }  # fmt: skip
    return {**rest, **more}


def told() -> list[dict[str, Any]]:
    """The looks of a machine on which all went well."""
    return [
        look("boot", "a", modules={"nouveau": 1}, initramfs=[NOUVEAU],
             card=f"{SLOT} 3D controller\n\tKernel driver in use: nouveau\n"),
        look("boot", "b"),
        look("end", "b", modules={"nvidia": 2, "nvidia_uvm": 0},
             card=f"{SLOT} 3D controller\n\tKernel driver in use: nvidia\n",
             nvrm="NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01",
             dkms=f"nvidia-current/535.309.01, {KERNEL}, x86_64: installed\n",
             forbidden=["blacklist nouveau"],
             status={"state": "ready", "reboots": {"spent": 1}, "gpus": [{}]}),
    ]  # fmt: skip


NODES = {
    "gpu-worker-1": {
        "metadata": {"labels": {"nvidia.com/gpu": "present"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
}
WORKER = ExpectedNode(
    name=None, absent=False, ready=True, labels={"nvidia.com/gpu": "present"}, without_labels=(),
    taints=None,
)  # fmt: skip


def findings(folder: Path, console: str, looks: list[dict[str, Any]], nodes: object) -> list[str]:
    files = [folder / name for name in ("console.log", "looks.jsonl", "nodes.json")]
    texts = [console, "".join(f"{json.dumps(one)}\r\n" for one in looks), json.dumps(nodes)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return list(story.findings(story.evidence(*files), WORKER))


def test_a_machine_on_which_all_went_well_has_no_findings(tmp_path: Path) -> None:
    assert findings(tmp_path, CONSOLE, told(), NODES) == []


@pytest.mark.parametrize("number", range(len(story.CONSOLE)))
def test_each_line_that_the_console_lacks_is_a_finding(tmp_path: Path, number: int) -> None:
    lines = CONSOLE.splitlines(keepends=True)
    found = findings(tmp_path, "".join(lines[:number] + lines[number + 1 :]), told(), NODES)
    assert len(found) == 1
    assert found[0].startswith("the console does not show")


def test_the_consoles_lines_must_come_in_their_order(tmp_path: Path) -> None:
    *lines, last = CONSOLE.splitlines(keepends=True)
    assert findings(tmp_path, "".join([last, *lines]), told(), NODES) != []


@pytest.mark.parametrize(
    ("which", "key", "value"),
    [
        (0, "boot", "b"),
        (2, "boot", "c"),
        (0, "card", "Kernel modules: nouveau, nvidia"),
        (0, "modules", {"nouveau": 0}),
        (0, "initramfs", []),
        (0, "initramfs", [NOUVEAU, BLACKLIST]),
        (1, "initramfs", [BLACKLIST]),
        (1, "initramfs", [NOUVEAU]),
        (1, "modules", {"nouveau": 0}),
        (2, "log", "nouveau 0000:01:00.0: unknown chipset"),
        (2, "card", "Kernel driver in use: nouveau"),
        (2, "modules", {"nvidia": 0}),
        (2, "nvrm", ""),
        (2, "dkms", f"nvidia-current/535.309.01, {KERNEL}, x86_64: built\n"),
        (2, "forbidden", []),
        (2, "status", {"state": "failed", "reboots": {"spent": 1}, "gpus": [{}]}),
        (2, "status", {"state": "ready", "reboots": {"spent": 2}, "gpus": [{}]}),
        (2, "status", {"state": "ready", "reboots": {"spent": 1}, "gpus": []}),
    ],
)
def test_each_thing_that_a_look_shows_otherwise_is_a_finding(
    tmp_path: Path, which: int, key: str, value: object
) -> None:
    looks = told()
    looks[which][key] = value
    assert len(findings(tmp_path, CONSOLE, looks, NODES)) == 1


def test_a_machine_that_has_booted_once_only_is_a_finding(tmp_path: Path) -> None:
    assert len(findings(tmp_path, CONSOLE, told()[1:], NODES)) == 1


def _gone(nodes: dict[str, Any]) -> None:
    del nodes["gpu-worker-1"]


def _unlabelled(nodes: dict[str, Any]) -> None:
    nodes["gpu-worker-1"]["metadata"]["labels"] = {}


def _not_ready(nodes: dict[str, Any]) -> None:
    nodes["gpu-worker-1"]["status"]["conditions"] = []


@pytest.mark.parametrize("change", [_gone, _unlabelled, _not_ready])
def test_a_node_that_is_not_a_worker_is_a_finding(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    nodes = copy.deepcopy(NODES)
    change(nodes)
    assert len(findings(tmp_path, CONSOLE, told(), nodes)) == 1
