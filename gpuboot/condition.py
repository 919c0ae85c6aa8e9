"""Says in the cluster how this node's GPUs are: the Node's condition GPUHealthy, and Events.

A program of its own, which gpuboot-condition.path starts when the monitor has news: the monitor has
no network, and this has no GPU. It speaks with the kubelet's credential, as it is at that moment.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gpuboot import apiserver, config, dropin, health, xids
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuboot.host import Host

FILE = "/run/gpuboot/condition.json"  # what there is to say; the monitor writes it when it is news
TYPE = "GPUHealthy"
COMPONENT = "gpuboot-monitor"
LONGEST = 1000  # characters of an Event's note (events.k8s.io: 1 kB)
# Of the condition: its status, and the reason in one word as Kubernetes wants it.
STATES = {
    health.HEALTHY: ("True", "GPUsAnswer"),
    health.UNHEALTHY: ("False", "GPUFault"),
    health.UNKNOWN: ("Unknown", "NotSeen"),
}


def news(found: Mapping[str, Any]) -> dict[str, str]:
    """What of the monitor's document the cluster is told."""
    if found["state"] == health.UNHEALTHY:
        message = f"{found['reason']}; to do: {found['advice']}"
    elif found["state"] == health.UNKNOWN:
        message = "; ".join(f"{check}: {why}" for check, why in found["blind"].items())
    else:
        message = f"all {found['expected']} GPUs answer"
    return {"state": found["state"], "action": found["action"], "message": message[:LONGEST]}


def publish(host: Host) -> str:
    """Tell the cluster what the file says; one line of what was told. Raises GB540, ConfigError.

    A node that joins no cluster tells nobody.
    """
    wanted = config.load(host)
    try:
        told = json.loads(host.read(FILE) or "")
        status, reason = STATES[told["state"]]
    except (ValueError, KeyError, TypeError):
        return f"there is nothing to tell in {FILE}"
    if wanted.mode == "none":
        return "this node joins no cluster"
    data = dropin.data_dir(host, wanted.rke2.config.data_dir)
    name = dropin.registered_name(host, data)
    if name is None:
        raise GpubootError(apiserver.NOT_JOINED, "this node is not registered", retry=True)
    server = apiserver.connect(host, data)
    now = f"{host.clock.now():%Y-%m-%dT%H:%M:%SZ}"
    server.set_condition(host, name, {
        "type": TYPE, "status": status, "reason": reason, "message": told["message"],
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    })  # fmt: skip
    server.add_event(host, _event(name, reason, told, now))
    return f"{TYPE}={status}: {told['message']}"


def _event(name: str, reason: str, told: Mapping[str, str], now: str) -> dict[str, Any]:
    wrong = told["state"] != health.HEALTHY and told["action"] != xids.NONE
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}.gpuboot-", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": name, "uid": name},
        "type": "Warning" if wrong else "Normal",
        "reason": reason,
        "message": told["message"],
        "source": {"component": COMPONENT, "host": name},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
