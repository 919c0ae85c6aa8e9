"""Rancher, as a node meets it: registration, and the plan of each machine (facts/rke2.md §6).

What the pool is like, and how Rancher behaves, stands in rancher.json of the servers' folder and is
read anew for every request (tests/rehearsal/rancher.py writes it):

release: "2.15"           a machine's token has a short life (2.14: none), and the agent applies a
                          plan once more only if it was pending (2.14: at each of its starts)
token-lives: 1800         seconds from the machine's creation
plan-after: 0             seconds from the registration until there is a plan
plan-takes: 2             seconds the plan's instruction takes on the node
labels, taints: [k=v]     of the pool
data-dir: ""              of RKE2, if not the usual one
server: https://…         the supervisor
machines: {NAME: {token: …, created: …}}
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rehearsal.standins.rke2.server.serving import (
    App,
    Part,
    Request,
    Response,
    as_json,
    as_text,
)

from . import machine

PROGRAM = Path(__file__).with_name("system_agent.py")
NAMESPACE = "fleet-default"
SHORT_LIFE = 30.0  # seconds a token lives after it was used last
_SECRETS = f"/k8s/clusters/local/api/v1/namespaces/{NAMESPACE}/secrets/"
_IMAGES = "/k8s/clusters/local/images/"
_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- name: agent
  cluster:
    certificate-authority-data: {ca}
    server: https://{host}/k8s/clusters/local
users:
- name: agent
  user:
    token: {key}
contexts:
- name: agent
  context: {{cluster: agent, user: agent}}
current-context: agent
"""


@dataclass(frozen=True)
class Known:
    """What Rancher knows of the downstream cluster, and its own certificate authority."""

    ca: bytes
    agent_token: str
    registration_token: str
    releases: Path
    rke2_version: str


@dataclass
class _Machine:
    """A machine that has registered."""

    name: str
    key: str  # opens its plan's secret
    registered: float
    labels: list[str]
    taints: list[str]
    data: dict[str, str] = field(default_factory=dict)  # what the agent has reported


def uid(name: str) -> str:
    """A machine's UID; always the same, so that a scenario can name it."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def app(known: Known, folder: Path, clock: Callable[[], float] = time.time) -> App:
    """Rancher's answer to every request."""
    return _Rancher(known, folder, clock).answer


class _Rancher:
    def __init__(self, known: Known, folder: Path, clock: Callable[[], float]) -> None:
        self._known = known
        self._file = folder / "rancher.json"
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}  # token to its last use
        self._machines: dict[str, _Machine] = {}

    def answer(self, request: Request) -> Response:
        host = request.headers.get("host", "")
        public: Mapping[str, Callable[[], bytes]] = {
            "/ping": lambda: b"pong",
            "/cacerts": lambda: self._known.ca,
            "/system-agent-install.sh": lambda: _served(host),
            "/assets/rancher-system-agent-amd64": PROGRAM.read_bytes,
        }
        if request.path in public:
            return Response(200, public[request.path](), {"Content-Type": "text/plain"})
        with self._lock:
            if request.path == "/v3/connect/agent":
                return self._connect(request, host)
            if request.path.startswith(_SECRETS):
                return self._secret(request)
        if request.path.startswith(_IMAGES):
            return self._image(request.path.removeprefix(_IMAGES))
        return as_text(404, "404 page not found\n")

    # -- registration

    def _connect(self, request: Request, host: str) -> Response:
        settings = self._settings()
        bearer = _bearer(request)
        name = self._owner(bearer, settings)
        if name is None:
            return as_json(401, {"type": "error", "status": 401, "message": "Unauthorized"})
        if not name:
            identity = request.headers.get("x-cattle-id", "")
            name = f"custom-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        found = self._machines.setdefault(
            name, _Machine(name, secrets.token_hex(16), self._clock(), [], [])
        )
        found.labels = _many(request.headers.get("x-cattle-labels", ""))
        found.taints = _many(request.headers.get("x-cattle-taints", ""))
        authority = base64.b64encode(self._known.ca).decode()
        kubeconfig = _KUBECONFIG.format(ca=authority, host=host, key=found.key)
        return as_json(
            200,
            {"kubeConfig": kubeconfig, "namespace": NAMESPACE, "secretName": _plan_name(name)},
        )

    def _owner(self, bearer: str, settings: Mapping[str, Any]) -> str | None:
        """The machine of a valid token, "" for a custom cluster's; None for no valid one."""
        if _same(bearer, self._known.registration_token):
            return ""
        now = self._clock()
        for name, made in settings["machines"].items():
            if not _same(bearer, made["token"]):
                continue
            if settings["release"] == "2.15":
                last = self._used.get(bearer, now)
                if now - made["created"] > settings["token-lives"] or now - last > SHORT_LIFE:
                    return None
            self._used[bearer] = now
            return str(name)
        return None

    # -- the plan

    def _secret(self, request: Request) -> Response:
        wanted = request.path.removeprefix(_SECRETS)
        found = next((m for m in self._machines.values() if _plan_name(m.name) == wanted), None)
        if found is None or not _same(_bearer(request), found.key):
            return as_text(401, "Unauthorized\n")
        if request.method == "PATCH":
            changes = json.loads(request.body)["data"]
            found.data.update({k: base64.b64decode(v).decode() for k, v in changes.items()})
        return as_json(200, {"metadata": {"name": wanted}, "data": _encoded(self._data(found))})

    def _data(self, found: _Machine) -> dict[str, str]:
        settings = self._settings()
        lab = {"lab-release": settings["release"], "lab-takes": str(settings["plan-takes"])}
        if self._clock() - found.registered < settings["plan-after"]:
            return lab
        plan = json.dumps(self._plan(found, settings), sort_keys=True)
        if found.data.get("plan") != plan:
            found.data |= {"plan": plan, "plan-state": "pending"}
        return {**found.data, **lab}

    def _plan(self, found: _Machine, settings: Mapping[str, Any]) -> dict[str, Any]:
        data_dir = settings["data-dir"]
        config: dict[str, object] = {
            "server": settings["server"],
            "token": self._known.agent_token,
            # addLabels always overwrites the list, which always has the machine's own.
            "node-label": [
                f"rke.cattle.io/machine={uid(found.name)}", *settings["labels"], *found.labels,
            ],
        }  # fmt: skip
        if taints := [*settings["taints"], *found.taints]:
            config["node-taint"] = taints
        if data_dir:
            config["data-dir"] = data_dir
        text = json.dumps(config, indent=2)
        version = self._known.rke2_version
        stamp = hashlib.sha256(f"{version}{text}".encode()).hexdigest()
        drop_in = {
            "path": "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml",
            "content": base64.b64encode(text.encode()).decode(),
        }
        install = {
            "name": "install",
            "image": f"rancher/system-agent-installer-rke2:{version.replace('+', '-')}",
            "env": [f"RESTART_STAMP={stamp}", "INSTALL_RKE2_TYPE=agent",
                    f"DATA_DIR={data_dir or '/var/lib/rancher/rke2'}"],
            "command": "sh",
            "args": ["-c", "run.sh"],
        }  # fmt: skip
        return {"files": [drop_in], "instructions": [install]}

    def _image(self, name: str) -> Response:
        """A file of an installer's image."""
        image, _, file = name.rpartition("/")
        version = image.partition(":")[2].replace("-rke2", "+rke2")
        path = self._known.releases / version / file
        if version != self._known.rke2_version or not path.is_file():
            return as_text(404, "404 page not found\n")
        return Response(200, Part(path, 0, path.stat().st_size))

    def _settings(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        return found


def _served(host: str) -> bytes:
    """The script for custom clusters, which knows where its own program is."""
    base = f'CATTLE_AGENT_BINARY_BASE_URL="https://{host}/assets"\n'
    return (f"#!/usr/bin/env sh\n{base}" + machine.SCRIPT.read_text(encoding="utf-8")).encode()


def _plan_name(name: str) -> str:
    return f"{name}-machine-plan"


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _many(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _encoded(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
