"""Secrets do not show themselves, and the mask finds them however they are spelled."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from gpuboot.secret import Mask, Secret, quoted, redact

PASSWORD = "p/ss+w&rd horse"  # noqa: S105 - nobody's
JOIN = f"K10{'a' * 64}::node:{PASSWORD}"


def masked(text: str, *secrets: str) -> str:
    mask = Mask()
    for secret in secrets:
        mask.add(Secret(secret))
    return mask(text)


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("horse")
    assert f"{secret} {secret!r} {[secret]}" == "<secret> <secret> [<secret>]"
    assert secret.reveal() == "horse"


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert {Secret("a"), Secret("a")} == {Secret("a")}
    assert Secret("a") != "a"


@pytest.mark.parametrize(
    "spelling", [PASSWORD, quote(PASSWORD, safe=""), JOIN, f"node:{PASSWORD}", quote(JOIN, safe="")]
)
def test_every_spelling_of_a_token_is_masked(spelling: str) -> None:
    found = masked(f"before {spelling} after", JOIN)
    assert found in ("before <secret> after", "before node:<secret> after")


@pytest.mark.parametrize("password", ['pa"ss\\word', "pässwörd-\u0142", "pass\ud800word"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_secret_is_masked_as_json_has_it(password: str, ascii_only: bool) -> None:
    text = json.dumps({"reason": f"it is {password}!"}, ensure_ascii=ascii_only)
    assert json.loads(masked(text, password)) == {"reason": "it is <secret>!"}


def test_the_longest_spelling_is_masked_first() -> None:
    assert masked(f"{JOIN}!", JOIN) == "<secret>!"


@pytest.mark.parametrize("before", ["", "a", "ab", "abc", "node:"])
@pytest.mark.parametrize("after", ["", "x", "xy", "xyz"])
@pytest.mark.parametrize("alphabet", [b"+/", b"-_"])
def test_a_secret_within_base64_is_masked_at_any_offset(
    before: str, after: str, alphabet: bytes
) -> None:
    encoded = base64.b64encode(f"{before}{PASSWORD}{after}".encode(), alphabet).decode()
    found = masked(f"Authorization: Basic {encoded}", JOIN)
    assert "<secret>" in found
    # What is left beside the mask are at most the neighbours and the two characters they share.
    rest = found.removeprefix("Authorization: Basic ").replace("<secret>", "").rstrip("=")
    assert len(rest) <= (len(before + after) * 4 + 2) // 3 + 4


def test_a_very_short_secret_does_not_mask_ordinary_words() -> None:
    assert masked("node is up", "is") == "node is up"


def test_without_secrets_a_text_stays() -> None:
    assert masked("a text") == "a text"


def test_a_secret_is_text_and_no_pattern() -> None:
    assert masked("axc a.c+", "a.c+") == "axc <secret>"


PROXY = "http://operator:open-sesame@proxy.lan:3128"


def test_a_proxys_whole_address_is_masked() -> None:
    assert masked(f"using {PROXY} now", PROXY) == "using <secret> now"


def test_a_proxys_password_is_masked_by_itself() -> None:
    assert masked("operator:open-sesame", PROXY) in ("operator:<secret>", "<secret>")


def test_a_proxys_port_is_no_secret() -> None:
    assert masked("3128 packages", PROXY) == "3128 packages"


HASH = "0123456789abcdef" * 4
LIKELY = [
    f"K10{HASH}::node:horse", f"K10{HASH}::horse", f"{HASH[9:]}::node:horse", "::server:horse",
    "node:horse", "me:horse@host", "https://me:horse@host", "https://me:ho/r@se@host",
    "https://me:horse", f"'{HASH}::node:ho'", "abcdef.0123456789horses",
]  # fmt: skip
PLAIN = [
    "https://cluster:9345", "https://[fd00::1]:9345", "10de:1eb8", "nvidia.com/gpu=a:NoSchedule",
    "http://mirror:80/debian", "v1.35.7+rke2r1", "unix:///run/a.sock",
]  # fmt: skip


@pytest.mark.parametrize("text", LIKELY)
def test_what_looks_like_a_secret_is_taken_out_of_any_text(text: str) -> None:
    told = redact(f"gpu.wait: {text!r} is not a duration")
    assert "ho" not in told.replace("host", "")
    assert told.endswith("is not a duration")


@pytest.mark.parametrize("text", PLAIN)
def test_what_looks_like_none_stays(text: str) -> None:
    assert redact(f"{text!r} does not fit") == f"{text!r} does not fit"


def test_a_very_long_wrong_value_is_not_quoted() -> None:
    """A certificate in the wrong place: the patterns would take minutes over it."""
    assert quoted("x" * 2001) == "a text of 2001 characters"
    assert quoted("x" * 2000) == repr("x" * 2000)
