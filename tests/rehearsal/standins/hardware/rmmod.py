#!/usr/bin/python3
"""rmmod of the pretended kernel.

Stands in for kmod's rmmod, which asks the kernel to let go of a module by its own name and reads
no file of modprobe.d. The errors are worded as kmod 30 words them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel


def remove(name: str) -> int:
    if not kernel.loaded(name):
        sys.stderr.write(f"rmmod: ERROR: Module {name} is not currently loaded\n")
        return 1
    holders = sorted(
        p.name for p in (kernel.MODULES / kernel.canonical(name) / "holders").iterdir()
    )
    try:
        with kernel.locked():
            kernel.remove(name)
    except kernel.Refused:
        by = f" by: {' '.join(holders)}" if holders else ""
        sys.stderr.write(f"rmmod: ERROR: Module {name} is in use{by}\n")
        return 1
    return 0


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    sys.exit(max([remove(name) for name in names], default=1))
