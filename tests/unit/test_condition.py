"""What the cluster is told of a node's GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpuboot import condition, health, news, xids
from gpuboot.apiserver import STRATEGIC
from gpuboot.errors import GpubootError
from gpuboot.health import Sign
from gpuboot.kubernetes import HEALTHZ
from gpuboot.web import Answer
from tests.rehearsal import pki
from tests.unit.node import Node

NODE = "https://127.0.0.1:6443/api/v1/nodes/gpu-1"
EVENTS = "https://127.0.0.1:6443/api/v1/namespaces/default/events"
KUBECONFIG = """\
clusters: [{cluster: {server: "https://127.0.0.1:6443", certificate-authority: /agent/ca.crt}}]
users: [{user: {client-certificate: /agent/client.crt, client-key: /agent/client.key}}]
"""


def found(state: str, action: str = xids.NONE, reason: str = "", node: str = "") -> dict[str, Any]:
    """What the monitor's document says of the GPUs, and what is wrong with their node."""
    advice = xids.ADVICE[action] if state == health.UNHEALTHY else ""
    return {
        "gpu": {"state": state, "reason": reason, "action": action, "advice": advice},
        "faults": [{"about": "node", "reason": node}] if node else [],
        "blind": {"kernel log": "denied"} if state == health.UNKNOWN else {},
        "expected": 2,
    }


FINE = found(health.HEALTHY)
LOST = found(health.UNHEALTHY, xids.REPLACE, "Xid 79")
LABELS = {"nvidia.com/gpu": "present"}
TAINTS = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]


@dataclass
class Cluster:
    """A node that is registered, with an API server that takes what it is sent."""

    node: Node
    conditions: list[dict[str, str]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=lambda: dict(LABELS))
    taints: list[dict[str, str]] = field(default_factory=lambda: list(TAINTS))

    def publish(self, told: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
        """What was sent by it, as method and body; the Node then has it."""
        if told:
            self.node.put(news.FILE, json.dumps(news.of(told)))
        self.node.web.pages[NODE] = Answer(200, json.dumps({
            "metadata": {"name": "gpu-1", "labels": self.labels},
            "spec": {"taints": self.taints},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, *self.conditions]},
        }).encode())  # fmt: skip
        self.node.web.asked.clear()
        condition.publish(self.node.host)
        sent = []
        for asked in self.node.web.asked:
            for method in ("PATCH", "POST"):
                if method in asked.headers:
                    sent.append((method, json.loads(asked.headers[method])))
        for method, body in sent:
            if method == "PATCH":
                self.conditions = body["status"]["conditions"]
        return sent

    def signs(self, drift: tuple[str, ...] = ()) -> dict[str, Sign]:
        return news.signs(self.node.host, {"node": {"drift": list(drift)}})


@pytest.fixture
def cluster(node: Node) -> Cluster:
    node.put("/etc/gpuboot/config.yaml", "rke2: {join: rancher}\n", mode=0o600)
    folder = "/var/lib/rancher/rke2/agent"
    node.put(f"{folder}/kubelet.kubeconfig", KUBECONFIG)
    authority = pki.authority("rke2-client-ca")
    leaf = pki.leaf(authority, "system:node:gpu-1", ())
    node.put(f"{folder}/client-kubelet.crt", leaf.certificate)
    node.web.pages = {
        HEALTHZ: Answer(200, b"ok"),
        f"{NODE}/status": Answer(200, b"{}"),
        EVENTS: Answer(201, b"{}"),
    }
    return Cluster(node)


@pytest.mark.parametrize(
    ("told", "status", "reason", "message", "kind"),
    [
        (FINE, "True", "GPUsAnswer", "all 2 GPUs answer", "Normal"),
        (LOST, "False", "GPUFault", "Xid 79; to do: drain the node, power the VM", "Warning"),
        (found(health.UNKNOWN), "Unknown", "NotSeen", "kernel log: denied", "Normal"),
    ],
)
def test_the_node_gets_a_condition_and_an_event(
    cluster: Cluster, told: dict[str, Any], status: str, reason: str, message: str, kind: str
) -> None:
    (patch, body), (post, event) = cluster.publish(told)
    assert (patch, post) == ("PATCH", "POST")
    sent = next(asked for asked in cluster.node.web.asked if "PATCH" in asked.headers)
    assert sent.headers["Content-Type"] == STRATEGIC  # or the kubelet's would go
    (given,) = body["status"]["conditions"]
    assert (given["type"], given["status"], given["reason"]) == ("GPUHealthy", status, reason)
    assert given["message"].startswith(message)
    assert (event["type"], event["reason"], event["message"]) == (kind, reason, given["message"])
    assert event["involvedObject"]["name"] == "gpu-1"


def test_what_the_node_has_already_is_not_told_again(cluster: Cluster) -> None:
    assert len(cluster.publish(FINE)) == 2
    assert cluster.publish(FINE) == []
    assert cluster.publish(None) == []


def test_a_node_that_has_lost_its_condition_gets_it_again(cluster: Cluster) -> None:
    cluster.publish(LOST)
    cluster.conditions = []  # as of a Node that was deleted, and registered once more
    (patch, body), *_ = cluster.publish(None)
    assert patch == "PATCH"
    assert body["status"]["conditions"][0]["status"] == "False"


def test_another_reason_for_the_same_state_is_no_transition(cluster: Cluster) -> None:
    cluster.publish(LOST)
    before = cluster.conditions[0]["lastTransitionTime"]
    cluster.node.clock.sleep(60)
    cluster.publish(found(health.UNHEALTHY, xids.DRAIN, "Xid 48"))
    assert cluster.conditions[0]["message"].startswith("Xid 48")
    assert cluster.conditions[0]["lastTransitionTime"] == before
    cluster.node.clock.sleep(60)
    cluster.publish(FINE)
    assert cluster.conditions[0]["lastTransitionTime"] > before


def test_what_is_wrong_with_the_node_is_an_event_and_leaves_the_gpus_healthy(
    cluster: Cluster,
) -> None:
    cluster.publish(FINE)
    amiss = found(health.HEALTHY, node="kernel 6.1.0-57 boots next and has no NVIDIA module")
    ((method, event),) = cluster.publish(amiss)
    assert (method, event["reason"], event["type"]) == ("POST", "NodeFault", "Normal")
    assert event["message"].startswith("kernel 6.1.0-57")
    assert cluster.publish(amiss) == []
    ((_, event),) = cluster.publish(FINE)
    assert (event["reason"], event["message"][:19]) == ("NodeAsWanted", "over: kernel 6.1.0-")


def test_a_label_or_taint_that_somebody_took_away_is_a_sign(cluster: Cluster) -> None:
    cluster.publish(FINE)
    assert cluster.signs()["node"] == health.FINE
    cluster.taints.clear()
    cluster.labels["nvidia.com/gpu"] = "other"
    cluster.publish(None)
    sign = cluster.signs()["node"]
    assert sign.reason == (
        "Node gpu-1: label nvidia.com/gpu=present is missing; "
        "taint nvidia.com/gpu=present:NoSchedule is missing"
    )
    assert sign.hint == "kubectl label node gpu-1 nvidia.com/gpu=present --overwrite"
    cluster.taints, cluster.labels = list(TAINTS), dict(LABELS)
    cluster.publish(None)
    assert cluster.signs()["node"] == health.FINE


def test_what_the_walk_has_told_already_is_no_news_of_the_monitors(cluster: Cluster) -> None:
    cluster.taints.clear()
    cluster.publish(FINE)
    taint = "nvidia.com/gpu=present:NoSchedule"
    drift = f"taint {taint} is missing: kubectl taint node gpu-1 {taint}"
    assert cluster.signs((drift,))["node"] == health.FINE
    assert cluster.signs()["node"].state == "bad"


def test_a_look_at_the_node_that_is_old_is_none(cluster: Cluster) -> None:
    assert cluster.signs() == {}
    cluster.publish(FINE)
    cluster.node.clock.sleep(news.OLD + 1)
    assert cluster.signs() == {}


def test_a_kubelet_that_is_silent_is_a_sign_and_asked_again(cluster: Cluster) -> None:
    amiss = found(health.HEALTHY, node="a label is missing")
    cluster.publish(amiss)
    assert cluster.signs()["kubelet"] == health.FINE
    cluster.node.web.pages[HEALTHZ] = Answer(500, b"")
    with pytest.raises(GpubootError, match="the kubelet does not answer") as e:
        cluster.publish(None)
    assert e.value.retry
    assert cluster.signs()["kubelet"].reason == "the kubelet does not answer"
    cluster.node.web.pages[HEALTHZ] = Answer(200, b"ok")
    assert cluster.publish(None) == []  # what was told before is not told again
    assert cluster.signs()["kubelet"] == health.FINE


def test_a_silent_kubelet_ends_no_other_fault(cluster: Cluster) -> None:
    cluster.taints.clear()
    cluster.publish(FINE)
    assert cluster.signs()["node"].state == "bad"
    cluster.node.web.pages[HEALTHZ] = Answer(500, b"")
    with pytest.raises(GpubootError):
        cluster.publish(None)
    assert cluster.signs()["node"].state == "bad"


@pytest.mark.parametrize("text", ["{", "[]", '{"boottime": 1}', '{"boottime": "x"}'])
def test_a_look_at_the_node_that_is_damaged_is_none(cluster: Cluster, text: str) -> None:
    cluster.node.put(news.NODE, text)
    assert cluster.signs() == {}


def test_an_api_server_that_refuses_is_worth_another_try(cluster: Cluster) -> None:
    cluster.node.web.pages[f"{NODE}/status"] = Answer(403, b"{}")
    with pytest.raises(GpubootError, match="answered 403 to a change of nodes/gpu-1/status") as e:
        cluster.publish(LOST)
    assert e.value.retry


def test_a_node_that_joins_nothing_tells_nobody(cluster: Cluster) -> None:
    cluster.node.put("/etc/gpuboot/config.yaml", "rke2: {join: none}\n", mode=0o600)
    assert cluster.publish(LOST) == []
    assert cluster.node.web.asked == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "splendid"}'])
def test_a_file_that_says_nothing_is_told_to_nobody(cluster: Cluster, text: str) -> None:
    cluster.node.put(news.FILE, text)
    assert cluster.publish(None) == []


def test_a_long_message_is_cut_to_what_an_event_takes() -> None:
    told = news.of(found(health.UNHEALTHY, xids.RESET, "x" * 5000, "y" * 5000))
    assert (len(told["message"]), len(told["node"])) == (news.LONGEST, news.LONGEST)
