"""What the monitor has for the cluster, and what came back of the own Node: two files in /run.

The monitor has no network; condition.py, a program of its own, has one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gpuboot import health, xids
from gpuboot.health import FINE, bad

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuboot.health import Sign
    from gpuboot.host import Host

FILE = "/run/gpuboot/condition.json"  # what there is to say, whenever it is news
NODE = "/run/gpuboot/node.json"  # what kubelet and Node looked like, when they were looked at last
# Where Node Feature Discovery looks for features of a host (its source "local").
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"
CHECKS = ("kubelet", "node")  # that wait, and are not over, while nobody can look
LONGEST = 1000  # characters of an Event's note (events.k8s.io: 1 kB)
OLD = 1800.0  # seconds after which a look at the Node says nothing any more; the timer has five min


def of(found: Mapping[str, Any]) -> dict[str, str]:
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
    """Whether the kubelet answers, and whether its Node has lost a label or taint since the walk.

    Empty if nobody has looked: that the API server is away is no news of the node.
    """
    seen = read(host, NODE)
    try:
        if host.clock.boottime() - seen["boottime"] > OLD:
            return {}
        silent = bad(
            "the kubelet does not answer", xids.NONE, hint="journalctl -u rke2-agent -n 50"
        )
        found = {"kubelet": FINE if seen["kubelet"] else silent}
        known = (standing.get("node") or {}).get("drift") or []
        lacks = [one for one in seen["lacks"] if f"{one['what']}: {one['command']}" not in known]
        told = f"Node {seen['name']}: {'; '.join(one['what'] for one in lacks)}"
        found["node"] = bad(told, xids.NONE, hint=lacks[0]["command"]) if lacks else FINE
    except (KeyError, TypeError):
        return {}
    return found


def read(host: Host, name: str) -> dict[str, Any]:
    """One of the files; empty where it is not there, or damaged."""
    try:
        found = json.loads(host.read(name) or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
