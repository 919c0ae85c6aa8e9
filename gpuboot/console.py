"""What every command needs to speak with its user: errors told once, JSON, the machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CONFIG = 78
WIDEST = 120  # columns; longer lines are hard to read


def told(command: F) -> F:
    """Print a GpubootError once, as a person reads it, and end with its exit status."""

    @wraps(command)
    def wrapper(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except GpubootError as error:
            complain(error.message, error.code.id, error.evidence, error.hint)
            sys.exit(EXIT_CONFIG if error.code.id == "GB001" else 1)

    return wrapper  # type: ignore[return-value] # the same signature, which wraps cannot say


def complain(message: str, code: str, evidence: str, hint: str) -> None:
    click.echo(f"gpuboot: {message} [{code}]", err=True)
    if evidence:
        click.echo(evidence, err=True)
    click.echo(f"next: {hint}", err=True)


def host() -> Host:
    from gpuboot.host import Host

    return Host()


def width() -> int | None:
    """How wide a text for a person may be; None in a pipe, where no line is broken."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return min(shutil.get_terminal_size().columns, WIDEST)


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
