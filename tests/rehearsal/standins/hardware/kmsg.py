#!/usr/bin/python3 -ISB
"""The pretended kernel log: makes /dev/kmsg a FIFO that the journal reads, and holds it open.

Nobody who writes to it may have to wait. The journal itself writes there while it starts, and is
the only one who reads: were the FIFO full, it would wait for itself for ever. Each record takes a
page, so the usual 16 are soon gone.

The real one has as many readers as like to, and a FIFO has one: gpuboot-monitor has a second FIFO,
which its unit finds at the same name. Once it is full, that one takes no more; and who opens it
anew finds what is new only, where the real one would begin with the oldest record again.

`kmsg.py TEXT…` lets the pretended kernel say something.
"""

import fcntl
import os
import signal
import sys
from pathlib import Path

KMSG = Path("/dev/kmsg")
MADE = Path("/dev/lab-kmsg")
SECOND = Path("/dev/lab-kmsg-monitor")
SIZE = 1 << 20  # bytes, the most that a FIFO gets without asking: 256 records


def make(path: Path) -> None:
    """A FIFO that is held open by this process, so that its writers never wait."""
    os.mkfifo(path, 0o600)
    held = os.open(path, os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_SETPIPE_SZ, SIZE)


def speak(text: str) -> None:
    """A line of the pretended kernel's."""
    sys.path.insert(0, str(Path(__file__).parent))
    import lab_kernel  # type: ignore[import-not-found]  # on a node they lie in one folder

    lab_kernel.say(text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        speak(" ".join(sys.argv[1:]))
    else:
        make(SECOND)
        make(MADE)
        # It gets its name only now that it is held: systemd opens it for writing, and would wait.
        MADE.rename(KMSG)
        signal.pause()
