"""The node's own address, and the load balancers on loopback that lead to the servers."""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from pathlib import Path

from . import log

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_PIECE = 1 << 16


def default_address() -> str:
    """The address of the default route's interface. Raises OSError without such a route."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        interface, destination, *_ = line.split()
        if destination == "00000000":
            return _address_of(interface)
    raise OSError('no default routes found in "/proc/net/route" or "/proc/net/ipv6_route"')


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _GET_ADDRESS, request)[20:24])


class Balancer:
    """A TCP proxy from a port on loopback to one server; it lives as long as the process.

    So whatever is reached through it can be reached only while rke2-agent runs.
    """

    def __init__(self, name: str, port: int, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        place = "{}:{}".format(*target)
        log.info(f"Adding server to load balancer {name}: {place}")
        log.info(f"Running load balancer {name} 127.0.0.1:{port} -> [{place}] [default: {place}]")
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=10.0)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()
        client.close()
        server.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
    except OSError:
        pass  # either end hung up: the other one hears of it below
    for end, direction in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(direction)
        except OSError:
            continue
