"""The node's own Node object, read with the kubelet's credential, and whether it joined."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import yaml

from gpuboot import dropin, labels, rke2, systemd
from gpuboot.clock import stamp
from gpuboot.dropin import Rke2Config
from gpuboot.errors import Code, GpubootError
from gpuboot.labels import Taint
from gpuboot.step import Finding, Ok, Pending
from gpuboot.web import Trust

if TYPE_CHECKING:
    from gpuboot.host import Host

NOT_JOINED = Code(
    "GB540",
    "the node has not joined yet",
    (
        "rke2-agent cannot reach the server, or the server refuses it.",
        "The network plugin is not up, so that the node stays NotReady.",
    ),
    ("journalctl -u rke2-agent -n 50", "tail /var/lib/rancher/rke2/agent/logs/kubelet.log"),
)
PASSWORD_REJECTED = Code(
    "GB541",
    "the cluster rejects this node's password",
    (
        "A Node of the same name exists and was made by another machine.",
        "This node was rebuilt and its old Node was not deleted.",
    ),
    (
        "kubectl delete node NAME (then it joins by itself)",
        "rke2.config.with-node-id: true (a name of its own for every machine)",
        "keep /etc/rancher/node/password over a rebuild",
    ),
)
KUBELET_DIES = Code(
    "GB542",
    "the kubelet does not stay up",
    ("It refuses one of its settings, most often a label it may not set or a kubelet-arg.",),
    ("tail -20 /var/lib/rancher/rke2/agent/logs/kubelet.log", "gpuboot config show"),
)
NO_RUNTIME = Code(
    "GB543",
    "RKE2 has not found the NVIDIA container runtime",
    (
        "nvidia-container-runtime is not in the PATH of rke2-agent's unit.",
        "rke2-agent was started before the toolkit was installed.",
    ),
    ("systemctl restart rke2-agent", "ls -l /usr/bin/nvidia-container-runtime"),
)

JOIN_TIMEOUT = 600.0  # seconds we look on before we call it waiting
POLL = 2.0
UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"


@dataclass(frozen=True)
class Node:
    """The own Node as the API server has it."""

    name: str
    ready: bool
    not_ready_because: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]

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
        }


@dataclass(frozen=True)
class NodeJoined:
    """The own Node is Ready, with its labels and taints, and containerd has the nvidia runtime."""

    name: ClassVar[str] = "node-joined"
    disruptive: ClassVar[bool] = False

    config: Rke2Config
    node_name: str | None
    with_node_id: bool
    admin_labels: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()  # keys of labels that the node must not have any more
    timeout: float = field(default=JOIN_TIMEOUT, compare=False)

    def check(self, host: Host) -> Finding:
        if problem := self._unhealthy(host):
            return Pending(problem)
        node = self._node(host)
        if isinstance(node, str):
            return Pending(node)
        if not node.ready:
            return Pending(f"node {node.name} is not Ready: {node.not_ready_because}")
        if any(taint.key == UNINITIALIZED for taint in node.taints):
            return Pending(f"node {node.name} waits for the cloud provider to initialise it")
        if self._obsolete_taints(host, node):
            return Pending(f"the taints are on the Node and still in {dropin.FILE}")
        if present := [key for key in self.unwanted if key in node.labels]:
            return Pending(f"node {node.name} still has the label {', '.join(present)}")
        drift = self._drift(host, node)
        shown = node.shown((*drift, *self._unset(node)), stamp(host.clock.now()))
        return Ok(f"node {node.name} is Ready in the cluster", drift, {"node": shown})

    def apply(self, host: Host) -> None:
        """Look on until the node is Ready; then take from the drop-in what it carries."""
        deadline = host.clock.boottime() + self.timeout
        while True:
            node = self._node(host)
            if isinstance(node, Node) and self._obsolete_taints(host, node):
                host.write(dropin.FILE, self.config.text(host, without_taints=True), mode=0o600)
            if isinstance(node, Node) and node.ready:
                self._take_labels(host, node)
            finding = self.check(host)
            if not isinstance(finding, Pending):
                return
            _raise_known_cause(host, self.config.data_dir(host))
            if host.clock.boottime() > deadline or host.woken:
                evidence = systemd.journal(host, rke2.AGENT, lines=12)
                raise GpubootError(NOT_JOINED, finding.reason, evidence=evidence, retry=True)
            host.sleep(POLL)

    def _take_labels(self, host: Host, node: Node) -> None:
        """Remove unwanted labels by the kubelet's credential: RKE2 itself never removes any."""
        gone = {key: None for key in self.unwanted if key in node.labels}
        if gone:
            data = self.config.data_dir(host)
            server, trust = credentials(host, *_kubeconfig(host, data))
            body = json.dumps({"metadata": {"labels": gone}})
            host.web.patch(f"{server}/api/v1/nodes/{node.name}", body, trust=trust)

    def _unhealthy(self, host: Host) -> str | None:
        unit = systemd.unit(host, rke2.AGENT)
        if unit.active != "active":
            return f"rke2-agent is {unit.active}"
        try:
            healthy = host.web.get("http://127.0.0.1:10248/healthz").status == 200
        except GpubootError:
            healthy = False
        return None if healthy else "the kubelet does not answer yet"

    def _node(self, host: Host) -> Node | str:
        """The own Node, or why it cannot be read."""
        try:
            wanted = self.node_name or dropin.setting(host, "node-name")
            with_id = self.with_node_id or dropin.setting(host, "with-node-id") == "true"
            name = own_name(host, wanted, with_id=with_id)
            return read_node(host, name, self.config.data_dir(host))
        except GpubootError as error:
            return error.message

    def _obsolete_taints(self, host: Host, node: Node) -> bool:
        carried = all(labels.taint(text) in node.taints for text in self.config.taints)
        return (
            carried
            and node.ready
            and host.read(dropin.FILE) != self.config.text(host, without_taints=True)
        )

    def _drift(self, host: Host, node: Node) -> tuple[str, ...]:
        """What differs and only an administrator, or a restart after a drain, can change."""
        drift = []
        for label in map(labels.label, self.config.labels):
            if node.labels.get(label.key) != label.value:
                drift.append(f"label {label} is missing: kubectl label node {node.name} {label}")
        for taint in map(labels.taint, self.config.taints):
            if taint not in node.taints:
                # RKE2 sets taints only when a node registers.
                drift.append(f"taint {taint} is missing: kubectl taint node {node.name} {taint}")
        if "nvidia" not in (host.read(_containerd(self.config.data_dir(host))) or ""):
            drift.append("RKE2 has not found the NVIDIA container runtime (gpuboot explain GB543)")
        return tuple(drift)

    def _unset(self, node: Node) -> list[str]:
        """Labels that only an administrator may set: told, and never an obstacle."""
        wanted = map(labels.label, self.admin_labels)
        return [
            f"label {label} is not set: kubectl label node {node.name} {label}"
            for label in wanted
            if node.labels.get(label.key) != label.value
        ]


def _containerd(data: str) -> str:
    return f"{data}/agent/etc/containerd/config.toml"


def own_name(host: Host, wanted: str | None, *, with_id: bool) -> str:
    """The name RKE2 gives this node: configured or the host name, in lower case, and its id."""
    name = (wanted or host.read("/proc/sys/kernel/hostname") or "").strip().lower()
    number = (host.read("/etc/rancher/node/id") or "").strip()
    return f"{name}-{number}" if with_id and number else name


def read_node(host: Host, name: str, data: str) -> Node:
    """The Node as the kubelet may see it. Raises GB540 if it cannot be read."""
    server, trust = credentials(host, *_kubeconfig(host, data))
    answer = host.web.get(f"{server}/api/v1/nodes/{name}", trust=trust)
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


def _kubeconfig(host: Host, data: str) -> tuple[str, str]:
    """The kubelet's kubeconfig and its name. Raises GB540."""
    file = f"{data}/agent/kubelet.kubeconfig"
    text = host.read(file)
    if text is None:
        raise GpubootError(NOT_JOINED, f"there is no {file} yet", retry=True)
    return text, file


def credentials(host: Host, text: str, file: str) -> tuple[str, Trust]:
    """Server and credential in a kubeconfig whose certificates are files or inline CA data."""
    try:
        content = yaml.safe_load(text)
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
        return cluster["server"], Trust(pem.encode(), client=(client[0], client[1]))
    except (yaml.YAMLError, *dropin.STUMBLES):
        raise GpubootError(
            NOT_JOINED, f"{file} is no kubeconfig of a kubelet", retry=True
        ) from None


def parse_node(content: Mapping[str, Any]) -> Node:
    """A Node from the API server's JSON. Raises ValueError, KeyError, TypeError, AttributeError."""
    conditions = content.get("status", {}).get("conditions") or []
    ready: dict[str, str] = next((item for item in conditions if item["type"] == "Ready"), {})
    found = content["metadata"].get("labels") or {}
    return Node(
        name=_text(content["metadata"]["name"]),
        ready=ready.get("status") == "True",
        not_ready_because=_text(ready.get("message") or ready.get("reason") or "no condition yet"),
        labels={_text(key): _text(value) for key, value in found.items()},
        taints=tuple(
            Taint(_text(item["key"]), _text(item.get("value") or ""), _text(item["effect"]))
            for item in content.get("spec", {}).get("taints") or []
        ),
    )


def _text(value: object) -> str:
    """A text as Kubernetes has them. Raises TypeError, or ValueError for half of a character."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def _raise_known_cause(host: Host, data: str) -> None:
    """Say early what would otherwise look like mere waiting. Raises GB541 or GB542."""
    log = systemd.journal(host, rke2.AGENT, lines=30)
    if "Node password rejected" in log:
        raise GpubootError(
            PASSWORD_REJECTED,
            "the cluster rejects this node's password: another machine had the same node name",
            evidence=log[-1500:],
            retry=True,
        )
    exits = re.findall(r"Kubelet exited: .*", log)
    if len(exits) > 2:
        kubelet = (host.read(f"{data}/agent/logs/kubelet.log") or "").splitlines()
        errors = [
            line for line in kubelet if re.search(r"failed|error|unknown|invalid", line, re.I)
        ]
        raise GpubootError(
            KUBELET_DIES,
            "the kubelet ends again and again",
            evidence="\n".join(errors[-5:] or exits[-2:]),
            retry=True,
        )
