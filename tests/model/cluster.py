"""A stand-in for the cluster and the release server: HTTP answered from memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuboot.clock import Clock
from gpuboot.errors import GpubootError
from gpuboot.web import SYSTEM, TLS_REFUSED, UNREACHABLE, Answer, Proxy, Trust

# A certificate whose only use is to be hashed and parsed; it signs nothing.
CA = (Path(__file__).parent / "ca.pem").read_bytes()
TOKEN = f"K10{hashlib.sha256(CA).hexdigest()}::node:correct-horse-battery"
KUBECONFIG = """\
clusters: [{name: local, cluster: {server: "https://127.0.0.1:6443", certificate-authority: /ca}}]
users: [{name: user, user: {client-certificate: /crt, client-key: /key}}]
"""


@dataclass
class Cluster:
    """Supervisor, API server, release server and the kubelet, for one node."""

    release: bytes
    clock: Clock | None = None
    node: dict[str, Any] | None = None
    proxy: Proxy = field(default_factory=Proxy)
    pages: dict[str, Answer] = field(default_factory=dict)  # of any other server
    token: str = TOKEN
    _started: float | None = None

    # -- what the node's agent does

    def agent_started(self, root: Path) -> None:
        """rke2-agent begins: registers the Node, sets labels always and taints only once."""
        self._started = self.clock.boottime() if self.clock else 0.0
        content = json.loads((root / "etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml").read_text())
        assert content["token"] == self.token
        labels = dict(text.split("=") for text in content.get("node-label+", []))
        if self.node is None:
            taints = [
                {"key": head.split("=")[0], "value": head.split("=")[1], "effect": effect}
                for head, effect in (text.split(":") for text in content.get("node-taint+", []))
            ]
            self.node = {"metadata": {"name": "gpu-1", "labels": {}}, "spec": {"taints": taints}}
        self.node["metadata"]["labels"].update(labels)
        agent = root / "var/lib/rancher/rke2/agent"
        (agent / "etc/containerd").mkdir(parents=True, exist_ok=True)
        (agent / "etc/containerd/config.toml").write_text(
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia']\n"
        )
        (agent / "client-kubelet.crt").write_text("certificate\n")
        (agent / "kubelet.kubeconfig").write_text(KUBECONFIG)

    def agent_gone(self) -> None:
        """The node lost its power."""
        self._started = None

    # -- gpuboot.web.Web

    def get(
        self,
        url: str,
        *,
        trust: Trust = SYSTEM,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        if url in self.pages:
            return self.pages[url]
        if url == "https://supervisor:9345/cacerts":
            if trust == SYSTEM:
                raise GpubootError(TLS_REFUSED, "supervisor:9345: certificate refused", retry=True)
            return Answer(200, CA)
        if url == "https://supervisor:9345/v1-rke2/readyz":
            assert trust.ca_pem == CA
            return Answer(200 if auth == ("node", "correct-horse-battery") else 401)
        return self._local(url)

    def _local(self, url: str) -> Answer:
        assert self.clock
        if self._started is None or self.clock.boottime() < self._started + 1:
            raise GpubootError(UNREACHABLE, "127.0.0.1 cannot be reached", retry=True)
        if url == "http://127.0.0.1:10248/healthz":
            return Answer(200, b"ok")
        if url == "https://127.0.0.1:6443/version":
            return Answer(200, b'{"gitVersion": "v1.35.7+rke2r1"}')
        if url.startswith("https://127.0.0.1:6443/apis/node.k8s.io/v1/runtimeclasses/"):
            return Answer(200, b"{}")
        assert url == "https://127.0.0.1:6443/api/v1/nodes/gpu-1", url
        ready = "True" if self.clock.boottime() > self._started + 3 else "False"
        status = {"conditions": [{"type": "Ready", "status": ready, "reason": "KubeletNotReady"}]}
        return Answer(200, json.dumps({**(self.node or {}), "status": status}).encode())

    def send(self, method: str, url: str, body: str, *, trust: Trust, kind: str) -> Answer:
        assert (method, kind) == ("PATCH", "application/merge-patch+json")
        assert self.node
        for key, value in json.loads(body)["metadata"]["labels"].items():
            assert value is None
            self.node["metadata"]["labels"].pop(key, None)
        return self._local(url)

    def pieces(self, url: str) -> Iterator[bytes]:
        assert url.startswith("https://releases/v1.35.7%2Brke2r1/"), url
        if url.endswith("sha256sum-amd64.txt"):
            digest = hashlib.sha256(self.release).hexdigest()
            yield f"{digest}  rke2.linux-amd64.tar.gz\n".encode()
        else:
            yield self.release
