"""RKE2's supervisor, asked before the first join whether it would take this node."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import dropin, token
from gpuboot.errors import Code, GpubootError
from gpuboot.secret import Secret
from gpuboot.step import Finding, Ok, Waiting
from gpuboot.token import Token
from gpuboot.web import ANYBODY, SYSTEM, TLS_REFUSED, Answer, Trust

if TYPE_CHECKING:
    from gpuboot.host import Host

TOKEN_MISSING = Code(
    "GB530",
    "the join token is not there or not usable",
    ("The file under rke2.config.token-file is missing, empty, or cut at a line break.",),
    ("ls -l TOKEN-FILE", "gpuboot config check", "gpuboot run"),
)
CA_MISMATCH = Code(
    "GB531",
    "the supervisor's CA is not the one in the token",
    (
        "The token belongs to another cluster, or the cluster was built anew.",
        "Something between node and server opens TLS with a certificate of its own.",
    ),
    ("curl -ks SERVER/cacerts | sha256sum", "cat /var/lib/rancher/rke2/server/agent-token"),
)
TOKEN_REFUSED = Code(
    "GB532",
    "the supervisor refuses the token",
    (
        "The token was rotated on the servers, has expired, or was copied incompletely.",
        "The address leads to another cluster.",
    ),
    ("cat /var/lib/rancher/rke2/server/agent-token (on a server)", "gpuboot run"),
)
NOT_READY = Code(
    "GB533",
    "the supervisor is not ready",
    (
        "The server starts up, or its datastore has no quorum.",
        "Many nodes join at once, and it tells them to come back later.",
    ),
    ("curl -ks SERVER/ping", "journalctl -u rke2-server -n 50 (on a server)"),
)


@dataclass(frozen=True)
class SupervisorAnswers:
    """The supervisor's CA is the token's, and it accepts the token. Only before the first join.

    Asks for nothing that leaves a trace on the server; whatever goes wrong here can heal, so
    it is waited for.
    """

    name: ClassVar[str] = "supervisor-answers"
    disruptive: ClassVar[bool] = False

    server: str
    token: Secret | None
    token_file: str | None
    data_dir: str | None

    def check(self, host: Host) -> Finding:
        if dropin.registered(host, self.data_dir or dropin.data_dir(host)):
            return Ok("this node has joined before")
        try:
            parsed = token.parse(self._token(host))
        except ValueError as error:
            return Waiting(f"{self.token_file or 'rke2.config.token'}: {error}", TOKEN_MISSING)
        try:
            return self._ask(host, parsed)
        except GpubootError as error:
            return Waiting(error.message, error.code, error.hint, error.evidence)

    def apply(self, host: Host) -> None:
        """Never called: only the server can act."""

    def _token(self, host: Host) -> Secret:
        """The token, masked from now on. Raises ValueError if its file is missing."""
        if self.token_file is None:
            return self.token or Secret("")
        text = host.read(self.token_file)
        if text is None:
            raise ValueError("there is no such file, or it cannot be read")
        secret = Secret(text.strip())
        host.mask.add(secret)
        return secret

    def _ask(self, host: Host, parsed: Token) -> Finding:
        trust = self._trust(host, parsed)
        if isinstance(trust, Waiting):
            return trust
        if trust is None:
            return Ok(f"{self.server} answers; its CA is unknown, so the token was not sent")
        password = parsed.password.reveal()
        answer = host.web.get(
            f"{self.server}/v1-rke2/readyz",
            trust=trust,
            auth=None if parsed.bootstrap else ("node", password),
            headers={"Authorization": f"Bearer {password}"} if parsed.bootstrap else None,
        )
        return self._judged(answer)

    def _trust(self, host: Host, parsed: Token) -> Trust | Waiting | None:
        """By what the server can be trusted: the system's CAs, or the hash in the token."""
        address = f"{self.server}/cacerts"
        try:
            host.web.get(address, trust=SYSTEM)
        except GpubootError as error:
            if error.code is not TLS_REFUSED:
                raise
        else:
            return SYSTEM
        if parsed.ca_hash is None:
            return None
        answer = host.web.get(address, trust=ANYBODY)
        found = token.ca_hash(answer.body)
        if answer.status != 200 or not _is_bundle(answer.body):
            return Waiting(f"{address} answered {answer.status} without a certificate", NOT_READY)
        if found != parsed.ca_hash:
            return Waiting(
                f"the CA of {self.server} is {found[:16]}…, the token says {parsed.ca_hash[:16]}…",
                CA_MISMATCH,
            )
        return Trust(ca_pem=answer.body)

    def _judged(self, answer: Answer) -> Finding:
        if answer.status == 200:
            return Ok(f"{self.server} accepts the token")
        if answer.status in (401, 403):
            return Waiting(f"{self.server} refuses the token ({answer.status})", TOKEN_REFUSED)
        return Waiting(f"{self.server} is not ready ({answer.status})", NOT_READY)


def _is_bundle(body: bytes) -> bool:
    if b"-----BEGIN CERTIFICATE-----" not in body:
        return False
    try:
        ssl.create_default_context(cadata=body.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return False
    return True
