"""The supervisor as the agent talks to it: token, CA hash, requests (facts/rke2.md §2)."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT = 10.0  # seconds, as RKE2's client


class Unready(Exception):
    """A request did not give what was asked for; the caller logs it and tries again."""


@dataclass(frozen=True)
class Token:
    """The parts of a join token; `ca_hash` is "" for a short one."""

    ca_hash: str
    password: str = field(repr=False)
    bootstrap: bool


@dataclass(frozen=True)
class Answer:
    """Status, reason and body of an answer."""

    status: int
    reason: str
    body: bytes


def parse_token(text: str) -> Token:
    """Raises Unready for a token of no known form, as RKE2's validation loop reports it."""
    ca_hash, rest = "", text
    if text.startswith("K10"):
        ca_hash, separator, rest = text[3:].partition("::")
        if not separator or len(ca_hash) not in (0, 64):
            raise Unready("invalid token format")
    user, colon, password = rest.partition(":")
    if colon and not user:
        raise Unready("invalid token format")
    head, dot, tail = rest.partition(".")
    bootstrap = not colon and bool(dot) and (len(head), len(tail)) == (6, 16)
    return Token(ca_hash, password if colon else rest, bootstrap)


def hash_of(bundle: bytes) -> str:
    """The hash of one certificate's literal bytes (the laboratory serves no chain)."""
    return hashlib.sha256(bundle).hexdigest()


@dataclass(frozen=True)
class Supervisor:
    """One base address with whom to trust and how to name oneself."""

    base: str
    token: Token
    bundle: str | None = None  # the cluster's CA as PEM; None is the system's trust
    certificate: tuple[Path, Path] | None = None

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request with the node's certificate if there is one, and the token.

        A 401 to a certificate means that the Node was deleted: RKE2 then tries the token alone.
        """
        answer = self._send(method, path, body, headers or {}, with_certificate=True)
        if answer.status == 401 and self.certificate:
            answer = self._send(method, path, body, headers or {}, with_certificate=False)
        return answer

    def get(self, path: str) -> bytes:
        """The body of a GET. Raises Unready with the status for anything but 200."""
        answer = self.request("GET", path)
        if answer.status != 200:
            raise Unready(f"{self.base}{path}: {answer.status} {answer.reason}")
        return answer.body

    def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        with_certificate: bool,
    ) -> Answer:
        context = ssl.create_default_context(cadata=self.bundle)
        if self.certificate and with_certificate:
            context.load_cert_chain(*self.certificate)
        return send(self.base + path, context, method, body, {**headers, **self._credentials()})

    def _credentials(self) -> dict[str, str]:
        if self.token.bootstrap:
            return {"Authorization": f"Bearer {self.token.password}"}
        # Whatever user the token names, an agent calls itself `node` (k3s pkg/agent/run.go).
        pair = base64.b64encode(f"node:{self.token.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}


def send(
    url: str,
    context: ssl.SSLContext,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own. Raises Unready when no answer comes."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=TIMEOUT, context=context
    )
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, target, body or None, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise Unready(f'{method.title()} "{url}": {error}') from None
    finally:
        connection.close()


def validated(
    base: str, server: str, text: str, certificate: tuple[Path, Path] | None
) -> Supervisor:
    """A supervisor whose certificate was checked as RKE2 does. Raises Unready.

    First with the system's trust: if that is enough, the hash is not looked at. Else the CA is
    fetched from anybody, must have signed the server's certificate, and must have the hash.
    """
    scheme = urlsplit(server).scheme
    if scheme != "https":
        raise Unready(f"only https:// URLs are supported, invalid scheme: {scheme}://{server}")
    token = parse_token(text)
    if _trusted(base, ssl.create_default_context()):
        return Supervisor(base, token, None, certificate)
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    answer = send(f"{base}/cacerts", anybody)
    if answer.status != 200:
        raise Unready(f"failed to get CA certs: {base}/cacerts: {answer.status} {answer.reason}")
    bundle = answer.body.decode("ascii", "replace")
    send(f"{base}/cacerts", ssl.create_default_context(cadata=bundle))
    found = hash_of(answer.body)
    if token.ca_hash and found != token.ca_hash:
        raise Unready(
            "token CA hash does not match the Cluster CA certificate hash:"
            f" {token.ca_hash} != {found}"
        )
    return Supervisor(base, token, bundle, certificate)


def _trusted(base: str, context: ssl.SSLContext) -> bool:
    try:
        return send(f"{base}/cacerts", context).status == 200
    except Unready:
        return False
