"""HTTP over real sockets: whom it believes, what it refuses, and whom it asks."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpuboot import web
from gpuboot.errors import GpubootError
from gpuboot.web import ANYBODY, Proxy, RequestsWeb, Trust
from tests.rehearsal import pki
from tests.unit.node import Node


class Server(BaseHTTPRequestHandler):
    """Answers by the path; a proxy is asked with whole addresses and notes them."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        status = {"/missing": 404, "/moved": 302, "/nowhere": 302}.get(self.path, 200)
        body = (self.headers.get("Authorization") or "hello").encode() + b"\xff"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere" if self.path == "/moved" else "https://[")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """A server on loopback: its port, and the paths it was asked for."""
    seen: list[str] = []
    handler = type("Handler", (Server,), {"seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # refused handshakes
    if context:
        # The handshake is the handler's: a refused one must not end in the accepting thread.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def ca() -> pki.Pair:
    return pki.authority("cluster")


@pytest.fixture(scope="module")
def tls(ca: pki.Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    folder = tmp_path_factory.mktemp("tls")
    pki.leaf(ca, "server", ["127.0.0.1"]).save(folder, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with serving(context) as found:
        yield found


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[int, list[str]]]:
    with serving() as found:
        yield found


def closed() -> int:
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def refused(url: str, trust: Trust = web.SYSTEM, proxy: Proxy | None = None) -> GpubootError:
    with pytest.raises(GpubootError) as caught:
        RequestsWeb(proxy).get(url, trust=trust)
    return caught.value


def test_an_answer_has_status_text_and_lower_case_headers(plain: tuple[int, list[str]]) -> None:
    answer = RequestsWeb().get(f"http://127.0.0.1:{plain[0]}/")
    assert (answer.status, answer.text) == (200, "hello\ufffd")
    assert answer.headers["content-length"] == "6"


def test_a_status_that_tells_of_failure_is_an_answer_too(plain: tuple[int, list[str]]) -> None:
    assert RequestsWeb().get(f"http://127.0.0.1:{plain[0]}/missing").status == 404


@pytest.mark.parametrize("password", ["hörse", "horse-\u0142", "😀:x"])
def test_a_password_may_hold_any_character(plain: tuple[int, list[str]], password: str) -> None:
    answer = RequestsWeb().get(f"http://127.0.0.1:{plain[0]}/", auth=("node", password))
    sent = base64.b64decode(answer.text.removeprefix("Basic ").removesuffix("\ufffd"))
    assert sent.decode() == f"node:{password}"


@pytest.mark.parametrize("url", ["https://[", "https://a]b/", "http://a:99999/", "x", ""])
def test_an_address_that_is_none_is_unreachable(url: str) -> None:
    assert refused(url).code is web.UNREACHABLE


def test_a_download_that_leads_to_no_address_is_told(plain: tuple[int, list[str]]) -> None:
    with pytest.raises(GpubootError) as caught:
        list(RequestsWeb().pieces(f"http://127.0.0.1:{plain[0]}/nowhere"))
    caught.value.with_traceback(None)  # which would keep the answer, and its socket
    assert caught.value.code is web.UNREACHABLE


def test_a_redirect_is_told_and_not_followed(plain: tuple[int, list[str]]) -> None:
    plain[1].clear()
    answer = RequestsWeb().get(f"http://127.0.0.1:{plain[0]}/moved")
    assert (answer.status, answer.headers["location"]) == (302, "/elsewhere")
    assert plain[1] == ["/moved"]


def test_a_user_and_a_bearer_are_sent_as_such(plain: tuple[int, list[str]]) -> None:
    url = f"http://127.0.0.1:{plain[0]}/"
    assert RequestsWeb().get(url, auth=("node", "horse")).text.startswith("Basic bm9kZTpob3JzZQ==")
    bearer = RequestsWeb().get(url, headers={"Authorization": "Bearer horse"})
    assert bearer.text.startswith("Bearer horse")


# -- trust


def test_a_ca_that_is_named_is_believed(tls: tuple[int, list[str]], ca: pki.Pair) -> None:
    answer = RequestsWeb().get(f"https://127.0.0.1:{tls[0]}/", trust=Trust(ca.certificate))
    assert answer.status == 200


def test_anybody_is_believed_only_where_that_is_asked_for(tls: tuple[int, list[str]]) -> None:
    assert RequestsWeb().get(f"https://127.0.0.1:{tls[0]}/", trust=ANYBODY).status == 200


@pytest.mark.parametrize("kind", ["the system", "another CA"])
def test_a_certificate_that_nobody_named_is_refused(tls: tuple[int, list[str]], kind: str) -> None:
    trust = web.SYSTEM if kind == "the system" else Trust(pki.authority("other").certificate)
    tls[1].clear()
    error = refused(f"https://127.0.0.1:{tls[0]}/secret", trust)
    assert error.code is web.TLS_REFUSED
    assert "certificate" in error.evidence.lower()
    assert tls[1] == []


def test_a_certificate_for_another_name_is_refused(
    tls: tuple[int, list[str]], ca: pki.Pair
) -> None:
    error = refused(f"https://localhost:{tls[0]}/", Trust(ca.certificate))
    assert error.code is web.TLS_REFUSED


def test_a_refused_certificate_and_an_unreachable_server_are_told_apart() -> None:
    error = refused(f"https://127.0.0.1:{closed()}/")
    assert (error.code, error.retry) == (web.PORT_CLOSED, True)
    assert "refused" in error.evidence


def test_a_name_that_does_not_resolve_is_told_as_such() -> None:
    error = refused("http://name.invalid./")
    assert (error.code, error.message) == (
        web.NO_NAME,
        "name.invalid. is a name that does not resolve",
    )


def test_a_server_that_keeps_silent_is_told_from_a_closed_port() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(GpubootError, match=r"does not answer within 0\.2 s") as caught,
    ):
        RequestsWeb(timeout=0.2).get(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert caught.value.code is web.NO_ANSWER


def test_a_server_that_hangs_up_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        error = refused(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert error.code is web.UNREACHABLE


def test_a_proxy_that_is_away_is_named_as_one() -> None:
    proxy = Proxy(http=f"http://127.0.0.1:{closed()}")
    error = refused("http://archive.invalid/x", proxy=proxy)
    assert error.message == "archive.invalid cannot be reached through the proxy"


@pytest.mark.parametrize("days", [-400, 400])
def test_a_certificate_of_another_time_is_told_from_an_unknown_one(
    ca: pki.Pair, tmp_path: Path, days: int
) -> None:
    pki.leaf(ca, "server", ["127.0.0.1"], shift=timedelta(days=days)).save(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with serving(context) as (port, seen):
        error = refused(f"https://127.0.0.1:{port}/secret", Trust(ca.certificate))
    assert error.code is web.OUT_OF_DATE
    assert seen == []


def test_who_signed_a_certificate_is_seen_where_anybody_is_believed(
    tls: tuple[int, list[str]], ca: pki.Pair
) -> None:
    url = f"https://127.0.0.1:{tls[0]}/"
    assert RequestsWeb().get(url, trust=ANYBODY).issuer == "CN=cluster"
    assert RequestsWeb().get(url, trust=Trust(ca.certificate)).issuer is None


@pytest.mark.parametrize("trust", [Trust(b"no PEM"), Trust(client=("/no/crt", "/no/key"))])
def test_a_file_that_is_no_certificate_is_an_error_of_ours(
    tls: tuple[int, list[str]], trust: Trust
) -> None:
    refused(f"https://127.0.0.1:{tls[0]}/", trust)


def test_an_error_does_not_tell_the_password_in_an_address() -> None:
    error = refused(f"http://me:horse@127.0.0.1:{closed()}/")
    assert "horse" not in f"{error.message} {error.evidence}"


# -- proxies


def test_a_configured_proxy_is_asked(plain: tuple[int, list[str]]) -> None:
    plain[1].clear()
    proxy = Proxy(http=f"http://127.0.0.1:{plain[0]}")
    assert RequestsWeb(proxy).get("http://archive.invalid/x").status == 200
    assert plain[1] == ["http://archive.invalid/x"]


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.0/8", "example,127.0.0.1"])
def test_a_host_under_no_proxy_is_asked_directly(
    plain: tuple[int, list[str]], no_proxy: str
) -> None:
    proxy = Proxy(http=f"http://127.0.0.1:{closed()}", no_proxy=tuple(no_proxy.split(",")))
    assert RequestsWeb(proxy).get(f"http://127.0.0.1:{plain[0]}/").status == 200


@pytest.mark.parametrize(
    ("url", "covered"),
    [("http://a.example/x", True), ("https://a.example/x", False), ("http://b.example/x", False),
     ("http://127.0.0.1:10248/healthz", False)],
)  # fmt: skip
def test_a_proxy_covers_its_own_kind_of_address(url: str, *, covered: bool) -> None:
    assert Proxy(http="http://p:1", no_proxy=("b.example",)).covers(url) is covered


def test_this_machine_itself_is_never_asked_through_a_proxy(plain: tuple[int, list[str]]) -> None:
    proxy = Proxy(http=f"http://127.0.0.1:{closed()}")
    assert RequestsWeb(proxy).get(f"http://127.0.0.1:{plain[0]}/").status == 200


def test_the_environments_proxy_does_not_count(
    plain: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed()}")
    assert RequestsWeb().get(f"http://127.0.0.1:{plain[0]}/").status == 200


def test_the_environments_exceptions_from_the_proxy_do_not_count(
    plain: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    proxy = Proxy(http=f"http://127.0.0.1:{plain[0]}")
    assert RequestsWeb(proxy).get("http://archive.invalid/x").status == 200


@pytest.mark.parametrize(
    ("proxy", "env"),
    [
        (Proxy(), {}),
        (Proxy("http://p", "http://q", ("a", ".b")),
         {"http_proxy": "http://p", "https_proxy": "http://q", "no_proxy": "a,.b"}),
    ],
)  # fmt: skip
def test_programs_are_told_of_the_proxy(proxy: Proxy, env: dict[str, str]) -> None:
    assert proxy.env() == env


# -- downloads


def test_a_download_comes_in_pieces(plain: tuple[int, list[str]]) -> None:
    assert b"".join(RequestsWeb().pieces(f"http://127.0.0.1:{plain[0]}/file")) == b"hello\xff"


def test_a_download_that_is_not_there_is_no_content(plain: tuple[int, list[str]]) -> None:
    found = GpubootError(web.UNREACHABLE, "nothing was raised")
    try:
        list(RequestsWeb().pieces(f"http://127.0.0.1:{plain[0]}/missing"))
    except GpubootError as error:
        # A kept traceback would keep the answer, which then holds its socket until collected.
        found = error.with_traceback(None)
    assert (found.code, found.retry) == (web.BAD_ANSWER, True)
    assert found.message.endswith("/missing answered 404, expected 200")


def test_a_download_of_the_right_checksum_becomes_the_file(node: Node) -> None:
    digest = hashlib.sha256(b"abc").hexdigest().upper()
    pieces = web.checked(iter([b"a", b"bc"]), digest, "it")
    node.host.write_stream("/cache/file", pieces)
    assert node.text("/cache/file") == "abc"


def test_a_download_of_another_checksum_leaves_no_file(node: Node) -> None:
    with pytest.raises(GpubootError, match="it: SHA-256 is ba7816bf") as caught:
        node.host.write_stream("/cache/file", web.checked(iter([b"abc"]), "0" * 64, "it"))
    assert (caught.value.code, caught.value.retry) == (web.HASH_MISMATCH, True)
    assert node.files() == []


def test_a_download_that_breaks_off_leaves_the_old_file(node: Node) -> None:
    node.put("/cache/file", "old")
    pieces = RequestsWeb().pieces(f"http://127.0.0.1:{closed()}/file")
    with pytest.raises(GpubootError):
        node.host.write_stream("/cache/file", web.checked(pieces, "0" * 64, "it"))
    assert node.text("/cache/file") == "old"
    assert node.files() == ["/cache/file"]
