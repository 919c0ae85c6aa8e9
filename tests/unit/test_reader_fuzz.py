"""Whatever a configuration holds: its problems are told with their places, and no secret is.

`make unit` tries some hundred inputs, `make test-long` more than 20,000.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboot import config, reader
from gpuboot.cli import main
from gpuboot.config import Config
from gpuboot.reader import Reader

CASES = Path(__file__).parents[1] / "data/bad-config"
FILES = sorted(path for path in CASES.rglob("*.yaml"))
HASH = "0123456789abcdef" * 4
PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's
VALID = f"""\
gpu: {{count: 2, model: 10de:1eb8, wait: 90s}}
driver:
  source: distribution
  branch: 580.10
rke2:
  version: v1.35.7+rke2r1
  config:
    server: https://cluster:9345
    token: K10{HASH}::node:{PASSWORD}
    node-label: [nvidia.com/gpu=present, pool=t4]
    node-taint:
      - nvidia.com/gpu=present:NoSchedule
    kubelet-arg: ["max-pods=50"]
proxy: {{https: "http://me:{PASSWORD}@proxy:3128", no-proxy: [.lan, 10.0.0.0/8]}}
sources:
  apt: {{url: http://mirror/debian, key: /k.gpg}}
"""


def problems(text: str | bytes) -> list[reader.Problem]:
    """What is wrong with a file; each with a line that the file has."""
    reading = Reader()
    reading.add("a.yaml", text)
    config.parse(reading)
    content = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    lines = len(re.split(rb"\r\n|[\r\n]|\xc2\x85|\xe2\x80[\xa8\xa9]", content))
    for problem in reading.problems:
        file, _, line = problem.where.rpartition(":")
        assert file == "a.yaml"
        assert 1 <= int(line) <= lines + 1, problem
        assert problem.message
        assert "\n" not in str(problem)
    return reading.problems


# -- documents


KEYS = sorted({
    part for row in reader.documentation(Config) for part in row[0].split(".")
})  # fmt: skip
ODD = [
    "", "~", "null", "yes", "True", "0x1F", "0o17", "010", "1e3", ".inf", "-.NaN", "1_000", "=",
    "9" * 400, "-" + "9" * 30, "2026-11-25", "12:30:45", "12:30:45.5 +1", "|", ">-", "|\n   text",
    "!!binary aGk=", "!!python/object/apply:os.system [id]", "!own x", "!a!b c", "!<tag:x> y",
    "!!set {a}", "!!omap [a: b]", "&a x", "*a", "&a &b x", "<<", "'", '"', '"\\x41\\n"', '"\\q"',
    '"\\ud800"', '"\\UFFFFFFFF"', "# no value", "- x", "? x", ": x", "{", "]", "@x", "`x", "%x",
    "\t", "\u2028", "\ufeff", "\u0000", "\u0085", "auto", "-", "15m", "1", "true", "/a", "a=b",
    "a=b:NoSchedule", "https://a", "https://[", "http://a:b", "K10::", "v1.35.7+rke2r1",
]  # fmt: skip
HEADS = ["", "---\n", "%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! tag:x,2000:\n---\n",
         "%FOO bar\n---\n", "\ufeff", "a: b\n---\n", "...\n", "&root\n"]  # fmt: skip


def near(key: str) -> st.SearchStrategy[str]:
    """A key as somebody may misspell it."""
    return st.sampled_from(
        [key[1:], key[:-1], key.upper(), key.replace("-", "_"), f"{key}s", f" {key}", f'"{key}"']
    )


keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS).flatmap(near), st.text(max_size=8),
    st.sampled_from(["<<", "? a", "[a, b]", "{a: b}", "*a", "&a b", "!!str c", "9", "~"]),
)  # fmt: skip
scalars = st.one_of(
    st.sampled_from(ODD), st.text(max_size=12), st.text(max_size=12).map(json.dumps),
    st.integers().map(str), st.floats().map(str),
)  # fmt: skip


def listed(items: list[str]) -> st.SearchStrategy[str]:
    """A list as one writes it on one line, or on several."""
    return st.sampled_from(
        ["[" + ", ".join(items) + "]", "".join(f"\n- {indented(item)}" for item in items)]
    )


def mapped(pairs: list[tuple[str, str]]) -> st.SearchStrategy[str]:
    """A map, on one line or on several; a key may stand twice."""
    inline = "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    block = "".join(f"\n{key}: {indented(value)}" for key, value in pairs)
    return st.sampled_from([inline, block])


def indented(text: str) -> str:
    return text.replace("\n", "\n  ")


documents = st.recursive(
    scalars,
    lambda below: st.one_of(
        st.lists(below, max_size=3).flatmap(listed),
        st.lists(st.tuples(keys, below), max_size=4).flatmap(mapped),
    ),
    max_leaves=12,
)


@given(st.sampled_from(HEADS), documents)
def test_any_document_is_taken_or_told(head: str, document: str) -> None:
    problems(head + document.lstrip("\n"))


@pytest.mark.parametrize("form", ["[", "{a: ", "- ", "? ", "a:\n", "!!x ", "'", "\n", "&a ", "%"])
@pytest.mark.parametrize("times", [10, 1000, 20_000])
def test_however_deep_it_is_nested_it_is_taken_or_told(form: str, times: int) -> None:
    problems(form * times)
    problems("gpu: " + form * times)


# -- bytes


def cut(text: bytes, first: int, second: int) -> bytes:
    return text[:first] + text[second:]


def doubled(text: bytes, first: int, second: int) -> bytes:
    return text[:second] + text[first:]


def moved(text: bytes, first: int, second: int) -> bytes:
    return text[second:] + text[first:second] + text[:first]


def changed(text: bytes, first: int, second: int) -> bytes:
    return text[:first] + bytes([second % 256]) + text[first + 1 :]


def spliced(text: bytes, first: int, second: int) -> bytes:
    return text[:first] + VALID.encode()[second % len(VALID) :]


def blanked(text: bytes, first: int, second: int) -> bytes:
    return text[:first] + b" " * (second % 7) + text[first:]


Change = Callable[[bytes, int, int], bytes]
changes = st.lists(
    st.tuples(
        st.sampled_from([cut, doubled, moved, changed, spliced, blanked]),
        st.integers(0, 2000), st.integers(0, 2000),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
originals = st.sampled_from([VALID.encode(), *(path.read_bytes() for path in FILES)])


def mutated(text: bytes, steps: list[tuple[Change, int, int]]) -> bytes:
    for change, one, two in steps:
        first, second = sorted((one % (len(text) + 1), two % (len(text) + 1)))
        text = change(text, first, second)[:10_000]
    return text


@given(originals, changes)
def test_any_bytes_are_taken_or_told(text: bytes, steps: list[tuple[Change, int, int]]) -> None:
    content = mutated(text, steps)
    told = "\n".join(map(str, problems(content)))
    # By itself, without the word before it, a password could be anything.
    if not re.search(rb"(?<!\bnode:)(?<!\bme:)" + PASSWORD.encode(), content):
        assert PASSWORD not in told


# -- secrets

FORMS = [
    "K10{hash}::node:{pw}", "K10{hash}::server:{pw}", "K10::node:{pw}", "K10{hash}::{pw}",
    "https://me:{pw}@host:9345", "http://me:{pw}@proxy", "me:{pw}@host", "//me:{pw}@host/x",
    "socks5://me:{pw}@[::1]:1080",
]  # fmt: skip
ALONE = ["rke2.config.token", "proxy.http", "proxy.https"]  # where it needs no form to be one
PLACES = sorted(row[0] for row in reader.documentation(Config))
SHAPES = [
    "{key}: {value}", "{key}: '{value}'", '{key}: "{value}"', "{key}: [{value}]",
    "{key}: ['{value}']", "{key}: |\n{pad}  {value}", "{key}: >-\n{pad}  {value}",
    "{key}: {{'{value}': 1}}", "{key}: {{a: '{value}'}}", "{key}:\n{pad}- '{value}'",
    "'{value}': 1", "? '{value}'", "{key}: '{value}", '{key}: "{value}\\q"', "{key}: !x '{value}'",
    "{key}: &a '{value}'", "{key}: ['{value}', [x]]", "{key}: '{value} x'", "{key}: 'x {value}'",
    "{key}: '{value}'\n{pad}{key}: '{value}'", "{key}x: '{value}'", "{key}: {value} : {value}",
]  # fmt: skip
OWN = [shape for shape in SHAPES if shape.startswith("{key}: ")]
# No word of any message: those hypothesis finds, too. No part of it may be told.
MARK = "zq"
passwords = st.text(
    "abcdefghijkmnopqrstuvwxyz0123456789-_.~!$%&*+,;=?^/:@#|()[]<>", max_size=12
).map(f"a1{MARK}{{}}{MARK}".format)


def planted(path: str, shape: str, value: str) -> str:
    """A file with this value somewhere at, or as, this key."""
    *above, last = path.split(".")
    lines = [f"{'  ' * depth}{name}:\n" for depth, name in enumerate(above)]
    pad = "  " * len(above)
    return "".join(lines) + pad + shape.format(key=last, value=value, pad=pad) + "\n"


@given(st.sampled_from(PLACES), st.sampled_from(SHAPES), st.sampled_from(FORMS), passwords)
def test_a_secret_is_told_nowhere(path: str, shape: str, form: str, password: str) -> None:
    value = form.format(hash=HASH, pw=password)
    for problem in problems(planted(path, shape, value)):
        assert MARK not in str(problem)


@given(st.sampled_from(ALONE), st.sampled_from(OWN), passwords)
def test_a_password_alone_in_its_own_place_is_told_nowhere(
    path: str, shape: str, password: str
) -> None:
    for problem in problems(planted(path, shape, password)):
        assert MARK not in str(problem)


# -- the command


@settings(max_examples=max(20, settings().max_examples // 20))
@given(originals, changes)
def test_the_check_ends_with_0_or_78(text: bytes, steps: list[tuple[Change, int, int]]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(mutated(text, steps))
        file.flush()
        result = CliRunner().invoke(main, ["config", "check", file.name])
    assert result.exit_code in (0, 78), result.output
    assert (result.exit_code == 0) == result.output.startswith("valid: ")
