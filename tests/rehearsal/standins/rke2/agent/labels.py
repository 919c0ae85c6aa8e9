"""Kubernetes' own rules for node labels and taints (facts/rke2.md §4).

Written from Kubernetes' sources and independent of gpuboot's idea of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_KUBELET_NAMESPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_KUBELET_LABELS = (
    "beta.kubernetes.io/arch", "beta.kubernetes.io/instance-type", "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch", "kubernetes.io/hostname", "kubernetes.io/os",
    "node.kubernetes.io/instance-type", "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
)  # fmt: skip

Taint = dict[str, str]


def valid_key(key: str) -> bool:
    """A qualified name: an optional DNS prefix and a name of up to 63 characters."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return False
    return len(name) <= 63 and bool(_NAME.fullmatch(name))


def valid_value(value: str) -> bool:
    return not value or (len(value) <= 63 and bool(_NAME.fullmatch(value)))


def kubelet_may_set(key: str) -> bool:
    """ValidateKubeletFlags' rule, which NodeRestriction shares."""
    namespace = key.rpartition("/")[0]
    if not any(_inside(namespace, domain) for domain in ("kubernetes.io", "k8s.io")):
        return True
    return key in _KUBELET_LABELS or any(_inside(namespace, ok) for ok in _KUBELET_NAMESPACES)


def node_may_change(key: str) -> bool:
    """NodeRestriction's rule for a label on the node's own object."""
    restricted = _inside(key.rpartition("/")[0], "node-restriction.kubernetes.io")
    return kubelet_may_set(key) and not restricted


def kubelet_refusal(labels: Sequence[tuple[str, str]]) -> str | None:
    """Why the kubelet would not start with these --node-labels, in its own words."""
    unknown = sorted(key for key, _ in labels if not kubelet_may_set(key))
    if unknown:
        return (
            "failed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels"
            f" specified with --node-labels: [{' '.join(unknown)}]\n"
            "--node-labels in the 'kubernetes.io' namespace must begin with an allowed prefix"
            f" ({', '.join(_KUBELET_NAMESPACES)}) or be in the specifically allowed set"
            f" ({', '.join(_KUBELET_LABELS)})"
        )
    wrong = [
        f'"{key}={value}"' for key, value in labels if not (valid_key(key) and valid_value(value))
    ]
    return "invalid node labels: " + ", ".join(wrong) if wrong else None


def parse_taints(specifications: Iterable[str]) -> list[Taint]:
    """As ParseTaints does; an empty list member is one too. Raises ValueError in its words."""
    taints: list[Taint] = []
    seen: set[tuple[str, str]] = set()
    for text in specifications:
        taint = _taint(text)
        if (taint["key"], taint["effect"]) in seen:
            raise ValueError(
                "duplicated taints with the same key and effect:"
                f" {{{taint['key']} {taint.get('value', '')} {taint['effect']} <nil>}}"
            )
        seen.add((taint["key"], taint["effect"]))
        taints.append(taint)
    return taints


def _taint(text: str) -> Taint:
    head, colon, effect = text.partition(":")
    key, equals, value = head.partition("=")
    if not colon or ":" in effect or "=" in value or not valid_key(key):
        raise ValueError(f"invalid taint spec: {text}")
    if not valid_value(value):
        raise ValueError(f"invalid taint spec: {text}, {value} is no valid label value")
    if effect not in _EFFECTS:
        raise ValueError(f"invalid taint effect: {effect}, unsupported taint effect")
    return (
        {"key": key, "value": value, "effect": effect}
        if equals
        else {
            "key": key,
            "effect": effect,
        }
    )


def _inside(namespace: str, domain: str) -> bool:
    return namespace == domain or namespace.endswith("." + domain)
