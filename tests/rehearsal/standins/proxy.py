"""A stand-in for a site's web proxy: it asks for a password, fetches, and opens tunnels.

Plain http is fetched for the client (RFC 9110 §7.1, absolute form), https goes through CONNECT
(§9.3.6). Only the lab's own names are known to it, and every request is written to the log.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import select
import socket
import socketserver
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from .rke2.server.serving import Request, RequestLog

Place = tuple[str, int]
_PIECE = 1 << 16
_IDLE = 60.0  # seconds until a silent tunnel is closed
_HOP_BY_HOP = {"proxy-authorization", "proxy-connection", "connection", "keep-alive", "te",
               "transfer-encoding", "upgrade"}  # fmt: skip


class Proxy(socketserver.ThreadingTCPServer):
    """One listening port. `places` says where `name:port` really listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, place: Place, places: Mapping[str, Place], user: str, password: str, log: RequestLog
    ) -> None:
        self.places = places
        self.credentials = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.log = log
        super().__init__(place, _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close the port; who connects now is refused."""
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    server_version = "lab-proxy"
    sys_version = ""
    timeout = _IDLE

    def do_CONNECT(self) -> None:
        place = self._admitted(self.path)
        if place is None:
            return
        try:
            far = socket.create_connection(place, timeout=10)
        except OSError:
            self._answer(502)
            return
        self._log(200)
        self.send_response(200, "Connection established")
        self.end_headers()
        with far:
            _pump(self.connection, far)
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        place = self._admitted(f"{parts.hostname}:{parts.port or 80}")
        if place is None:
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        far = http.client.HTTPConnection(*place, timeout=_IDLE)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            far.request(self.command, path or "/", headers=headers)
            answer = far.getresponse()
        except OSError:
            self._answer(502)
            return
        self._log(answer.status)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        while piece := answer.read(_PIECE):
            self.wfile.write(piece)
        far.close()

    do_HEAD = do_GET

    def _admitted(self, target: str) -> Place | None:
        """Where the target listens; None if the client was turned away."""
        if self.headers.get("Proxy-Authorization") != self.server.credentials:
            self._answer(407, {"Proxy-Authenticate": 'Basic realm="lab"'})
        elif target not in self.server.places:
            self._answer(403)
        else:
            return self.server.places[target]
        return None

    def _answer(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self._log(status)
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _log(self, status: int) -> None:
        client = str(self.client_address[0])
        request = Request(method=self.command, path=self.path, client=client)
        self.server.log.add("proxy", request, status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests go to the request log, not to standard error."""


def _pump(near: socket.socket, far: socket.socket) -> None:
    """Carries bytes both ways until one side has ended, or both are silent."""
    other = {near: far, far: near}
    while True:
        ready, _, _ = select.select([near, far], [], [], _IDLE)
        if not ready:
            return
        for side in ready:
            try:
                piece = side.recv(_PIECE)
                if not piece:
                    return
                other[side].sendall(piece)
            except OSError:
                return
