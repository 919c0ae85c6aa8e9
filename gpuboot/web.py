"""HTTP as far as a node needs it: a small answer, a download, and trust that is named."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpuboot import certificate
from gpuboot.errors import Code, Elsewhere, GpubootError

if TYPE_CHECKING:
    import requests

UNREACHABLE = Code(
    "GB401",
    "a server cannot be reached",
    (
        "There is no route to its network, or it hangs up.",
        "A proxy is needed and not configured (key proxy), or configured and wrong.",
    ),
    ("gpuboot status", "ip route get ADDRESS", "curl -v URL"),
    evidence="what the connection ended with",
)
NO_NAME = Code(
    "GB108",
    "a name does not resolve",
    ("The node's name server does not know it, or there is none.",),
    ("getent ahosts NAME", "cat /etc/resolv.conf"),
    evidence="what the resolver says to the name",
)
PORT_CLOSED = Code(
    "GB405",
    "a server refuses the connection",
    (
        "The service is not running there: the machine answers, and nobody listens on the port.",
        "The address or the port is another machine's, or a firewall rejects the connection.",
    ),
    ("curl -v URL", Elsewhere("ss -ltn (on the server)")),
    evidence="what the connection ended with",
)
NO_ANSWER = Code(
    "GB406",
    "a server does not answer in time",
    (
        "A firewall drops the packets, or the address is nobody's.",
        "The server, or the way to it, is overloaded.",
    ),
    ("curl -v --max-time 10 URL", "ip route get ADDRESS", "getent ahosts SERVER"),
    evidence="how long the server was waited for",
)
OUT_OF_DATE = Code(
    "GB407",
    "a server's certificate is not valid at this time",
    (
        "The node's clock is wrong, so that the certificate seems not valid yet or any more.",
        "The certificate has expired.",
    ),
    ("timedatectl", "openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -dates"),
    evidence="the certificate's dates, beside this node's clock",
)
TLS_REFUSED = Code(
    "GB402",
    "a server's certificate is not trusted",
    (
        "Something between the node and the server opens TLS with a certificate of its own.",
        "The server's own CA is missing from the system's trust.",
    ),
    ("openssl s_client -connect HOST:443 </dev/null", "update-ca-certificates"),
    evidence="the certificate's issuer, and why it was refused",
)
BAD_ANSWER = Code(
    "GB403",
    "a server did not give what was asked for",
    ("The address is wrong, or a mirror lacks the file.",),
    ("curl -I URL", "gpuboot config show"),
    evidence="the server's status code",
)
HASH_MISMATCH = Code(
    "GB404",
    "a download is not what its checksum says",
    (
        "A proxy or mirror serves an old or damaged copy.",
        "rke2.sha256 pins another version than the one that was downloaded.",
    ),
    ("gpuboot config show", "sha256sum FILE"),
    evidence="the SHA-256 of what was downloaded",
)

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds to connect, and between two pieces of an answer


@dataclass(frozen=True)
class Trust:
    """Whom to believe: the system's CAs, the CAs in a PEM, or anybody (for /cacerts itself)."""

    ca_pem: bytes | None = None
    anybody: bool = False
    client: tuple[str, str] | None = None  # certificate and key file


SYSTEM = Trust()
ANYBODY = Trust(anybody=True)


@dataclass(frozen=True)
class Answer:
    """Status, headers (lower-case names) and body of a small answer.

    `issuer` is who signed the certificate that was shown, where anybody was believed.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    issuer: str | None = None

    @property
    def text(self) -> str:
        """The body as UTF-8, undecodable bytes replaced."""
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True)
class Proxy:
    """Which proxy to use, and for which hosts not."""

    http: str | None = None
    https: str | None = None
    no_proxy: tuple[str, ...] = ()

    def env(self) -> dict[str, str]:
        """The variables that apt and other programs understand."""
        wanted = {
            "http_proxy": self.http,
            "https_proxy": self.https,
            "no_proxy": ",".join(self.no_proxy) or None,
        }
        return {name: value for name, value in wanted.items() if value}

    def bypassed(self, url: str) -> bool:
        """Whether the host is reached directly: this machine itself always is."""
        from requests.utils import should_bypass_proxies

        direct = ",".join(("127.0.0.1", "localhost", *self.no_proxy))
        return bool(should_bypass_proxies(url, no_proxy=direct))

    def covers(self, url: str) -> bool:
        """Whether this address is asked for through a proxy."""
        chosen = self.https if url.startswith("https:") else self.http
        return bool(chosen) and not self.bypassed(url)


class Web(Protocol):
    """What the agent asks of HTTP; tests hand in their own."""

    proxy: Proxy

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One GET without following redirects.

        Raises GB108, GB401, GB402, GB405, GB406 or GB407.
        """
        ...

    def send(self, method: str, url: str, body: str, *, trust: Trust, kind: str) -> Answer:
        """Send a body of that media type. Raises as `get` does."""
        ...

    def pieces(self, url: str) -> Iterator[bytes]:
        """A file's content, piece by piece. Raises GB403, and as `get` does."""
        ...


class RequestsWeb:
    """The web as `requests` does it, imported only when first asked."""

    def __init__(self, proxy: Proxy | None = None, *, timeout: float = TIMEOUT) -> None:
        self.proxy = proxy or Proxy()
        self._timeout = timeout

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return self._ask("GET", url, trust=trust, auth=auth, headers=headers)

    def send(self, method: str, url: str, body: str, *, trust: Trust, kind: str) -> Answer:
        return self._ask(method, url, trust=trust, headers={"Content-Type": kind}, body=body)

    def _ask(
        self,
        method: str,
        url: str,
        *,
        trust: Trust,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
    ) -> Answer:
        from requests.auth import HTTPBasicAuth

        with (
            _faults_named(url, self._timeout),
            self._session(url) as session,
            warnings.catch_warnings(),
        ):
            # urllib3 warns of each unverified request; the one we make is checked by hash.
            warnings.simplefilter("ignore")
            with _bundle(trust) as verify:
                response = session.request(
                    method,
                    url,
                    data=body,
                    auth=auth and HTTPBasicAuth(*(word.encode() for word in auth)),
                    headers=headers,
                    timeout=self._timeout,
                    allow_redirects=False,
                    verify=verify,
                    cert=trust.client,
                    stream=trust.anybody,  # the connection is gone once the body is read
                )
                issuer = _issuer(response) if trust.anybody else None
                got = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, response.content, got, issuer)

    def pieces(self, url: str) -> Iterator[bytes]:
        with _faults_named(url, self._timeout), self._session(url) as session:
            verify = _system_bundle()
            with session.get(url, timeout=self._timeout, stream=True, verify=verify) as response:
                passed = [*response.history, response]
                if url.startswith("https:") and any(
                    not step.url.startswith("https:") for step in passed
                ):
                    raise GpubootError(
                        BAD_ANSWER, f"{url} leads to an address without TLS: {passed[-1].url}"
                    )
                if response.status_code != 200:
                    raise GpubootError(
                        BAD_ANSWER,
                        f"{url} answered {response.status_code}, expected 200",
                        retry=True,
                    )
                yield from response.iter_content(CHUNK)

    def _session(self, url: str) -> requests.Session:
        import requests

        session = requests.Session()
        session.trust_env = False  # only what the configuration says, whoever started us
        if not self.proxy.bypassed(url):
            pairs = {"http": self.proxy.http, "https": self.proxy.https}
            session.proxies = {scheme: proxy for scheme, proxy in pairs.items() if proxy}
        return session


SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def _system_bundle() -> str | bool:
    """The CAs the administrator manages; requests' own list where there is no such file."""
    return SYSTEM_BUNDLE if Path(SYSTEM_BUNDLE).is_file() else True


@contextmanager
def _bundle(trust: Trust) -> Iterator[str | bool]:
    """What requests takes as `verify`; a PEM only as a file."""
    if trust.anybody:
        yield False
    elif trust.ca_pem is None:
        yield _system_bundle()
    else:
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(trust.ca_pem)
            file.flush()
            yield file.name


def _issuer(response: requests.Response) -> str | None:
    """Who signed the certificate of a connection whose answer is not read yet."""
    import ssl

    # Nothing public leads from an answer to the socket that it comes from.
    channel: object = response.raw
    for part in ("_fp", "fp", "raw", "_sock"):
        channel = getattr(channel, part, None)
    der = channel.getpeercert(binary_form=True) if isinstance(channel, ssl.SSLSocket) else None
    return certificate.issuer(der) if der else None


@contextmanager
def _faults_named(url: str, timeout: float) -> Iterator[None]:
    import requests

    try:
        yield
    except (requests.exceptions.RequestException, OSError, ValueError) as error:
        # requests lets a bad CA file or client certificate through as a plain OSError, and an
        # address that cannot be taken apart, be it a redirection's, as a ValueError.
        code, what = _fault(error, timeout)
        place = url.partition("//")[2].partition("/")[0].rpartition("@")[2] or "nowhere"
        raise GpubootError(
            code, f"{place} {what}", evidence=str(_causes(error)[-1]), retry=True
        ) from None


def _fault(error: BaseException, timeout: float) -> tuple[Code, str]:
    """Which kind of trouble it is, and what the server does."""
    import socket

    import requests

    causes = _causes(error)
    kinds = requests.exceptions
    if isinstance(error, kinds.Timeout) or any(isinstance(one, TimeoutError) for one in causes):
        return NO_ANSWER, f"does not answer within {timeout:g} s"
    if isinstance(error, kinds.SSLError):
        if re.search(r"not yet valid|has expired", str(causes[-1])):
            return OUT_OF_DATE, "shows a certificate that is not valid by this node's clock"
        return TLS_REFUSED, "shows a certificate that is not trusted"
    if isinstance(error, kinds.ProxyError):
        return UNREACHABLE, "cannot be reached through the proxy"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return NO_NAME, "is a name that does not resolve"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return PORT_CLOSED, "refuses the connection: nobody listens on that port"
    return UNREACHABLE, "cannot be reached"


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it comes from: `requests` wraps the useful text three times."""
    causes = [error]
    while True:
        last = causes[-1]
        inner = last.__cause__ or last.__context__ or getattr(last, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in last.args if isinstance(arg, BaseException)), None)
        if inner is None or inner in causes:
            return causes
        causes.append(inner)


def checked(pieces: Iterator[bytes], sha256: str, what: str) -> Iterator[bytes]:
    """The pieces again; raises GB404 at the end unless their SHA-256 is `sha256` (hex).

    To be used inside Host.write_stream: the file appears only if the last piece came through.
    """
    import hashlib

    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256.lower():
        raise GpubootError(
            HASH_MISMATCH,
            f"{what}: SHA-256 is {digest.hexdigest()}, expected {sha256.lower()}",
            retry=True,
        )
