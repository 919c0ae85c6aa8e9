"""What apt has written down of its work: who changed a package, and when."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

HISTORY = "/var/log/apt/history.log"
TAIL = 64 << 10  # bytes that are looked at; one run's stanza has some thousand
CHANGES = ("Install", "Upgrade", "Downgrade", "Reinstall", "Remove", "Purge")


def last_change(host: Host, concerned: Callable[[str], bool]) -> str:
    """The last run of apt that changed a package of a name that `concerned` takes, in words.

    Empty where the log tells of none: it is rotated by the month, and dpkg alone writes none.
    The format is apt's own (apt-pkg/deb/dpkgpm.cc): stanzas, the newest last. Of the command line
    only the program is told: its options may hold a proxy's password.
    """
    for stanza in reversed(host.tail(HISTORY, TAIL).strip().split("\n\n")):
        keys = dict(line.partition(": ")[::2] for line in stanza.splitlines())
        # `name:amd64 (old, new), …`
        names = re.findall(r"([a-z0-9][a-z0-9+.-]+):\w+ \(",
                           ", ".join(keys.get(kind, "") for kind in CHANGES))  # fmt: skip
        if any(map(concerned, names)):
            program = (keys.get("Commandline", "").split() or ["apt"])[0]
            when = " ".join(keys.get("Start-Date", "").split())
            return f"changed by {posixpath.basename(program)[:60]} on {when}".removesuffix(" on ")
    return ""
