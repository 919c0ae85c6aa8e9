"""The own Node: who it is, whom it is read from, and what differs."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from gpuboot import dropin, kubernetes
from gpuboot.dropin import Rke2Config
from gpuboot.errors import GpubootError
from gpuboot.kubernetes import NodeJoined
from gpuboot.labels import Taint
from gpuboot.step import Ok, Pending
from gpuboot.web import Answer, Trust
from tests.unit.node import Asked, Node, reason

DATA = "/var/lib/rancher/rke2"
LABEL, TAINT = "nvidia.com/gpu=present", "nvidia.com/gpu=present:NoSchedule"
TAINTED = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
API = "https://127.0.0.1:6443/api/v1/nodes/gpu-1"
KUBECONFIG = """\
apiVersion: v1
clusters: [{name: local, cluster: {server: "https://127.0.0.1:6443", certificate-authority: /ca}}]
users: [{name: user, user: {client-certificate: /crt, client-key: /key}}]
"""
CONFIG = Rke2Config({"server": "https://s:9345"}, (LABEL,), (TAINT,))
STEP = NodeJoined(CONFIG, None, False, ("node-role.kubernetes.io/gpu=true",))


def content(*, ready: str = "True", labels: object = None, taints: object = None) -> dict[str, Any]:
    """A v1.Node as the API server gives it."""
    return {
        "metadata": {"name": "gpu-1", "labels": labels},
        "spec": {"taints": taints},
        "status": {"conditions": [
            {"type": "MemoryPressure", "status": "False"},
            {"type": "Ready", "status": ready, "reason": "KubeletNotReady",
             "message": "container runtime network not ready"},
        ]},
    }  # fmt: skip


def joined(node: Node, document: object, *, toml: str = "runtimes.'nvidia'") -> None:
    """A node whose agent runs, and whose Node is this document."""
    node.put("/proc/sys/kernel/hostname", "GPU-1\n")
    node.put(f"{DATA}/agent/kubelet.kubeconfig", KUBECONFIG)
    node.put(f"{DATA}/agent/client-kubelet.crt")
    node.put(f"{DATA}/agent/etc/containerd/config.toml", toml)
    node.put(dropin.FILE, CONFIG.text(node.host, without_taints=True), mode=0o600)
    node.unit("rke2-agent.service", ActiveState="active")
    node.web.pages |= {
        "http://127.0.0.1:10248/healthz": Answer(200, b"ok"),
        API: Answer(200, json.dumps(document).encode()),
    }  # fmt: skip
    node.answers["journalctl"] = ""


GOOD = content(labels={"nvidia.com/gpu": "present"}, taints=[TAINTED])


# -- the Node


def test_a_node_is_read_from_the_api_servers_answer() -> None:
    found = kubernetes.parse_node(GOOD)
    assert (found.name, found.ready) == ("gpu-1", True)
    assert found.labels == {"nvidia.com/gpu": "present"}
    assert found.taints == (Taint("nvidia.com/gpu", "present", "NoSchedule"),)


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_says_why(status: str) -> None:
    found = kubernetes.parse_node(content(ready=status))
    assert not found.ready
    assert found.not_ready_because == "container runtime network not ready"


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a", "labels": None}, "spec": {}, "status": {}},
        {"metadata": {"name": "a"}, "spec": {"taints": None}, "status": {"conditions": None}},
    ],
)
def test_a_bare_node_is_not_ready(document: dict[str, Any]) -> None:
    found = kubernetes.parse_node(document)
    assert (found.ready, found.labels, found.taints) == (False, {}, ())
    assert found.not_ready_because == "no condition yet"


def test_a_taint_without_a_value_is_one() -> None:
    taints = [{"key": "a", "effect": "NoExecute"}]
    assert kubernetes.parse_node(content(taints=taints)).taints == (Taint("a", "", "NoExecute"),)


@pytest.mark.parametrize(
    ("wanted", "with_id", "number", "name"),
    [
        (None, False, None, "gpu-1"),
        (None, False, "0a1b2c3d", "gpu-1"),
        (None, True, "0a1b2c3d\n", "gpu-1-0a1b2c3d"),
        (None, True, None, "gpu-1"),
        ("Node-A", False, None, "node-a"),
        ("node-a", True, "0a1b2c3d", "node-a-0a1b2c3d"),
    ],
)
def test_the_nodes_name_is_the_one_rke2_gives_it(
    node: Node, wanted: str | None, number: str | None, name: str, *, with_id: bool
) -> None:
    node.put("/proc/sys/kernel/hostname", "GPU-1\n")
    if number:
        node.put("/etc/rancher/node/id", number)
    assert kubernetes.own_name(node.host, wanted, with_id=with_id) == name


# -- credentials


def test_the_kubelets_credential_is_files_below_the_root(node: Node) -> None:
    node.put("/ca", "PEM")
    found = kubernetes.credentials(node.host, KUBECONFIG, "/k")
    client = (str(node.root / "crt"), str(node.root / "key"))
    assert found == ("https://127.0.0.1:6443", Trust(b"PEM", client=client))


def test_a_ca_may_stand_in_the_file_itself(node: Node) -> None:
    data = base64.b64encode(b"PEM").decode()
    text = KUBECONFIG.replace("certificate-authority: /ca", f"certificate-authority-data: {data}")
    assert kubernetes.credentials(node.host, text, "/k")[1].ca_pem == b"PEM"


@pytest.mark.parametrize(
    "text",
    ["", "[", "a: b", "clusters: []", "words", KUBECONFIG.replace("client-key", "x"),
     KUBECONFIG.replace("authority: /ca", "authority-data: x"), "[" * 3000, "a: !!int ''",
     KUBECONFIG.replace("/crt", "5"), KUBECONFIG.replace("authority: /ca", "authority: 5"),
     KUBECONFIG.replace("https://127.0.0.1:6443", "https://["),
     KUBECONFIG.replace("https://127.0.0.1:6443", "relative"),
     KUBECONFIG.replace('"https://127.0.0.1:6443"', "5")],
)  # fmt: skip
def test_what_is_no_kubeconfig_is_worth_another_try(node: Node, text: str) -> None:
    with pytest.raises(GpubootError, match="/k is no kubeconfig of a kubelet") as caught:
        kubernetes.credentials(node.host, text, "/k")
    assert caught.value.retry


# -- joined


def test_a_ready_node_with_everything_is_the_proof(node: Node) -> None:
    joined(node, GOOD)
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert (found.reason, found.drift) == ("node gpu-1 is Ready in the cluster", ())
    shown = found.shows["node"]
    assert (shown["name"], shown["joined"], shown["ready"]) == ("gpu-1", True, True)
    assert shown["taints"] == [TAINT]
    assert shown["drift"] == [
        (
            "label node-role.kubernetes.io/gpu=true is not set:"
            " kubectl label node gpu-1 node-role.kubernetes.io/gpu=true"
        )
    ]


@pytest.mark.parametrize(
    ("document", "toml", "drift"),
    [
        (content(taints=[TAINTED]), "nvidia", [f"label {LABEL} is missing: kubectl label node"]),
        (
            content(labels={"nvidia.com/gpu": "other"}, taints=[TAINTED]), "nvidia",
            [f"label {LABEL} is missing: kubectl label node gpu-1 {LABEL}"],
        ),
        (
            content(labels={"nvidia.com/gpu": "present"}), "nvidia",
            [f"taint {TAINT} is missing: kubectl taint node gpu-1 {TAINT}"],
        ),
        (GOOD, "runc only", ["RKE2 has not found the NVIDIA container runtime"]),
    ],
)  # fmt: skip
def test_what_only_an_administrator_can_change_is_drift_with_the_command(
    node: Node, document: object, toml: str, drift: list[str]
) -> None:
    joined(node, document, toml=toml)
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert len(found.drift) == len(drift)
    assert all(one.startswith(text) for one, text in zip(found.drift, drift, strict=True))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(404), "the API server answered 404 for node gpu-1"),
        (Answer(403), "the API server answered 403 for node gpu-1"),
        (Answer(200, b"<html>"), "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, b"[]"), "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, b"{}"), "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, b"[" * 20_000), "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, json.dumps(content(labels=["a"])).encode()),
         "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, json.dumps(content(labels={"a": 1})).encode()),
         "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, json.dumps(content(labels={"a": "\ud800"})).encode()),
         "the API server's answer for node gpu-1 is no Node"),
        (Answer(200, json.dumps(content(taints=[{"key": "a", "effect": {}}])).encode()),
         "the API server's answer for node gpu-1 is no Node"),
        (
            Answer(200, json.dumps(content(ready="False")).encode()),
            "node gpu-1 is not Ready: container runtime network not ready",
        ),
        (
            Answer(200, json.dumps(content(taints=[
                {"key": kubernetes.UNINITIALIZED, "value": "true", "effect": "NoSchedule"},
            ])).encode()),
            "node gpu-1 waits for the cloud provider to initialise it",
        ),
    ],
)  # fmt: skip
def test_a_node_that_is_not_there_yet_is_pending(node: Node, answer: Answer, said: str) -> None:
    joined(node, GOOD)
    node.web.pages[API] = answer
    assert reason(STEP.check(node.host), Pending) == said


def test_an_agent_that_is_down_and_a_kubelet_that_is_silent_are_told_apart(node: Node) -> None:
    joined(node, GOOD)
    del node.web.pages["http://127.0.0.1:10248/healthz"]
    assert reason(STEP.check(node.host), Pending) == "the kubelet does not answer yet"
    node.unit("rke2-agent.service", ActiveState="activating")
    assert reason(STEP.check(node.host), Pending) == "rke2-agent is activating"


def test_the_taints_leave_the_file_once_the_node_carries_them(node: Node) -> None:
    joined(node, GOOD)
    node.put(dropin.FILE, CONFIG.text(node.host), mode=0o600)
    assert "still in" in reason(STEP.check(node.host), Pending)
    STEP.apply(node.host)
    assert isinstance(STEP.check(node.host), Ok)
    assert TAINT not in (node.text(dropin.FILE) or "")


def test_a_taint_that_the_node_lacks_stays_in_the_file(node: Node) -> None:
    joined(node, content(labels={"nvidia.com/gpu": "present"}))
    node.put(dropin.FILE, CONFIG.text(node.host), mode=0o600)
    assert isinstance(STEP.check(node.host), Ok)
    assert TAINT in (node.text(dropin.FILE) or "")


def test_joining_is_looked_on_until_the_node_is_ready(node: Node) -> None:
    joined(node, GOOD)
    answers = [content(ready="False")] * 3

    def api(_: Asked) -> Answer:
        return Answer(200, json.dumps(answers.pop() if answers else GOOD).encode())

    node.web.pages[API] = api
    STEP.apply(node.host)
    assert isinstance(STEP.check(node.host), Ok)


@pytest.mark.parametrize(
    ("journal", "id_", "said"),
    [
        ("x\n", "GB540", "node gpu-1 is not Ready"),
        (("level=info msg=\"Waiting to retrieve agent configuration; server is not ready: Node"
         " password rejected, duplicate hostname\"\n"), "GB541", "another machine had the same"),
        ("Kubelet exited: exit status 1\n" * 3, "GB542", "the kubelet ends again and again"),
        ("Kubelet exited: exit status 1\n" * 2, "GB540", "node gpu-1 is not Ready"),
    ],
)  # fmt: skip
def test_a_join_that_takes_too_long_is_told_by_its_cause(
    node: Node, journal: str, id_: str, said: str
) -> None:
    joined(node, content(ready="False"))
    node.answers["journalctl"] = journal
    node.put(f"{DATA}/agent/logs/kubelet.log", 'E1124 "command failed" err="unknown labels"\n')
    with pytest.raises(GpubootError) as caught:
        replace(STEP, timeout=6.0).apply(node.host)
    error = caught.value
    assert (error.code.id, error.retry) == (id_, True)
    assert said in error.message
    assert error.evidence


def test_a_wake_ends_the_looking_on(node: Node) -> None:
    joined(node, content(ready="False"))
    node.answers["journalctl"] = ""
    node.host.wake()
    with pytest.raises(GpubootError, match="not Ready"):
        STEP.apply(node.host)
    assert node.clock.seconds < 20
