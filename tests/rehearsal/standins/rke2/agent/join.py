"""`rke2 agent` from its settings to READY: the order of things in k3s' pkg/agent/run.go."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from . import containerd, identity, images, keeper, labels, log, node, supervisor
from .api import MERGE, Api
from .identity import Identity
from .network import Balancer
from .settings import Refused, Settings
from .supervisor import Supervisor, Unready

T = TypeVar("T")

_TOKEN_WAIT = 240.0  # seconds for a token file to appear
_RETRY = 5.0  # seconds between two tries, and up to as much again of jitter
_VALIDATE_RETRY = 2.0


def run(settings: Settings, version: str, commit: str) -> None:
    """Join and stay. Raises Refused for what ends the process."""
    token = _token(settings)
    if not token and not identity.existing(settings):
        raise Refused("--token is required")
    if not settings.text("server"):
        raise Refused("--server is required")
    _check(settings)
    log.info(f"Starting rke2 agent {version} ({commit})")
    connected = _connected(settings, token)
    me = _patiently(
        "Waiting to retrieve agent configuration; server is not ready",
        lambda: _configured(settings, connected),
    )
    _patiently(
        "Waiting to retrieve kube-proxy configuration; server is not ready",
        lambda: connected.get("/v1-rke2/readyz"),
    )
    containerd.configure(settings, os.environ.get("PATH", os.defpath))
    images.load(settings)
    try:
        taints = labels.parse_taints(settings.list("node-taint"))
    except ValueError as error:
        raise Refused(f"failed to parse node taints: {error}") from None
    keeper.start(settings, me, taints)
    _describe_node(settings, me)
    log.info("rke2 agent is up and running")
    notify("READY=1")
    while True:
        time.sleep(3600)


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


def _token(settings: Settings) -> str:
    """The token; a token file overrides the key, and may appear some minutes late."""
    name = settings.text("token-file")
    if not name:
        return settings.text("token")
    file = Path(name)
    deadline = time.monotonic() + _TOKEN_WAIT
    while True:
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise Refused(f"open {file}: no such file or directory") from None
            log.info(f"Waiting for {file} to be available")
            time.sleep(2)


def _check(settings: Settings) -> None:
    profile = settings.text("profile")
    if profile not in ("", "cis", "etcd"):
        raise Refused("invalid value provided for --profile flag")
    if profile == "cis" and (wrong := node.wrong_kernel_defaults()):
        raise Refused("\n".join(
            f"invalid kernel parameter value {name.replace('/', '.')}={found} - expected {wanted}"
            for name, wanted, found in wrong
        ))  # fmt: skip
    if settings.list("node-external-ip") and (
        settings.text("cloud-provider-name") or settings.text("cloud-provider-config")
    ):
        raise Refused(
            "can't set node-external-ip while using cloud provider, settings are controlled by"
            " the cloud provider"
        )


def _connected(settings: Settings, token: str) -> Supervisor:
    """The supervisor behind the local balancer, once its certificate was accepted."""
    server = settings.text("server")
    parts = urlsplit(server)
    port = settings.balancer_port
    default = 443 if parts.scheme == "https" else 80
    _balance("rke2-agent-load-balancer", port, (parts.hostname or "", parts.port or default))
    base = f"https://127.0.0.1:{port}"
    while True:
        try:
            return supervisor.validated(base, server, token, identity.existing(settings))
        except Unready as error:
            log.error(f"Failed to validate connection to cluster at {base}: {error}")
            time.sleep(_VALIDATE_RETRY)


def _configured(settings: Settings, connected: Supervisor) -> Identity:
    try:
        config = json.loads(connected.get("/v1-rke2/config"))
    except Unready as error:
        raise Unready(f"failed to retrieve configuration from server: {error}") from None
    host = urlsplit(settings.text("server")).hostname or ""
    port = settings.balancer_port - 1
    if port not in _balanced:
        _balance("rke2-api-server-agent-load-balancer", port, (host, int(config["HTTPSPort"])))
    return identity.obtain(settings, connected)


_balanced: dict[int, Balancer] = {}


def _balance(name: str, port: int, target: tuple[str, int]) -> None:
    try:
        _balanced[port] = Balancer(name, port, target)
    except OSError as error:
        raise Refused(f"listen tcp 127.0.0.1:{port}: bind: {error.strerror}") from None


def _patiently(waiting: str, attempt: Callable[[], T]) -> T:
    while True:
        try:
            return attempt()
        except Unready as error:
            log.info(f"{waiting}: {error}")
            time.sleep(_RETRY * (1 + random.random()))  # noqa: S311


def _describe_node(settings: Settings, me: Identity) -> None:
    """Set labels and annotations on the Node, at every start; nothing is ever removed.

    READY waits for this: the Node must exist and have taken them (facts/rke2.md §4, §5).
    """
    api = Api(settings.agent / "kubelet.kubeconfig")
    pairs = [label.partition("=") for label in settings.list("node-label")]
    patch = {
        "metadata": {
            "labels": {key: value for key, _, value in pairs if key},
            "annotations": {
                "rke2.io/hostname": me.name,
                "rke2.io/internal-ip": me.address,
                "rke2.io/node-args": json.dumps(settings.arguments, separators=(",", ":")),
                "rke2.io/node-env": "{}",
            },
        }
    }
    path = f"/api/v1/nodes/{me.name}"
    said = ""
    while True:
        try:
            reply = api.call("GET", path)
            if reply.status == 200:
                reply = api.call("PATCH", path, patch, MERGE)
            if reply.status == 200:
                log.info(f"Annotations and labels have been set successfully on node: {me.name}")
                return
            reason = reply.reason
        except Unready as error:
            reason = str(error)
        if reason != said:
            log.info(f"Waiting for node {me.name}: {reason}")
            said = reason
        time.sleep(0.25)
