"""The supervisor on 9345: paths, roles and status codes of facts/rke2.md §2."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from tests.rehearsal import pki

from .faults import Faults
from .serving import App, Request, Response, as_json, as_text
from .store import Store

_NODES = "system:nodes"
_NODE = "system:node:"


class _Role(Enum):
    AGENT = "agent"
    REFUSED = "refused"  # credentials that are wrong
    NOBODY = "nobody"  # none, or of another role


@dataclass(frozen=True)
class Cluster:
    """What the supervisor gives out: CAs, the agent token's password, where the API server is."""

    server_ca: pki.Pair
    client_ca: pki.Pair
    password: str
    address: str
    api_port: int
    port: int
    other_ca: pki.Pair | None = None  # another cluster's, which is served where that is ordered


def app(cluster: Cluster, store: Store, faults: Faults) -> App:
    """The supervisor's answer to every request."""

    def answer(request: Request) -> Response:
        if body := _public(request.path, cluster, faults):
            return Response(200, body, {"Content-Type": "text/plain"})
        if not request.path.startswith("/v1-rke2/"):
            return as_text(404, "404 page not found\n")
        if faults.throttled():
            return _TOO_MANY
        role = _role(request, cluster, store, faults)
        if role is _Role.REFUSED:
            return as_text(401, "not authorized\n")
        if role is _Role.NOBODY:
            return as_text(403, "forbidden\n")
        # Only known nodes count against the limit (k3s pkg/server/handlers/router.go).
        with faults.place(read=request.method in ("GET", "HEAD")) as free:
            return _data(request, cluster, store, faults) if free else _TOO_MANY

    return answer


def _public(path: str, cluster: Cluster, faults: Faults) -> bytes | None:
    if path == "/cacerts":
        other = cluster.other_ca if faults.text("certificate") == "other-cluster" else None
        return (other or cluster.server_ca).certificate
    return b"pong" if path == "/ping" else None


_TOO_MANY = Response(
    429,
    b"Too many requests, please try again later.\n",
    {"Retry-After": "1", "Content-Type": "text/plain"},
)


def _role(request: Request, cluster: Cluster, store: Store, faults: Faults) -> _Role:
    if request.group == _NODES and request.name:
        # A certificate outlives its Node, but is worth nothing without it.
        known = store.node(request.name.removeprefix(_NODE))
        return _Role.AGENT if known else _Role.REFUSED
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return _Role.NOBODY
    if faults.order("token401"):
        return _Role.REFUSED
    if faults.order("token403"):
        return _Role.NOBODY
    if scheme.lower() == "bearer":
        return _Role.AGENT if faults.lives(value) else _Role.REFUSED
    if scheme.lower() != "basic":
        return _Role.REFUSED
    try:
        user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return _Role.REFUSED
    right = hmac.compare_digest(password.encode(), cluster.password.encode())
    return _Role.AGENT if user == "node" and right else _Role.REFUSED


def _data(request: Request, cluster: Cluster, store: Store, faults: Faults) -> Response:
    name = request.path.removeprefix("/v1-rke2/")
    gets: Mapping[str, Callable[[], Response]] = {
        "config": lambda: as_json(200, _config(cluster)),
        "apiservers": lambda: as_json(200, [f"{cluster.address}:{cluster.api_port}"]),
        "client-ca.crt": lambda: Response(200, cluster.client_ca.certificate),
        "server-ca.crt": lambda: Response(200, cluster.server_ca.certificate),
        "readyz": lambda: _readyz(faults),
    }
    if name in gets and request.method == "GET":
        return gets[name]()
    if name in ("serving-kubelet.crt", "client-kubelet.crt"):
        return _kubelet_certificate(request, cluster, store, faults)
    clients = {
        "client-kube-proxy.crt": "system:kube-proxy",
        "client-rke2-controller.crt": "system:rke2-controller",
    }
    if name in clients:
        return _signed(request, cluster.client_ca, clients[name])
    return as_text(404, "404 page not found\n")


def _readyz(faults: Faults) -> Response:
    if faults.order("ready503"):
        return as_text(503, "runtime core not ready\n")
    return as_text(200, "ok")


def _config(cluster: Cluster) -> dict[str, object]:
    return {
        "SupervisorPort": cluster.port,
        "HTTPSPort": cluster.api_port,
        "ClusterDomain": "cluster.local",
        "DisableKubeProxy": False,
        "FlannelBackend": "none",
    }


def _kubelet_certificate(
    request: Request, cluster: Cluster, store: Store, faults: Faults
) -> Response:
    """Sign for a node that knows its password; the first to come under a name sets it."""
    name = request.headers.get("rke2-node-name", "")
    password = request.headers.get("rke2-node-password", "")
    if not name or not password:
        return as_text(400, "node name and password must be set\n")
    if request.name not in (None, _NODE + name):
        return as_text(403, "node name does not match the certificate's\n")
    if faults.order("ready503"):
        return as_text(503, "runtime core not ready\n")
    if faults.is_taken(name) or not store.password_fits(name, password):
        return as_text(403, f"unable to verify password for node {name}: hash does not match\n")
    if request.path.endswith("/client-kubelet.crt"):
        return _signed(request, cluster.client_ca, _NODE + name, group=_NODES)
    address = request.headers.get("rke2-node-ip", "").split(",")[0]
    hosts = [name, "localhost", "127.0.0.1", *([address] if address else [])]
    return _signed(request, cluster.server_ca, name, hosts=hosts)


def _signed(
    request: Request,
    ca: pki.Pair,
    name: str,
    *,
    group: str | None = None,
    hosts: list[str] | None = None,
) -> Response:
    if request.method != "POST":
        return as_text(405, "method not allowed\n")
    try:
        certificate = pki.sign(ca, request.body, name, group=group, hosts=hosts or ())
    except ValueError as error:
        return as_text(400, f"{error}\n")
    return Response(200, certificate + ca.certificate, {"Content-Type": "text/plain"})
