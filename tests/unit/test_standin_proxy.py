"""The stand-in proxy, asked by a real client: a password, fetching, and tunnels."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rehearsal.standins.proxy import Proxy
from tests.rehearsal.standins.rke2.server.faults import Faults
from tests.rehearsal.standins.rke2.server.serving import (
    Request,
    RequestLog,
    Response,
    Server,
    as_text,
)

RIGHT = {"Proxy-Authorization": "Basic " + b64encode(b"node:pass").decode()}
WRONG = {"Proxy-Authorization": "Basic " + b64encode(b"node:wrong").decode()}


@dataclass
class Site:
    """A server behind a proxy."""

    proxy: Proxy
    server: Server
    log: Path

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=5)

    def get(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = self.connection()
        connection.request("GET", url, headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def logged(self) -> list[tuple[str, str, int]]:
        lines = map(json.loads, self.log.read_text().splitlines())
        return [(e["method"], e["path"], e["status"]) for e in lines if e["server"] == "proxy"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    def app(request: Request) -> Response:
        return as_text(200, f"{request.path}?{request.query} {sorted(request.headers)}")

    log = RequestLog(tmp_path / "requests.log")
    faults = Faults(tmp_path / "faults.json")
    server = Server("archive", ("127.0.0.1", 0), app, log=log, faults=faults)
    places = {"archive.lab:80": ("127.0.0.1", server.port), "gone.lab:80": ("127.0.0.1", 1)}
    proxy = Proxy(("127.0.0.1", 0), places, "node", "pass", log)
    server.start()
    proxy.start()
    yield Site(proxy, server, tmp_path / "requests.log")
    proxy.stop()
    server.stop()


def test_an_address_is_fetched_and_the_password_stays_here(site: Site) -> None:
    status, body = site.get("http://archive.lab/debian/x?y=1", {**RIGHT, "Accept": "*/*"})
    assert status == 200
    assert body.startswith(b"/debian/x?y=1 ")
    assert b"proxy-authorization" not in body
    assert site.logged() == [("GET", "http://archive.lab/debian/x?y=1", 200)]


@pytest.mark.parametrize("headers", [{}, WRONG])
def test_without_the_password_it_asks_for_one(site: Site, headers: dict[str, str]) -> None:
    assert site.get("http://archive.lab/", headers)[0] == 407
    tunnel = site.connection()
    tunnel.set_tunnel("archive.lab", 80, headers)
    with pytest.raises(OSError, match="407"):
        tunnel.request("GET", "/")
    assert [status for _, _, status in site.logged()] == [407, 407]


def test_a_tunnel_carries_both_ways(site: Site) -> None:
    tunnel = site.connection()
    tunnel.set_tunnel("archive.lab", 80, RIGHT)
    tunnel.request("GET", "/through")
    assert tunnel.getresponse().read().startswith(b"/through? ")
    tunnel.close()
    assert site.logged() == [("CONNECT", "archive.lab:80", 200)]


def test_an_unknown_name_is_refused_and_a_silent_one_is_a_bad_gateway(site: Site) -> None:
    assert site.get("http://elsewhere.example/", RIGHT)[0] == 403
    assert site.get("http://gone.lab/", RIGHT)[0] == 502
