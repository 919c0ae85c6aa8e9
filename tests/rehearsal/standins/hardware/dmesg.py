#!/usr/bin/python3
"""dmesg of the pretended kernel.

Stands in for util-linux's dmesg, which would show the host's kernel log, or take lines out of the
FIFO that the journal reads. Options are accepted and ignored.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel

if __name__ == "__main__":
    sys.stdout.write(kernel.LOG.read_text() if kernel.LOG.exists() else "")
