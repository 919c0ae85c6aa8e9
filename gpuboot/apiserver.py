"""The API server as a node may ask it, with the kubelet's credential: its own Node, mostly."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from gpuboot import dropin
from gpuboot.errors import Code, GpubootError
from gpuboot.labels import Taint
from gpuboot.reader import Loader
from gpuboot.web import Answer, Trust

if TYPE_CHECKING:
    from gpuboot.host import Host

NOT_JOINED = Code(
    "GB540",
    "the node has not joined yet",
    (
        "rke2-agent cannot reach the server, or the server refuses it.",
        "The node's images are still being fetched.",
    ),
    ("journalctl -u rke2-agent -n 50", "tail /var/lib/rancher/rke2/agent/logs/kubelet.log"),
    evidence="the own Node in the cluster, and the last lines of rke2-agent and the kubelet",
)

# Kinds of patches: RFC 7386's, and Kubernetes' own, which merges conditions by their type.
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
JSON = "application/json"
GPU = "nvidia.com/gpu"  # what NVIDIA's device plugin calls a card


@dataclass(frozen=True)
class Node:
    """The own Node as the API server has it."""

    name: str
    ready: bool
    not_ready_because: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    version: str = ""  # the kubelet's, such as v1.35.7+rke2r1
    gpus: int = 0  # that pods can ask for: none before a device plugin runs
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by type

    def shown(self, drift: tuple[str, ...], checked: str) -> dict[str, Any]:
        """The `node` of `gpuboot status --json`."""
        return {
            "name": self.name,
            "joined": True,
            "ready": self.ready,
            "labels": dict(self.labels),
            "taints": [str(taint) for taint in self.taints],
            "drift": list(drift),
            "checked": checked,
            "allocatable_gpus": self.gpus,
        }


@dataclass(frozen=True)
class ApiServer:
    """One API server and the credential to ask it by."""

    url: str
    trust: Trust

    def node(self, host: Host, name: str) -> Node:
        """The Node as its kubelet may see it. Raises GB540 if it cannot be read."""
        answer = host.web.get(f"{self.url}/api/v1/nodes/{name}", trust=self.trust)
        if answer.status != 200:
            raise GpubootError(
                NOT_JOINED, f"the API server answered {answer.status} for node {name}", retry=True
            )
        try:
            return parse_node(json.loads(answer.text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise GpubootError(
                NOT_JOINED, f"the API server's answer for node {name} is no Node", retry=True
            ) from None

    def remove_labels(self, host: Host, name: str, keys: list[str]) -> None:
        """Take labels from the Node: RKE2 itself never removes any."""
        body = json.dumps({"metadata": {"labels": dict.fromkeys(keys)}})
        url = f"{self.url}/api/v1/nodes/{name}"  # the next look says what came of it
        host.web.send("PATCH", url, body, trust=self.trust, kind=MERGE)

    def set_condition(self, host: Host, name: str, condition: Mapping[str, str]) -> None:
        """Set one condition of the Node and leave the kubelet's. Raises GB540 where that fails."""
        body = json.dumps({"status": {"conditions": [condition]}})
        self._send(host, "PATCH", f"nodes/{name}/status", body, STRATEGIC)

    def add_event(self, host: Host, event: Mapping[str, Any]) -> None:
        """Add an Event to the namespace default, where Nodes have theirs. Raises GB540."""
        self._send(host, "POST", "namespaces/default/events", json.dumps(event), JSON)

    def _send(self, host: Host, method: str, path: str, body: str, kind: str) -> None:
        url = f"{self.url}/api/v1/{path}"
        answer = host.web.send(method, url, body, trust=self.trust, kind=kind)
        if answer.status >= 300:
            told = f"the API server answered {answer.status} to a change of {path}"
            raise GpubootError(NOT_JOINED, told, retry=True)

    def version(self, host: Host) -> str | None:
        """The server's own version, such as v1.35.7+rke2r1; None if it does not tell."""
        answer = self._asked(host, "/version")
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            version = json.loads(answer.text)["gitVersion"] if answer else None
            return version if isinstance(version, str) and minor(version) else None
        return None

    def lacks_runtime_class(self, host: Host, name: str) -> bool:
        """Whether there surely is no such RuntimeClass: who may not look does not know."""
        answer = self._asked(host, f"/apis/node.k8s.io/v1/runtimeclasses/{name}")
        return answer is not None and answer.status == 404

    def _asked(self, host: Host, path: str) -> Answer | None:
        try:
            return host.web.get(f"{self.url}{path}", trust=self.trust)
        except GpubootError:
            return None


def connect(host: Host, data: str) -> ApiServer:
    """The API server that the kubelet below this data folder asks. Raises GB540."""
    file = f"{data}/agent/kubelet.kubeconfig"
    text = host.read(file)
    if text is None:
        raise GpubootError(NOT_JOINED, f"there is no {file} yet", retry=True)
    return credentials(host, text, file)


def credentials(host: Host, text: str, file: str) -> ApiServer:
    """Server and credential in a kubeconfig whose certificates are files or inline CA data."""
    try:
        content = yaml.load(text, Loader=Loader)  # noqa: S506 - a safe one
        cluster = content["clusters"][0]["cluster"]
        user = content["users"][0]["user"]
        pem = (
            base64.b64decode(cluster["certificate-authority-data"]).decode()
            if "certificate-authority-data" in cluster
            else host.read(cluster["certificate-authority"]) or ""
        )
        client = tuple(str(host.path(user[f"client-{part}"])) for part in ("certificate", "key"))
        if not urlsplit(cluster["server"]).hostname:
            raise ValueError
        return ApiServer(cluster["server"], Trust(pem.encode(), client=(client[0], client[1])))
    except dropin.UNREADABLE:
        raise GpubootError(
            NOT_JOINED, f"{file} is no kubeconfig of a kubelet", retry=True
        ) from None


def parse_node(content: Mapping[str, Any]) -> Node:
    """A Node from the API server's JSON. Raises KeyError, TypeError, AttributeError, ValueError."""
    status = content.get("status") or {}
    conditions = status.get("conditions") or []
    ready: dict[str, Any] = next((item for item in conditions if item["type"] == "Ready"), {})
    gpus = str((status.get("allocatable") or {}).get(GPU, ""))
    found = content["metadata"].get("labels") or {}
    return Node(
        name=_text(content["metadata"]["name"]),
        ready=ready.get("status") == "True",
        not_ready_because=_text(ready.get("message") or ready.get("reason") or "no condition yet"),
        labels={_text(key): _text(value) for key, value in found.items()},
        taints=tuple(
            Taint(_text(item["key"]), _text(item.get("value") or ""), _text(item["effect"]))
            for item in (content.get("spec") or {}).get("taints") or []
        ),
        version=_text((status.get("nodeInfo") or {}).get("kubeletVersion") or ""),
        gpus=int(gpus[:6]) if gpus.isascii() and gpus.isdigit() else 0,
        conditions={item["type"]: item for item in conditions},
    )


def _text(value: object) -> str:
    """A text as Kubernetes has them. Raises TypeError, or ValueError for half of a character."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def own_name(host: Host, wanted: str | None, *, with_id: bool) -> str:
    """The name RKE2 gives this node: configured or the host name, in lower case, and its id."""
    name = (wanted or host.read("/proc/sys/kernel/hostname") or "").strip().lower()
    number = (host.read("/etc/rancher/node/id") or "").strip()
    return f"{name}-{number}" if with_id and number else name


def minor(version: str) -> tuple[int, int] | None:
    """The two numbers that Kubernetes' skew rules speak of: v1.35.7+rke2r1 is (1, 35)."""
    match = re.match(r"v(\d{1,4})\.(\d{1,4})\.", version)
    return (int(match[1]), int(match[2])) if match else None
