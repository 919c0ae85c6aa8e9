"""Image archives: verified before they lie where RKE2 takes them, known again without a network."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from gpuboot.errors import GpubootError
from gpuboot.images import CACHE, RECORD, ImagesPlaced
from gpuboot.release import CHECKSUMS, Release
from gpuboot.step import Ok, Pending
from tests.unit.node import Node, reason, settled

VERSION, NEXT = "v1.35.7+rke2r1", "v1.35.8+rke2r1"
ALL, CORE = "rke2-images.linux-amd64.tar.zst", "rke2-images-core.linux-amd64.tar.gz"
FOLDER = "/var/lib/rancher/rke2/agent/images"


def step(version: str | None = VERSION, url: str = "/srv/rke2", **changes: object) -> ImagesPlaced:
    want = Release(version, None, None, url, "https://channels")
    data = changes.get("data_dir")
    return ImagesPlaced(want, (ALL, CORE), str(data) if data else None)


def offer(node: Node, version: str = VERSION, place: str = "/srv/rke2") -> None:
    """A release's archives in a folder of its own, or on a mirror."""
    names = {name: f"{name} of {version}".encode() for name in (ALL, CORE)}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in names.items()]
    for name, content in {**names, CHECKSUMS: "".join(lines).encode()}.items():
        if place.startswith("/"):
            node.put(f"{place}/{version}/{name}", content)
        else:
            node.web.files[f"{place}/{version.replace('+', '%2B')}/{name}"] = content


def refused(node: Node, wanted: ImagesPlaced) -> str:
    with pytest.raises(GpubootError) as caught:
        wanted.apply(node.host)
    return caught.value.code.id


@pytest.mark.parametrize("url", ["/srv/rke2", "https://mirror/rke2"])
def test_archives_are_placed_as_the_release_has_them(node: Node, url: str) -> None:
    offer(node, place=url)
    wanted = step(url=url)
    assert reason(wanted.check(node.host), Pending) == f"{ALL} is not there"
    assert reason(settled(node, wanted), Ok) == f"2 image archives of {VERSION} are in place"
    assert node.text(f"{FOLDER}/{CORE}") == f"{CORE} of {VERSION}"
    assert node.text(f"{FOLDER}/{CACHE}") == ""


def test_they_go_below_the_data_folder(node: Node) -> None:
    offer(node)
    assert reason(settled(node, step(data_dir="/data")), Ok)
    assert node.host.exists(f"/data/agent/images/{ALL}")


def test_a_data_folder_of_the_operators_own_file_counts(node: Node) -> None:
    offer(node)
    node.put("/etc/rancher/rke2/config.yaml", "data-dir: /theirs\n")
    assert reason(settled(node, step()), Ok)
    assert node.host.exists(f"/theirs/agent/images/{ALL}")


def test_without_the_source_they_still_hold(node: Node) -> None:
    offer(node, place="https://mirror/rke2")
    wanted = step(url="https://mirror/rke2")
    settled(node, wanted)
    node.web.files.clear()
    assert reason(wanted.check(node.host), Ok)


def test_a_copy_with_another_time_is_verified_again_without_the_source(node: Node) -> None:
    offer(node, place="https://mirror/rke2")
    wanted = step(url="https://mirror/rke2")
    settled(node, wanted)
    node.web.files.clear()
    os.utime(node.root / FOLDER[1:] / ALL, (1, 1))
    assert reason(wanted.check(node.host), Pending) == f"{ALL} is not known to be of {VERSION}"
    assert reason(settled(node, wanted), Ok)


def test_one_that_was_damaged_is_fetched_again(node: Node) -> None:
    offer(node)
    settled(node, step())
    node.put(f"{FOLDER}/{ALL}", "rubbish")
    assert reason(step().check(node.host), Pending)
    assert reason(settled(node, step()), Ok)
    assert node.text(f"{FOLDER}/{ALL}") == f"{ALL} of {VERSION}"


def test_another_release_has_archives_of_its_own(node: Node) -> None:
    offer(node)
    offer(node, NEXT)
    settled(node, step())
    assert reason(step(NEXT).check(node.host), Pending) == f"{ALL} is not known to be of {NEXT}"
    assert reason(settled(node, step(NEXT)), Ok)
    assert node.text(f"{FOLDER}/{ALL}") == f"{ALL} of {NEXT}"


def test_without_a_version_they_are_those_of_the_release_that_is_there(node: Node) -> None:
    offer(node)
    assert reason(step(None).check(node.host), Pending) == "can only be told after rke2-installed"
    node.put("/usr/local/bin/rke2", mode=0o755)
    node.answers["/usr/local/bin/rke2 --version"] = f"rke2 version {VERSION} (abc)\n"
    assert reason(settled(node, step(None)), Ok)


@pytest.mark.parametrize("text", ["", "[]", '{"archives": []}', '{"archives": {"a": 1}}', "\0"])
def test_a_record_that_cannot_be_read_only_costs_the_verification(node: Node, text: str) -> None:
    offer(node)
    settled(node, step())
    before = (node.root / FOLDER[1:] / ALL).stat().st_ino
    node.put(RECORD, text)
    assert reason(settled(node, step()), Ok)
    assert (node.root / FOLDER[1:] / ALL).stat().st_ino == before  # what was there was good
    assert set(json.loads(node.text(RECORD) or "")["archives"]) == {ALL, CORE}


def test_what_rke2_wrote_into_its_cache_file_stays(node: Node) -> None:
    offer(node)
    settled(node, step())
    node.put(f"{FOLDER}/{CACHE}", '{"a": 1}')
    node.put(f"{FOLDER}/{ALL}", "rubbish")
    settled(node, step())
    assert node.text(f"{FOLDER}/{CACHE}") == '{"a": 1}'


def test_without_its_cache_file_rke2_would_import_all_at_every_start(node: Node) -> None:
    offer(node)
    settled(node, step())
    node.host.remove(f"{FOLDER}/{CACHE}")
    assert "at every start" in reason(step().check(node.host), Pending)


# -- refused


def test_an_archive_that_is_not_what_its_checksum_says_is_never_in_the_folder(node: Node) -> None:
    offer(node)
    node.put(f"/srv/rke2/{VERSION}/{ALL}", "tampered")
    assert refused(node, step()) == "GB404"
    assert not node.host.exists(f"{FOLDER}/{ALL}")


def test_an_archive_that_the_list_does_not_have_is_told(node: Node) -> None:
    offer(node)
    node.put(f"/srv/rke2/{VERSION}/{CHECKSUMS}", f"{'0' * 64}  other.tar.gz\n")
    assert refused(node, step()) == "GB504"


def test_an_archive_that_the_folder_does_not_have_is_told(node: Node) -> None:
    offer(node)
    node.host.remove(f"/srv/rke2/{VERSION}/{CORE}")
    assert refused(node, step()) == "GB504"
    assert node.host.exists(f"{FOLDER}/{ALL}")


def test_plain_http_vouches_for_nothing(node: Node) -> None:
    offer(node, place="http://mirror/rke2")
    assert refused(node, step(url="http://mirror/rke2")) == "GB505"
    assert not node.host.exists(FOLDER)
