"""The agent's log on standard error, as the journal wants it, secrets masked."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

# Priorities that systemd reads at the beginning of a line (sd-daemon(3)).
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Formatter(logging.Formatter):
    def __init__(self, mask: Callable[[str], str], *, journal: bool) -> None:
        super().__init__("%(message)s")
        self._mask = mask
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = self._mask(super().format(record))
        if not self._journal:
            return text
        prefix = f"<{PRIORITIES.get(record.levelno, 3)}>"
        return "\n".join(prefix + line for line in text.splitlines())


def start(mask: Callable[[str], str], *, verbose: bool) -> None:
    """Log to standard error from now on; every line goes through `mask`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(mask, journal="JOURNAL_STREAM" in os.environ))
    logger = logging.getLogger("gpuboot")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
