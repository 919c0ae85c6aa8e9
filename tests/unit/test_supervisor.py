"""The supervisor, asked before the first join: every answer it can give (facts/rke2.md §2)."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from email.utils import format_datetime

import pytest

from gpuboot.errors import GpubootError
from gpuboot.secret import Secret
from gpuboot.step import Ok, Waiting
from gpuboot.supervisor import SupervisorAnswers
from gpuboot.web import ANYBODY, OUT_OF_DATE, SYSTEM, TLS_REFUSED, Answer, Trust
from tests.model.cluster import CA
from tests.unit.node import Asked, Node, code, reason

SERVER = "https://cluster:9345"
PASSWORD = "correct-horse"  # noqa: S105 - nobody's
HASH = hashlib.sha256(CA).hexdigest()
TOKEN = f"K10{HASH}::node:{PASSWORD}"
BOOTSTRAP = "abcdef.0123456789abcdef"


def step(text: str | None = TOKEN, file: str | None = None) -> SupervisorAnswers:
    return SupervisorAnswers(SERVER, Secret(text) if text else None, file, None)


def serve(node: Node, *, ready: int = 200, known: bool = False, ca: Answer | None = None) -> None:
    """A supervisor; `known`: the system's CAs vouch for it."""

    def cacerts(asked: Asked) -> Answer:
        if asked.trust == SYSTEM and not known:
            raise GpubootError(TLS_REFUSED, "cluster:9345: certificate refused", retry=True)
        return ca or Answer(200, CA)

    node.web.pages |= {f"{SERVER}/cacerts": cacerts, f"{SERVER}/v1-rke2/readyz": Answer(ready)}


def sent(node: Node) -> list[Asked]:
    """The questions that carried the token."""
    return [asked for asked in node.web.asked if asked.auth or asked.headers]


def test_a_token_whose_hash_fits_is_sent_over_that_ca_alone(node: Node) -> None:
    serve(node)
    assert reason(step().check(node.host), Ok) == f"{SERVER} accepts the token"
    (asked,) = sent(node)
    assert asked.auth == ("node", PASSWORD)
    assert asked.trust == Trust(ca_pem=CA)
    assert asked.trust != ANYBODY


def test_a_bootstrap_token_is_sent_as_a_bearer(node: Node) -> None:
    serve(node)
    assert reason(step(f"K10{HASH}::{BOOTSTRAP}").check(node.host), Ok)
    (asked,) = sent(node)
    assert (asked.auth, asked.headers) == (None, {"Authorization": f"Bearer {BOOTSTRAP}"})


@pytest.mark.parametrize("text", [TOKEN, PASSWORD, f"K10{'0' * 64}::node:{PASSWORD}"])
def test_a_server_that_the_system_trusts_is_trusted(node: Node, text: str) -> None:
    serve(node, known=True)
    assert reason(step(text).check(node.host), Ok)
    (asked,) = sent(node)
    assert asked.trust == SYSTEM


def test_a_token_without_a_hash_is_not_sent_to_an_unknown_server(node: Node) -> None:
    serve(node)
    assert "the token was not sent" in reason(step(PASSWORD).check(node.host), Ok)
    assert sent(node) == []


@pytest.mark.parametrize(
    ("status", "id_", "said"),
    [
        (401, "GB532", "refuses the token (401): it knows no such password"),
        (403, "GB532", "refuses the token (403): it gives no agent's rights"),
        (503, "GB533", "is not ready (503)"),
        (429, "GB535", "is asked by too many at once (429)"),
        (500, "GB533", "is not ready (500)"),
    ],
)
def test_what_the_supervisor_says_is_waited_for(
    node: Node, status: int, id_: str, said: str
) -> None:
    serve(node, ready=status)
    found = step().check(node.host)
    assert reason(found, Waiting) == f"{SERVER} {said}"
    assert code(found).id == id_


def test_another_clusters_ca_gets_no_token(node: Node) -> None:
    serve(node)
    found = step(f"K10{'0' * 64}::node:{PASSWORD}").check(node.host)
    assert code(found).id == "GB531"
    assert f"is {HASH[:16]}…, the token says 0000000000000000…" in reason(found, Waiting)
    assert sent(node) == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(200, b""), id="empty"),
        pytest.param(Answer(200, b"<html>"), id="a page"),
        pytest.param(Answer(503, b""), id="unavailable"),
        pytest.param(Answer(404, CA), id="not found"),
    ],
)  # fmt: skip
def test_a_server_without_a_certificate_to_show_is_not_ready(node: Node, answer: Answer) -> None:
    serve(node, ca=answer)
    assert code(step().check(node.host)).id == "GB533"
    assert sent(node) == []


def test_a_bootstrap_token_that_is_refused_has_expired(node: Node) -> None:
    serve(node, ready=401)
    found = step(f"K10{HASH}::{BOOTSTRAP}").check(node.host)
    assert code(found).id == "GB534"
    assert "has expired, or was deleted" in reason(found, Waiting)


def test_the_server_token_is_named_where_it_is_refused_and_where_it_is_taken(node: Node) -> None:
    text = f"K10{HASH}::server:{PASSWORD}"
    serve(node)
    assert "an agent token is enough" in reason(step(text).check(node.host), Ok)
    serve(node, ready=401)
    assert "this is the server token" in reason(step(text).check(node.host), Waiting)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("", 1.0),
        ("Thu, 01 Jan 2026 00:00:40 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 1.0),  # in the past
        ("-5", 1.0),
        ("soon", 1.0),
    ],
)
def test_a_server_that_wants_to_be_left_alone_is(node: Node, header: str, seconds: float) -> None:
    serve(node)
    node.web.pages[f"{SERVER}/v1-rke2/readyz"] = Answer(429, headers={"retry-after": header})
    found = step().check(node.host)
    assert isinstance(found, Waiting)
    assert found.code.id == "GB535"
    assert abs(found.not_before - seconds) < 1


# -- who opens TLS on the way, and the clocks

PROXY = "O=Inspector, CN=Proxy CA"


def test_a_certificate_from_another_ca_than_the_tokens_is_an_interception(node: Node) -> None:
    def readyz(asked: Asked) -> Answer:
        raise GpubootError(TLS_REFUSED, "refused", evidence="unable to get local issuer")

    serve(node, ca=Answer(200, CA, issuer=PROXY))
    node.web.pages[f"{SERVER}/v1-rke2/readyz"] = readyz
    found = step().check(node.host)
    assert code(found).id == "GB531"
    assert f"not from the token's CA but from {PROXY}" in reason(found, Waiting)
    assert PROXY in getattr(found, "evidence", "")


@pytest.mark.parametrize(
    ("issuer", "said"),
    [
        (PROXY, f"TLS is opened on the way by {PROXY}"),
        ("CN=rke2-server-ca@1700000000", "the token says 0000000000000000…"),
        (None, "the token says 0000000000000000…"),
    ],
)
def test_another_ca_is_told_with_who_signed_the_certificate(
    node: Node, issuer: str | None, said: str
) -> None:
    serve(node, ca=Answer(200, CA, issuer=issuer))
    found = step(f"K10{'0' * 64}::node:{PASSWORD}").check(node.host)
    assert code(found).id == "GB531"
    assert reason(found, Waiting).endswith(said)
    assert sent(node) == []


def test_a_certificate_for_another_name_is_no_obstacle_to_rke2_and_gets_no_token(
    node: Node,
) -> None:
    def readyz(asked: Asked) -> Answer:
        raise GpubootError(
            TLS_REFUSED, "x", evidence="certificate verify failed: Hostname mismatch"
        )

    serve(node)
    node.web.pages[f"{SERVER}/v1-rke2/readyz"] = readyz
    assert "tls-san" in reason(step().check(node.host), Ok)


@pytest.mark.parametrize(
    ("hours", "id_", "said"),
    [
        (-50, "GB107", "the clock is 2 days behind the server's"),
        (2, "GB107", "the clock is 120 min ahead of the server's"),
        (0, "GB536", "has expired or is not valid yet, and the clock is the server's"),
    ],
)
@pytest.mark.parametrize("known", ["by the token", "by nobody"])
def test_a_certificate_out_of_its_time_is_the_clocks_fault_or_the_servers(
    node: Node, hours: int, id_: str, said: str, known: str
) -> None:
    def out_of_date(asked: Asked) -> Answer:
        if asked.trust == ANYBODY:
            theirs = node.clock.now() - timedelta(hours=hours)
            return Answer(200, CA, {"date": format_datetime(theirs, usegmt=True)})
        raise GpubootError(OUT_OF_DATE, "x", evidence="certificate is not yet valid", retry=True)

    serve(node)
    node.web.pages[f"{SERVER}/v1-rke2/readyz"] = out_of_date
    node.web.pages[f"{SERVER}/cacerts"] = out_of_date
    found = step(TOKEN if known == "by the token" else PASSWORD).check(node.host)
    assert code(found).id == id_
    assert said in reason(found, Waiting)
    assert [asked.trust for asked in sent(node)] in ([], [Trust(ca_pem=CA)])


def test_a_clock_that_is_off_and_harms_nothing_is_told(node: Node) -> None:
    serve(node)
    theirs = node.clock.now() + timedelta(minutes=20)
    date = {"date": format_datetime(theirs, usegmt=True)}
    node.web.pages[f"{SERVER}/v1-rke2/readyz"] = Answer(200, b"ok", date)
    assert "the clock is 20 min behind the server's" in reason(step().check(node.host), Ok)


def test_a_server_that_cannot_be_reached_is_waited_for(node: Node) -> None:
    assert code(step().check(node.host)).id == "GB401"


def test_a_token_file_is_read_and_masked(node: Node) -> None:
    node.put("/etc/token", TOKEN + "\n", mode=0o600)
    serve(node)
    assert reason(step(None, "/etc/token").check(node.host), Ok)
    assert node.host.mask(f"it is {PASSWORD}") == "it is <secret>"


@pytest.mark.parametrize("content", [None, "", "\n", "K10abc::node:horse", "two words"])
def test_a_token_file_that_is_not_usable_is_waited_for(node: Node, content: str | None) -> None:
    if content is not None:
        node.put("/etc/token", content)
    found = step(None, "/etc/token").check(node.host)
    assert code(found).id == "GB530"
    assert reason(found, Waiting).startswith("/etc/token: ")
    assert "horse" not in reason(found, Waiting)
    assert node.web.asked == []


def test_a_node_that_has_joined_before_needs_no_network(node: Node) -> None:
    node.put("/var/lib/rancher/rke2/agent/client-kubelet.crt")
    assert reason(step().check(node.host), Ok) == "this node has joined before"
    assert node.web.asked == []
