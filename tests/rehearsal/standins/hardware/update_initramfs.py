#!/usr/bin/python3
"""update-initramfs of the pretended machine.

Stands in for initramfs-tools' own, which takes a minute and whose image no container boots from.
What matters of an initramfs here is which blacklist went into it (facts/nvidia.md 3.3): that is
written down for the next boot, and the image file is made anew. Called by a package's script it
defers to the trigger, as the real one does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel

REAL_MODPROBE = "/usr/lib/lab/real/modprobe"
RECORD = Path("/var/lib/lab/initramfs-blacklist")
RUNS = Path("/var/lib/lab/initramfs-runs")  # a line for each image made: kernel, and who had it


def deferred() -> bool:
    # initramfs-tools' own script empties the variable when it has come to the trigger.
    package = os.environ.get("DPKG_MAINTSCRIPT_PACKAGE", "")
    if package in ("", "initramfs-tools") or not Path("/usr/bin/dpkg-trigger").exists():
        return False
    sys.stdout.write("update-initramfs: deferring update (trigger activated)\n")
    return subprocess.run(["dpkg-trigger", "--no-await", "update-initramfs"],
                          check=False).returncode == 0  # fmt: skip


def generate(release: str) -> None:
    image = Path(f"/boot/initrd.img-{release}")
    sys.stdout.write(f"update-initramfs: Generating {image}\n")
    configuration = subprocess.run(
        [REAL_MODPROBE, "--showconfig"], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[1] for line in configuration.splitlines() if line[:10] == "blacklist "]
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    fresh = RECORD.with_suffix(".new")
    fresh.write_text("".join(f"{name}\n" for name in sorted(set(names))))
    fresh.replace(RECORD)
    image.parent.mkdir(exist_ok=True)
    image.write_text("a pretended initramfs\n")
    with RUNS.open("a") as runs:
        # initramfs-tools' own script empties the variable when it has come to the trigger.
        package = os.environ.get("DPKG_MAINTSCRIPT_PACKAGE", "by-hand") or "dpkg-trigger"
        runs.write(f"{release} {package}\n")


def main() -> int:
    if "-d" in sys.argv[1:] or not kernel.SETTINGS.exists():
        return 0
    if "-u" in sys.argv[1:] and deferred():
        return 0
    generate(kernel.release())
    return 0


if __name__ == "__main__":
    sys.exit(main())
