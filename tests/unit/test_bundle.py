"""What a rehearsal finds in a support bundle: a secret it must see, and a missing program."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from gpuboot import explain
from tests.rehearsal import bundle

TOKEN = "K10abc::node:correct-horse-battery"  # noqa: S105 - of no cluster
SECRETS = {"token": TOKEN, "node's password": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("said correct-horse-battery then", ["token"]),
        (base64.b64encode(b"node:correct-horse-battery").decode(), ["token"]),
        ("0123456789abcdef", ["node's password"]),
        ("nothing of the kind: <secret>", []),
    ],
)
def test_a_secret_in_a_text_is_found_in_any_spelling(text: str, what: list[str]) -> None:
    found = bundle.leaks("a/b.txt", text, SECRETS)
    assert found == [f"secrecy: a/b.txt holds the {one}" for one in what]


def test_the_secrets_of_a_node_are_those_that_it_was_given_and_those_that_lie_on_it(
    tmp_path: Path,
) -> None:
    for name, text in (
        (bundle.NODES_OWN, "0123456789abcdef\n"),
        (bundle.REGISTRIES, "configs:\n  r:\n    auth:\n      password: pelican\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = bundle.secrets(tmp_path, TOKEN, "http://node:walrus@proxy.lab:3128", ["xq7zz"])
    assert list(found.values()) == [TOKEN, "xq7zz", "walrus", "0123456789abcdef", "pelican"]


def test_programs_of_a_code_are_those_that_are_typed_on_this_node() -> None:
    code = {"commands": ["curl -ks URL | sha256sum", "df -h / (as root)", "kubectl get x"],
            "elsewhere": ["kubectl get x"]}  # fmt: skip
    assert list(bundle.programs(code)) == ["curl", "sha256sum", "df"]


def test_what_is_to_be_typed_here_begins_with_a_programs_name() -> None:
    """A sentence would have to be marked as done elsewhere."""
    for code in json.loads(json.dumps([explain.document(one) for one in explain.codes().values()])):
        for program in bundle.programs(code):
            assert program.replace("-", "").isalnum(), code["id"]
            assert program.islower()
