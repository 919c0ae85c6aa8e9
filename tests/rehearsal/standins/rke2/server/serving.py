"""HTTP and TLS on a port: requests become plain objects, every one is written to a log."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .faults import Faults

_PIECE = 1 << 20
_IDLE = 60.0  # seconds until a silent connection is closed
_HANDSHAKE = 10.0


@dataclass(frozen=True)
class Request:
    """A request; `name` and `group` are the client certificate's, if it brought one."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # lower-case names
    body: bytes = b""
    client: str = ""
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a file."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Response:
    """Status, body and further headers."""

    status: int
    body: bytes | Part = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, Part) else len(self.body)


App = Callable[[Request], Response]
Incoming = socket.socket | tuple[bytes, socket.socket]


def as_json(status: int, value: object) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def as_text(status: int, text: str) -> Response:
    return Response(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


class RequestLog:
    """One JSON line per request; no header and no body ever gets into it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def add(self, server: str, request: Request, status: int) -> None:
        entry = {
            "time": time.time(),
            "server": server,
            "method": request.method,
            "path": request.path + (f"?{request.query}" if request.query else ""),
            "status": status,
            "client": request.client,
            "name": request.name,
        }
        with self._lock, self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Server(socketserver.ThreadingTCPServer):
    """One listening port. Not http.server's: that one asks the DNS for the host's full name."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        name: str,
        place: tuple[str, int],
        app: App,
        *,
        log: RequestLog,
        faults: Faults,
        context: ssl.SSLContext | None = None,
        others: Mapping[str, ssl.SSLContext] | None = None,
    ) -> None:
        self.name = name
        self.app = app
        self.log = log
        self.faults = faults
        self.closed = False
        self._context = context
        self._others = others or {}  # by the word of the fault `certificate`
        super().__init__(place, _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        # A short poll, so that closing a port is quick.
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close the port; who connects now is refused."""
        if not self.closed:
            self.closed = True
            self.shutdown()
            self.server_close()

    def again(self) -> Server:
        """The same server on the same port, opened anew and started."""
        place = str(self.server_address[0]), self.port
        server = Server(
            self.name, place, self.app,
            log=self.log, faults=self.faults, context=self._context, others=self._others,
        )  # fmt: skip
        server.start()
        return server

    def process_request_thread(self, request: Incoming, client_address: object) -> None:
        """The handshake happens here, in the connection's own thread."""
        assert isinstance(request, socket.socket)  # TCP servers hand on nothing else
        request.settimeout(_HANDSHAKE)
        context = self._others.get(self.faults.text("certificate"), self._context)
        if context:
            try:
                secured = context.wrap_socket(request, server_side=True)
            except OSError:
                # Who does not trust us, or is a port scan: nothing was asked, nothing is logged.
                self.shutdown_request(request)
                return
            request = secured
        request.settimeout(_IDLE)
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Incoming, client_address: object) -> None:
        """A client that hangs up is not our trouble; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "lab"
    sys_version = ""
    wbufsize = -1  # head and body leave together
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        request = self._request()
        if self.server.faults.is_down(self.server.port):
            self.close_connection = True
            return
        cacheable = "no-cache" not in request.headers.get("cache-control", "")
        ordered = self.server.faults.instead(request.path, cacheable=cacheable)
        response = ordered or self.server.app(request)
        # Logged first, so that whoever has the answer also finds the line.
        self.server.log.add(self.server.name, request, response.status)
        self.send_response(response.status)
        for name, value in {"Content-Length": str(response.length), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(response.body)
        self.wfile.flush()

    def date_time_string(self, timestamp: float | None = None) -> str:
        moment = time.time() if timestamp is None else timestamp
        return super().date_time_string(moment + self.server.faults.seconds("clock"))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        name, group = self._peer()
        return Request(
            method=self.command,
            path=unquote(parts.path),
            query=parts.query,
            headers={key.lower(): value for key, value in self.headers.items()},
            body=self.rfile.read(length),
            client=str(self.client_address[0]),
            name=name,
            group=group,
        )

    def _peer(self) -> tuple[str | None, str | None]:
        if not isinstance(self.connection, ssl.SSLSocket):
            return None, None
        certificate = self.connection.getpeercert() or {}
        subject: dict[str, str] = {}
        for part in certificate.get("subject", ()):
            subject.update(part)  # type: ignore[arg-type]  # typeshed has it too wide
        return subject.get("commonName"), subject.get("organizationName")

    def _send(self, body: bytes | Part) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        corrupt = self.server.faults.is_corrupt(unquote(urlsplit(self.path).path))
        with body.path.open("rb") as file:
            file.seek(body.offset)
            left = body.length
            while left and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                self.wfile.write(bytes([piece[0] ^ 1]) + piece[1:] if corrupt else piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests go to the request log, not to standard error."""

    def log_error(self, format: str, *args: object) -> None:  # noqa: A002
        """A malformed request was answered with 400, which is enough."""


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS for a server; with a client CA, a client may show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def reason(status: int) -> str:
    """The usual words for a status."""
    return HTTPStatus(status).phrase
