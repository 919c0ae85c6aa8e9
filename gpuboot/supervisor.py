"""RKE2's supervisor, asked before the first join whether it would take this node."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, ClassVar

from gpuboot import dropin, token
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.secret import Secret
from gpuboot.step import Finding, Ok, Waiting
from gpuboot.token import Token
from gpuboot.web import ANYBODY, OUT_OF_DATE, SYSTEM, TLS_REFUSED, Answer, Trust

if TYPE_CHECKING:
    from gpuboot.host import Host

CLOCK_UNSET = Code(
    "GB107",
    "the clock is not right",
    (
        "No time server answers, or no time service runs: certificates may seem not valid yet.",
        "The host that the VM gets its time from is wrong.",
    ),
    ("timedatectl", "systemctl status systemd-timesyncd chrony"),
    evidence="the date, beside the time at which gpuboot was built and what timedatectl says",
)
TOKEN_MISSING = Code(
    "GB530",
    "the join token is not there or not usable",
    (
        "The file under rke2.config.token-file is missing, empty, or cut at a line break.",
        "What is in it is no token: it was copied incompletely, or is something else.",
    ),
    ("ls -l TOKEN-FILE", "gpuboot config check", "gpuboot run"),
    evidence="the form of the file's content, which is never shown",
)
CA_MISMATCH = Code(
    "GB531",
    "the supervisor's CA is not the one in the token",
    (
        "The token belongs to another cluster, or the cluster was built anew.",
        "Something between node and server opens TLS itself; the evidence names the issuer.",
    ),
    (
        "curl -ks SERVER/cacerts | sha256sum",
        "openssl s_client -connect HOST:9345 </dev/null | openssl x509 -noout -issuer",
        Elsewhere("cat /var/lib/rancher/rke2/server/agent-token (on a server)"),
    ),
    evidence="the SHA-256 of the CA that the server shows, and that certificate's issuer",
)
TOKEN_REFUSED = Code(
    "GB532",
    "the supervisor refuses the token",
    (
        "The token was rotated on the servers, or was copied incompletely.",
        "The address leads to another cluster.",
    ),
    (Elsewhere("cat /var/lib/rancher/rke2/server/agent-token (on a server)"), "gpuboot run"),
    evidence="the supervisor's answer 401 to the token",
)
NOT_READY = Code(
    "GB533",
    "the supervisor is not ready",
    ("The server starts up, or its datastore has no quorum.",),
    ("curl -ks SERVER/ping", Elsewhere("journalctl -u rke2-server -n 50 (on a server)")),
    evidence="the supervisor's answer 503, or its words",
)
TOKEN_EXPIRED = Code(
    "GB534",
    "the supervisor does not know this bootstrap token (any more)",
    (
        "It has expired: a bootstrap token lives 24 hours unless it was made with --ttl.",
        "It was deleted on the servers, or was copied incompletely.",
    ),
    (
        Elsewhere("rke2 token list (on a server)"),
        Elsewhere("rke2 token create --ttl 24h (on a server)"),
        Elsewhere("cat /var/lib/rancher/rke2/server/agent-token (on a server; it does not expire)"),
        "gpuboot run",
    ),
    evidence="the supervisor's answer 401 to a bootstrap token",
)
TOO_MANY = Code(
    "GB535",
    "the supervisor has too many questions to answer at once",
    (
        "Many nodes join at the same time: it takes 20 questions at once and turns others away.",
        "The servers are overloaded.",
    ),
    ("gpuboot status --wait (it is tried again by itself, at a time of its own)",),
    evidence="the supervisor's answer 429, with the time that it asks for",
)
SERVER_EXPIRED = Code(
    "GB536",
    "the supervisor's certificate has expired, or is not valid yet",
    (
        "RKE2's certificates live a year; a restart of rke2-server near its end renews them.",
        "The servers' clocks are wrong.",
    ),
    (
        Elsewhere("rke2 certificate check --output table (on a server)"),
        Elsewhere("systemctl restart rke2-server (on each server, one after the other)"),
        Elsewhere("timedatectl (on each server)"),
    ),
    evidence="the dates of the supervisor's certificate, beside this node's clock",
)

SLOW = 300.0  # seconds between two clocks that are worth a word


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
        if dropin.registered(host, dropin.data_dir(host, self.data_dir)):
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
        """Whom the server is, then what it says to the token. Raises what the web does."""
        refused = self._refused_by_system(host)
        if refused is None:
            return self._present(host, parsed, SYSTEM)
        shown = host.web.get(f"{self.server}/cacerts", trust=ANYBODY)
        if parsed.ca_hash is None:
            if refused.code is OUT_OF_DATE:
                return self._out_of_date(host, shown)
            return Ok(f"{self.server} answers; its CA is unknown, so the token was not sent")
        if shown.status != 200 or not _is_bundle(shown.body):
            return self._without_bundle(host, shown)
        found = token.ca_hash(shown.body)
        if found != parsed.ca_hash:
            return self._other_ca(shown, found, parsed.ca_hash)
        try:
            return self._present(host, parsed, Trust(ca_pem=shown.body))
        except GpubootError as error:
            if error.code is OUT_OF_DATE:
                return self._out_of_date(host, shown)
            if error.code is TLS_REFUSED:
                return self._other_certificate(error, shown)
            raise

    def _refused_by_system(self, host: Host) -> GpubootError | None:
        """Why the system's CAs do not vouch for the server; None if they do."""
        try:
            host.web.get(f"{self.server}/cacerts", trust=SYSTEM)
        except GpubootError as error:
            if error.code not in (TLS_REFUSED, OUT_OF_DATE):
                raise
            return error
        return None

    def _present(self, host: Host, parsed: Token, trust: Trust) -> Finding:
        """Show the token to a server whose certificate is proven."""
        password = parsed.password.reveal()
        answer = host.web.get(
            f"{self.server}/v1-rke2/readyz",
            trust=trust,
            auth=None if parsed.bootstrap else ("node", password),
            headers={"Authorization": f"Bearer {password}"} if parsed.bootstrap else None,
        )
        if answer.status == 200:
            return Ok(f"{self.server} accepts the token{_remarks(host, parsed, answer)}")
        if answer.status in (401, 403):
            return self._refused(parsed, answer.status)
        return self._not_ready(host, answer)

    def _refused(self, parsed: Token, status: int) -> Waiting:
        if parsed.bootstrap:
            reason = f"{self.server} refuses the bootstrap token ({status}): it has expired"
            return Waiting(f"{reason}, or was deleted", TOKEN_EXPIRED)
        if status == 403:
            reason = f"{self.server} refuses the token (403): it gives no agent's rights"
            hint = "give the node /var/lib/rancher/rke2/server/agent-token of a server"
            return Waiting(reason, TOKEN_REFUSED, hint)
        reason = f"{self.server} refuses the token (401): it knows no such password"
        if parsed.user == "server":
            reason += "; this is the server token, which nodes need not have"
        return Waiting(reason, TOKEN_REFUSED)

    def _not_ready(self, host: Host, answer: Answer) -> Waiting:
        later = retry_after(answer, host.clock.now())
        if answer.status == 429:
            reason = f"{self.server} is asked by too many at once (429)"
            return Waiting(reason, TOO_MANY, not_before=max(later, 1.0))
        return Waiting(f"{self.server} is not ready ({answer.status})", NOT_READY, not_before=later)

    def _without_bundle(self, host: Host, shown: Answer) -> Waiting:
        """Where CA certificates should be is something else: a start page, or an error."""
        if shown.status == 429:
            return self._not_ready(host, shown)
        reason = f"{self.server}/cacerts answered {shown.status} without a certificate"
        later = retry_after(shown, host.clock.now())
        return Waiting(reason, NOT_READY, evidence=_issued(shown), not_before=later)

    def _other_ca(self, shown: Answer, found: str, wanted: str) -> Waiting:
        reason = f"the CA of {self.server} is {found[:16]}…, the token says {wanted[:16]}…"
        evidence = _issued(shown)
        if shown.issuer and "rke2-server-ca" not in shown.issuer:
            reason += f"; TLS is opened on the way by {shown.issuer}"
        return Waiting(reason, CA_MISMATCH, evidence=evidence)

    def _other_certificate(self, error: GpubootError, shown: Answer) -> Finding:
        """The CA is the token's, and did not sign the certificate that the server shows."""
        if "match" in error.evidence.lower():
            # RKE2 itself asks by way of its loopback, and so never misses this name.
            return Ok(
                f"{self.server} has the token's CA; its certificate has another name, so the"
                " token was not sent (tls-san on the servers names it)"
            )
        reason = f"the certificate of {self.server} is not from the token's CA"
        if shown.issuer:
            reason += f" but from {shown.issuer}: TLS is opened on the way"
        evidence = "\n".join(filter(None, (_issued(shown), error.evidence)))
        return Waiting(reason, CA_MISMATCH, evidence=evidence)

    def _out_of_date(self, host: Host, shown: Answer) -> Waiting:
        """The certificate is not valid by our clock: it says whose fault that is."""
        seconds = _apart(host, shown)
        if abs(seconds) > SLOW:
            return Waiting(
                f"the clock is {_told(seconds)} the server's, so that its certificate seems not"
                " valid",
                CLOCK_UNSET,
                evidence=f"Date of {self.server}: {shown.headers.get('date')}; here it is"
                f" {host.clock.now():%a, %d %b %Y %H:%M:%S} UTC",
            )
        return Waiting(
            f"the certificate of {self.server} has expired or is not valid yet, and the clock"
            " is the server's",
            SERVER_EXPIRED,
            evidence=_issued(shown),
        )


def retry_after(answer: Answer, now: datetime) -> float:
    """Seconds that the server asks to be left alone: a number or a date; 0 if it does not."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:6])
    date = _date(text)
    return max(0.0, (date - now).total_seconds()) if date else 0.0


def _remarks(host: Host, parsed: Token, answer: Answer) -> str:
    """What is worth a word although the node may join."""
    said = ""
    if parsed.user == "server":
        said += "; it may be the server token, the cluster's root: an agent token is enough"
    if abs(seconds := _apart(host, answer)) > SLOW:
        said += f"; the clock is {_told(seconds)} the server's"
    return said


def _issued(shown: Answer) -> str:
    return f"issuer of the certificate shown: {shown.issuer}" if shown.issuer else ""


def _apart(host: Host, answer: Answer) -> float:
    """Seconds that our clock is ahead of the server's; 0 if it does not tell its own."""
    theirs = _date(answer.headers.get("date", ""))
    return (host.clock.now() - theirs).total_seconds() if theirs else 0.0


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, LookupError, OverflowError):  # none, or none of ours
        return None
    return found if found.tzinfo else None


def _told(seconds: float) -> str:
    size = abs(seconds)
    told = f"{size / 86400:.0f} days" if size > 172800 else f"{size / 60:.0f} min"
    return f"{told} {'ahead of' if seconds > 0 else 'behind'}"


def _is_bundle(body: bytes) -> bool:
    if b"-----BEGIN CERTIFICATE-----" not in body:
        return False
    try:
        ssl.create_default_context(cadata=body.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return False
    return True
