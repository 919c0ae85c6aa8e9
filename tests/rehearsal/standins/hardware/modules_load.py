#!/usr/bin/python3
"""systemd-modules-load of the pretended kernel.

Stands in for systemd's own, which calls the kernel through libkmod and is skipped in a container
for want of CAP_SYS_MODULE. Same folders, same precedence, same texts; each module goes through
the node's modprobe with the blacklist applied.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDERS = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d",
           "/usr/lib/modules-load.d")  # fmt: skip


def files() -> list[Path]:
    """One file per name, the first folder winning; in the order of names."""
    chosen: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(Path(folder).glob("*.conf")):
            chosen.setdefault(path.name, path)
    return [chosen[name] for name in sorted(chosen)]


def names() -> list[str]:
    lines = [line.strip() for path in files() if path.exists() for line in path.open()]
    return [line for line in lines if line and line[0] not in "#;"]


def load(name: str) -> int:
    said = subprocess.run(
        ["/sbin/modprobe", "-b", name], capture_output=True, text=True, check=False
    )
    if said.returncode == 0:
        sys.stderr.write(f"Inserted module '{name}'\n")
    elif "not found" in said.stderr:
        sys.stderr.write(f"Failed to find module '{name}'\n")
    else:
        reason = said.stderr.strip().splitlines()[:1]
        sys.stderr.write(f"Failed to insert module '{name}': {': '.join(reason)}\n")
    return said.returncode


if __name__ == "__main__":
    sys.exit(max([load(name) for name in names()], default=0))
