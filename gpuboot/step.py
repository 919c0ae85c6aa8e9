"""What a step is, and the four answers that looking at one can give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from gpuboot.errors import Code
    from gpuboot.host import Host


@dataclass(frozen=True)
class Ok:
    """The step holds. `drift` is what differs and is not ours to change, or not now.

    `shows` are values that looking brought up, for `gpuboot status`: its top-level keys. `code`
    and `hint` explain the first difference, where there is one that has a name.
    """

    reason: str
    drift: tuple[str, ...] = ()
    shows: Mapping[str, Any] = field(default_factory=dict)
    code: Code | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Pending:
    """There is something to do, and `apply` does it.

    `code` and `hint` explain it on a live node, where it is not done, if it has a name.
    """

    reason: str
    code: Code | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Waiting:
    """Somebody or something else has to act; looking again later is all we can do.

    `not_before`: seconds that whom we asked wants to be left alone.
    """

    reason: str
    code: Code
    hint: str | None = None
    evidence: str = ""
    not_before: float = 0.0


@dataclass(frozen=True)
class Reboot:
    """Only a reboot helps. The reason must read the same when the same trouble comes again."""

    reason: str


Finding = Ok | Pending | Waiting | Reboot


class Step(Protocol):
    """One thing that must hold on a GPU worker.

    `check` only looks: it never changes, sleeps, or fails for absence; it raises GpubootError
    for what no `apply` of ours can mend. `apply` may be cut off anywhere and be repeated.
    A `disruptive` step is only looked at while rke2-agent is active.
    """

    name: ClassVar[str]
    disruptive: ClassVar[bool]

    def check(self, host: Host) -> Finding:
        """Look, and say what is the case."""
        ...

    def apply(self, host: Host) -> Reboot | None:
        """Make it so; a Reboot if trying proved that only one helps. Raises GpubootError."""
        ...


@runtime_checkable
class Writes(Protocol):
    """A step that writes whole files: `gpuboot plan` shows them before they are written."""

    def writes(self, host: Host) -> Mapping[str, str | None]:
        """The wanted content by file name, None for a download. Raises GpubootError."""
        ...


@runtime_checkable
class Enables(Protocol):
    """A step that has units started at every boot: `gpuboot plan` names them."""

    def enables(self, host: Host) -> Sequence[str]:
        """The units that are not enabled yet."""
        ...
