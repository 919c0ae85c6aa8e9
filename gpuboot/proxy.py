"""The proxy for rke2-agent: containerd pulls its images with the agent's own environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from gpuboot import rke2, systemd
from gpuboot.secret import Secret
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

FILE = "/etc/rancher/rke2/gpuboot-proxy.env"
DROP_IN = f"/etc/systemd/system/{rke2.AGENT}.d/60-gpuboot-proxy.conf"
# Pods and services of RKE2's defaults, the cluster's names, this machine (rke2-docs advanced.md).
CLUSTER = ("127.0.0.0/8", "10.42.0.0/16", "10.43.0.0/16", ".svc", ".cluster.local")
# An address for documentation (RFC 5737): where a packet to anywhere would leave. None is sent.
ANYWHERE = "192.0.2.1"

_HEAD = """\
# To the administrator: the proxy of rke2-agent, written by gpuboot from the key proxy of
# /etc/gpuboot/config.yaml. What stands in /etc/default/rke2-agent is left out here.
# own addresses: {}
"""
_UNIT = f"""\
# To the administrator: written by gpuboot, because /etc/gpuboot/config.yaml has a proxy. The file
# may hold its password, so it is root's alone. Without the key proxy gpuboot takes both away.

[Service]
EnvironmentFile=-{FILE}
"""


@dataclass(frozen=True)
class AgentProxy:
    """rke2-agent is started with the configured proxy, and with none if none is configured."""

    name: ClassVar[str] = "rke2-proxy"
    disruptive: ClassVar[bool] = True  # systemd has to read the unit again

    http: Secret | None
    https: Secret | None
    no_proxy: tuple[str, ...]
    server: str
    node_ip: tuple[str, ...]

    def check(self, host: Host) -> Finding:
        wanted = self.writes(host)
        for name in (FILE, DROP_IN):
            if name not in wanted and host.exists(name):
                return Pending(f"{name} is of a proxy that is not wanted any more")
            if name in wanted and host.read(name) != wanted[name]:
                return Pending(f"{name} {'differs' if host.exists(name) else 'is not written'}")
        if wanted and host.mode(FILE) != 0o600:
            return Pending(f"{FILE} can be read by others")
        return Ok("rke2-agent has its proxy" if wanted else "rke2-agent needs no proxy")

    def apply(self, host: Host) -> None:
        wanted = self.writes(host)
        for name in (FILE, DROP_IN):
            if name in wanted:
                host.write(name, wanted[name], mode=0o600 if name == FILE else 0o644)
            else:
                host.remove(name)
        systemd.reload_units(host)

    def writes(self, host: Host) -> Mapping[str, str]:
        if not (self.http or self.https):
            return {}
        return {FILE: self._environment(host), DROP_IN: _UNIT}

    def _environment(self, host: Host) -> str:
        """The variables, but for those that the operator's own files set (systemd.exec(5))."""
        own = self.node_ip or _own_addresses(host)
        direct = (*self.no_proxy, *CLUSTER, urlsplit(self.server).hostname or "", *own)
        values = {
            "HTTP_PROXY": self.http.reveal() if self.http else "",
            "HTTPS_PROXY": self.https.reveal() if self.https else "",
            "NO_PROXY": ",".join(dict.fromkeys(name for name in direct if name)),
        }
        theirs = _set_by_operator(host)
        lines = [_HEAD.format(" ".join(own))]
        for name, value in values.items():
            if value and name not in theirs:
                quoted = re.sub(r'(["\\`$])', r"\\\1", value)
                if name != "NO_PROXY":
                    host.mask.add(Secret(quoted))
                lines.append(f'{name}="{quoted}"\n')
        return "".join(lines)


def _own_addresses(host: Host) -> tuple[str, ...]:
    """The address this node is known by. While there is no network, what was found before."""
    found = host.run(["ip", "-json", "route", "get", ANYWHERE], timeout=30)
    try:
        return (str(json.loads(found.out)[0]["prefsrc"]),)
    except (ValueError, LookupError, TypeError):
        before = re.search(r"^# own addresses: (.+)$", host.read(FILE) or "", re.MULTILINE)
        return tuple(before[1].split()) if before else ()


def _set_by_operator(host: Host) -> set[str]:
    """The names of the variables in the operator's own environment files; Go takes both cases."""
    text = "\n".join(host.read(name) or "" for name in rke2.ENVIRONMENT)
    return {name.upper() for name in re.findall(r"^\s*(\w+)=", text, re.MULTILINE)}
