"""The command line of `rke2`: --version, agent, and the child that is its kubelet."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_USAGE = """\
NAME:
   rke2 - Rancher Kubernetes Engine 2 (a stand-in of gpuboot's rehearsal)

USAGE:
   rke2 [global options] command [command options]

COMMANDS:
   agent    Run node agent

GLOBAL OPTIONS:
   --help, -h     show help
   --version, -v  print the version
"""
# Where a test puts /etc/rancher and /var/lib/rancher; never set on a node.
_ROOT = "RKE2_STANDIN_ROOT"


def main(version: str, commit: str, arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    command = arguments[0] if arguments else "--help"
    if command in ("--version", "-v"):
        sys.stdout.write(f"rke2 version {version} ({commit})\ngo version go1.25.8 X:boringcrypto\n")
        return 0
    if command == "agent":
        _agent(version, commit, arguments[1:])
        return 0
    if command == "kubelet":
        from . import kubelet

        kubelet.main(arguments[1:], version)
        return 0
    sys.stdout.write(_USAGE)
    return 0 if command in ("--help", "-h", "help") else 3


def _agent(version: str, commit: str, arguments: Sequence[str]) -> None:
    # Imported here, so that --version needs no YAML.
    from . import document, join, log, settings

    # The kernel's own way: a handler of Python's is missed if it comes just before a sleep.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    root = Path(os.environ.get(_ROOT, "/"))
    try:
        join.run(settings.load(arguments, os.environ, root), version, commit)
    except (document.Unreadable, settings.Refused) as error:
        log.fatal(f"Error: {error}")
    except FileNotFoundError as error:
        log.fatal(f"Error: open {error.filename}: no such file or directory")
