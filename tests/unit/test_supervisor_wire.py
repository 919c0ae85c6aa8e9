"""gpuboot and the stand-in supervisor over real TLS: every fault is told by its own name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuboot.clock import SystemClock
from gpuboot.secret import Secret
from gpuboot.step import Waiting
from gpuboot.supervisor import SupervisorAnswers
from gpuboot.web import RequestsWeb
from tests.rehearsal import cluster
from tests.unit.node import Node

WIRE = [
    ({}, "ok", "accepts the token"),
    ({"certificate": "intercepted"}, "GB531", "but from CN=Inspection CA of the lab"),
    ({"certificate": "other-cluster"}, "GB531", ", the token says "),
    ({"certificate": "expired"}, "GB536", "and the clock is the server's"),
    ({"certificate": "early"}, "GB536", "and the clock is the server's"),
    ({"certificate": "early", "clock": 63072000}, "GB107", "the clock is 730 days behind"),
    ({"clock": 1200}, "ok", "the clock is 20 min behind the server's"),
    ({"token401": True}, "GB532", "(401)"),
    ({"token403": True}, "GB532", "(403)"),
    ({"ready503": True}, "GB533", "(503)"),
    ({"throttle": 9}, "GB535", "(429)"),
    ({"statuses": {"/cacerts": 503}}, "GB533", "503 without a certificate"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[cluster.Cluster, Path]]:
    """A cluster whose ports are open."""
    state = tmp_path_factory.mktemp("running")
    made = cluster.Cluster(state, "127.0.0.1", state, state, dict.fromkeys(cluster.PORTS, 0))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made, state
    made.stop()
    thread.join()


@pytest.mark.parametrize(("faults", "id_", "said"), WIRE)
def test_gpuboot_tells_every_fault_over_the_wire(
    running: tuple[cluster.Cluster, Path], tmp_path: Path, faults: object, id_: str, said: str
) -> None:
    made, state = running
    (state / "faults.json").write_text(json.dumps(faults))
    node = Node(tmp_path)
    node.host.web = RequestsWeb()
    node.host.clock = SystemClock()
    token = Secret(cluster.prepare(state).token)
    server = f"https://127.0.0.1:{made.ports['supervisor']}"
    found = SupervisorAnswers(server, token, None, None).check(node.host)
    if isinstance(found, Waiting):
        assert (found.code.id, found.not_before) == (id_, 1.0 if id_ == "GB535" else 0.0)
    else:
        assert id_ == "ok"
    assert said in found.reason
