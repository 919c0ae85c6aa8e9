"""RKE2's files fetched beside the walk: never twice, never believed, never in the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gpuboot import prefetch
from gpuboot.images import ImagesPlaced
from gpuboot.release import CHECKSUMS, TARBALL, Release
from gpuboot.rke2 import Rke2Installed
from gpuboot.step import Step
from tests.unit.node import Node, Pages
from tests.unit.test_release import CACHED, QUOTED, VERSION, digest, publish, tarball, want

IMAGES = "/var/lib/rancher/rke2/agent/images"
ARCHIVE = "rke2-images.linux-amd64.tar.zst"
PATIENCE = 20.0  # seconds after which a thread that should have ended hangs


@pytest.fixture
def node(node: Node) -> Node:
    node.unit("rke2-server.service", LoadState="not-found", UnitFileState="")
    node.answers["systemctl daemon-reload"] = ""
    return node


def ahead(node: Node, *steps: Step) -> None:
    """Fetch ahead, and wait until the thread has ended."""
    before = set(threading.enumerate())
    prefetch.begin(node.host, steps)
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def installed(release: Release | None = None) -> Rke2Installed:
    return Rke2Installed(release or want())


def test_what_was_fetched_ahead_is_not_fetched_again(node: Node) -> None:
    publish(node, tarball())
    ahead(node, installed())
    assert node.host.exists(CACHED)
    assert not node.host.exists("/usr/local/bin/rke2")
    del node.web.files[f"{QUOTED}/{TARBALL}"]
    installed().apply(node.host)
    assert node.host.exists("/usr/local/bin/rke2")


def test_what_was_damaged_since_is_fetched_again(node: Node) -> None:
    publish(node, tarball())
    ahead(node, installed())
    node.put(CACHED, tarball()[:-1])
    installed().apply(node.host)
    assert node.host.exists("/usr/local/bin/rke2")


def test_a_mirror_that_is_away_now_does_not_matter_later(node: Node) -> None:
    ahead(node, installed())
    assert not node.host.exists(CACHED)
    publish(node, tarball())
    installed().apply(node.host)
    assert node.host.exists("/usr/local/bin/rke2")


def test_a_file_that_is_not_what_its_checksum_says_is_not_kept(node: Node) -> None:
    publish(node, tarball(), sums=f"{'0' * 64}  {TARBALL}\n".encode())
    ahead(node, installed())
    assert [name for name in node.files() if "rke2-" in name] == []


def test_images_come_after_the_release_and_need_no_second_fetch(node: Node) -> None:
    publish(node, tarball())
    content = b"images"
    sums = node.web.files[f"{QUOTED}/{CHECKSUMS}"].decode()
    node.web.files[f"{QUOTED}/{CHECKSUMS}"] = f"{sums}{digest(content)}  {ARCHIVE}\n".encode()
    node.web.files[f"{QUOTED}/{ARCHIVE}"] = content
    images = ImagesPlaced(want(), (ARCHIVE,), None)
    ahead(node, installed(), images)
    assert node.text(f"{IMAGES}/{ARCHIVE}") == "images"
    del node.web.files[f"{QUOTED}/{ARCHIVE}"]
    images.apply(node.host)


def test_a_local_folder_is_not_copied_ahead(node: Node) -> None:
    node.put(f"/srv/{VERSION}/{TARBALL}", tarball())
    before = set(threading.enumerate())
    prefetch.begin(node.host, [installed(want(url="/srv"))])
    assert set(threading.enumerate()) == before
    assert not node.host.exists(CACHED)


def test_an_installed_release_is_not_fetched(node: Node) -> None:
    publish(node, tarball())
    installed().apply(node.host)
    node.answers["/usr/local/bin/rke2 --version"] = f"rke2 version {VERSION} (abc)"
    ahead(node, installed())
    assert not node.host.exists(CACHED)


class Slow(Pages):
    """A mirror that sends one half, and the other only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let = threading.Event(), threading.Event()
        self.sent = 0

    def pieces(self, url: str) -> Iterator[bytes]:
        for piece in super().pieces(url):
            self.sent += len(piece) if url.endswith(TARBALL) else 0
            yield piece
            if url.endswith(TARBALL):
                self.begun.set()
                assert self.let.wait(PATIENCE)


def test_a_step_waits_for_what_is_being_fetched_for_it(node: Node) -> None:
    slow = Slow()
    node.web = slow
    node.host.web = slow
    publish(node, tarball())
    prefetch.begin(node.host, [installed()])
    assert slow.begun.wait(PATIENCE)
    threading.Timer(0.2, slow.let.set).start()
    installed().apply(node.host)
    assert node.host.exists("/usr/local/bin/rke2")
    assert slow.sent == len(tarball())
