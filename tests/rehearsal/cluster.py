"""The laboratory's servers in one process: archive, releases, cluster, Rancher and proxy.

`python -m tests.rehearsal.cluster --folder F --address A --archive DIR --releases DIR` prints
`ready` when all ports listen and ends on SIGTERM. F/nodes.json always holds the Nodes,
F/requests.log a line per request, F/events.log the events; F/faults.json orders faults
(standins/rke2/server/faults.py), and F/admin.token opens every Node on the API server. What
Rancher is like stands in F/rancher.json (standins/rancher/server.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import secrets
import signal
import ssl
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import pki
from tests.rehearsal.standins.proxy import Proxy
from tests.rehearsal.standins.rancher import server as rancher
from tests.rehearsal.standins.rke2.server import apiserver, controllers, files, supervisor
from tests.rehearsal.standins.rke2.server.controllers import Controllers
from tests.rehearsal.standins.rke2.server.faults import Faults
from tests.rehearsal.standins.rke2.server.serving import (
    App,
    RequestLog,
    Server,
    server_context,
)
from tests.rehearsal.standins.rke2.server.store import Store

SUPERVISOR = "https://cluster.lab:9345"
RANCHER = "https://rancher.lab:8443"
RKE2_VERSION = "v1.35.7+rke2r1"
PORTS: Mapping[str, int] = {
    "archive": 80,
    "releases": 443,
    "supervisor": 9345,
    "apiserver": 6443,
    "rancher": 8443,
    "proxy": 3128,
}
PROXY_USER = "node"
# What the proxy reaches: the names a node behind it does not know.
_BEHIND_PROXY = {"archive.lab:80": "archive", "releases.lab:443": "releases"}
# A node reaches both cluster ports through its own loopback, so they are named 127.0.0.1 as well.
_CLUSTER_HOSTS = ("cluster.lab", "10.88.0.1", "127.0.0.1", "localhost", "kubernetes", "10.43.0.1")
_WRONG = ("intercepted", "other-cluster", "expired", "early")
_TWO_YEARS = datetime.timedelta(days=730)
_WEB_HOSTS = ("releases.lab", "archive.lab", "mirror.lab", "10.88.0.1", "127.0.0.1", "localhost")
_RANCHER_HOSTS = ("rancher.lab", "10.88.0.1", "127.0.0.1", "localhost")


@dataclass(frozen=True)
class Identity:
    """What a node must be told to join, and whom it must trust to download."""

    token: str
    server: str
    proxy: str  # its address, with user and password
    ca_hash: str
    web_ca: Path
    rancher_token: str  # of a custom cluster's registration
    rancher_checksum: str  # of Rancher's /cacerts


def prepare(folder: Path) -> Identity:
    """The cluster's CAs and secrets, made on the first call and the same ever after."""
    keys = folder / "pki"
    if not (folder / "admin.token").exists():
        cluster_ca, web_ca = pki.authority("rke2-server-ca@lab"), pki.authority("web CA of the lab")
        cluster_ca.save(keys, "server-ca")
        pki.authority("rke2-client-ca@lab").save(keys, "client-ca")
        web_ca.save(keys, "web-ca")
        pki.leaf(cluster_ca, "rke2", _CLUSTER_HOSTS).save(keys, "cluster")
        pki.leaf(web_ca, "releases.lab", _WEB_HOSTS).save(keys, "web")
        _prepare_wrong(keys, cluster_ca)
        rancher_ca = pki.authority("dynamiclistener-ca@lab")
        rancher_ca.save(keys, "rancher-ca")
        pki.leaf(rancher_ca, "rancher.lab", _RANCHER_HOSTS).save(keys, "rancher")
        _write_secret(folder / "rancher.token")
        _write_secret(folder / "agent.password")
        _write_secret(folder / "proxy.password")
        _write_secret(folder / "admin.token")  # the last file: with it, all is there
    ca_hash = pki.ca_hash((keys / "server-ca.crt").read_bytes())
    token = f"K10{ca_hash}::node:{_secret(folder / 'agent.password')}"
    password = _secret(folder / "proxy.password")
    proxy = f"http://{PROXY_USER}:{password}@proxy.lab:{PORTS['proxy']}"
    return Identity(
        token, SUPERVISOR, proxy, ca_hash, keys / "web-ca.crt",
        rancher_token=_secret(folder / "rancher.token"),
        rancher_checksum=pki.ca_hash((keys / "rancher-ca.crt").read_bytes()),
    )  # fmt: skip


def _prepare_wrong(keys: Path, cluster_ca: pki.Pair) -> None:
    """What the cluster's ports show where a fault orders it, by the words of that fault."""
    other = pki.authority("rke2-server-ca@other")
    other.save(keys, "other-ca")
    inspector = pki.authority("Inspection CA of the lab")
    for name, (ca, shift) in {
        "intercepted": (inspector, pki.NOW),
        "other-cluster": (other, pki.NOW),
        "expired": (cluster_ca, -_TWO_YEARS),
        "early": (cluster_ca, _TWO_YEARS),
    }.items():
        pki.leaf(ca, "rke2", _CLUSTER_HOSTS, shift=shift).save(keys, name)


class Cluster:
    """The servers and the controllers behind them; port 0 lets the system choose."""

    def __init__(
        self,
        folder: Path,
        address: str,
        archive: Path,
        releases: Path,
        ports: Mapping[str, int] = PORTS,
    ) -> None:
        identity = prepare(folder)
        self._folder = folder
        self._address = address
        self._faults = Faults(folder / "faults.json")
        self._log = RequestLog(folder / "requests.log")
        self._store = Store(folder)
        self._servers: dict[str, Server] = {}
        self._ended = threading.Event()
        self._start_downloads(archive, releases, ports)
        self._start_cluster(ports)
        known = rancher.Known(
            ca=pki.load(folder / "pki", "rancher-ca").certificate,
            agent_token=identity.token,
            registration_token=identity.rancher_token,
            releases=releases,
            rke2_version=RKE2_VERSION,
        )
        self._listen("rancher", ports, rancher.app(known, folder), "rancher")
        places = {
            target: (address, self._servers[name].port) for target, name in _BEHIND_PROXY.items()
        }
        password = _secret(folder / "proxy.password")
        self._proxy = Proxy((address, ports["proxy"]), places, PROXY_USER, password, self._log)
        self._proxy.start()

    @property
    def ports(self) -> Mapping[str, int]:
        """Server to the port it listens on."""
        ports = {name: server.port for name, server in self._servers.items()}
        return {**ports, "proxy": self._proxy.port}

    def run(self) -> None:
        """Run the controllers and obey `down` until stop()."""
        rounds = Controllers(self._store, self._faults)
        while not self._ended.wait(controllers.PERIOD):
            rounds.round()
            self._obey_down()
        for server in self._servers.values():
            server.stop()
        self._proxy.stop()

    def stop(self) -> None:
        """Let run() end."""
        self._ended.set()

    def _start_downloads(self, archive: Path, releases: Path, ports: Mapping[str, int]) -> None:
        self._listen("archive", ports, files.plain(archive, releases, self._faults))
        self._listen("releases", ports, files.releases(releases), "web")

    def _start_cluster(self, ports: Mapping[str, int]) -> None:
        admin = apiserver.app(self._store, _secret(self._folder / "admin.token"), self._faults)
        self._listen("apiserver", ports, admin, "cluster", clients=True)
        keys = self._folder / "pki"
        shared = supervisor.Cluster(
            server_ca=pki.load(keys, "server-ca"),
            client_ca=pki.load(keys, "client-ca"),
            password=_secret(self._folder / "agent.password"),
            address=self._address,
            api_port=self._servers["apiserver"].port,
            port=ports["supervisor"],
            other_ca=pki.load(keys, "other-ca"),
        )
        answer = supervisor.app(shared, self._store, self._faults)
        self._listen("supervisor", ports, answer, "cluster", clients=True)

    def _listen(
        self,
        name: str,
        ports: Mapping[str, int],
        app: App,
        certificate: str = "",
        *,
        clients: bool = False,
    ) -> None:
        keys = self._folder / "pki"
        client_ca = keys / "client-ca.crt" if clients else None

        def context(of: str) -> ssl.SSLContext:
            return server_context(keys / f"{of}.crt", keys / f"{of}.key", client_ca)

        server = Server(
            name, (self._address, ports[name]), app, log=self._log, faults=self._faults,
            context=context(certificate) if certificate else None,
            others={kind: context(kind) for kind in _WRONG} if clients else None,
        )  # fmt: skip
        self._faults.name_port(server.port, name, str(PORTS[name]))
        self._servers[name] = server
        server.start()

    def _obey_down(self) -> None:
        """Close the ports that are ordered down, and open them when the order is gone."""
        for name, server in self._servers.items():
            down = self._faults.is_down(server.port)
            if down and not server.closed:
                server.stop()
            elif server.closed and not down:
                self._servers[name] = server.again()


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.rehearsal.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--address", default="10.88.0.1")
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--releases", type=Path, required=True)
    parser.add_argument(
        "--ports",
        help=f"for {', '.join(PORTS)}, in this order; 0 lets the system choose",
        default=",".join(map(str, PORTS.values())),
    )
    wanted = parser.parse_args(arguments)
    ports = dict(zip(PORTS, map(int, wanted.ports.split(",")), strict=True))
    cluster = Cluster(wanted.folder, wanted.address, wanted.archive, wanted.releases, ports)
    (wanted.folder / "ports.json").write_text(json.dumps(cluster.ports) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: cluster.stop())
    signal.signal(signal.SIGINT, lambda *_: cluster.stop())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    cluster.run()
    return 0


def _write_secret(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secrets.token_hex(16) + "\n")


def _secret(file: Path) -> str:
    return file.read_text().strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
