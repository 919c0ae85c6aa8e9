"""RKE2's release: where it comes from, what proves it, and what is unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile

import pytest

from gpuboot import release
from gpuboot.errors import GpubootError
from gpuboot.release import CHECKSUMS, TARBALL, Release
from gpuboot.web import Answer
from tests.unit.node import Node

VERSION = "v1.35.7+rke2r1"
BASE = "https://mirror/rke2"
QUOTED = f"{BASE}/v1.35.7%2Brke2r1"
CACHED = f"/var/cache/gpuboot/rke2-{VERSION}.tar.gz"
NAMES = {
    "bin/rke2": 0o755, "bin/rke2-killall.sh": 0o755, "share/rke2/LICENSE.txt": 0o644,
    "lib/systemd/system/rke2-agent.service": 0o644, "lib/systemd/system/rke2-agent.env": 0o600,
}  # fmt: skip


def tarball(*more: tarfile.TarInfo, names: dict[str, int] = NAMES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in names.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(name), mode
            archive.addfile(member, io.BytesIO(name.encode()))
        for member in more:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)  # the same bytes every time


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def checksums(content: bytes, name: str = TARBALL, gap: str = "  ") -> bytes:
    other = f"{'0' * 64}  rke2-images.linux-amd64.tar.zst\n"
    return f"{other}{digest(content)}{gap}{name}\n".encode()


def want(**changes: str | None) -> Release:
    usual: dict[str, str | None] = {
        "version": VERSION, "channel": None, "sha256": None, "url": BASE,
        "channels": "https://channels",
    }  # fmt: skip
    return Release(**{**usual, **changes})  # type: ignore[arg-type] # of each field's own type


def publish(node: Node, content: bytes, sums: bytes | None = None) -> None:
    node.web.files[f"{QUOTED}/{TARBALL}"] = content
    node.web.files[f"{QUOTED}/{CHECKSUMS}"] = checksums(content) if sums is None else sums


def refused(node: Node, wanted: Release) -> GpubootError:
    with pytest.raises(GpubootError) as caught:
        release.install(node.host, wanted)
    return caught.value


# -- installed


def test_a_release_is_verified_and_unpacked_with_its_modes(node: Node) -> None:
    publish(node, tarball())
    release.install(node.host, want())
    found = {name: node.host.mode(f"/usr/local/{name}") for name in NAMES}
    assert found == {**NAMES, "lib/systemd/system/rke2-agent.env": 0o600}
    assert node.text("/usr/local/bin/rke2") == "bin/rke2"
    assert not node.host.exists(CACHED)


@pytest.mark.parametrize("gap", ["  ", " *"])
def test_the_checksum_file_may_mark_binary_files(node: Node, gap: str) -> None:
    publish(node, tarball(), checksums(tarball(), gap=gap))
    release.install(node.host, want())
    assert node.host.exists("/usr/local/bin/rke2")


def test_the_operators_settings_stay(node: Node) -> None:
    node.put("/usr/local/lib/systemd/system/rke2-agent.env", "HTTPS_PROXY=x")
    publish(node, tarball())
    release.install(node.host, want())
    assert node.text("/usr/local/lib/systemd/system/rke2-agent.env") == "HTTPS_PROXY=x"


def test_a_pinned_release_needs_no_checksum_file(node: Node) -> None:
    node.web.files[f"http://mirror/v1.35.7%2Brke2r1/{TARBALL}"] = tarball()
    release.install(node.host, want(url="http://mirror", sha256=digest(tarball())))
    assert node.host.exists("/usr/local/bin/rke2")


def test_a_tarball_in_the_cache_is_used_if_its_checksum_fits(node: Node) -> None:
    node.put(CACHED, tarball())
    release.install(node.host, want(sha256=digest(tarball())))
    assert node.host.exists("/usr/local/bin/rke2")


def test_a_damaged_tarball_in_the_cache_is_downloaded_anew(node: Node) -> None:
    node.put(CACHED, tarball()[:100])
    publish(node, tarball())
    release.install(node.host, want())
    assert node.host.exists("/usr/local/bin/rke2")


@pytest.mark.parametrize("folder", [f"/srv/{VERSION}", "/srv"])
def test_a_release_may_lie_in_a_local_folder(node: Node, folder: str) -> None:
    node.put(f"{folder}/{TARBALL}", tarball())
    node.put(f"{folder}/{CHECKSUMS}", checksums(tarball()))
    release.install(node.host, want(url="/srv"))
    assert node.host.exists("/usr/local/bin/rke2")
    assert node.web.asked == []


# -- looked up


@pytest.mark.parametrize(
    "location",
    [
        "https://github.com/rancher/rke2/releases/tag/v1.35.7%2Brke2r1",
        "https://github.com/rancher/rke2/releases/tag/v1.35.7+rke2r1/",
        f"/{VERSION}",
    ],
)
def test_a_channel_stands_for_the_release_it_redirects_to(node: Node, location: str) -> None:
    node.web.pages["https://channels/stable"] = Answer(302, b"", {"location": location})
    publish(node, tarball())
    release.install(node.host, want(version=None, channel="stable"))
    assert node.host.exists("/usr/local/bin/rke2")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404), Answer(200, b"v1.35.7+rke2r1"), Answer(302, b"", {"location": ""}),
        Answer(302, b"", {"location": "https://x/latest"}),
        Answer(302, b"", {"location": "https://x/..%2F..%2Fetc"}),
        Answer(302, b"", {"location": "https://channels/odd"}),
        Answer(302, b"", {"location": "http://x/v1.35.7%2Brke2r1"}),
        Answer(200, b"", {"location": "https://x/v1.35.7%2Brke2r1"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_channel_that_names_no_release_is_told(node: Node, answer: Answer) -> None:
    node.web.pages["https://channels/odd"] = answer
    node.web.pages |= dict.fromkeys(("https://x/latest", "https://x/..%2F..%2Fetc"), Answer(404))
    error = refused(node, want(version=None, channel="odd"))
    assert (error.code.id, error.retry) == ("GB504", True)


def test_a_channel_may_be_led_on_to_another_server(node: Node) -> None:
    node.web.pages["https://channels/stable"] = Answer(301, b"", {"location": "/new/stable"})
    elsewhere = "https://elsewhere/v1-release/channels/stable"
    node.web.pages["https://channels/new/stable"] = Answer(307, b"", {"location": elsewhere})
    there = "https://github.com/rancher/rke2/releases/tag/v1.35.7%2Brke2r1?x=y"
    node.web.pages[elsewhere] = Answer(302, b"", {"location": there})
    assert release.lookup(node.host, want(version=None, channel="stable")) == VERSION
    assert there not in [asked.url for asked in node.web.asked]


def test_a_channel_that_leads_in_a_circle_is_told(node: Node) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        node.web.pages[f"https://channels/{here}"] = Answer(302, b"", {"location": f"/{there}"})
    error = refused(node, want(version=None, channel="a"))
    assert (error.code.id, error.retry) == ("GB504", True)
    assert len(node.web.asked) == release.HOPS


def test_a_channel_that_does_not_exist_is_told_as_that(node: Node) -> None:
    node.web.pages["https://channels/v1.99"] = Answer(404)
    error = refused(node, want(version=None, channel="v1.99"))
    assert error.message == "https://channels/v1.99 answered 404: there seems to be no such channel"


# -- another prefix

AGENT_UNIT = "lib/systemd/system/rke2-agent.service"
UNIT = b"""\
[Service]
EnvironmentFile=-/usr/local/lib/systemd/system/rke2-agent.env
ExecStart=/usr/local/bin/rke2 agent
"""


def test_below_another_prefix_units_and_scripts_speak_of_it(node: Node) -> None:
    unit = tarfile.TarInfo(AGENT_UNIT)
    script = tarfile.TarInfo("bin/rke2-uninstall.sh")
    names = {name: mode for name, mode in NAMES.items() if name != AGENT_UNIT}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in ((unit, UNIT), (script, b"rm /usr/local/bin/rke2\n")):
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
        for name, mode in names.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(name), mode
            archive.addfile(member, io.BytesIO(name.encode()))
    publish(node, gzip.compress(buffer.getvalue(), 1, mtime=0))
    release.install(node.host, want(), "/opt/rke2")
    found = node.text("/etc/systemd/system/rke2-agent.service")
    assert found == UNIT.decode().replace("/usr/local", "/opt/rke2")
    assert node.text("/opt/rke2/bin/rke2-uninstall.sh") == "rm /opt/rke2/bin/rke2\n"
    assert node.text("/opt/rke2/bin/rke2") == "bin/rke2"
    assert node.host.mode("/opt/rke2/lib/systemd/system/rke2-agent.env") == 0o600
    assert not [name for name in node.files() if name.startswith("/usr/")]


@pytest.mark.parametrize("name", ["v\u0663.\u0663.\u0663+rke2r\u0663", f"v{'9' * 300}.1.1+rke2r1"])
def test_a_release_is_named_by_few_digits_and_ascii_ones(node: Node, name: str) -> None:
    page = Answer(302, b"", {"location": f"https://x/{name}"})
    node.web.pages["https://channels/odd"] = page
    assert refused(node, want(version=None, channel="odd")).retry


# -- refused


def test_a_tarball_of_another_checksum_installs_nothing(node: Node) -> None:
    publish(node, tarball(), checksums(b"something else"))
    error = refused(node, want())
    assert (error.code.id, error.retry) == ("GB404", True)
    assert node.files() == []


def test_a_tarball_that_does_not_fit_its_pin_installs_nothing(node: Node) -> None:
    publish(node, tarball())
    assert refused(node, want(sha256="0" * 64)).code.id == "GB404"
    assert node.files() == []


def test_without_a_pin_plain_http_is_refused(node: Node) -> None:
    node.web.files[f"http://mirror/v1.35.7%2Brke2r1/{TARBALL}"] = tarball()
    error = refused(node, want(url="http://mirror"))
    assert (error.code.id, error.retry) == ("GB505", False)
    assert node.files() == []


@pytest.mark.parametrize(
    "sums", [b"", b"<html>", checksums(b"", "other.tar.gz"), b"abc  " + TARBALL.encode() + b"\n"]
)
def test_a_checksum_file_without_the_tarball_is_refused(node: Node, sums: bytes) -> None:
    publish(node, tarball(), sums)
    assert refused(node, want()).code.id == "GB504"
    assert node.files() == []


def test_a_local_folder_without_the_release_is_told(node: Node) -> None:
    error = refused(node, want(url="/srv"))
    assert (error.code.id, error.retry) == ("GB504", True)  # it may be mounted later


@pytest.mark.parametrize("name", ["../../etc/passwd", "bin/../../../etc/x", "/etc/x", "bin/.."])
def test_a_name_that_leads_out_of_the_folder_is_refused(node: Node, name: str) -> None:
    evil = tarfile.TarInfo(name)
    evil.size = 3
    publish(node, tarball(evil, names={"bin/rke2": 0o755}))
    error = refused(node, want())
    assert (error.code.id, error.retry) == ("GB506", False)
    assert not [file for file in node.files() if file != CACHED]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_only_plain_files_are_unpacked(node: Node, kind: bytes) -> None:
    odd = tarfile.TarInfo("bin/odd")
    odd.type, odd.linkname = kind, "/etc/passwd"
    publish(node, tarball(odd))
    release.install(node.host, want())
    assert not node.host.exists("/usr/local/bin/odd")


def test_a_file_has_no_setuid_bit_and_is_written_by_nobody_else(node: Node) -> None:
    publish(node, tarball(names={"bin/rke2": 0o6777}))
    release.install(node.host, want())
    assert node.host.mode("/usr/local/bin/rke2") == 0o755


def test_a_file_that_is_more_on_disk_than_in_the_tarball_is_refused(node: Node) -> None:
    vast = tarfile.TarInfo("bin/vast")
    vast.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 33)}
    vast.size = 1
    publish(node, tarball(vast))
    assert "holds the sparse file 'bin/vast'" in refused(node, want()).message
    assert [file for file in node.files() if file != CACHED] == []


def test_a_name_that_no_file_can_have_is_refused(node: Node) -> None:
    odd = tarfile.TarInfo("bin/odd")
    odd.pax_headers = {"path": "bin/a\0b"}
    publish(node, tarball(odd))
    assert refused(node, want()).code.id == "GB506"


def test_a_damaged_tarball_that_fits_its_pin_is_told(node: Node) -> None:
    content = bytearray(tarball())
    content[200:260] = b"\xff" * 60
    publish(node, bytes(content))
    assert refused(node, want(sha256=digest(bytes(content)))).code.id == "GB506"


@pytest.mark.parametrize("content", [b"<html>not here</html>", b"", tarball()[:200]])
def test_what_is_no_tarball_is_told(node: Node, content: bytes) -> None:
    publish(node, content)
    error = refused(node, want(sha256=digest(content)))
    assert (error.code.id, error.retry) == ("GB506", False)
    assert not node.host.exists("/usr/local/bin/rke2")


def test_the_program_comes_last_so_that_it_proves_the_rest(node: Node) -> None:
    evil = tarfile.TarInfo("../x")
    publish(node, tarball(evil))
    refused(node, want())
    assert not node.host.exists("/usr/local/bin/rke2")
