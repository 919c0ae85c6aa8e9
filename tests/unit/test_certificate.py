"""Certificates as a node reads them: whose they are, and what is none."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from gpuboot import certificate
from tests.rehearsal import pki


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


CA = pki.authority("Inspection CA")
LEAF = der(pki.leaf(CA, "server", ["127.0.0.1"]).certificate)


def test_the_issuer_is_told_in_words() -> None:
    assert certificate.issuer(LEAF) == "CN=Inspection CA"


def test_nothing_unprintable_is_told_of_a_name() -> None:
    found = x509.load_der_x509_certificate(LEAF)
    assert certificate.names(LEAF)[1] in found.public_bytes(Encoding.DER)
    twisted = LEAF.replace(b"Inspection CA", b"Inspec\x1b[2J CA")
    assert certificate.issuer(twisted) == "CN=Inspec?[2J CA"


@pytest.mark.parametrize(
    "junk",
    [b"", b"\x30", b"\x30\x80", b"\x30\x03\x30\x01", pytest.param(LEAF[:100], id="cut off")],
)
def test_what_is_no_certificate_has_no_issuer(junk: bytes) -> None:
    assert certificate.issuer(junk) is None


@given(st.binary(max_size=200), st.integers(0, len(LEAF)))
def test_no_bytes_are_too_strange_to_be_looked_at(junk: bytes, place: int) -> None:
    for data in (junk, LEAF[:place] + junk + LEAF[place:], LEAF[:place] + junk):
        found = certificate.issuer(data)
        assert found is None or found.isprintable()
