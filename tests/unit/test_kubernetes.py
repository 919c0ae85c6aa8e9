"""The own Node: who it is, whom it is read from, and what differs."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest.mock import ANY

import pytest

from gpuboot import apiserver, dropin, kubernetes
from gpuboot.apiserver import ApiServer
from gpuboot.diagnosis import UNINITIALIZED_TAINT
from gpuboot.dropin import Rke2Config
from gpuboot.errors import GpubootError
from gpuboot.kubernetes import NodeJoined
from gpuboot.labels import Taint
from gpuboot.step import Ok, Pending, Waiting
from gpuboot.web import Answer, Trust
from tests.model.machine import FakeClock
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
NVIDIA = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia']
  runtime_type = "io.containerd.runc.v2"
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


def joined(node: Node, document: object, *, toml: str = NVIDIA) -> None:
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
    found = apiserver.parse_node(GOOD)
    assert (found.name, found.ready) == ("gpu-1", True)
    assert found.labels == {"nvidia.com/gpu": "present"}
    assert found.taints == (Taint("nvidia.com/gpu", "present", "NoSchedule"),)


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_says_why(status: str) -> None:
    found = apiserver.parse_node(content(ready=status))
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
    found = apiserver.parse_node(document)
    assert (found.ready, found.labels, found.taints) == (False, {}, ())
    assert found.not_ready_because == "no condition yet"


def test_a_taint_without_a_value_is_one() -> None:
    taints = [{"key": "a", "effect": "NoExecute"}]
    assert apiserver.parse_node(content(taints=taints)).taints == (Taint("a", "", "NoExecute"),)


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
    assert apiserver.own_name(node.host, wanted, with_id=with_id) == name


# -- credentials


def test_the_kubelets_credential_is_files_below_the_root(node: Node) -> None:
    node.put("/ca", "PEM")
    found = apiserver.credentials(node.host, KUBECONFIG, "/k")
    client = (str(node.root / "crt"), str(node.root / "key"))
    assert found == ApiServer("https://127.0.0.1:6443", Trust(b"PEM", client=client))


def test_a_ca_may_stand_in_the_file_itself(node: Node) -> None:
    data = base64.b64encode(b"PEM").decode()
    text = KUBECONFIG.replace("certificate-authority: /ca", f"certificate-authority-data: {data}")
    assert apiserver.credentials(node.host, text, "/k").trust.ca_pem == b"PEM"


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
        apiserver.credentials(node.host, text, "/k")
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
        (content(taints=[TAINTED]), NVIDIA, [f"label {LABEL} is missing: kubectl label node"]),
        (
            content(labels={"nvidia.com/gpu": "other"}, taints=[TAINTED]), NVIDIA,
            [f"label {LABEL} is missing: kubectl label node gpu-1 {LABEL} --overwrite"],
        ),
        (
            content(labels={"nvidia.com/gpu": "present"}), NVIDIA,
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
                {"key": UNINITIALIZED_TAINT, "value": "true", "effect": "NoSchedule"},
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
         " password rejected, duplicate hostname\"\n"), "GB541", "had the node name gpu-1"),
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


# -- what the cluster and the node say beside Ready


def with_version(document: dict[str, Any], kubelet: str, gpus: object = None) -> dict[str, Any]:
    status = {**document["status"], "nodeInfo": {"kubeletVersion": kubelet}}
    status["allocatable"] = {"nvidia.com/gpu": gpus} if gpus is not None else {}
    return {**document, "status": status}


@pytest.mark.parametrize(("gpus", "count"), [("1", 1), (None, 0), ("x", 0), (2, 2)])
def test_the_gpus_that_pods_can_ask_for_are_told(node: Node, gpus: object, count: int) -> None:
    joined(node, with_version(GOOD, "v1.35.7+rke2r1", gpus))
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert found.shows["node"]["allocatable_gpus"] == count


@pytest.mark.parametrize(
    ("kubelet", "server", "newer"),
    [
        ("v1.36.3+rke2r1", "v1.35.7+rke2r1", True),
        ("v2.0.0+rke2r1", "v1.35.7+rke2r1", True),
        ("v1.35.9+rke2r1", "v1.35.7+rke2r1", False),
        ("v1.34.1+rke2r1", "v1.35.7+rke2r1", False),
        ("v1.36.3+rke2r1", "", False),
        ("v1.36.3+rke2r1", "new", False),
        ("", "v1.35.7+rke2r1", False),
    ],
)
def test_an_agent_that_is_newer_than_its_server_is_told(
    node: Node, kubelet: str, server: str, *, newer: bool
) -> None:
    joined(node, with_version(GOOD, kubelet))
    node.web.pages["https://127.0.0.1:6443/version"] = Answer(
        200, json.dumps({"gitVersion": server}).encode()
    )
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert (found.code.id if found.code else None) == ("GB556" if newer else None)
    assert [kubelet in drift and server in drift for drift in found.drift] == [True] * newer


def test_a_runtime_class_that_is_missing_is_told_and_no_obstacle(node: Node) -> None:
    joined(node, GOOD)
    place = "https://127.0.0.1:6443/apis/node.k8s.io/v1/runtimeclasses/nvidia"
    for status, told in ((404, True), (200, False), (403, False)):
        node.web.pages[place] = Answer(status)
        found = STEP.check(node.host)
        assert isinstance(found, Ok), found
        assert found.drift == ()
        assert any("v1.29.13" in text for text in found.shows["node"]["drift"]) is told


def test_a_runtime_whose_program_is_gone_is_drift(node: Node) -> None:
    section = (
        NVIDIA + NVIDIA.splitlines()[1].replace("]", ".options]") + '\nBinaryName = "/usr/bin/x"\n'
    )
    joined(node, GOOD, toml=section)
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert (found.code, found.drift[0][:40]) == (
        kubernetes.NO_RUNTIME, "containerd's NVIDIA runtime /usr/bin/x i",
    )  # fmt: skip
    node.put("/usr/bin/x", mode=0o755)
    assert STEP.check(node.host) == replace(found, drift=(), code=None, hint=None, shows=ANY)


def test_a_missing_taint_is_explained_with_the_administrators_line(node: Node) -> None:
    other = {**TAINTED, "value": "other"}
    joined(node, content(labels={"nvidia.com/gpu": "present"}, taints=[other]))
    found = STEP.check(node.host)
    assert isinstance(found, Ok), found
    assert (found.code, found.hint) == (
        kubernetes.DIFFERS, f"kubectl taint node gpu-1 {TAINT} --overwrite",
    )  # fmt: skip


# -- files that rke2-agent has not read


@dataclass
class RealTime(FakeClock):
    """A clock that files can be compared with: they were written so many seconds ago."""

    ago: float = 0.0

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + timedelta(seconds=self.ago)


def starting(
    node: Node, *, age: float, active: str = "activating", process: int = 4711, ago: float = 0
) -> None:
    """An rke2-agent that was started so many seconds ago and is not up."""
    node.clock = RealTime(seconds=1000.0, ago=ago)
    node.host.clock = node.clock
    node.unit(
        "rke2-agent.service", ActiveState=active, MainPID=str(process), InvocationID="abc",
        ExecMainStartTimestampMonotonic=str(int((1000.0 - age) * 1e6)),
    )  # fmt: skip
    node.answers["systemctl restart --no-block rke2-agent.service"] = ""


RESTARTED = "systemctl restart --no-block rke2-agent.service"


@pytest.mark.parametrize("name", ["/etc/rancher/rke2/config.yaml", dropin.FILE, "/etc/token"])
def test_an_agent_that_has_not_joined_is_restarted_to_read_its_files(node: Node, name: str) -> None:
    joined(node, GOOD)
    starting(node, age=60)
    node.put(name, "{}")
    step = replace(STEP, config=replace(CONFIG, settings={"token-file": "/etc/token"}), timeout=1.0)
    assert "it starts again" in reason(step.check(node.host), Pending)
    with pytest.raises(GpubootError):
        step.apply(node.host)
    assert RESTARTED in node.ran


@pytest.mark.parametrize(
    ("ago", "active", "process"),
    [
        pytest.param(600, "activating", 4711, id="it has read them"),
        pytest.param(-600, "activating", 4711, id="a clock that was set back"),
        pytest.param(0, "activating", 0, id="systemd starts it by itself"),
        pytest.param(0, "deactivating", 4711, id="it is on its way down"),
        pytest.param(0, "active", 4711, id="it is up"),
    ],
)
def test_an_agent_is_not_restarted_without_need(
    node: Node, ago: float, active: str, process: int
) -> None:
    joined(node, content(ready="False"))
    starting(node, age=60, active=active, process=process, ago=ago)
    node.put("/etc/rancher/rke2/config.yaml", "{}")
    with pytest.raises(GpubootError):
        replace(STEP, timeout=1.0).apply(node.host)
    assert RESTARTED not in node.ran


def test_an_agent_that_is_up_is_restarted_by_an_administrator(node: Node) -> None:
    joined(node, content(ready="False"))
    starting(node, age=60, active="active")
    node.put(dropin.MAIN, "{}")
    node.answers["journalctl"] = "Kubelet exited: exit status 1\n" * 3
    found = STEP.check(node.host)
    assert isinstance(found, Waiting), found
    assert found.code.id == "GB542"
    assert str(found.hint).startswith("systemctl restart rke2-agent (it has not read /etc/rancher")


def test_a_node_that_waits_for_its_cluster_needs_no_restart(node: Node) -> None:
    """Our own file is written anew once the Node carries its taints."""
    waits = {"key": UNINITIALIZED_TAINT, "value": "true", "effect": "NoSchedule"}
    joined(node, content(labels={"nvidia.com/gpu": "present"}, taints=[TAINTED, waits]))
    starting(node, age=90, active="active")
    node.put(dropin.FILE, CONFIG.text(node.host, without_taints=True), mode=0o600)
    found = STEP.check(node.host)
    assert isinstance(found, Waiting), found
    assert (found.code.id, found.hint) == ("GB555", "kubectl describe node gpu-1")


@pytest.mark.parametrize(("active", "process"), [("activating", 0), ("deactivating", 4711)])
def test_what_an_agent_said_of_files_that_are_corrected_is_no_cause(
    node: Node, active: str, process: int
) -> None:
    joined(node, GOOD)
    starting(node, age=60, active=active, process=process)
    node.put(dropin.MAIN, "{}")
    node.answers["journalctl"] = "Error: --server is required"
    assert "it starts again" in reason(STEP.check(node.host), Pending)


def test_the_journal_is_the_one_of_the_last_start(node: Node) -> None:
    joined(node, GOOD)
    starting(node, age=5, ago=600)
    node.answers["journalctl --boot --unit"] = "Node password rejected"
    node.answers["journalctl --boot _SYSTEMD_INVOCATION_ID=abc"] = ""
    assert reason(STEP.check(node.host), Pending) == "rke2-agent is activating"
