"""Between this node and its cluster: how its GPUs are is told there, and what its Node lacks here.

A program of its own: the monitor has no network, and this has no GPU. gpuboot-condition.path starts
it when the monitor has news, gpuboot-condition.timer every few minutes. It speaks with the
kubelet's credential, as it is at that moment.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gpuboot import apiserver, config, dropin, health, kubernetes, news, xids
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuboot.apiserver import ApiServer, Node
    from gpuboot.config import Config
    from gpuboot.host import Host

TYPE = "GPUHealthy"
COMPONENT = "gpuboot-monitor"
# Of the condition: its status, and the reason in one word as Kubernetes wants it.
STATES = {
    health.HEALTHY: ("True", "GPUsAnswer"),
    health.UNHEALTHY: ("False", "GPUFault"),
    health.UNKNOWN: ("Unknown", "NotSeen"),
}


def publish(host: Host) -> str:
    """Look at the own Node, tell it what is news to it; one line of that, or none.

    A node that joins no cluster tells nobody. Raises GB540, ConfigError.
    """
    wanted = config.load(host)
    if wanted.mode == "none":
        return "this node joins no cluster"
    data = dropin.data_dir(host, wanted.rke2.config.data_dir)
    name = dropin.registered_name(host, data)
    if name is None:
        raise GpubootError(apiserver.NOT_JOINED, "this node is not registered", retry=True)
    last = news.read(host, news.NODE)
    before = last.get("told", "")
    if not kubernetes.kubelet_answers(host):
        # What the Node lacked last stays: it cannot be seen now.
        _remember(host, {"name": name, "lacks": [], **last, "kubelet": False})
        raise GpubootError(apiserver.NOT_JOINED, "the kubelet does not answer", retry=True)
    server = apiserver.connect(host, data)
    node = server.node(host, name)
    seen = _seen(wanted, node)
    _remember(host, {**seen, "told": before})
    told = news.read(host, news.FILE)
    try:
        status, reason = STATES[told["state"]]
        message, action, of_node = told["message"], told["action"], told["node"]
    except (KeyError, TypeError):
        return f"there is nothing to tell in {news.FILE}"
    if of_node != before:
        why, text = ("NodeFault", of_node) if of_node else ("NodeAsWanted", f"over: {before}")
        server.add_event(host, _event(host, name, why, text[: news.LONGEST], warn=False))
        _remember(host, {**seen, "told": of_node})
    if not _tell(host, server, node, status, reason, message):
        return ""
    warn = status != "True" and action != xids.NONE
    server.add_event(host, _event(host, name, reason, message, warn=warn))
    return f"{TYPE}={status}: {message}"


def _seen(wanted: Config, node: Node) -> dict[str, Any]:
    agent = wanted.rke2.config
    missing = kubernetes.lacks(node, agent.node_label, agent.node_taint)
    return {
        "name": node.name,
        "kubelet": True,
        "lacks": [{"what": what, "command": command} for what, command in missing],
    }


def _remember(host: Host, seen: Mapping[str, Any]) -> None:
    """Leave to the monitor what was seen of kubelet and Node, and to us what was told of them."""
    found = {**seen, "boottime": round(host.clock.boottime(), 2)}
    host.write(news.NODE, json.dumps(found, ensure_ascii=False) + "\n")


def _tell(
    host: Host, server: ApiServer, node: Node, status: str, reason: str, message: str
) -> bool:
    """Set the condition, unless the Node has it already; whether that was done."""
    now = f"{host.clock.now():%Y-%m-%dT%H:%M:%SZ}"
    there = node.conditions.get(TYPE) or {}
    same = there.get("status") == status
    if same and there.get("message") == message:
        return False
    since = there.get("lastTransitionTime") if same else None
    server.set_condition(host, node.name, {
        "type": TYPE, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": since or now,
    })  # fmt: skip
    return True


def _event(host: Host, name: str, reason: str, message: str, *, warn: bool) -> dict[str, Any]:
    now = f"{host.clock.now():%Y-%m-%dT%H:%M:%SZ}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}.gpuboot-", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": name, "uid": name},
        "type": "Warning" if warn else "Normal",
        "reason": reason,
        "message": message,
        "source": {"component": COMPONENT, "host": name},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
