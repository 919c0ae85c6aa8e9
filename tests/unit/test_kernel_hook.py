"""The hook that runs when a kernel has been installed: it tells, wakes, and never fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "packaging/kernel/zz-gpuboot"
KERNEL = "0.0.0-1-amd64"  # one that no machine has


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        [str(HOOK), *arguments], env={"PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def enabled(tmp_path: Path) -> Path:
    """Programs of a node on which gpuboot.service is enabled."""
    program(tmp_path, "systemctl", f'echo "$@" >> {tmp_path}/asked')
    program(tmp_path, "logger", f'echo "$@" >> {tmp_path}/journal')
    return tmp_path


def test_a_kernel_without_a_module_is_told_on_the_terminal_and_in_the_journal(
    enabled: Path,
) -> None:
    done = run(enabled, KERNEL, f"/boot/vmlinuz-{KERNEL}")
    assert (done.returncode, done.stdout) == (0, "")
    told = f"kernel {KERNEL} has no NVIDIA module yet; it needs linux-headers-{KERNEL}."
    assert done.stderr.startswith(f"gpuboot: {told}")
    assert "`gpuboot status`" in done.stderr
    assert told in (enabled / "journal").read_text(encoding="utf-8")


def test_the_walk_is_woken_and_not_waited_for(enabled: Path) -> None:
    run(enabled, KERNEL)
    asked = (enabled / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[0] == "is-enabled --quiet gpuboot.service"
    running = Path("/run/systemd/system").is_dir()
    assert asked[1:] == ["reload-or-restart --no-block gpuboot.service"] * running


def test_where_gpuboot_is_not_enabled_nothing_is_said_or_done(tmp_path: Path) -> None:
    program(tmp_path, "systemctl", f'echo "$@" >> {tmp_path}/asked; exit 1')
    done = run(tmp_path, KERNEL)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "restart" not in (tmp_path / "asked").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], [""], [KERNEL]])
def test_the_installation_of_a_kernel_never_fails_by_it(
    tmp_path: Path, arguments: list[str]
) -> None:
    program(tmp_path, "systemctl", '[ "$1" = is-enabled ]')
    program(tmp_path, "logger", "exit 1")
    assert run(tmp_path, *arguments).returncode == 0
