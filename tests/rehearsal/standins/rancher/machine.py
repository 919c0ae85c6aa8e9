"""What rancher-machine makes of a pool's user-data (rancher/machine commands/create.go)."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

INSTALL = "/usr/local/custom_script/install.sh"
SCRIPT = Path(__file__).with_name("install.sh")


def user_data(text: str, hostname: str, script: str) -> str:
    """The user's cloud-config with Rancher's file and, at the very end of runcmd, Rancher's line.

    Raises ValueError for what rancher-machine does not take.
    """
    if not text.startswith("#cloud-config\n"):
        raise ValueError("a machine pool's user data must begin with #cloud-config")
    data = yaml.safe_load(text) or {}
    for key in ("runcmd", "write_files"):
        if not isinstance(data.setdefault(key, []), list):
            raise ValueError(f"{key} must be a list")  # noqa: TRY004 - of the text's value
    data.setdefault("hostname", hostname)
    data["write_files"].append({"path": INSTALL, "permissions": "0644", "content": script})
    data["runcmd"].append(f"sh {INSTALL}")
    return "#cloud-config\n" + yaml.safe_dump(data, sort_keys=False, width=10**9)


def script(server: str, checksum: str, token: str) -> str:
    """The machine's own install script: what it has to know, then Rancher's script."""
    known = {
        "CATTLE_AGENT_BINARY_BASE_URL": f"{server}/assets",
        "CATTLE_SERVER": server,
        "CATTLE_CA_CHECKSUM": checksum,
        "CATTLE_ROLE_NONE": "true",
        "CATTLE_TOKEN": token,
    }
    lines = [f'{name}="{value}"' for name, value in known.items()]
    return "\n".join(["#!/usr/bin/env sh", *lines, SCRIPT.read_text(encoding="utf-8")])


def registration(server: str, checksum: str, token: str) -> str:
    """The command that the page of a custom cluster shows, for a worker."""
    words = ["--server", server, "--label", "cattle.io/os=linux", "--token", token,
             "--ca-checksum", checksum, "--worker"]  # fmt: skip
    download = f"curl --insecure -fsSL {server}/system-agent-install.sh"
    return f"{download} | sh -s - {shlex.join(words)}"
