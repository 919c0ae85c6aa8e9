"""The supervisor, asked before the first join: every answer it can give (facts/rke2.md §2)."""

from __future__ import annotations

import hashlib

import pytest

from gpuboot.errors import GpubootError
from gpuboot.secret import Secret
from gpuboot.step import Ok, Waiting
from gpuboot.supervisor import SupervisorAnswers
from gpuboot.web import ANYBODY, SYSTEM, TLS_REFUSED, Answer, Trust
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
        (401, "GB532", "refuses the token (401)"),
        (403, "GB532", "refuses the token (403)"),
        (503, "GB533", "is not ready (503)"),
        (429, "GB533", "is not ready (429)"),
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
