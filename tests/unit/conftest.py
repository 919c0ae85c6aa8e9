"""What every unit test may ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.node import Node


@pytest.fixture
def node() -> Iterator[Node]:
    """A node with no files, on which no command exists; in memory: no fsync waits."""
    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Node(Path(name))
