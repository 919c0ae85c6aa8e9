"""Error codes are stable, unique, and help."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import gpuboot
from gpuboot import explain
from gpuboot.errors import Code, Elsewhere, GpubootError

SOURCES = sorted(Path(gpuboot.__path__[0]).glob("*.py"))
ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("tests/rehearsal/**/*.yaml"))]
CODE = re.compile(r"GB\d{3}")


def constants() -> list[tuple[str, Code]]:
    """Every code with the module that defines it: the first one whose text names its id."""
    found = []
    for module in pkgutil.iter_modules(gpuboot.__path__):
        if module.name == "__main__":
            continue
        loaded = importlib.import_module(f"gpuboot.{module.name}")
        found += [(module.name, v) for v in vars(loaded).values() if isinstance(v, Code)]
    return found


CODES = sorted({code for _, code in constants()}, key=lambda code: code.id)


def test_no_two_codes_share_an_id_or_a_title() -> None:
    assert len({code.id for code in CODES}) == len(CODES)
    assert len({code.title for code in CODES}) == len(CODES)
    assert explain.codes() == {code.id: code for code in CODES}
    assert list(explain.codes()) == sorted(explain.codes())


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(code.id))
def test_a_code_has_causes_and_commands(code: Code) -> None:
    assert re.fullmatch(r"GB\d{3}", code.id)
    assert code.causes
    assert code.commands
    assert code.evidence
    assert not code.evidence.endswith(".")
    assert all(cause.endswith(".") for cause in code.causes)
    assert code.title[0].islower() or code.title.startswith(("NVIDIA", "RKE2", "Secure", "Rancher"))
    assert not code.title.endswith(".")
    assert all(command == command.strip() for command in code.commands)


def test_an_explanation_has_title_causes_evidence_and_commands() -> None:
    code = Code("GB999", "it is so", ("One.", "Two."), ("do this", "do that"), evidence="a file")
    assert explain.text(code) == (
        "GB999: it is so\n\nUsual causes:\n  - One.\n  - Two.\n\nWhat was looked at:\n  a file\n\n"
        "Next:\n  do this\n  do that\n\n"
        "All codes: man gpuboot-errors, or /usr/share/doc/gpuboot/errors.md#gb999"
    )


def test_what_is_done_elsewhere_is_marked_as_data() -> None:
    code = Code("GB999", "t", ("C.",), ("do this", Elsewhere("buy that")), evidence="a file")
    told = json.loads(json.dumps(explain.document(code)))
    assert told["commands"] == ["do this", "buy that"]
    assert told["elsewhere"] == ["buy that"]


@pytest.mark.parametrize(
    ("commands", "hint", "shown"),
    [
        (("do this", "do that"), None, "do this"),
        (("do this",), "rather this", "rather this"),
        ((), None, "gpuboot explain GB999"),
    ],
)
def test_an_error_always_has_a_next_command(
    commands: tuple[str, ...], hint: str | None, shown: str
) -> None:
    code = Code("GB999", "t", (), commands, evidence="")
    assert GpubootError(code, "m", hint=hint).hint == shown


# -- what is raised is described, and what is described is raised


def definitions(tree: ast.Module) -> dict[str, str]:
    """The constants of a module that are codes: name to id."""
    return {
        node.targets[0].id: ast.literal_eval(node.value.args[0])
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "Code"
    }  # fmt: skip


def test_a_code_is_made_nowhere_but_as_a_constant_so_that_it_is_described() -> None:
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        made = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name) and node.func.id == "Code"]  # fmt: skip
        assert len(made) == len(definitions(tree)), file.name
        assert set(definitions(tree).values()) <= set(explain.codes())


def test_every_code_that_is_described_is_raised_or_told_somewhere() -> None:
    used: set[str] = set()
    defined: dict[str, str] = {}
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        defined |= definitions(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    assert [code for name, code in defined.items() if name not in used] == []


@pytest.mark.parametrize("file", [*SOURCES, *TEXTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_code_that_a_text_names_is_described(file: Path) -> None:
    named = set(CODE.findall(file.read_text(encoding="utf-8")))
    assert named <= set(explain.codes())


def test_the_page_of_codes_is_the_catalogues() -> None:
    """`make docs` writes it anew."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, str(ROOT / "packaging/man.py"), folder]
        subprocess.run(program, check=True)
        made = Path(folder, "errors.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    for code in explain.codes().values():
        assert f'<a id="{code.doc.partition("#")[2]}"></a>' in made
