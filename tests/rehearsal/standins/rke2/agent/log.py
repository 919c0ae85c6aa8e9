"""Log lines on standard error in the form of logrus, which RKE2 uses."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import NoReturn

_BARE = re.compile(r"[A-Za-z0-9\-._/@^+]+")


def info(message: str) -> None:
    _line("info", message)


def warning(message: str) -> None:
    _line("warning", message)


def error(message: str) -> None:
    _line("error", message)


def fatal(message: str) -> NoReturn:
    """Log and end the process with 1; systemd starts it again in five seconds."""
    _line("fatal", message)
    sys.exit(1)


def _line(level: str, message: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = message if _BARE.fullmatch(message) else json.dumps(message, ensure_ascii=False)
    # One write per line: the kubelet's keeper and the main thread both log.
    sys.stderr.write(f'time="{now}" level={level} msg={text}\n')
    sys.stderr.flush()
