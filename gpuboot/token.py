"""RKE2's join token: its forms, its rules, and the hash of the cluster's CA inside it."""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass

from gpuboot.secret import Secret

FULL = "K10"
# Characters that no line of a text holds: control characters, line breaks, halves of a pair.
CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"


@dataclass(frozen=True)
class Token:
    """A join token. `ca_hash` is None for the short form: then only the system's trust helps.

    A bootstrap token (`id.secret`) is sent as a bearer, anything else as the password of the
    user `node`, whatever user the token names (k3s pkg/agent/run.go).
    """

    ca_hash: str | None
    password: Secret
    bootstrap: bool


def parse(secret: Secret) -> Token:
    """The parts of a token. Raises ValueError, which never holds any of the token's text."""
    text = secret.reveal().strip()
    if not text:
        raise ValueError("token is empty")
    if re.search(r"\s", text):
        raise ValueError("token holds white space or a line break")
    if re.search(CONTROL, text):
        raise ValueError("token holds a control character")
    ca_hash: str | None = None
    if text.startswith(FULL):
        head, separator, text = text[len(FULL) :].partition("::")
        if not separator:
            raise ValueError("token begins with K10 but has no '::' after the CA hash")
        if not re.fullmatch(r"(?:[0-9a-f]{64})?", head):
            raise ValueError("token's CA hash is not 64 lower-case hex digits")
        ca_hash = head or None
    user, colon, password = text.partition(":")
    if colon and not (user and password):
        raise ValueError("token has an empty user or password")
    bootstrap = bool(re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", text))
    if not text:
        raise ValueError("token has nothing after its CA hash")
    return Token(ca_hash, Secret(password if colon else text), bootstrap)


def ca_hash(bundle: bytes) -> str:
    """The hash RKE2 compares: of the bytes of a lone PEM, of the root's DER in a bundle.

    (k3s pkg/clientaccess/token.go. The root is the one that the first certificate chains to;
    without one RKE2 falls back to the raw bytes.)
    """
    with suppress(ValueError, IndexError):  # what cannot be taken apart is hashed as it is
        certificates = [base64.b64decode(body) for body in _bodies(bundle)]
        if len(certificates) > 1 and (root := _root(certificates)):
            return hashlib.sha256(root).hexdigest()
    return hashlib.sha256(bundle).hexdigest()


def _bodies(bundle: bytes) -> list[bytes]:
    """What stands between the lines of each certificate; no bundle takes longer than its size."""
    parts = bundle.split(b"-----BEGIN CERTIFICATE-----")[1:]
    ended = [part.partition(b"-----END CERTIFICATE-----") for part in parts]
    return [body for body, end, _ in ended if end]


def _root(certificates: list[bytes]) -> bytes | None:
    """The certificate that the first one's issuers end at, by their names."""
    names = {subject: (der, issuer) for der in certificates for issuer, subject in [_names(der)]}
    issuer, subject = _names(certificates[0])
    for _ in certificates:
        if issuer == subject:
            return names[subject][0]
        if issuer not in names:
            return None
        subject = issuer
        issuer = names[subject][1]
    return None


def _names(der: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject of a certificate, as their bytes. Raises ValueError or IndexError."""
    body = _parts(_parts(der)[0])[0]
    # version (optional), serial number, signature, issuer, validity, subject (RFC 5280 4.1)
    fields = _parts(body)
    first = 1 if body[0] == 0xA0 else 0
    return fields[first + 2], fields[first + 4]


def _parts(der: bytes) -> list[bytes]:
    """The contents of the DER values that follow each other. Raises IndexError when cut off."""
    parts = []
    at = 0
    while at < len(der):
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        at = start + length
        if len(der) < at:
            raise IndexError
        parts.append(der[start:at])
    return parts
