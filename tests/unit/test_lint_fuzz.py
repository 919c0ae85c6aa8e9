"""No file of RKE2's or Rancher's breaks the lint, and no complaint tells a secret.

Seconds in the default run; `make test-long` looks at more than 20,000 files.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuboot import lint
from gpuboot.cli import main
from gpuboot.reader import Problem
from tests.conftest import Figure
from tests.unit import lint_words
from tests.unit.node import Node
from tests.unit.test_reader_fuzz import lines, tells

ONE_IN = 25  # of the inputs also goes through the command
FOLDER = "/etc/rancher/rke2"
NAMES = [f"{FOLDER}/config.yaml.d/50-rancher.yaml", f"{FOLDER}/config.yaml.d/70-x.yaml",
         f"{FOLDER}/config.yaml"]  # fmt: skip


def check(problems: Sequence[Problem], files: dict[str, bytes]) -> None:
    """What holds for any complaints: each has a place in its file, and tells nothing secret."""
    for problem in problems:
        place = re.fullmatch(r"(.+):([0-9]+)", problem.where)
        assert place, problem
        assert 1 <= int(place[2]) <= lines(files[place[1]]), problem
        assert f"{problem} {problem.hint}".isprintable(), problem
        assert not tells(f"{problem} {problem.hint}"), problem


def look_at_settings(contents: list[bytes], folder: Path) -> bool:
    """RKE2's files on a node; whether nothing is wrong with them."""
    node = Node(folder)
    files = dict(zip(NAMES, contents, strict=False))
    for name in NAMES:
        (folder / name.lstrip("/")).unlink(missing_ok=True)
    for name, content in files.items():
        node.put(name, content, mode=0o600)
    problems = lint.node(node.host).problems
    check(problems, files)
    return not problems


def look_at_manifests(contents: list[bytes], _: Path) -> bool:
    """Rancher's files; whether nothing is wrong with them."""
    files = {f"{number}.yaml": content for number, content in enumerate(contents)}
    problems = lint.manifests(list(files.items())).problems
    check(problems, files)
    return not problems


def command(contents: list[bytes], folder: Path, problems: bool) -> None:
    """`gpuboot config check --rancher` says the same by its end, and ends in no traceback."""
    paths = [folder / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    ended = CliRunner().invoke(main, ["config", "check", "--rancher", *map(str, paths)])
    assert ended.exit_code in (0, 78)
    assert ended.output.startswith("valid: ") is not problems
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    assert not tells(ended.output)


Look = Callable[[list[bytes], Path], bool]
KINDS: dict[str, tuple[st.SearchStrategy[list[bytes]], Look]] = {
    "settings": (lint_words.SETTINGS, look_at_settings),
    "manifests": (lint_words.MANIFESTS, look_at_manifests),
}


def explore(kind: str, examples: int) -> Counter[str]:
    """Look at that many inputs of a kind; how many there were, were fine, met the command."""
    seen: Counter[str] = Counter()
    strategy, look = KINDS[kind]

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def every(contents: list[bytes]) -> None:
        fine = look(contents, Path(name))
        seen.update(inputs=1, fine=fine)
        if kind == "manifests" and seen["inputs"] % ONE_IN == 0:
            seen.update(commands=1)
            command(contents, Path(name), not fine)

    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        every()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_breaks_the_lint_or_has_it_tell_a_secret(kind: str) -> None:
    seen = explore(kind, 400)
    assert seen["inputs"] >= 400
    assert 0 < seen["fine"] < seen["inputs"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_very_many_breaks_the_lint_or_has_it_tell_a_secret(
    kind: str, figure: Figure
) -> None:
    start = time.monotonic()
    seen = explore(kind, 11_000)
    assert seen["inputs"] >= 10_000
    figure(
        f"the lint of {kind}: {seen['inputs']} inputs, {seen['fine']} of them fine,"
        f" {seen['commands']} also through the command, in {time.monotonic() - start:.0f} s"
    )


@pytest.mark.parametrize(
    "content",
    [b"--- !!map\n", b"a: b\n---\n", b"a: !!str\n  -\n    a: !!str\n      - []\n", b"a: !!int ''",
     b"a: 2001-99-99\n", b"a: 0001-01-01 00:00:00 +23:59\n", b"a: !!bool x", b"? [a]\n: b"],
)  # fmt: skip
def test_what_pyyaml_alone_cannot_take_has_its_place(content: bytes, tmp_path: Path) -> None:
    """Finds of the search."""
    look_at_settings([content], tmp_path)


def test_a_pool_that_is_named_like_a_secret_is_not_told_by_another_rule() -> None:
    """A find of the search."""
    name = "http://:corr:ect/horse'b@ttery@cluster:9345/x"
    content = f"""apiVersion: provisioning.cattle.io/v1
kind: Cluster
spec: {{rkeConfig: {{machineGlobalConfig: {{default-runtime: nvidia}}, machinePools: [
  {{name: gpu}}, {{name: "{name}"}}]}}}}
"""
    problems = lint.manifests([("0.yaml", content.encode())]).problems
    assert any("machinePools[http://<secret>@" in problem.message for problem in problems)
    check(problems, {"0.yaml": content.encode()})
