#!/usr/bin/python3
"""lsmod of the pretended kernel.

Stands in for kmod's lsmod, which reads /proc/modules: the host's modules, or no such file at all
on a host kernel without modules. This one lists /sys/module of lab_kernel in the same columns.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel

SIZES = {"nvidia": 62771200, "nvidia_uvm": 1540096, "nvidia_modeset": 1314816,
         "nvidia_drm": 77824, "nouveau": 2433024}  # fmt: skip


def main() -> int:
    sys.stdout.write("Module                  Size  Used by\n")
    for folder in sorted(kernel.MODULES.iterdir(), reverse=True):
        if not (folder / "initstate").exists():
            continue
        holders = ",".join(sorted(entry.name for entry in (folder / "holders").iterdir()))
        count = kernel.count_references(folder.name)
        size = SIZES.get(folder.name, 16384)
        sys.stdout.write(f"{folder.name:<19} {size:>8}  {count} {holders}".rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
