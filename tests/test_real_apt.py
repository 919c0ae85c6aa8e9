"""The machine's own apt, in a state of its own, before sources with something wrong: the codes.

It needs apt-ftparchive and gpg, which make the sources, and no root.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuboot import apt, aptfailure
from gpuboot.errors import GpubootError
from gpuboot.host import Host
from tests.rehearsal import archive, strange

PRIVATE = """\
#clear APT::Update;
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
Dir::Log "{0}/log";
Dir::Etc::SourceList "{0}/ours.sources";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "root";
Debug::NoLocking "true";
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::Check-Date "true";
Acquire::Check-Valid-Until "true";
Acquire::http::Proxy::127.0.0.1 "DIRECT";
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """A mirror; below /503 it is overloaded, and below /portal somebody answers in its place."""

    def do_GET(self) -> None:
        if self.path.startswith("/503"):
            self.send_error(503)
        elif self.path.startswith("/portal"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Who are you?</html>\n")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nobody reads it."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Sources with something wrong, and their server's address; good.gpg is the key we trust."""
    folder = tmp_path_factory.mktemp("apt")
    debs, keys, web = folder / "debs", folder / "k", folder / "web"
    debs.mkdir()
    archive.pack_empty("alpha 1 misc", debs)
    shutil.copy(archive.signing_key(keys), folder / "good.gpg")
    strange.publish(web / "strange", debs, keys)
    for name in ("good", "tampered", "badindex", "sizeindex", "gone", "baddeb"):
        archive.publish_flat(web / name, debs, keys)
    spoil(web / "tampered/InRelease", lambda text: text.replace(b"Label:", b"Label: not"))
    spoil(web / "badindex/Packages.gz", lambda text: text[:-1] + bytes([text[-1] ^ 1]))
    spoil(web / "badindex/Packages", lambda text: text.replace(b"alpha", b"alphb"))
    for name in ("Packages", "Packages.gz"):
        spoil(web / "sizeindex" / name, lambda text: text + b"\n")
    deb = "alpha_1_amd64.deb"
    (web / "gone" / deb).unlink()
    (web / "baddeb" / deb).unlink()  # it was a link to the others' file
    shutil.copy(debs / deb, web / "baddeb")
    spoil(web / "baddeb" / deb, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    with served(web) as address:
        yield folder, address


def spoil(file: Path, how: Callable[[bytes], bytes]) -> None:
    file.write_bytes(how(file.read_bytes()))


def private(folder: Path, address: str, key: Path) -> list[str]:
    """apt's options for a state of its own and this one source."""
    for name in ("state/lists/partial", "cache/archives/partial", "log"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    source = f"Types: deb\nURIs: {address}\nSuites: /\nSigned-By: {key}\n"
    (folder / "ours.sources").write_text(source, encoding="ascii")
    (folder / "apt.conf").write_text(PRIVATE.format(folder), encoding="ascii")
    return ["-c", str(folder / "apt.conf")]


@pytest.mark.parametrize(
    ("source", "key", "code", "said"),
    [
        ("strange/unknown-key", "good", aptfailure.KEY_UNKNOWN, "NO_PUBKEY|Missing key"),
        ("strange/sha1", "good", aptfailure.TOO_WEAK, "invalid: [0-9A-F]{40}|SHA1"),
        ("strange/stale", "good", aptfailure.RELEASE_EXPIRED, "is expired"),
        ("tampered", "good", aptfailure.SIGNATURE_REFUSED, "BADSIG|manipulated"),
        ("badindex", "good", aptfailure.STALE_LISTS, "Hash Sum mismatch"),
        ("sizeindex", "good", aptfailure.STALE_LISTS, "unexpected size"),
        ("nowhere", "good", aptfailure.NO_SUCH_SOURCE, "does not have a Release file"),
        ("503", "good", aptfailure.SOURCE_FAILED, "503"),
        ("portal", "good", aptfailure.SOURCE_FAILED, "network require authentication"),
    ],
)
def test_what_is_wrong_with_a_source_is_told_by_its_code(
    world: tuple[Path, str], tmp_path: Path, source: str, key: str, code: object, said: str
) -> None:
    folder, address = world
    options = private(tmp_path, f"{address}/{source}", folder / f"{key}.gpg")
    with pytest.raises(GpubootError) as caught:
        apt.update(Host(), {}, options)
    assert (caught.value.code, caught.value.retry) == (code, True)
    assert re.search(said, caught.value.message)


@pytest.mark.parametrize(("source", "said"), [("gone", "404"), ("baddeb", "Hash Sum mismatch")])
def test_a_package_that_is_gone_or_damaged_means_stale_lists(
    world: tuple[Path, str], tmp_path: Path, source: str, said: str
) -> None:
    folder, address = world
    options = private(tmp_path, f"{address}/{source}", folder / "good.gpg")
    host = Host()
    apt.update(host, {}, options)
    argv = ["env", f"--chdir={tmp_path}", "apt-get", *options, "download", "alpha"]
    error = aptfailure.failure(host.run(argv))
    assert error.code is aptfailure.STALE_LISTS
    assert said in error.message


def test_a_source_with_nothing_wrong_is_read(world: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = world
    options = private(tmp_path, f"{address}/good", folder / "good.gpg")
    apt.update(Host(), {}, options)
    known = apt.policy(Host(), ["alpha"], options)
    assert known["alpha"].offered == "1"
    assert known["alpha"].versions["1"][0].startswith(f"{address}/good")
