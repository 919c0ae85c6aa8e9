"""Defects of Google's GPU installer around apt, each shown not to be ours (facts: peers)."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuboot import apt, aptsources, web
from gpuboot.errors import GpubootError
from gpuboot.host import Host
from gpuboot.process import Command, Result
from tests.unit.node import Node
from tests.unit.test_apt import GONE, Calls
from tests.unit.test_aptlock import held

LOCK = "/var/lib/dpkg/lock-frontend"


def test_a_retry_is_one_that_is_called(node: Node) -> None:
    """Theirs: run(retries=) has no caller that uses it."""
    calls = Calls(node, Result(0), GONE)
    apt.obtain(node.host, lambda: ["dkms"], {})
    assert calls.verbs.count("install*") == 2
    assert all("Acquire::Retries=3" in call.argv for call in calls.made if "install" in call.argv)


def test_somebody_elses_apt_is_waited_for(node: Node) -> None:
    """Theirs: no option about apt's locks, so that the first boot's apt-daily ends it."""
    calls = Calls(node)
    node.put(LOCK)
    with held(node.root / LOCK.lstrip("/")), pytest.raises(GpubootError) as caught:
        apt.install(node.host, ["dkms"], {})
    assert (caught.value.code.id, caught.value.retry) == ("GB201", True)
    assert calls.made == []  # it was not even tried against him
    apt.install(node.host, ["dkms"], {})
    assert len(calls.made) == 1


def test_nothing_that_is_written_can_be_written_by_everybody(node: Node) -> None:
    """Theirs: installer.log is chmod 0666."""
    old = os.umask(0)
    try:
        node.host.write("/var/lib/gpuboot/x", "text")
        node.host.write(aptsources.FILE, "text")
    finally:
        os.umask(old)
    for path in node.root.rglob("*"):
        assert not path.stat().st_mode & 0o022, path


@contextmanager
def mute() -> Iterator[str]:
    """A server that takes a request and never answers."""
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ended.wait(30)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """Theirs: urlopen at import without a timeout, for ever."""
    host = Host(tmp_path, web=web.RequestsWeb(timeout=0.5))
    with mute() as address, pytest.raises(GpubootError) as caught:
        host.web.get(address)
    assert caught.value.retry


def test_every_command_has_a_time_or_is_apts_own(node: Node) -> None:
    """Theirs: none has one. What is not killed is apt or dpkg, which a kill breaks."""
    seen: list[Command] = []

    def answer(command: Command) -> Result:
        seen.append(command)
        return Result(0)

    node.answers |= dict.fromkeys(
        ("apt-get", "apt-mark", "apt-cache", "dpkg-query", "dpkg"), answer
    )
    apt.update(node.host, {})
    apt.install(node.host, ["dkms"], {})
    apt.hold(node.host, ["dkms"])
    apt.installed(node.host, ["dkms"])
    apt.policy(node.host, ["dkms"])
    assert len(seen) >= 5
    assert all(0 < command.timeout <= 3600 for command in seen)
    assert {command.argv[0] for command in seen if command.patient} == {"apt-get", "apt-mark"}
