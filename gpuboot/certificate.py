"""X.509 certificates as far as a node reads them itself: names, in DER and in words."""

from __future__ import annotations

import re

PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.*?)\s+-----END CERTIFICATE-----", re.DOTALL)

# The parts of a name that say who it is, by their object identifiers (RFC 5280 A.1), DER.
_TOLD = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O"}


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
    while der:
        length, start = der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        if len(der) < start + length:
            raise IndexError
        parts.append(der[start : start + length])
        der = der[start + length :]
    return parts
