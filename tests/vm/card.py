"""Builds the stand-in of a T4 with the headers of the very QEMU that is installed here."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.rehearsal import packages
from tests.rehearsal.cache import CACHE, built, digest
from tests.rehearsal.command import run

SOURCES = Path(__file__).parent / "card"
# What QEMU's headers include and no package has: its build makes it, or GLib's package brings it.
MADE = ("made", "glib/usr/include/glib-2.0", "glib/usr/lib/x86_64-linux-gnu/glib-2.0/include",
        "source/include", "source")  # fmt: skip
TOLD = "Building the card for this machine's QEMU, with its own headers."


def build() -> Path:
    """The library that gives QEMU the device nvt4; called outside the lab, which has no network.

    Raises RigError where the archive no longer has the source of the QEMU that is installed.
    """
    shown = run("dpkg-query", "--show", "--showformat", "${source:Version}", "qemu-system-x86")
    folder = CACHE / "card" / f"nvt4-{digest([SOURCES], [shown])}"
    return built(folder, TOLD, lambda into: _build(into, shown)) / "nvt4.so"


def _build(folder: Path, version: str) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    binary = packages.sources(packages.HOME, ["main"])
    source = [line.replace("deb ", "deb-src ", 1) for line in binary]
    status = Path("/var/lib/dpkg/status")
    apt = packages.private_apt(scratch / "apt", status, [*binary, *source])
    run(*apt, "update")
    run(*apt, "source", "--download-only", f"qemu={version}", cwd=scratch)
    run(*apt, "download", "libglib2.0-dev", cwd=scratch)  # for its headers: it is not installed
    description = next(scratch.glob("qemu_*.dsc"))
    # apt has verified it; and the patches matter: the layout of QEMU's structures must be ours.
    run("dpkg-source", "--no-check", "-x", description.name, "source", cwd=scratch)
    run("dpkg", "-x", next(scratch.glob("libglib2.0-dev_*.deb")).name, "glib", cwd=scratch)
    schema = ("scripts/qapi-gen.py", "-b", "-o", "../made/qapi", "qapi/qapi-schema.json")
    run("python3", *schema, cwd=scratch / "source")
    (scratch / "made/config-poison.h").touch()
    headers = (f"-I{scratch / place}" for place in MADE)
    run("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(folder / "nvt4.so"), f"-I{SOURCES}",
        *headers, str(SOURCES / "nvt4.c"))  # fmt: skip
    shutil.rmtree(scratch)
