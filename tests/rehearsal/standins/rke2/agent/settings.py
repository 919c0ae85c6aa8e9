"""The agent's settings from configuration files, command line and environment (facts/rke2.md §1).

Files become flags placed before the real ones, a flag given wins over the environment, and a key
that ends in `+` appends to what the files before it said.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import document, log

CONFIG_FILE = "/etc/rancher/rke2/config.yaml"

# Flag: variable of the environment, or nothing.
STRINGS: Mapping[str, str] = {
    "server": "RKE2_URL", "token": "RKE2_TOKEN", "token-file": "RKE2_TOKEN_FILE",
    "data-dir": "RKE2_DATA_DIR", "node-name": "RKE2_NODE_NAME", "bind-address": "",
    "resolv-conf": "RKE2_RESOLV_CONF", "private-registry": "",
    "lb-server-port": "RKE2_LB_SERVER_PORT",
    "snapshotter": "", "default-runtime": "", "container-runtime-endpoint": "", "profile": "",
    "image-credential-provider-bin-dir": "", "image-credential-provider-config": "",
    "cloud-provider-name": "", "cloud-provider-config": "", "kubelet-path": "",
    "runtime-image": "", "pause-image": "", "kube-proxy-image": "", "system-default-registry": "",
    "config": "RKE2_CONFIG_FILE",
}  # fmt: skip
LISTS = frozenset({
    "node-label", "node-taint", "node-ip", "node-external-ip", "node-internal-dns",
    "node-external-dns", "kubelet-arg", "kube-proxy-arg", "airgap-extra-registry",
    "kube-proxy-extra-mount", "kube-proxy-extra-env", "control-plane-resource-requests",
    "control-plane-resource-limits", "control-plane-probe-configuration",
})  # fmt: skip
BOOLEANS: Mapping[str, str] = {
    "with-node-id": "", "selinux": "RKE2_SELINUX", "protect-kernel-defaults": "",
    "disable-default-registry-endpoint": "", "nonroot-devices": "", "enable-pprof": "",
    "debug": "RKE2_DEBUG", "node-name-from-cloud-provider-metadata": "",
}  # fmt: skip
ALIASES = {"s": "server", "t": "token", "d": "data-dir", "c": "config"}
_TRUTHS = {"1", "t", "T", "TRUE", "true", "True"}
_LIES = {"0", "f", "F", "FALSE", "false", "False"}
_SECRETS = ("token",)


class Refused(ValueError):
    """The settings cannot be used; the message is what RKE2 says before it ends."""


@dataclass(frozen=True)
class Settings:
    """What `rke2 agent` goes by. `root` is "" on a node; a test has its own."""

    root: Path
    strings: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    booleans: Mapping[str, bool] = field(default_factory=dict)
    arguments: Sequence[str] = ()  # as published on the Node, secrets hidden

    def text(self, flag: str) -> str:
        return self.strings.get(flag, "")

    def list(self, flag: str) -> Sequence[str]:
        return self.lists.get(flag, ())

    @property
    def data(self) -> Path:
        return self.root / (self.text("data-dir") or "/var/lib/rancher/rke2").lstrip("/")

    @property
    def agent(self) -> Path:
        return self.data / "agent"

    @property
    def node_folder(self) -> Path:
        return self.root / "etc/rancher/node"

    @property
    def balancer_port(self) -> int:
        return int(self.text("lb-server-port") or "6444")

    @property
    def hostname(self) -> str:
        return (self.text("node-name") or socket.gethostname()).lower()


def load(arguments: Sequence[str], environment: Mapping[str, str], root: Path) -> Settings:
    """Everything merged. Raises Refused or document.Unreadable: both are the process's end."""
    main = root / environment.get("RKE2_CONFIG_FILE", CONFIG_FILE).lstrip("/")
    merged = merge(files(main), required="RKE2_CONFIG_FILE" in environment)
    flags = [*from_files(merged), *arguments]
    return _parsed(flags, environment, root)


def files(main: Path) -> list[Path]:
    """The main file and its drop-ins: *.yaml and *.yml in byte order, hidden ones too."""
    folder = main.with_name(main.name + ".d")
    found = folder.iterdir() if folder.is_dir() else ()
    drop_ins = [
        path
        for path in found
        if path.name.lower().endswith((".yaml", ".yml")) and not path.is_dir()
    ]
    return [main, *sorted(drop_ins, key=os.fsencode)]


def merge(paths: Sequence[Path], *, required: bool = False) -> dict[str, document.Value]:
    """The files' keys: later ones replace, `key+` appends. The main file may be absent."""
    merged: dict[str, document.Value] = {}
    for path in paths:
        if not path.exists() and path == paths[0] and (len(paths) > 1 or not required):
            continue
        for key, value in document.pairs(path.read_text(encoding="utf-8")):
            name = key.removesuffix("+")
            if name != key and name in merged:
                merged[name] = _many(merged[name]) + _many(value)
            else:
                merged[name] = value
    return merged


def from_files(merged: Mapping[str, document.Value]) -> list[str]:
    """The merged files as command-line flags; a list is one flag per element."""
    flags: list[str] = []
    for key, value in merged.items():
        name = ALIASES.get(key, key)
        if name not in STRINGS and name not in LISTS and name not in BOOLEANS:
            log.warning(f"Unknown flag --{key} found in config.yaml, skipping")
            continue
        flags += [f"--{name}={element}" for element in _many(value)]
    return flags


def _many(value: document.Value) -> list[str]:
    return value if isinstance(value, list) else [value]


def _parsed(flags: Sequence[str], environment: Mapping[str, str], root: Path) -> Settings:
    strings = {flag: environment[name] for flag, name in STRINGS.items() if environment.get(name)}
    booleans = {
        flag: _boolean(flag, environment[name])
        for flag, name in BOOLEANS.items()
        if environment.get(name)
    }
    lists: dict[str, list[str]] = {}
    published = ["agent"]
    for name, value in _named(flags):
        if name in LISTS:
            lists.setdefault(name, []).append(value)
        elif name in BOOLEANS:
            booleans[name] = _boolean(name, value)
        elif name in STRINGS:
            strings[name] = value
        else:
            raise Refused(f"flag provided but not defined: -{name}")
        published += [f"--{name}", "********" if name in _SECRETS else value]
    if (port := strings.get("lb-server-port", "6444")) and not port.isdigit():
        raise Refused(f'invalid value "{port}" for flag -lb-server-port: parse error')
    return Settings(root, strings, lists, booleans, published)


def _named(flags: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs from `--name=value`, `--name value` and, for a boolean, `--name`."""
    found: list[tuple[str, str]] = []
    rest = list(flags)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            continue  # urfave/cli takes what is no flag for an argument, and agent reads none
        name, separator, value = word.lstrip("-").partition("=")
        name = ALIASES.get(name, name)
        if not separator and name in BOOLEANS:
            value = "true"
        elif not separator:
            if not rest:
                raise Refused(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        found.append((name, value))
    return found


def _boolean(flag: str, value: str) -> bool:
    if value in _TRUTHS or value in _LIES:
        return value in _TRUTHS
    raise Refused(f'invalid boolean value "{value}" for -{flag}: parse error')
