"""What the cluster is told of a node's GPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpuboot import condition, health, xids
from gpuboot.apiserver import STRATEGIC
from gpuboot.errors import GpubootError
from gpuboot.web import Answer
from tests.rehearsal import pki
from tests.unit.node import Node

NODE = "https://127.0.0.1:6443/api/v1/nodes/gpu-1"
EVENTS = "https://127.0.0.1:6443/api/v1/namespaces/default/events"
KUBECONFIG = """\
clusters: [{cluster: {server: "https://127.0.0.1:6443", certificate-authority: /agent/ca.crt}}]
users: [{user: {client-certificate: /agent/client.crt, client-key: /agent/client.key}}]
"""
FOUND = {"state": "healthy", "reason": "", "action": xids.NONE, "advice": "", "blind": {},
         "expected": 2}  # fmt: skip
LOST = {**FOUND, "state": "unhealthy", "reason": "Xid 79", "action": xids.REPLACE,
        "advice": xids.ADVICE[xids.REPLACE]}  # fmt: skip


@pytest.fixture
def joined(node: Node) -> Node:
    """A node that is registered, with an API server that takes what it is sent."""
    node.put("/etc/gpuboot/config.yaml", "rke2: {join: rancher}\n", mode=0o600)
    folder = "/var/lib/rancher/rke2/agent"
    node.put(f"{folder}/kubelet.kubeconfig", KUBECONFIG)
    authority = pki.authority("rke2-client-ca")
    leaf = pki.leaf(authority, "system:node:gpu-1", ())
    node.put(f"{folder}/client-kubelet.crt", leaf.certificate)
    node.web.pages = {f"{NODE}/status": Answer(200, b"{}"), EVENTS: Answer(201, b"{}")}
    return node


def publish(node: Node, found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was sent, as method and body."""
    node.put(condition.FILE, json.dumps(condition.news(found)))
    condition.publish(node.host)
    sent = []
    for asked in node.web.asked:
        method = next(name for name in asked.headers if name != "Content-Type")
        sent.append((method, json.loads(asked.headers[method])))
    return sent


@pytest.mark.parametrize(
    ("found", "status", "reason", "message", "kind"),
    [
        (FOUND, "True", "GPUsAnswer", "all 2 GPUs answer", "Normal"),
        (LOST, "False", "GPUFault", "Xid 79; to do: drain the node, power the VM", "Warning"),
        ({**FOUND, "state": health.UNKNOWN, "blind": {"kernel log": "denied"}}, "Unknown",
         "NotSeen", "kernel log: denied", "Normal"),
    ],
)  # fmt: skip
def test_the_node_gets_a_condition_and_an_event(
    joined: Node, found: dict[str, Any], status: str, reason: str, message: str, kind: str
) -> None:
    (patch, body), (post, event) = publish(joined, found)
    assert (patch, post) == ("PATCH", "POST")
    assert joined.web.asked[0].headers["Content-Type"] == STRATEGIC  # or the kubelet's would go
    (told,) = body["status"]["conditions"]
    assert (told["type"], told["status"], told["reason"]) == ("GPUHealthy", status, reason)
    assert told["message"].startswith(message)
    assert (event["type"], event["reason"], event["message"]) == (kind, reason, told["message"])
    assert event["involvedObject"]["name"] == "gpu-1"


def test_an_api_server_that_refuses_is_worth_another_try(joined: Node) -> None:
    joined.web.pages[f"{NODE}/status"] = Answer(403, b"{}")
    with pytest.raises(GpubootError, match="answered 403 to a change of nodes/gpu-1/status") as e:
        publish(joined, LOST)
    assert e.value.retry


def test_a_node_that_joins_nothing_tells_nobody(joined: Node) -> None:
    joined.put("/etc/gpuboot/config.yaml", "rke2: {join: none}\n", mode=0o600)
    assert publish(joined, LOST) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "splendid"}'])
def test_a_file_that_says_nothing_is_told_to_nobody(joined: Node, text: str) -> None:
    joined.put(condition.FILE, text)
    assert condition.publish(joined.host).startswith("there is nothing to tell")
    assert joined.web.asked == []


def test_a_long_message_is_cut_to_what_an_event_takes() -> None:
    told = condition.news({**LOST, "reason": "x" * 5000})
    assert len(told["message"]) == condition.LONGEST
