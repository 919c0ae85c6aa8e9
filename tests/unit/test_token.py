"""RKE2's join tokens and CA hashes (facts/rke2.md §2)."""

from __future__ import annotations

import base64
import hashlib
import ssl
import time

import pytest

from gpuboot import token
from gpuboot.secret import Secret
from tests.rehearsal import pki

HASH = "0123456789abcdef" * 4
BOOTSTRAP = "abcdef.0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "ca_hash", "password", "bootstrap"),
    [
        (f"K10{HASH}::node:pass-word", HASH, "pass-word", False),
        (f"K10{HASH}::server:pass:word", HASH, "pass:word", False),
        (f"K10{HASH}::{BOOTSTRAP}", HASH, BOOTSTRAP, True),
        (f"K10{HASH}::pass-word", HASH, "pass-word", False),
        ("K10::node:pass-word", None, "pass-word", False),
        ("pass-word", None, "pass-word", False),
        ("node:pass-word", None, "pass-word", False),
        (BOOTSTRAP, None, BOOTSTRAP, True),
        (f"  K10{HASH}::node:pass-word\n", HASH, "pass-word", False),
        ("k10-is-no-prefix", None, "k10-is-no-prefix", False),
    ],
)
def test_a_token_has_hash_password_and_kind(
    text: str, ca_hash: str | None, password: str, *, bootstrap: bool
) -> None:
    found = token.parse(Secret(text))
    assert (found.ca_hash, found.password.reveal(), found.bootstrap) == (
        ca_hash, password, bootstrap,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "  \n", f"K10{HASH}::node:pass\nword", f"K10{HASH}::node:pass word", "K10pass-word",
        f"K10{HASH}", f"K10{HASH}:node:pass-word", f"K10{HASH[1:]}::node:pass-word",
        f"K10{HASH.upper()}::node:pass-word", f"K10{HASH}::node:", f"K10{HASH}:::pass-word",
    ],
)  # fmt: skip
def test_a_malformed_token_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^token") as caught:
        token.parse(Secret(text))
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("text", [f"K10{HASH}::", "K10::"])
def test_a_token_that_ends_after_its_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^token"):
        token.parse(Secret(text))


def test_a_lone_certificate_is_hashed_byte_for_byte() -> None:
    pem = pki.authority("root").certificate
    assert token.ca_hash(pem) == hashlib.sha256(pem).hexdigest()
    assert token.ca_hash(pem) != token.ca_hash(pem + b"\n")


def test_a_bundle_is_hashed_by_the_der_of_its_root() -> None:
    root = pki.authority("root")
    below = pki.leaf(root, "intermediate", []).certificate
    der = ssl.PEM_cert_to_DER_cert(root.certificate.decode())
    assert token.ca_hash(below + root.certificate) == hashlib.sha256(der).hexdigest()
    assert token.ca_hash(below + b"# a comment\n" + root.certificate) == token.ca_hash(
        below + root.certificate
    )


def test_a_bundle_without_a_root_is_hashed_byte_for_byte() -> None:
    root = pki.authority("root")
    bundle = pki.leaf(root, "a", []).certificate + pki.leaf(root, "b", []).certificate
    assert token.ca_hash(bundle) == hashlib.sha256(bundle).hexdigest()


def test_among_several_roots_the_first_certificates_own_counts() -> None:
    root, other = pki.authority("root"), pki.authority("other")
    bundle = pki.leaf(root, "intermediate", []).certificate + root.certificate + other.certificate
    der = ssl.PEM_cert_to_DER_cert(root.certificate.decode())
    assert token.ca_hash(bundle) == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe"])
def test_what_is_no_certificate_is_hashed_byte_for_byte(body: bytes) -> None:
    assert token.ca_hash(body) == hashlib.sha256(body).hexdigest()


BEGIN, END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
MANY = base64.encodebytes(b"\x30\x83\x08\x00\x00" + b"\x30\x00" * 0x40000)


@pytest.mark.parametrize(
    "body",
    [
        BEGIN * 20_000,
        BEGIN + b" " * 20_000,
        BEGIN + b"\n" * 20_000 + END,
        (BEGIN + MANY + END) * 2,
    ],
    ids=["beginnings", "spaces", "lines", "values"],
)
def test_a_bundle_that_is_all_beginnings_takes_no_longer_than_another(body: bytes) -> None:
    begun = time.thread_time()
    assert token.ca_hash(body) == hashlib.sha256(body).hexdigest()
    assert time.thread_time() - begun < 5  # it was minutes


def test_a_damaged_certificate_has_a_hash_too() -> None:
    body = b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"
    assert token.ca_hash(body) == hashlib.sha256(body).hexdigest()
