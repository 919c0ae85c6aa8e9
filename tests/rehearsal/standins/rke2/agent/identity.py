"""The node's identity: its name, its password, its certificates (facts/rke2.md §2)."""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import network
from .settings import Settings
from .supervisor import Supervisor, Unready

_KUBECONFIG = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority: {agent}/server-ca.crt
    server: https://127.0.0.1:{port}
  name: local
contexts:
- context:
    cluster: local
    namespace: default
    user: user
  name: Default
current-context: Default
kind: Config
preferences: {{}}
users:
- name: user
  user:
    client-certificate: {agent}/{client}.crt
    client-key: {agent}/{client}.key
"""


@dataclass(frozen=True)
class Identity:
    """Who this node is in the cluster."""

    name: str
    address: str


def obtain(settings: Settings, supervisor: Supervisor) -> Identity:
    """Fetch the CAs, have the certificates signed, write the kubeconfigs. Raises Unready."""
    agent = settings.agent
    for name in ("client-ca.crt", "server-ca.crt"):
        _write(agent / name, supervisor.get(f"/v1-rke2/{name}"))
    identity = Identity(_name(settings), _address(settings))
    for name in ("serving-kubelet", "client-kubelet"):
        _certify(settings, supervisor, identity, name)
    for name in ("client-kube-proxy", "client-rke2-controller"):
        _write(agent / f"{name}.crt", _posted(supervisor, name, _request(agent, name), {}))
    for file, client in (("kubelet", "client-kubelet"), ("kubeproxy", "client-kube-proxy")):
        text = _KUBECONFIG.format(agent=agent, port=settings.balancer_port - 1, client=client)
        _write(agent / f"{file}.kubeconfig", text.encode())
    return identity


def existing(settings: Settings) -> tuple[Path, Path] | None:
    """The kubelet's certificate and key, if an earlier start left both."""
    pair = settings.agent / "client-kubelet.crt", settings.agent / "client-kubelet.key"
    return pair if all(path.exists() and path.stat().st_size for path in pair) else None


def _name(settings: Settings) -> str:
    if not settings.booleans.get("with-node-id"):
        return settings.hostname
    file = settings.node_folder / "id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n")
        file.chmod(0o644)
    return f"{settings.hostname}-{file.read_text().strip()}"


def _address(settings: Settings) -> str:
    if given := settings.list("node-ip"):
        return given[0].split(",")[0]
    try:
        return network.default_address()
    except OSError as error:
        raise Unready(str(error)) from None


def _password(settings: Settings) -> str:
    """The node's password, made once: whoever loses it is a stranger under a known name."""
    file = settings.node_folder / "password"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, (secrets.token_hex(16) + "\n").encode())
    return file.read_text().strip()


def _certify(settings: Settings, supervisor: Supervisor, identity: Identity, name: str) -> None:
    headers = {
        "rke2-Node-Name": identity.name,
        "rke2-Node-Password": _password(settings),
        "rke2-Node-IP": identity.address,
    }
    certificate = _posted(supervisor, name, _request(settings.agent, name), headers, settings)
    _write(settings.agent / f"{name}.crt", certificate)


def _posted(
    supervisor: Supervisor,
    name: str,
    request: bytes,
    headers: dict[str, str],
    settings: Settings | None = None,
) -> bytes:
    path = f"/v1-rke2/{name}.crt"
    answer = supervisor.request("POST", path, body=request, headers=headers)
    if answer.status == 403 and settings:
        file = "/" + str((settings.node_folder / "password").relative_to(settings.root))
        raise Unready(
            f"Node password rejected, duplicate hostname or contents of '{file}' may not match"
            " server node-passwd entry, try enabling a unique node name with the --with-node-id"
            " flag"
        )
    if answer.status != 200:
        raise Unready(f"{supervisor.base}{path}: {answer.status} {answer.reason}")
    return answer.body


def _request(agent: Path, name: str) -> bytes:
    """A signing request for the key NAME.key, which never leaves the node."""
    key = agent / f"{name}.key"
    if not key.exists() or not key.stat().st_size:
        pem = _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout")
        _write(key, pem)
    # An empty configuration: the request's subject is ignored, and minbase has no openssl.cnf.
    return _openssl("req", "-new", "-config", "/dev/null", "-subj", f"/CN={name}", "-key", str(key))


def _openssl(*arguments: str) -> bytes:
    done = subprocess.run(
        ["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise Unready(f"openssl {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
