"""The stand-ins that answer in the places of NVIDIA's real programs and libraries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rehearsal import archive, hardware

VERSION = "535.309.01"
NVIDIA = "usr/lib/x86_64-linux-gnu/nvidia/current"
# As Debian's packages have them (dpkg-deb --contents, 2026-11-26).
PLACES = {
    f"{NVIDIA}/libcuda.so.{VERSION}", f"{NVIDIA}/libnvidia-ml.so.{VERSION}",
    "usr/lib/nvidia/current/nvidia-smi", "usr/bin/nvidia-modprobe", "usr/bin/nvidia-persistenced",
}  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, list[Path]]:
    out = tmp_path / "built"
    return out, archive.build_answering(out, "bookworm", VERSION)


def test_they_are_what_needs_a_card_and_lie_where_the_packages_have_it(
    built: tuple[Path, list[Path]],
) -> None:
    out, files = built
    assert {str(file.relative_to(out)) for file in files} == PLACES


def test_what_a_package_unpacks_there_goes_aside(
    built: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "var/lib/dpkg/info").mkdir(parents=True)
    hardware.stand_in_front(tree, *built)
    smi = "usr/lib/nvidia/current/nvidia-smi"
    assert "A stand-in for nvidia-smi" in (tree / smi).read_text()
    asked = ["dpkg-divert", "--root", str(tree), "--truename", f"/{smi}"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    assert said.strip() == "/usr/lib/lab/real/nvidia-smi"
    assert (tree / "usr/bin/nvidia-modprobe").stat().st_mode & 0o7777 == 0o4755
