"""HTTP as far as a node needs it: a small answer, a download, and trust that is named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    import requests

UNREACHABLE = Code(
    "GB401",
    "a server cannot be reached",
    (
        "The name does not resolve, the port is closed, or a firewall drops the packets.",
        "A proxy is needed and not configured (key proxy), or configured and wrong.",
    ),
    ("gpuboot status", "getent hosts SERVER", "curl -v URL"),
)
TLS_REFUSED = Code(
    "GB402",
    "a server's certificate is not trusted",
    (
        "Something between the node and the server opens TLS with a certificate of its own.",
        "The server's own CA is missing from the system's trust.",
        "The node's clock is wrong, so that the certificate seems not valid yet or any more.",
    ),
    ("timedatectl", "openssl s_client -connect HOST:443 </dev/null", "update-ca-certificates"),
)
BAD_ANSWER = Code(
    "GB403",
    "a server did not give what was asked for",
    ("The address is wrong, or a mirror lacks the file.",),
    ("curl -I URL", "gpuboot config show"),
)
HASH_MISMATCH = Code(
    "GB404",
    "a download is not what its checksum says",
    (
        "A proxy or mirror serves an old or damaged copy.",
        "rke2.sha256 pins another version than the one that was downloaded.",
    ),
    ("gpuboot config show", "sha256sum FILE"),
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
    """Status, headers (lower-case names) and body of a small answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

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
        """One GET without following redirects. Raises GB401 or GB402."""
        ...

    def patch(self, url: str, body: str, *, trust: Trust) -> Answer:
        """Send a JSON merge patch (RFC 7386). Raises GB401 or GB402."""
        ...

    def pieces(self, url: str) -> Iterator[bytes]:
        """A file's content, piece by piece. Raises GB401, GB402 or GB403."""
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

    def patch(self, url: str, body: str, *, trust: Trust) -> Answer:
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._ask("PATCH", url, trust=trust, headers=headers, body=body)

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

        with _faults_named(url), self._session(url) as session, warnings.catch_warnings():
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
                )
            got = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, response.content, got)

    def pieces(self, url: str) -> Iterator[bytes]:
        with _faults_named(url), self._session(url) as session:
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


@contextmanager
def _faults_named(url: str) -> Iterator[None]:
    import requests

    place = url.partition("//")[2].partition("/")[0].rpartition("@")[2] or "nowhere"
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise GpubootError(
            TLS_REFUSED, f"{place}: certificate refused", evidence=_innermost(error), retry=True
        ) from None
    except (requests.exceptions.RequestException, OSError, ValueError) as error:
        # requests lets a bad CA file or client certificate through as a plain OSError, and an
        # address that cannot be taken apart, be it a redirection's, as a ValueError.
        raise GpubootError(
            UNREACHABLE, f"{place} cannot be reached", evidence=_innermost(error), retry=True
        ) from None


def _innermost(error: BaseException) -> str:
    """The last cause in the chain: `requests` wraps the useful text three times."""
    seen: BaseException = error
    while True:
        inner = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        if inner is None or inner is seen:
            return str(seen)
        seen = inner


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
