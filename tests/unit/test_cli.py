"""The command line, as far as it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click
import jsonschema
import pytest
from click.testing import CliRunner, Result

from gpuboot.cli import main
from tests.unit.node import as_nobody

JOIN = f"K10{'a' * 64}::node:correct-horse"


def gpuboot(*argv: str) -> Result:
    return CliRunner().invoke(main, argv)


def file(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- explain


def test_explain_tells_a_code_in_either_case() -> None:
    for code in ("GB001", "gb001"):
        result = gpuboot("explain", code)
        assert result.exit_code == 0
        assert result.output.startswith("GB001: the configuration is wrong\n")
        assert "Usual causes:" in result.output


def test_explain_alone_lists_every_code() -> None:
    lines = gpuboot("explain").output.splitlines()
    assert lines[0] == "GB001  the configuration is wrong"
    assert len(lines) > 40
    assert lines == sorted(lines)


def test_explain_speaks_json() -> None:
    one = json.loads(gpuboot("explain", "GB001", "--json").output)
    assert set(one) == {"id", "title", "causes", "evidence", "commands", "elsewhere", "doc"}
    assert one in json.loads(gpuboot("explain", "--json").output)


# -- config


def test_a_valid_file_is_named(tmp_path: Path) -> None:
    name = file(tmp_path, "gpu: {count: 1}\n")
    result = gpuboot("config", "check", name)
    assert (result.exit_code, result.output) == (0, f"valid: {name}\n")


def test_every_problem_of_several_files_is_told_with_its_place(tmp_path: Path) -> None:
    one = file(tmp_path, "gpus: {}\ndriver:\n  branch: newest\n", "a.yaml")
    two = file(tmp_path, "# later\nreboot: {budget: many}\n", "b.yaml")
    result = gpuboot("config", "check", one, two)
    assert result.exit_code == 78
    assert result.output.splitlines() == [
        one,
        "    1 error    gpus: unknown key, did you mean gpu? [GB001]",
        f"    3 error    driver.branch: 'newest' does not fit; expected {BRANCH} [GB001]",
        "",
        two,
        f"    2 error    reboot.budget: 'many' is not in range; expected {BUDGET} [GB001]",
        "",
        "not valid: 3 errors in 2 files",
    ]


BRANCH = "a driver branch such as 580, or auto"
BUDGET = "a whole number from 0 to 20"


def test_a_later_file_can_put_an_earlier_one_right(tmp_path: Path) -> None:
    one = file(tmp_path, "gpu: {count: many}\n", "a.yaml")
    two = file(tmp_path, "gpu: {count: 2}\n", "b.yaml")
    assert gpuboot("config", "check", one).exit_code == 78
    assert gpuboot("config", "check", one, two).exit_code == 0


def test_problems_are_data_too(tmp_path: Path) -> None:
    name = file(tmp_path, "gpu: {count: many}\n")
    result = gpuboot("config", "check", "--json", name)
    assert result.exit_code == 78
    told = json.loads(result.output)
    assert not told["valid"]
    assert told["problems"] == [{
        "where": f"{name}:1", "key": "gpu.count", "message": "'many' is not in range",
        "expected": "a whole number from 1 to 16, or auto",
        "severity": "error", "hint": None, "code": "GB001",
    }]  # fmt: skip
    assert json.loads(gpuboot("config", "check", "--json", file(tmp_path, "")).output)["valid"]


def test_a_misplaced_token_is_not_printed(tmp_path: Path) -> None:
    name = file(tmp_path, f"gpu: {{model: [x], wait: '{JOIN}'}}\n")
    assert "correct-horse" not in gpuboot("config", "check", name).output


def test_a_misplaced_token_is_not_printed_as_data_either(tmp_path: Path) -> None:
    name = file(tmp_path, f"gpu: {{wait: '{JOIN}'}}\n")
    assert "correct-horse" not in gpuboot("config", "check", "--json", name).output


def test_a_file_of_any_bytes_is_told_and_not_choked_on(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00gpu: 1")
    assert gpuboot("config", "check", str(path)).exit_code == 78


def test_the_schema_takes_an_example_and_refuses_a_wrong_one() -> None:
    schema = json.loads(gpuboot("config", "schema").output)
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert validator.is_valid({"gpu": {"count": 1, "wait": "15m"}})
    assert not validator.is_valid({"gpu": {"count": "many"}})


# -- usage


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frobnicate"], "No such command"),
        (["explain", "GB999"], "unknown code GB999; all of them: gpuboot explain"),
        (["explain", "GB001", "more"], "unexpected extra argument"),
        (["config"], "Usage: "),
        (["config", "check", "/nowhere/config.yaml"], "does not exist"),
        (["config", "check", "/"], "is a directory"),
        (["run", "--once"], "--once and --verbose go with --foreground"),
        (["run", "--verbose"], "--once and --verbose go with --foreground"),
        (["run", "--foreground", "--wait"], "--wait does not go with it"),
        (["run", "--timeout", "soon"], "'soon' is not a duration; expected a duration such as"),
        (["status", "--timeout", "15"], "'15' is not a duration"),
        (["status", "--colour"], "No such option"),
        (["preflight", "--ignore", "GB999"], "unknown code GB999; all of them: gpuboot explain"),
        (["preflight", "--ignore", "gb001"], "GB001 cannot be ignored"),
        (["report", "-", "--json"], "cannot go to standard output: --json goes there too"),
        (["plan", "--facts", "/dev/null"], "does not hold what `gpuboot facts --json` prints"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(argv: list[str], said: str) -> None:
    result = gpuboot(*argv)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    "argv", [[], ["run"], ["status"], ["plan"], ["preflight"], ["facts"], ["explain"], ["config"],
             ["report"], ["timeline"], ["config", "check"], ["config", "show"],
             ["config", "schema"]], ids=" ".join,
)  # fmt: skip
def test_every_command_has_help(argv: list[str]) -> None:
    for option in ("--help", "-h"):
        result = gpuboot(*argv, option)
        assert result.exit_code == 0
        assert result.output.startswith("Usage: ")
        assert "Traceback" not in result.output


def test_a_report_is_roots_business(tmp_path: Path) -> None:
    with as_nobody():
        result = gpuboot("report", str(tmp_path))
    assert result.exit_code == 1
    assert "can only be read by root [GB105]" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option", "begun", "some"),
    [("explain", "code", "gb11", "GB110"), ("preflight", "ignore", "GB10", "GB106")],
)
def test_codes_are_completed_with_their_titles(
    command: str, option: str, begun: str, some: str
) -> None:
    found = main.commands[command]
    param = next(one for one in found.params if one.name == option)
    items = param.shell_complete(click.Context(found), begun)
    assert {item.value[:4] for item in items} == {begun.upper()}
    assert some in {item.value for item in items}
    assert all(item.help for item in items)


def test_the_version_is_told() -> None:
    from gpuboot import __version__

    assert __version__ in gpuboot("--version").output
