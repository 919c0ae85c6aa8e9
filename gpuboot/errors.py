"""What can go wrong: a stable code, a sentence, and whether trying again can help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A stable error code, defined as a constant beside the code that raises it.

    `gpuboot explain` prints it; `causes` are sentences, `commands` what to type next.
    """

    id: str
    title: str
    causes: tuple[str, ...]
    commands: tuple[str, ...]


class GpubootError(Exception):
    """A failure a person can act on; printed once, by the command line.

    `retry` says whether the same walk can succeed later without anybody changing the node.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str | None = None,
        evidence: str = "",
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint or (code.commands[0] if code.commands else f"gpuboot explain {code.id}")
        self.evidence = evidence
        self.retry = retry


class Stopped(Exception):
    """SIGTERM came: no error, but nothing new may be started on this machine."""
