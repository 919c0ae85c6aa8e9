"""RKE2's join token: its forms, its rules, and the hash of the cluster's CA inside it."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from dataclasses import dataclass

from gpuboot.secret import Secret

FULL = "K10"
_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s+(.*?)\s+-----END CERTIFICATE-----", re.DOTALL
)


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
    return Token(ca_hash, Secret(password if colon else text), bootstrap)


def ca_hash(bundle: bytes) -> str:
    """The hash RKE2 compares: of the bytes of a lone PEM, of the root's DER in a bundle.

    (k3s pkg/clientaccess/token.go. The root is the certificate that is its own issuer; without
    one, or with several, RKE2 falls back to the raw bytes.)
    """
    certificates = [base64.b64decode(body) for body in _CERTIFICATE.findall(bundle)]
    if len(certificates) > 1:
        roots = [der for der in certificates if _self_issued(der)]
        if len(roots) == 1:
            return hashlib.sha256(roots[0]).hexdigest()
    return hashlib.sha256(bundle).hexdigest()


def _self_issued(der: bytes) -> bool:
    """Whether issuer and subject are the same, as the standard library parses them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=der)
        (certificate,) = context.get_ca_certs()
    except (ssl.SSLError, ValueError):
        return False
    return certificate.get("issuer") == certificate.get("subject")
