#!/usr/bin/python3
"""Somebody who draws on the card: keeps nouveau in use where the machine is meant to be so.

Stands in for a display server or a splash screen. A pretended device cannot be opened for
drawing; O_PATH is enough for /proc and for the pretended kernel to see who has it.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel


def main() -> int:
    if kernel.settings()["nouveau"] not in ("busy", "stuck"):
        return 0
    for name in kernel.device_files("nouveau"):
        os.open(name, os.O_PATH)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
