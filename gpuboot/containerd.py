"""containerd's configuration as RKE2 generates it: which runtimes are in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

# The runtimes' sections of version 2 and of version 3 (k3s pkg/agent/templates/templates.go).
_RUNTIMES = (
    ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes"),
    ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes"),
)
_HEADER = re.compile(r"\[([^\[\]]+)\]\s*(?:#.*)?")
_KEY = re.compile(r"""'([^']*)'|"([^"]*)"|([A-Za-z0-9_-]+)""")
_BINARY = re.compile(r"""BinaryName\s*=\s*["']([^"']+)["']""")


def config(data: str) -> str:
    """Where RKE2 writes it, at every start of rke2-agent, below its data folder."""
    return f"{data}/agent/etc/containerd/config.toml"


def runtimes(host: Host, data: str) -> dict[str, str]:
    """The runtimes that containerd knows, each with its program ("" for containerd's own).

    Looks into the generated file and the files beside it that the file imports.
    """
    file = config(data)
    text = host.read(file) or ""
    found = parse(text)
    folder = file.rpartition("/")[0]
    for imported in ("config-v3.toml.d", "config.toml.d"):
        if f"{imported}/" in text:
            for name in host.names(f"{folder}/{imported}"):
                if name.endswith(".toml"):
                    found |= parse(host.read(f"{folder}/{imported}/{name}") or "")
    return found


def parse(text: str) -> dict[str, str]:
    """The runtimes in one file. What is no TOML has none: lines are read one by one."""
    found: dict[str, str] = {}
    section: tuple[str, ...] = ()
    for raw in text.splitlines():
        line = raw.strip()
        if header := _HEADER.fullmatch(line):
            section = _path(header[1])
            if section[:4] in _RUNTIMES and len(section) >= 5:
                found.setdefault(section[4], "")
        elif section[:4] in _RUNTIMES and section[5:] == ("options",):
            match = _BINARY.match(line)
            found[section[4]] = match[1] if match else found.get(section[4], "")
    return found


def _path(header: str) -> tuple[str, ...]:
    """The keys of a section's name: plugins."a.b".c is three."""
    return tuple(next(filter(None, match.groups()), "") for match in _KEY.finditer(header))
