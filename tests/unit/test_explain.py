"""Error codes are stable, unique, and help."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import gpuboot
from gpuboot import explain
from gpuboot.errors import Code, GpubootError


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
    assert all(cause.endswith(".") for cause in code.causes)
    assert code.title[0].islower() or code.title.startswith(("NVIDIA", "RKE2", "Secure", "Rancher"))
    assert not code.title.endswith(".")
    assert all(command == command.strip() for command in code.commands)


def test_an_explanation_has_title_causes_and_commands() -> None:
    text = explain.text(Code("GB999", "it is so", ("One.", "Two."), ("do this", "do that")))
    assert text == (
        "GB999: it is so\n\nUsual causes:\n  - One.\n  - Two.\n\nNext:\n  do this\n  do that"
    )


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
    assert GpubootError(Code("GB999", "t", (), commands), "m", hint=hint).hint == shown
