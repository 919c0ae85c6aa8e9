"""What can go wrong: a stable code, a sentence, and whether trying again can help."""

from __future__ import annotations

from dataclasses import dataclass


class Elsewhere(str):
    """What is done elsewhere than on this node's command line: on a server, by kubectl, by hand."""

    __slots__ = ()


@dataclass(frozen=True)
class Code:
    """A stable error code, defined as a constant beside the code that raises it.

    The title is one line, `causes` are sentences, `evidence` is what was looked at to say so, and
    `commands` are what to type next: a command of this node, with a note in brackets behind it if
    need be, or what is done Elsewhere. `gpuboot explain`, the manual and docs/errors.md are made
    of it.
    """

    id: str
    title: str
    causes: tuple[str, ...]
    commands: tuple[str, ...]
    evidence: str

    @property
    def doc(self) -> str:
        """Where it is described, on a node that has the package."""
        return f"/usr/share/doc/gpuboot/errors.md#{self.id.lower()}"


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
