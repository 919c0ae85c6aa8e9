"""Where the stand-in nodes of the model live."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs wait for no disk there."""
    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        Path(name).chmod(0o755)  # some look at it without root's rights
        yield Path(name)
