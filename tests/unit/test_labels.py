"""Labels and taints as the kubelet and NodeRestriction allow them (facts/rke2.md §4)."""

from __future__ import annotations

import pytest

from gpuboot import labels
from gpuboot.labels import Label, Taint

OWN = [
    "nvidia.com/gpu=present", "nvidia.com/gpu.present=true", "gpu=", "a=b", "example.com/A_b.c=1",
    "kubernetes.io/hostname=gpu-1", "kubernetes.io/arch=amd64", "kubernetes.io/os=linux",
    "beta.kubernetes.io/arch=amd64", "beta.kubernetes.io/instance-type=x",
    "beta.kubernetes.io/os=linux", "node.kubernetes.io/instance-type=g",
    "topology.kubernetes.io/zone=a", "topology.kubernetes.io/region=b",
    "failure-domain.beta.kubernetes.io/zone=a", "failure-domain.beta.kubernetes.io/region=a",
    "node.kubernetes.io/anything=x", "sub.node.kubernetes.io/x=y", "kubelet.kubernetes.io/x=y",
    "sub.kubelet.kubernetes.io/x=y", "notkubernetes.io/x=y", "kubernetes.io.example/x=y",
    "mykubernetes.io/hostname=x",
]  # fmt: skip
FORBIDDEN = [
    "node-role.kubernetes.io/gpu=true", "kubernetes.io/x=y", "k8s.io/x=y", "x.k8s.io/x=y",
    "topology.kubernetes.io/rack=x", "beta.kubernetes.io/x=y", "node.k8s.io/x=y",
    "node-restriction.kubernetes.io/x=y", "a.node-restriction.kubernetes.io/x=y",
    "kubernetes.io/role=worker", "node.cluster.x-k8s.io.k8s.io/x=y",
]  # fmt: skip
MALFORMED = [
    "a", "", "=b", "-a=b", "a-=b", "a b=c", "a=b c", "a=b,c=d", "a=-b", "a=b=c", "/a=b", "x/=b",
    "X.example/a=b", "a..b/c=d", "a/b/c=d", f"{'a' * 64}=b", f"a={'b' * 64}",
    f"{'a.' * 127}com/x=y", "a=b\n", "ä=b", "a_b.example/c=d",
]  # fmt: skip


@pytest.mark.parametrize("text", OWN)
def test_a_node_may_set_its_own_label(text: str) -> None:
    assert str(labels.own_label(text)) == text


@pytest.mark.parametrize("text", FORBIDDEN)
def test_a_node_may_not_set_a_reserved_label_but_an_administrator_may(text: str) -> None:
    with pytest.raises(ValueError, match=r"by an administrator|let an administrator"):
        labels.own_label(text)
    assert str(labels.label(text)) == text


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_label_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"label|key|value"):
        labels.label(text)


def test_the_longest_names_are_allowed() -> None:
    key = "a" * 63
    assert labels.label(f"{key}={key}") == Label(key, key)


@pytest.mark.parametrize(
    ("text", "taint"),
    [
        (
            "nvidia.com/gpu=present:NoSchedule", Taint("nvidia.com/gpu", "present", "NoSchedule")
        ),
        ("a:NoExecute", Taint("a", "", "NoExecute")),
        ("a=b:PreferNoSchedule", Taint("a", "b", "PreferNoSchedule")),
    ],
)  # fmt: skip
def test_a_taint_is_read_and_written_the_same(text: str, taint: Taint) -> None:
    assert labels.taint(text) == taint
    assert str(taint) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=b", "a:", "a:noschedule", "a=b:NoSchedule:x", ":NoSchedule", "=b:NoSchedule",
     "a b:NoSchedule", "a=b c:NoExecute", "a:b:NoSchedule"],
)  # fmt: skip
def test_a_malformed_taint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"taint|key|value"):
        labels.taint(text)


@pytest.mark.parametrize(
    ("texts", "double"),
    [
        ([], None),
        (["a=b:NoSchedule", "a=b:NoExecute", "b=b:NoSchedule"], None),
        (["a=b:NoSchedule", "a=c:NoSchedule"], "a=c:NoSchedule"),
        (["a:NoSchedule", "a:NoSchedule"], "a:NoSchedule"),
    ],
)
def test_a_taint_is_there_twice_when_key_and_effect_are(
    texts: list[str], double: str | None
) -> None:
    found = labels.twice(map(labels.taint, texts))
    assert (str(found) if found else None) == double


@pytest.mark.parametrize(
    ("text", "name"), [("gpu-1", "gpu-1"), ("GPU-1.Lan", "gpu-1.lan"), ("a" * 253, "a" * 253)]
)
def test_a_node_name_is_lower_cased(text: str, name: str) -> None:
    assert labels.node_name(text) == name


@pytest.mark.parametrize("text", ["", "-a", "a-", "a_b", "a..b", "a b", "a" * 254, "a."])
def test_a_malformed_node_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no valid node name"):
        labels.node_name(text)
