"""What `gpuboot config check` looks at, and every problem it finds there, in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import clusters, config, rke2files
from gpuboot.agentrules import OPEN
from gpuboot.reader import Problem, Reader

if TYPE_CHECKING:
    from gpuboot.host import Host

Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Checked:
    """The files that were looked at, and what is wrong: by file, then by line."""

    files: tuple[str, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, files: Iterable[str], problems: Iterable[Problem]) -> Checked:
        names = tuple(dict.fromkeys(files))
        order = {name: number for number, name in enumerate(names)}
        worst = ("error", "warning", "notice")

        def place(one: Problem) -> tuple[int, str, int, int]:
            number = order.get(one.file, len(order))
            return number, one.file, one.line, worst.index(one.severity)

        return cls(names, tuple(sorted(problems, key=place)))


def own(files: Files) -> Checked:
    """These files as one configuration of gpuboot."""
    reading = Reader()
    for name, content in files:
        reading.add(name, content)
    config.parse(reading)
    return Checked.of([name for name, _ in files], reading.problems)


def manifests(files: Files) -> Checked:
    """Rancher's manifests; a pool finds its machine config in any of the files."""
    return Checked.of([name for name, _ in files], clusters.check(files))


def node(host: Host) -> Checked:
    """This node's configuration of gpuboot, and RKE2's files beside it. Raises GB105."""
    wanted: config.Config | None = None
    problems: list[Problem] = []
    try:
        wanted = config.load(host)
    except config.ConfigError as error:
        problems += error.problems
    for warning in config.warnings(host, wanted) if wanted else []:
        file, _, message = warning.partition(": ")
        problems.append(Problem(f"{file}:1", "", message, severity="warning", code=OPEN.id))
    found = rke2files.look(host, wanted)
    return Checked.of([*config.files(host), *found.files], [*problems, *found.problems])
