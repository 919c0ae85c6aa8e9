"""The API server on 6443, as far as a node and a test reach into it (facts/rke2.md §7).

Authorizer: a node sees and changes its own Node, its lease and events, and nothing else.
An administrator, who has the bearer token, may do everything to every Node.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from . import admission
from .admission import Refused
from .faults import Faults
from .serving import App, Request, Response, as_json, as_text
from .store import Json, Store

_RUNTIME_CLASSES = ("nvidia", "nvidia-experimental", "crun")  # the chart rke2-runtimeclasses
_HEALTH = ("healthz", "livez", "readyz")


@dataclass(frozen=True)
class User:
    """Who asks. `node` is None for an administrator."""

    name: str
    node: str | None

    def refused(self, verb: str, what: str) -> Refused:
        return Refused(
            403, "Forbidden", f'{what} is forbidden: User "{self.name}" cannot {verb} this resource'
        )


def app(store: Store, admin_token: str, faults: Faults) -> App:
    """The API server's answer to every request."""

    def answer(request: Request) -> Response:
        user = _user(request, admin_token)
        if user is None:
            return _failure(Refused(401, "Unauthorized", "Unauthorized"))
        try:
            return _routed(request, store, user, faults)
        except Refused as refused:
            return _failure(refused)

    return answer


def _user(request: Request, admin_token: str) -> User | None:
    if request.name and request.group == "system:nodes":
        return User(request.name, request.name.removeprefix("system:node:"))
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), admin_token.encode()):
        return User("admin", None)
    return None


def _routed(request: Request, store: Store, user: User, faults: Faults) -> Response:
    parts = request.path.strip("/").split("/")
    if parts[0] in _HEALTH:
        return as_text(200, "ok")
    if parts == ["version"]:
        version = faults.text("server-version") or "v1.35.7+rke2r1"
        major, minor, _ = version.removeprefix("v").split(".", 2)
        return as_json(200, {"major": major, "minor": minor, "gitVersion": version})
    if parts == ["api", "v1", "pods"]:
        return _pods(request, user, faults)
    if parts[:3] == ["api", "v1", "nodes"]:
        return _nodes(request, store, user, parts[3:])
    if "leases" in parts:
        return _lease(request, store, user, parts)
    if "events" in parts:
        return _event(request, store, user)
    if parts[:4] == ["apis", "node.k8s.io", "v1", "runtimeclasses"]:
        return _runtime_class(request, user, parts[4:])
    raise Refused(404, "NotFound", "the server could not find the requested resource")


def _nodes(request: Request, store: Store, user: User, rest: Sequence[str]) -> Response:
    if not rest:
        return (
            _create(request, store, user)
            if request.method == "POST"
            else _list(request, store, user)
        )
    name, status = rest[0], list(rest[1:]) == ["status"]
    if len(rest) > 1 and not status:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    if user.node not in (None, name):
        # Other nodes are hidden from a node since 1.32.
        raise user.refused(request.method.lower(), f'nodes "{name}"')
    if request.method == "GET":
        return _found(store.node(name), name)
    if request.method == "DELETE":
        if user.node is not None:
            raise user.refused("delete", f'nodes "{name}"')
        return _found(store.delete(name), name)
    edit = _edit(request, user, status=status)
    if user.node == name and status:
        store.beat(name)
    return _found(store.change(name, edit), name)


def _create(request: Request, store: Store, user: User) -> Response:
    node = admission.created(_object(request), user.node)
    name = node["metadata"]["name"]
    made = store.create(node)
    if made is None:
        raise Refused(409, "AlreadyExists", f'nodes "{name}" already exists')
    store.beat(name)
    return as_json(201, made)


def _list(request: Request, store: Store, user: User) -> Response:
    if request.method != "GET":
        raise Refused(405, "MethodNotAllowed", "the server does not allow this method")
    query = parse_qs(request.query)
    if "watch" in query:
        raise Refused(501, "NotImplemented", "this stand-in has no watch")
    names = store.names()
    if selector := query.get("fieldSelector", [""])[0]:
        names = [name for name in names if selector == f"metadata.name={name}"]
    if user.node is not None and selector != f"metadata.name={user.node}":
        raise user.refused("list", "nodes")
    items = [store.node(name) for name in names]
    return as_json(200, {"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": items})


def _edit(request: Request, user: User, *, status: bool) -> Callable[[Json], Json]:
    body = _object(request)
    kind = request.headers.get("content-type", "").partition(";")[0]
    if request.method == "PUT":
        return lambda old: admission.changed(old, body, user.node, status=status)
    if request.method != "PATCH":
        raise Refused(405, "MethodNotAllowed", "the server does not allow this method")
    if kind not in (admission.MERGE, admission.STRATEGIC):
        raise Refused(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include:"
            f" {admission.MERGE}, {admission.STRATEGIC}",
        )

    return lambda old: admission.changed(
        old, admission.patched(old, body, kind), user.node, status=status
    )


def _pods(request: Request, user: User, faults: Faults) -> Response:
    """The pods of a node: the network plugin's alone, which a DaemonSet puts on every node."""
    selector = parse_qs(request.query).get("fieldSelector", [""])[0]
    name = selector.removeprefix("spec.nodeName=")
    if request.method != "GET" or user.node not in (None, name):
        raise user.refused(request.method.lower(), "pods")
    pod = {"metadata": {"name": "rke2-canal-x", "namespace": "kube-system"},
           "spec": {"nodeName": name}}  # fmt: skip
    items = [] if faults.order("no-cni") else [pod]
    return as_json(200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})


def _lease(request: Request, store: Store, user: User, parts: Sequence[str]) -> Response:
    """Own leases are taken for a sign of life, and not kept."""
    name = parts[-1] if parts[-1] != "leases" else _object(request)["metadata"]["name"]
    if user.node not in (None, name):
        raise user.refused(request.method.lower(), f'leases "{name}"')
    store.beat(name)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
    return as_json(201 if request.method == "POST" else 200, lease)


def _event(request: Request, store: Store, user: User) -> Response:
    if request.method not in ("POST", "PATCH"):
        raise user.refused(request.method.lower(), "events")
    event = _object(request)
    store.add_event(event)
    return as_json(201 if request.method == "POST" else 200, event)


def _runtime_class(request: Request, user: User, rest: Sequence[str]) -> Response:
    if request.method != "GET":
        raise user.refused("change", "runtimeclasses.node.k8s.io")
    kinds = {
        name: {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": name,
               "metadata": {"name": name}}
        for name in _RUNTIME_CLASSES
    }  # fmt: skip
    if not rest:
        return as_json(200, {"kind": "RuntimeClassList", "items": list(kinds.values())})
    if rest[0] not in kinds:
        raise Refused(404, "NotFound", f'runtimeclasses.node.k8s.io "{rest[0]}" not found')
    return as_json(200, kinds[rest[0]])


def _object(request: Request) -> Json:
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "BadRequest", "the body is no JSON object")
    return body


def _found(node: Json | None, name: str) -> Response:
    if node is None:
        raise Refused(404, "NotFound", f'nodes "{name}" not found')
    return as_json(200, node)


def _failure(refused: Refused) -> Response:
    status = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": str(refused), "reason": refused.reason, "code": refused.status,
    }  # fmt: skip
    return as_json(refused.status, status)
