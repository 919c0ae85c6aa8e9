"""Why a node does not join, from the texts of RKE2 and the kubelet (facts/rke2.md §1, §2, §4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuboot import diagnosis
from gpuboot.apiserver import Node
from gpuboot.diagnosis import Seen, diagnose
from gpuboot.errors import GpubootError
from gpuboot.labels import Taint

VALIDATE = "Failed to validate connection to cluster at https://127.0.0.1:6444: "
WAITING = "Waiting to retrieve agent configuration; server is not ready: "
CONFIG = "failed to retrieve configuration from server: https://127.0.0.1:6444/v1-rke2/config: "
GET = 'failed to get CA certs: Get \\"https://127.0.0.1:6444/cacerts\\": '
RUNNING = "Running kubelet --config-dir=/var/lib/rancher/rke2/agent/etc/kubelet.conf.d --v=2"
EXITED = "Kubelet exited: exit status 1"
CNI = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady"
    " message:Network plugin returns error: cni plugin not initialized"
)


def log(*messages: str, level: str = "info") -> str:
    """Lines as logrus writes them."""
    return "".join(f'time="2026-11-25T10:00:00Z" level={level} msg="{m}"\n' for m in messages)


def failed(err: str) -> str:
    """The line by which a kubelet ends."""
    return f'E1125 10:00:00.000000    4711 run.go:72] "command failed" err="{err}"\n'


def caused(seen: Seen) -> GpubootError:
    found = diagnose(seen)
    assert found is not None
    assert found.retry
    return found


FATAL = [
    (WAITING + "Node password rejected, duplicate hostname or contents of"
     " '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique"
     " node name with the --with-node-id flag",
     "GB541", "another machine had the node name gpu-1 (delete that Node, or set"),
    ("Error: --server is required", "GB550", "none of its files sets server"),
    ("Error: --token is required", "GB550", "none of its files sets token"),
    (VALIDATE + "only https:// URLs are supported, invalid scheme: http://http://cluster:9345",
     "GB550", "only takes an https:// address"),
    ("invalid value provided for --profile flag", "GB550", "it does not know the profile"),
    ("--protect-kernel-defaults must be true when using --profile=cis", "GB550", "must be true"),
    ("Error: flag provided but not defined: -colour", "GB550", "-colour"),
    ('Error: invalid boolean value \\"perhaps\\" for -selinux: parse error', "GB550", "-selinux"),
    ("Error: can't set node-external-ip while using cloud provider, settings are controlled",
     "GB550", "exclude each other"),
    ("Waiting for /etc/gpuboot/token to be available", "GB530", "token file /etc/gpuboot/token"),
    ("Error: open /etc/gone: no such file or directory", "GB550", "there is no /etc/gone"),
    (VALIDATE + "invalid token format", "GB530", "cannot read its token"),
    (VALIDATE + "invalid token CA hash length", "GB530", "cannot read its token"),
    (VALIDATE + "token must not be empty", "GB530", "cannot read its token"),
    ("Error: yaml: line 3: mapping values are not allowed in this context", "GB552", "line 3"),
    ("Error: failed to parse node taints: invalid taint spec: nvidia.com/gpu", "GB546",
     "invalid taint spec: nvidia.com/gpu"),
    (("Error: failed to parse node taints: duplicated taints with the same key and effect:"
     " {nvidia.com/gpu present NoSchedule <nil>}"), "GB547",
     "the taint nvidia.com/gpu with the effect NoSchedule is given twice"),
    (("failed to start container runtime: failed to setup containerd config: default runtime"
     " nvidia was not found"), "GB548", "default-runtime nvidia"),
    (("invalid kernel parameter value vm.overcommit_memory=0 - expected 1\\ninvalid kernel"
     " parameter value kernel.panic=0 - expected 10\\n"), "GB549",
     "vm.overcommit_memory is 0 and must be 1; kernel.panic is 0 and must be 10"),
    (("Failed to set annotations and labels on node gpu-1: nodes \\\"gpu-1\\\" is forbidden: is not"
     " allowed to modify labels: node-restriction.kubernetes.io/gpu"), "GB544",
     "node-restriction.kubernetes.io/gpu"),
    (VALIDATE + "token CA hash does not match the Cluster CA certificate hash: aa != bb",
     "GB531", "another CA"),
    (VALIDATE + GET + "tls: failed to verify certificate: x509: certificate signed by unknown"
     " authority", "GB531", "not from the cluster's CA"),
    (VALIDATE + GET + "x509: certificate has expired or is not yet valid: current time",
     "GB407", "this node's clock"),
    (WAITING + CONFIG + "401 Unauthorized", "GB532", "401 Unauthorized"),
    (WAITING + CONFIG + "403 Forbidden", "GB532", "403 Forbidden"),
    (WAITING + CONFIG + "429 Too Many Requests", "GB535", "(429)"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "id_", "said"), FATAL)
def test_what_rke2_agent_says_is_the_cause_at_once(message: str, id_: str, said: str) -> None:
    found = caused(Seen("gpu-1", log("Starting rke2 agent v1.35.7", message, level="fatal")))
    assert found.code.id == id_
    assert said in found.message
    assert found.evidence
    assert "\n\n" not in found.evidence


HEALING = [
    (WAITING + CONFIG + "503 Service Unavailable", "GB533"),
    (VALIDATE + GET + "dial tcp: lookup cluster.lab on 10.0.0.2:53: no such host", "GB108"),
    (VALIDATE + GET + "dial tcp 10.0.0.1:9345: connect: connection refused", "GB405"),
    (VALIDATE + GET + "dial tcp 10.0.0.1:9345: i/o timeout", "GB406"),
    (VALIDATE + GET + "EOF", "GB401"),
    (GET + "read tcp 127.0.0.1:52510->127.0.0.1:6444: read: connection reset by peer", "GB401"),
]


@pytest.mark.parametrize(("message", "id_"), HEALING)
def test_what_may_be_so_for_a_moment_is_a_cause_when_it_lasts(message: str, id_: str) -> None:
    journal = log(message, message, level="error")
    assert diagnose(Seen("gpu-1", journal, seconds=5)) is None
    assert caused(Seen("gpu-1", journal, seconds=40)).code.id == id_


def test_a_reason_that_nobody_knows_is_told_in_rke2s_own_words() -> None:
    journal = log(WAITING + CONFIG + "418 I am a teapot")
    assert diagnose(Seen("gpu-1", journal, seconds=40)) is None
    found = caused(Seen("gpu-1", journal, seconds=70))
    assert (found.code.id, found.message[-16:]) == ("GB540", "418 I am a teapot"[-16:])


KUBELETS = [
    (failed("failed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels specified"
            " with --node-labels: [node-role.kubernetes.io/gpu]\\n--node-labels in the"
            " 'kubernetes.io' namespace must begin with an allowed prefix"),
     "GB544", "no node may give itself: node-role.kubernetes.io/gpu"),
    (failed("failed to validate kubelet flags: invalid node labels: 'a b' is no label"),
     "GB545", "'a b' is no label"),
    (("E1125 server.go:156] \"Failed to parse kubelet flag\" err=\"invalid argument \\\"a=b=c\\\""
     " for \\\"--node-labels\\\" flag: malformed pair, expect string=string\"\n"),
     "GB545", '"a=b=c"'),
    (("E1125 server.go:156] \"Failed to parse kubelet flag\" err=\"invalid argument"
      " \\\"k=NoSchedule:\\\" for \\\"--register-with-taints\\\" flag: invalid taint effect\"\n"),
     "GB546", '"k=NoSchedule:"'),
    (failed("failed to parse kubelet flag: unknown flag: --colour"), "GB551", "flag: --colour"),
    (failed('invalid argument \\"many\\" for \\"--max-pods\\" flag: strconv.ParseInt'), "GB551",
     '"many" for "--max-pods'),
    (failed("failed to validate kubelet configuration, error: invalid configuration: maxPods -1"),
     "GB551", "maxPods -1"),
    (("E1125 kubelet.go:1649] \"Failed to start ContainerManager\" err=\"[invalid kernel flag:"
     " vm/overcommit_memory, expected value: 1, actual value: 0, invalid kernel flag: kernel/panic,"
     " expected value: 10, actual value: 0]\"\n"), "GB553",
     "vm/overcommit_memory is 0 and must be 1; kernel/panic is 0 and must be 10"),
]  # fmt: skip


@pytest.mark.parametrize(("kubelet", "id_", "said"), KUBELETS)
def test_what_ended_the_kubelet_is_the_cause(kubelet: str, id_: str, said: str) -> None:
    journal = log(RUNNING) + log(EXITED, level="error")
    found = caused(Seen("gpu-1", journal, "I1125 something\n" + kubelet))
    assert found.code.id == id_
    assert said in found.message


def test_the_reason_of_an_earlier_start_is_not_the_one_of_this() -> None:
    earlier = KUBELETS[0][0]
    assert diagnose(Seen("gpu-1", log(RUNNING), earlier)) is None
    later = earlier + "I1125 start\n" + KUBELETS[4][0]
    assert caused(Seen("gpu-1", log(RUNNING, EXITED), later)).code.id == "GB551"


def test_a_kubelet_that_ends_for_an_unknown_reason_is_told_at_the_third_time() -> None:
    kubelet = "I1125 all is well\n" + failed("the moon is in the wrong phase")
    twice = log(RUNNING, EXITED, RUNNING, EXITED)
    assert diagnose(Seen("gpu-1", twice, kubelet)) is None
    found = caused(Seen("gpu-1", twice + log(RUNNING, EXITED), kubelet))
    assert found.code.id == "GB542"
    assert "wrong phase" in found.evidence


@pytest.mark.parametrize(
    "err", ["EOF", "dial tcp 127.0.0.1:6443: connect: connection refused", "read: reset by peer"]
)
def test_a_kubelet_that_cannot_reach_the_api_server_is_told_of_its_port(err: str) -> None:
    line = (
        'E1125 kubelet_node_status.go:107] "Unable to register node with API server"'
        f' err="Post \\"https://127.0.0.1:6443/api/v1/nodes\\": {err}" node="gpu-1"\n'
    )
    assert diagnose(Seen("gpu-1", log(RUNNING), line * 3, seconds=10)) is None
    found = caused(Seen("gpu-1", log(RUNNING), line * 3, seconds=40))
    assert found.code.id == "GB401"
    assert "6443" in found.message
    over = line + "I1125 registered\n" * 20
    assert diagnose(Seen("gpu-1", log(RUNNING), over, seconds=40)) is None
    assert diagnose(Seen("gpu-1", log(RUNNING), line, node(because="x"), 40)) is None


def test_what_is_over_is_no_cause_any_more() -> None:
    """After the server was away, the agent went on: what it says now counts."""
    away = log(VALIDATE + GET + "EOF", level="error")
    assert diagnose(Seen("gpu-1", away + log(RUNNING), seconds=60)) is None
    refused = log(WAITING + CONFIG + "401 Unauthorized")
    assert caused(Seen("gpu-1", away + refused, seconds=60)).code.id == "GB532"
    assert caused(Seen("gpu-1", refused + away, seconds=60)).code.id == "GB401"


def node(*, ready: bool = False, because: str = CNI, taint: str = "") -> Node:
    taints = (Taint(taint, "true", "NoSchedule"),) if taint else ()
    return Node("gpu-1", ready, because, {}, taints)


def test_a_node_without_a_network_plugin_has_its_minute() -> None:
    assert diagnose(Seen("gpu-1", node=node(), seconds=30)) is None
    found = caused(Seen("gpu-1", node=node(), seconds=70))
    assert found.code.id == "GB554"
    assert "spec.nodeName=gpu-1" in found.hint
    assert diagnose(Seen("gpu-1", node=node(because="starting"), seconds=700)) is None


def test_a_node_that_no_cloud_provider_has_seen_has_its_minute() -> None:
    waits = node(ready=True, taint=diagnosis.UNINITIALIZED_TAINT)
    assert diagnose(Seen("gpu-1", node=waits, seconds=30)) is None
    assert caused(Seen("gpu-1", node=waits, seconds=70)).code.id == "GB555"
    assert diagnose(Seen("gpu-1", node=node(ready=True), seconds=70)) is None


def test_a_healthy_start_has_no_cause() -> None:
    journal = log(
        "Starting rke2 agent v1.35.7+rke2r1 (abc)",
        "Adding server to load balancer rke2-agent-load-balancer: cluster.lab:9345",
        "Found nvidia container runtime at /usr/bin/nvidia-container-runtime",
        "Logging kubelet to /var/lib/rancher/rke2/agent/logs/kubelet.log",
        RUNNING,
        "Annotations and labels have been set successfully on node: gpu-1",
        "rke2 agent is up and running",
    )
    assert diagnose(Seen("gpu-1", journal, "I1125 fine\n", node(ready=True), 600)) is None


TEXTS = [message for message, *_ in FATAL] + [message for message, _ in HEALING]


@given(
    st.lists(st.sampled_from([*TEXTS, RUNNING, EXITED, "{x} %s {", "\\n", '"']) | st.text()),
    st.lists(st.sampled_from([text for text, *_ in KUBELETS]) | st.text()),
    st.floats(0, 1e6),
)
def test_no_text_is_too_strange_to_be_read(
    journal: list[str], kubelet: list[str], seconds: float
) -> None:
    found = diagnose(Seen("gpu-1", log(*journal), "".join(kubelet), node(), seconds))
    assert found is None or (found.message and found.code.causes)
