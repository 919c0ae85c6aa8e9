"""Wrong configurations as data: each is refused with its place, on a node that stays as it was.

A case is one file in tests/data/bad-config, or a folder with a config.yaml and a config.d. Its
first comment says why somebody would write it; ` #! TEXT` at a line's end says that gpuboot
complains of that line, in these words (` …` at the end: and so on). Those are all its complaints.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpuboot import agent, config, reader, status
from gpuboot.cli import main
from gpuboot.config import Config, ConfigError
from gpuboot.reader import Problem
from tests.model.life import fresh, prepare
from tests.unit.node import Node

CASES = Path(__file__).parents[1] / "data/bad-config"
NAMES = sorted(path.name.removesuffix(".yaml") for path in CASES.iterdir())
PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's, but secret in every case


def files(name: str) -> dict[str, bytes]:
    """A case's files by their names below /etc/gpuboot, in the order they are read."""
    case = CASES / name
    if not case.is_dir():
        return {"config.yaml": (CASES / f"{name}.yaml").read_bytes()}
    paths = [case / "config.yaml", *sorted(case.glob("config.d/*.yaml"))]
    return {str(path.relative_to(case)): path.read_bytes() for path in paths}


def expected(name: str) -> list[tuple[str, str]]:
    """The complaints a case is marked with: `file:line`, and the text."""
    marks = []
    for file, content in files(name).items():
        for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
            marks += [(f"{file}:{number}", text.strip()) for text in line.split(" #! ")[1:]]
    return sorted(marks)


def check(name: str, lines: list[str], folder: str) -> None:
    """These complaints about files in a folder are the expected ones, and tell no secret."""
    assert PASSWORD not in "\n".join(lines)
    found = sorted(
        (where, text)
        for line in lines
        for where, _, text in [line.removeprefix(f"{folder}/").partition(": ")]
    )
    assert [where for where, _ in found] == [where for where, _ in expected(name)], lines
    for (_, text), (_, wanted) in zip(found, expected(name), strict=True):
        if wanted.endswith(" …"):
            assert text.startswith(wanted[:-2])
        else:
            assert text == wanted


def state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder that a change would change."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns,
                    path.read_bytes() if path.is_file() else b"")
        for path in (root, *root.rglob("*"))
    }  # fmt: skip


def test_the_cases_are_many_and_each_is_marked() -> None:
    assert len(NAMES) >= 60
    assert [name for name in NAMES if not expected(name)] == []


def test_every_key_is_wrong_in_some_case() -> None:
    complained = {text.partition(": ")[0] for name in NAMES for _, text in expected(name)}
    assert {row[0] for row in reader.documentation(Config)} - complained == set()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_on_the_node_with_its_place(node: Node, name: str) -> None:
    for file, content in files(name).items():
        node.put(f"/etc/gpuboot/{file}", content, mode=0o600)
    before = state(node.root)
    with pytest.raises(ConfigError) as caught:
        config.load(node.host)
    check(name, [str(problem) for problem in caught.value.problems], "/etc/gpuboot")
    assert caught.value.code.id == "GB001"
    assert state(node.root) == before
    assert node.ran == []


@pytest.mark.parametrize("name", NAMES)
def test_config_check_says_the_same_and_ends_with_78(tmp_path: Path, name: str) -> None:
    paths = []
    for file, content in files(name).items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        paths.append(str(path))
    before = state(tmp_path)
    told = CliRunner().invoke(main, ["config", "check", *paths])
    data = CliRunner().invoke(main, ["config", "check", "--json", *paths])
    assert (told.exit_code, data.exit_code) == (78, 78)
    problems = [Problem(**problem) for problem in json.loads(data.output)["problems"]]
    check(name, [str(problem) for problem in problems], str(tmp_path))
    # As text every problem is one line below the name of its file.
    lines = told.output.splitlines()
    for problem in problems:
        said = f" {str(problem).partition(': ')[2]} [GB001]"
        assert any(line.endswith(said) for line in lines[lines.index(problem.file) :])
    assert PASSWORD not in told.output + data.output
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_the_walk_ends_with_78_before_it_has_changed_anything(node: Node, name: str) -> None:
    machine = prepare(node.root, fresh)
    for file, content in files(name).items():
        path = machine.path(f"/etc/gpuboot/{file}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
    machine.boot()
    before = machine.persistent()
    assert agent.live_forever(machine.host()) == agent.EXIT_CONFIG
    assert machine.persistent() == before
    assert not machine.path("/run/gpuboot/ready").exists()
    found = status.look(machine.host())
    assert (found["state"], found["code"]) == ("failed", "GB001")
    written = [path for name in ("run", "var/lib") for path in (machine.root / name).rglob("*")]
    assert not [path for path in written if path.is_file() and PASSWORD in path.read_text()]


DROP_IN = "/etc/gpuboot/config.d/50.yaml"


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o622, 0o646, 0o660, 0o666, 0o777])
def test_a_file_that_others_can_write_is_refused(node: Node, mode: int) -> None:
    node.put("/etc/gpuboot/config.yaml", "gpu: {count: 1}", mode=0o600)
    node.put(DROP_IN, "gpu: {count: 2}", mode=mode)
    with pytest.raises(ConfigError) as caught:
        config.load(node.host)
    problem = f"{DROP_IN}:1: can be written by others (mode {mode:04o}); expected 0600"
    assert [str(found) for found in caught.value.problems] == [problem]


def test_a_file_of_somebody_else_is_refused_whatever_it_says(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", "gpus: 1", mode=0o600)
    owner = node.host.owner
    node.host.owner += 1
    with pytest.raises(ConfigError) as caught:
        config.load(node.host)
    assert [str(found) for found in caught.value.problems] == [
        f"/etc/gpuboot/config.yaml:1: belongs to user id {owner}; expected root as owner",
        "/etc/gpuboot/config.yaml:1: gpus: unknown key, did you mean gpu?",
    ]
