#!/usr/bin/python3
"""Tells on the second serial port what this machine is like; runs in the guest.

`look.py boot` does it once. `look.py end` waits until gpuboot's walk has ended, and switches the
machine off afterwards. A look is one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

PORT = Path("/dev/ttyS1")
NVIDIA = "10de:"
ENDED = ("ready", "degraded", "failed")
PAUSE = 5.0  # seconds
IMAGE = ("nouveau.ko", "nvkeep.ko", "modprobe.d/")  # what of the initramfs is of interest


def said(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace")


def text(file: str) -> str:
    path = Path(file)
    return path.read_text().strip() if path.is_file() else ""


def status() -> dict[str, object]:
    try:
        answer = json.loads(said("gpuboot", "status", "--json"))
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def look(when: str, **more: object) -> None:
    rows = [line.split() for line in text("/proc/modules").splitlines()]
    release = text("/proc/sys/kernel/osrelease")
    image = said("lsinitramfs", f"/boot/initrd.img-{release}").splitlines()
    found = {
        "when": when,
        "boot": text("/proc/sys/kernel/random/boot_id"),
        "kernel": release,
        "modules": {row[0]: int(row[2]) for row in rows},
        "card": said("lspci", "-nnkvd", NVIDIA),
        "initramfs": [name for name in image if any(part in name for part in IMAGE)],
        **more,
    }
    with PORT.open("w") as port:
        port.write(json.dumps(found) + "\n")


def main() -> None:
    if sys.argv[1] == "boot":
        look("boot", log=said("dmesg", "--notime"))
        return
    while (answer := status()).get("state") not in ENDED:
        time.sleep(PAUSE)
    look(
        "end",
        status=answer,
        nvrm=text("/proc/driver/nvidia/version"),
        dkms=said("dkms", "status"),
        forbidden=[
            row
            for row in said("modprobe", "--showconfig").splitlines()
            if row.startswith("blacklist nouveau")
        ],
        log=said("dmesg", "--notime"),
    )
    said("systemctl", "poweroff")


if __name__ == "__main__":
    main()
