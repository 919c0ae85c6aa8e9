"""The rehearsal's boot loader picks the kernel that GRUB would, and gpuboot agrees with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuboot import grub
from tests.rehearsal import hardware, kernels
from tests.unit.node import DATA

CONFIG = (DATA / "grub.cfg").read_text(encoding="utf-8")
UUID = "6d1c4b8e-52b1-4f27-9a43-0c1f6a3e7d52"
IDS = f"gnulinux-advanced-{UUID}>gnulinux-6.1.0-9-amd64-advanced-{UUID}"


@pytest.mark.parametrize("default", ["0", "1", "1>0", "1>2", "1>99", "9", IDS, "saved", "nothing"])
@pytest.mark.parametrize("variables", [{}, {"saved_entry": "1>4"}, {"next_entry": "1>2"}])
def test_the_rigs_boot_loader_and_gpuboot_are_of_one_mind(
    default: str, variables: dict[str, str]
) -> None:
    value = "${saved_entry}" if default == "saved" else default
    text = CONFIG.replace('set default="0"', f'set default="{value}"')
    block = "".join(f"{name}={value}\n" for name, value in variables.items())
    assert kernels.picked(text, variables) == grub.next_kernel(text, block)


def test_what_is_asked_for_once_is_booted_once(tmp_path: Path) -> None:
    files = {
        kernels.CONFIG: CONFIG, kernels.ENVIRONMENT: "next_entry=1>4\n".ljust(1024, "#"),
        hardware.SETTINGS: json.dumps({"kernel": "6.1.0-50-amd64", "gpus": []}),
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    booted = []
    for _ in range(2):
        kernels.boot(tmp_path)
        told = json.loads((tmp_path / hardware.SETTINGS).read_text(encoding="utf-8"))
        booted.append(told["kernel"])
    assert booted == ["6.1.0-9-amd64", "6.1.0-56-amd64"]
    assert len((tmp_path / kernels.ENVIRONMENT).read_text(encoding="utf-8")) == 1024
