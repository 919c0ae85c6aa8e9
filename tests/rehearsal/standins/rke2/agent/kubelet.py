"""The kubelet: a child of rke2 that registers the Node, answers /healthz and reports its status.

Its flags are checked as the real one does (facts/rke2.md §4): a label it may not set ends it, and
the reason is in its own log, not in the journal.
"""

from __future__ import annotations

import ctypes
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import labels, node
from .api import STRATEGIC, Api
from .node import Json
from .supervisor import Unready

_NETWORK_DELAY = 1.5  # seconds until a new node's CNI is there
_HEARTBEAT = 10.0  # seconds, the lease's renewal
_SET_PDEATHSIG = 1
# Those RKE2 gives it, and what operators use; any other name ends the real one as well.
_FLAGS = frozenset({
    "config-dir", "hostname-override", "kubeconfig", "node-ip", "node-labels", "healthz-port",
    "allowed-unsafe-sysctls", "cloud-provider", "cluster-dns", "cluster-domain",
    "container-log-max-files", "container-log-max-size", "cpu-manager-policy", "eviction-hard",
    "eviction-max-pod-grace-period", "eviction-minimum-reclaim", "eviction-soft",
    "eviction-soft-grace-period", "event-qps", "fail-swap-on", "feature-gates",
    "image-gc-high-threshold", "image-gc-low-threshold", "kube-api-burst", "kube-api-qps",
    "kube-reserved", "make-iptables-util-chains", "max-parallel-image-pulls", "max-pods",
    "memory-manager-policy", "node-status-update-frequency", "pod-max-pids",
    "protect-kernel-defaults", "read-only-port", "register-with-taints", "reserved-cpus",
    "reserved-memory", "root-dir", "serialize-image-pulls", "shutdown-grace-period",
    "streaming-connection-idle-timeout", "system-reserved", "tls-cipher-suites",
    "tls-min-version", "topology-manager-policy", "topology-manager-scope", "v",
})  # fmt: skip


_NUMBERS = frozenset({
    "container-log-max-files", "event-qps", "image-gc-high-threshold", "image-gc-low-threshold",
    "kube-api-burst", "kube-api-qps", "max-pods", "pod-max-pids", "read-only-port",
})  # fmt: skip


@dataclass(frozen=True)
class Kubelet:
    """What the flags and the configuration folder say."""

    name: str
    address: str
    version: str
    labels: Sequence[tuple[str, str]]
    taints: Sequence[Json]
    port: int
    api: Api


def main(arguments: Sequence[str], version: str) -> None:
    """Run until killed. Ends with 1 and a line in its log for what it cannot accept."""
    _die_with_parent()
    kubelet = _start(arguments, version)
    _serve_healthz(kubelet.port)
    fresh = _register(kubelet)
    if fresh:
        _say(f'"Successfully registered node" node="{kubelet.name}"')
        _report(kubelet, ready=False)
        time.sleep(_NETWORK_DELAY)
    _await_network(kubelet)
    while True:
        _report(kubelet, ready=True)
        _renew_lease(kubelet)
        time.sleep(_HEARTBEAT)


def _await_network(kubelet: Kubelet) -> None:
    """NotReady until the network plugin's pod is on this node, as its DaemonSet puts it there."""
    path = f"/api/v1/pods?fieldSelector=spec.nodeName={kubelet.name}"
    while True:
        try:
            if kubelet.api.call("GET", path).body.get("items"):
                return
        except Unready as error:
            _say(f'"Failed to list pods" err="{error}"')
        _report(kubelet, ready=False)
        _renew_lease(kubelet)
        time.sleep(1)


def _start(arguments: Sequence[str], version: str) -> Kubelet:
    flags = _flags(arguments)
    pairs = [
        (key, value)
        for key, _, value in (pair.partition("=") for pair in flags["node-labels"].split(","))
        if key
    ]
    if refusal := labels.kubelet_refusal(pairs):
        _die(refusal)
    if flags.get("protect-kernel-defaults") == "true" and (wrong := node.wrong_kernel_defaults()):
        flags_wrong = ", ".join(
            f"invalid kernel flag: {name}, expected value: {wanted}, actual value: {found}"
            for name, wanted, found in wrong
        )
        _die(f"failed to run Kubelet: Failed to start ContainerManager: [{flags_wrong}]")
    _make_root(flags.get("root-dir", ""))
    defaults = json.loads((Path(flags["config-dir"]) / "00-rke2-defaults.conf").read_text())
    return Kubelet(
        name=flags["hostname-override"],
        address=flags["node-ip"],
        version=version,
        labels=pairs,
        taints=defaults["registerWithTaints"],
        port=int(flags.get("healthz-port", "10248")),
        api=Api(Path(flags["kubeconfig"])),
    )


def _flags(arguments: Sequence[str]) -> Mapping[str, str]:
    flags: dict[str, str] = {"node-labels": ""}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in _FLAGS:
            _die(f"failed to parse kubelet flag: unknown flag: --{name}")
        if name in _NUMBERS and not value.lstrip("-").isdigit():
            _die(
                f'invalid argument "{value}" for "--{name}" flag: strconv.ParseInt: parsing'
                f' "{value}": invalid syntax'
            )
        flags[name] = value
    return flags


def _make_root(folder: str) -> None:
    """--root-dir, if it is given: the real kubelet ends if it cannot be made."""
    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _die(f"failed to run Kubelet: mkdir {folder}: {error.strerror}")


def _register(kubelet: Kubelet) -> bool:
    """Create the Node, or find it there; True if it is new. Tries for as long as it takes."""
    wanted = node.new(kubelet.name, kubelet.address, dict(kubelet.labels), kubelet.taints)
    while True:
        _say(f'"Attempting to register node" node="{kubelet.name}"')
        try:
            reply = kubelet.api.call("POST", "/api/v1/nodes", wanted)
        except Unready as error:
            _say(f'"Unable to register node with API server" err="{error}"')
            time.sleep(1)
            continue
        if reply.status in (201, 409):
            return reply.status == 201
        _say(f'"Unable to register node with API server" err="{reply.reason}"')
        time.sleep(1)


def _report(kubelet: Kubelet, *, ready: bool) -> None:
    status = node.status(kubelet.name, kubelet.address, kubelet.version, ready=ready)
    path = f"/api/v1/nodes/{kubelet.name}/status"
    try:
        reply = kubelet.api.call("PATCH", path, {"status": status}, STRATEGIC)
    except Unready as error:
        _say(f'"Error updating node status, will retry" err="{error}"')
        return
    if reply.status != 200:
        _say(f'"Error updating node status, will retry" err="{reply.reason}"')


def _renew_lease(kubelet: Kubelet) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{kubelet.name}"
    lease = {"metadata": {"name": kubelet.name}, "spec": {"holderIdentity": kubelet.name}}
    try:
        kubelet.api.call("PUT", path, lease)
    except Unready as error:
        _say(f'"Failed to update lease" err="{error}"')


def _serve_healthz(port: int) -> None:
    class Healthz(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/healthz"
            body = b"ok" if found else b"404 page not found\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """The kubelet logs no probe."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    server = Server(("127.0.0.1", port), Healthz)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _die_with_parent() -> None:
    """Be killed when rke2 is (k3s sets this on its children, too)."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        sys.exit(1)  # the parent was gone before it could be tied to us


def _say(message: str) -> None:
    stamp = time.strftime("%m%d %H:%M:%S", time.gmtime())
    sys.stderr.write(f"I{stamp} kubelet] {message}\n")
    sys.stderr.flush()


def _die(message: str) -> NoReturn:
    stamp = time.strftime("%m%d %H:%M:%S", time.gmtime())
    quoted = json.dumps(message, ensure_ascii=False)  # klog quotes as %q does
    sys.stderr.write(f'E{stamp} run.go:72] "command failed" err={quoted}\n')
    sys.exit(1)
