#!/usr/bin/python3 -ISB
"""The pretended kernel log: makes /dev/kmsg a FIFO that the journal reads, and holds it open.

Nobody who writes to it may have to wait. The journal itself writes there while it starts, and is
the only one who reads: were the FIFO full, it would wait for itself for ever. Each record takes a
page, so the usual 16 are soon gone.
"""

import fcntl
import os
import signal
from pathlib import Path

KMSG = Path("/dev/kmsg")
MADE = Path("/dev/lab-kmsg")
SIZE = 1 << 20  # bytes, the most that a FIFO gets without asking: 256 records

if __name__ == "__main__":
    os.mkfifo(MADE, 0o600)
    held = os.open(MADE, os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_SETPIPE_SZ, SIZE)
    # It gets its name only now that it is held: systemd opens it for writing, and would wait.
    MADE.rename(KMSG)
    signal.pause()
