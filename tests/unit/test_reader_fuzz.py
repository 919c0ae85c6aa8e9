"""No file at all breaks the configuration's reader, and no complaint tells a secret.

Seconds in the default run; `make test-long` looks at more than 20,000 files.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuboot import config
from gpuboot.cli import main
from gpuboot.config import Config
from gpuboot.reader import Problem, Reader
from tests.conftest import Figure
from tests.unit import words

ONE_IN = 25  # of the inputs also goes through the command

Files = list[bytes]
KINDS: dict[str, st.SearchStrategy[Files]] = {
    "trees": words.written().map(lambda content: [content]),
    "changed bytes": words.mutated().map(lambda content: [content]),
    "merged": words.MERGED,
}


def read(files: Files) -> tuple[Config, list[Problem]]:
    """What files say, as 0.yaml, 1.yaml …, and what is wrong with them."""
    reading = Reader()
    for number, content in enumerate(files):
        reading.add(f"{number}.yaml", content)
    return config.parse(reading), reading.problems


def lines(content: bytes) -> int:
    """How many lines a file has, by every line break that YAML knows; an empty one has one."""
    text = content.decode("utf-8", "replace")
    breaks = re.findall(r"\r\n|[\r\n\x85\u2028\u2029]", text)
    return max(len(breaks) + (not re.search(r"[\r\n\x85\u2028\u2029]\Z", text)), 1)


def revealed(found: Config) -> bytes:
    """The effective configuration as a file, with its secrets in their places."""
    plain = config.effective(found)
    proxy = found.proxy
    places = [
        (plain["rke2"]["config"], "token", found.rke2.config.token),
        (plain["rke2"], "node-password", found.rke2.node_password),
        (plain["proxy"], "http", proxy.http),
        (plain["proxy"], "https", proxy.https),
    ]
    for section, name, secret in places:
        if secret:
            section[name] = secret.reveal()
    return yaml.safe_dump(plain).encode()


def tells(text: str) -> list[str]:
    """The spellings of secrets in a text."""
    return [spelling for spelling in words.SPELLINGS if spelling in text]


def check(files: Files) -> bool:
    """What holds for any files: nothing is raised, each place is there, nothing secret is told.

    Returns whether they are valid; then they say the same when shown and read again.
    """
    found, problems = read(files)
    for problem in problems:
        place = re.fullmatch(r"([0-9])\.yaml:([0-9]+)", problem.where)
        assert place, problem
        assert 1 <= int(place[2]) <= lines(files[int(place[1])]), problem
        assert str(problem).isprintable(), problem
        assert not tells(str(problem)), problem
    if not problems:
        # An address or a word with a dot may be what a free text is meant to say.
        shown = yaml.safe_dump(config.effective(found))
        assert set(tells(shown)) <= set(tells(repr(found)))
        assert not [token for token in words.FULL if token in shown + repr(found)]
        assert read([revealed(found)]) == (found, [])
    return not problems


def check_command(files: Files, folder: Path, *, valid: bool) -> None:
    """`gpuboot config check` says the same by its exit status, and ends in no traceback."""
    paths = [folder / f"{number}.yaml" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    ended = CliRunner().invoke(main, ["config", "check", *map(str, paths)])
    assert ended.exit_code == (0 if valid else 78)
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    assert "Traceback" not in ended.output
    assert not tells(ended.output)


def explore(kind: str, examples: int) -> Counter[str]:
    """Look at that many inputs of a kind; how many there were, were valid, met the command."""
    seen: Counter[str] = Counter()

    # Most of the time goes into YAML's parser, not into what is drawn, so `too_slow` says nothing.
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(KINDS[kind])
    def look(files: Files) -> None:
        valid = check(files)
        seen.update(inputs=1, valid=valid)
        if seen["inputs"] % ONE_IN == 0:
            seen.update(commands=1)
            check_command(files, Path(name), valid=valid)

    with tempfile.TemporaryDirectory() as name:
        look()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_breaks_the_reader_or_has_it_tell_a_secret(kind: str) -> None:
    seen = explore(kind, 150)
    assert seen["inputs"] >= 150
    assert 0 < seen["valid"] < seen["inputs"]


@pytest.mark.long
def test_no_file_of_very_many_breaks_the_reader_or_has_it_tell_a_secret(figure: Figure) -> None:
    start = time.monotonic()
    seen: Counter[str] = Counter()
    for kind in KINDS:
        seen.update(explore(kind, 7000))
    assert seen["inputs"] >= 20_000
    figure(
        f"the configuration's reader: {seen['inputs']} inputs, {seen['valid']} of them valid,"
        f" {seen['commands']} also through the command, in {time.monotonic() - start:.0f} s"
    )
