"""Labels, taints and names as Kubernetes, the kubelet and NodeRestriction allow them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gpuboot.secret import quoted

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

# Kubernetes' own syntax: qualified names and label values.
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NODE = _PREFIX

# Kubernetes' well_known_labels.go: what a kubelet may say of its own node in these namespaces.
_RESERVED = ("kubernetes.io", "k8s.io")
_ALLOWED_NAMESPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_ALLOWED_LABELS = frozenset({
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
})  # fmt: skip


@dataclass(frozen=True)
class Label:
    """A node label, `key=value`; the value may be empty."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True)
class Taint:
    """A node taint, `key=value:effect` or `key:effect`."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return (
            f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"
        )


def label(text: str) -> Label:
    """Parse `key=value`. Raises ValueError with what is wrong."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"label {quoted(text)} has no '='")
    _check_key(key)
    _check_value(value)
    return Label(key, value)


def own_label(text: str) -> Label:
    """A label that a node may give itself. Raises ValueError, naming the rule."""
    parsed = label(text)
    if refused := refusal(parsed):
        advice = "; list it under rke2.admin-labels and let an administrator set it"
        raise ValueError(f"label {parsed.key} {refused}{advice if 'kubelet' in refused else ''}")
    return parsed


def refusal(one: Label) -> str | None:
    """Why a node may not give itself this label, or None."""
    namespace = one.key.rpartition("/")[0]
    if _within(namespace, "node-restriction.kubernetes.io"):
        return "may only be set by an administrator (NodeRestriction)"
    if (
        any(_within(namespace, reserved) for reserved in _RESERVED)
        and not any(_within(namespace, allowed) for allowed in _ALLOWED_NAMESPACES)
        and one.key not in _ALLOWED_LABELS
    ):
        return "is refused by the kubelet: no node may set it itself"
    return None


def taint(text: str) -> Taint:
    """Parse `key=value:effect` or `key:effect`. Raises ValueError with what is wrong."""
    head, separator, effect = text.rpartition(":")
    if not separator:
        raise ValueError(f"taint {quoted(text)} has no ':' before its effect")
    if effect not in EFFECTS:
        # The effect itself is not quoted: of a token put here by mistake it is the password.
        raise ValueError(f"taint {quoted(text)} has none of the effects {', '.join(EFFECTS)}")
    key, _, value = head.partition("=")
    _check_key(key)
    _check_value(value)
    return Taint(key, value, effect)


def twice(taints: Iterable[Taint]) -> Taint | None:
    """The first taint whose key and effect were there before: RKE2 dies of such a pair."""
    seen: set[tuple[str, str]] = set()
    for one in taints:
        if (one.key, one.effect) in seen:
            return one
        seen.add((one.key, one.effect))
    return None


def node_name(text: str) -> str:
    """A valid node name, lower-cased as RKE2 does. Raises ValueError."""
    name = text.lower()
    if len(name) > 253 or not _NODE.fullmatch(name):
        raise ValueError(
            f"{quoted(text)} is no valid node name (letters, digits, '-' and '.', at most 253)"
        )
    return name


def _within(namespace: str, domain: str) -> bool:
    return namespace == domain or namespace.endswith("." + domain)


def _check_key(key: str) -> None:
    prefix, separator, name = key.rpartition("/")
    if separator and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix)):
        raise ValueError(f"key {quoted(key)} has a prefix that is no DNS name")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"key {quoted(key)} must be at most 63 letters, digits, '-', '_' or '.',"
            " and begin and end with a letter or digit"
        )


def _check_value(value: str) -> None:
    if value and not _NAME.fullmatch(value):
        raise ValueError(
            f"value {quoted(value)} must be at most 63 letters, digits, '-', '_' or '.',"
            " and begin and end with a letter or digit"
        )
