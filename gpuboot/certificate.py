"""X.509 certificates as far as a node reads them itself: names, in DER and in words."""

from __future__ import annotations

import base64
from contextlib import suppress

_COMMON_NAME = b"\x55\x04\x03"
# The parts of a name that say who it is, by their object identifiers (RFC 5280 A.1), DER.
_TOLD = {_COMMON_NAME: "CN", b"\x55\x04\x0a": "O"}


def ders(pem: bytes) -> list[bytes]:
    """The certificates in a bundle, taken apart in time that grows only with its size.

    Raises ValueError.
    """
    parts = pem.split(b"-----BEGIN CERTIFICATE-----")[1:]
    ended = [part.partition(b"-----END CERTIFICATE-----") for part in parts]
    return [base64.b64decode(body) for body, end, _ in ended if end]


def common_name(pem: bytes) -> str | None:
    """The common name of the first certificate's subject; None if it cannot be taken apart."""
    with suppress(ValueError, IndexError):
        _, subject = names(ders(pem)[0])
        for kind, value, *_ in [_parts(_parts(one)[0]) for one in _parts(subject)]:
            if kind == _COMMON_NAME:
                return value.decode("utf-8")
    return None


def names(der: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject of a certificate, as their bytes. Raises ValueError or IndexError."""
    body = _parts(_parts(der)[0])[0]
    # version (optional), serial number, signature, issuer, validity, subject (RFC 5280 4.1)
    fields = _parts(body)
    first = 1 if body[0] == 0xA0 else 0
    return fields[first + 2], fields[first + 4]


def issuer(der: bytes) -> str | None:
    """Who signed it, such as "O=Proxy Ltd, CN=Proxy CA"; None if that cannot be read."""
    try:
        pairs = [_parts(_parts(one)[0]) for one in _parts(names(der)[0])]
        told = [
            f"{_TOLD[pair[0]]}={pair[1].decode('utf-8', 'replace')}"
            for pair in pairs
            if pair[0] in _TOLD
        ]
    except (ValueError, IndexError):
        return None
    shown = "".join(char if char.isprintable() else "?" for char in ", ".join(told))
    return shown[:200] or None


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
