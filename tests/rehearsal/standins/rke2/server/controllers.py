"""What goes on in the cluster by itself: cloud provider, node lifecycle, node passwords."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.rehearsal.standins.rke2.agent.node import UNINITIALIZED

from .admission import NOT_READY
from .faults import Faults
from .store import Json, Store, now

_UNREACHABLE = "node.kubernetes.io/unreachable"
_GRACE = 40.0  # seconds without a sign of life until a node's state is unknown
_ORPHAN = 600.0  # seconds a password without a Node is kept
_INITIALIZE = 1.0  # seconds until the cloud provider has seen a new node
PERIOD = 0.2  # seconds between two rounds


class Controllers:
    """One round looks at every Node and changes what its state asks for."""

    def __init__(
        self, store: Store, faults: Faults, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._faults = faults
        self._clock = clock
        self._seen: dict[str, float] = {}  # UID to the moment we first saw it

    def round(self) -> None:
        for name in self._store.names():
            self._store.change(name, self._settled)
        self._store.sweep_passwords(_ORPHAN)

    def _settled(self, node: Json) -> Json:
        self._initialize(node)
        name = node["metadata"]["name"]
        ready = _ready(node)
        if ready and ready["status"] != "Unknown" and self._store.silence(name) > _GRACE:
            ready.update(
                status="Unknown",
                reason="NodeStatusUnknown",
                message="Kubelet stopped posting node status.",
                lastTransitionTime=now(),
            )
        status = ready["status"] if ready else "False"
        _taint(node, NOT_READY, wanted=status == "False")
        _taint(node, _UNREACHABLE, wanted=status == "Unknown")
        return node

    def _initialize(self, node: Json) -> None:
        """The cloud controller: names the provider, takes the taint of the uninitialized away."""
        since = self._seen.setdefault(node["metadata"]["uid"], self._clock())
        if self._faults.order("uninitialized") or self._clock() - since < _INITIALIZE:
            return
        spec = node["spec"]
        if not any(taint["key"] == UNINITIALIZED for taint in spec.get("taints") or []):
            return
        _drop(node, UNINITIALIZED)
        spec["providerID"] = f"rke2://{node['metadata']['name']}"
        node["metadata"].setdefault("labels", {})["node.kubernetes.io/instance-type"] = "rke2"


def _ready(node: Json) -> dict[str, Any] | None:
    conditions: list[Json] = node.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Ready"), None)


def _taint(node: Json, key: str, *, wanted: bool) -> None:
    taints = node["spec"].get("taints") or []
    there = any(taint["key"] == key for taint in taints)
    if wanted and not there:
        node["spec"]["taints"] = [*taints, {"key": key, "effect": "NoSchedule"}]
    elif there and not wanted:
        _drop(node, key)


def _drop(node: Json, key: str) -> None:
    left = [taint for taint in node["spec"].get("taints") or [] if taint["key"] != key]
    node["spec"]["taints"] = left
