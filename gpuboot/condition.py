"""Between this node and its cluster: how its GPUs are is told there, and what its Node lacks here.

A program of its own: the monitor has no network, and this has no GPU. gpuboot-condition.path starts
it when the monitor has news, gpuboot-condition.timer every few minutes. It speaks with the
kubelet's credential, as it is at that moment.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gpuboot import apiserver, config, dropin, health, xids
from gpuboot.errors import GpubootError
from gpuboot.health import FINE, bad

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuboot.apiserver import ApiServer, Node
    from gpuboot.config import Config
    from gpuboot.health import Sign
    from gpuboot.host import Host

FILE = "/run/gpuboot/condition.json"  # what there is to say; the monitor writes it when it is news
NODE = "/run/gpuboot/node.json"  # what the own Node looked like, when it was looked at last
# Where Node Feature Discovery looks for features of a host (its source "local").
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"
TYPE = "GPUHealthy"
COMPONENT = "gpuboot-monitor"
LONGEST = 1000  # characters of an Event's note (events.k8s.io: 1 kB)
OLD = 1800.0  # seconds after which a look at the Node says nothing any more; the timer has five min
# Of the condition: its status, and the reason in one word as Kubernetes wants it.
STATES = {
    health.HEALTHY: ("True", "GPUsAnswer"),
    health.UNHEALTHY: ("False", "GPUFault"),
    health.UNKNOWN: ("Unknown", "NotSeen"),
}


# -- the monitor's side -----------------------------------------------------------------------


def news(found: Mapping[str, Any]) -> dict[str, str]:
    """What of the monitor's document the cluster is told: of the GPUs, and of their node."""
    cards = found["gpu"]
    if cards["state"] == health.UNHEALTHY:
        message = f"{cards['reason']}; to do: {cards['advice']}"
    elif cards["state"] == health.UNKNOWN:
        message = "; ".join(f"{check}: {why}" for check, why in found["blind"].items())
    else:
        message = f"all {found['expected']} GPUs answer"
    node = "; ".join(one["reason"] for one in found["faults"] if one["about"] == "node")
    return {
        "state": cards["state"],
        "action": cards["action"],
        "message": message[:LONGEST],
        "node": node[:LONGEST],
    }


def features(told: Mapping[str, str]) -> str:
    """Labels below feature.node.kubernetes.io, for who schedules by them."""
    action = told["action"].replace(" ", "-")
    return f"gpuboot-gpus.state={told['state']}\ngpuboot-gpus.action={action}\n"


def signs(host: Host, standing: Mapping[str, Any]) -> dict[str, Sign]:
    """Whether the own Node has lost a label or taint since the walk; empty if nobody has looked.

    While the API server is away that is no news of the node.
    """
    seen = _read(host, NODE)
    try:
        if host.clock.boottime() - seen["boottime"] > OLD:
            return {}
        known = (standing.get("node") or {}).get("drift") or []
        lacks = [one for one in seen["lacks"] if f"{one['what']}: {one['command']}" not in known]
        if not lacks:
            return {"node": FINE}
        told = "; ".join(one["what"] for one in lacks)
        return {"node": bad(f"Node {seen['name']}: {told}", xids.NONE, hint=lacks[0]["command"])}
    except (KeyError, TypeError):
        return {}


# -- the cluster's side -----------------------------------------------------------------------


def publish(host: Host) -> str:
    """Look at the own Node, tell it what is news to it; one line of what was told.

    A node that joins no cluster tells nobody. Raises GB540, ConfigError.
    """
    wanted = config.load(host)
    if wanted.mode == "none":
        return "this node joins no cluster"
    data = dropin.data_dir(host, wanted.rke2.config.data_dir)
    name = dropin.registered_name(host, data)
    if name is None:
        raise GpubootError(apiserver.NOT_JOINED, "this node is not registered", retry=True)
    server = apiserver.connect(host, data)
    node = server.node(host, name)
    before = _read(host, NODE).get("told", "")
    _remember(host, wanted, node, before)
    told = _read(host, FILE)
    try:
        status, reason = STATES[told["state"]]
        message, action, of_node = told["message"], told["action"], told["node"]
    except (KeyError, TypeError):
        return f"there is nothing to tell in {FILE}"
    if of_node != before:
        why, text = ("NodeFault", of_node) if of_node else ("NodeAsWanted", f"over: {before}")
        server.add_event(host, _event(host, name, why, text[:LONGEST], warn=False))
        _remember(host, wanted, node, of_node)
    if not _tell(host, server, node, status, reason, message):
        return f"{TYPE}={status} is known"
    warn = status != "True" and action != xids.NONE
    server.add_event(host, _event(host, name, reason, message, warn=warn))
    return f"{TYPE}={status}: {message}"


def _remember(host: Host, wanted: Config, node: Node, told: str) -> None:
    """Leave to the monitor what was seen of the Node."""
    from gpuboot.kubernetes import lacks

    agent = wanted.rke2.config
    missing = lacks(node, agent.node_label, agent.node_taint)
    seen = {
        "boottime": round(host.clock.boottime(), 2),
        "name": node.name,
        "lacks": [{"what": what, "command": command} for what, command in missing],
        "told": told,
    }
    host.write(NODE, json.dumps(seen, ensure_ascii=False) + "\n")


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


def _read(host: Host, name: str) -> dict[str, Any]:
    try:
        found = json.loads(host.read(name) or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
