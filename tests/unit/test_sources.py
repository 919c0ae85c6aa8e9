"""apt's sources as we write them, and the keys they are verified with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuboot import aptsources, sources
from gpuboot.catalog import ARCHIVES
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.sources import OwnArchive, PackageSources, Source
from gpuboot.step import Ok, Pending
from gpuboot.web import Answer
from tests.unit.node import DATA, Node, reason, settled

COLONS = (DATA / "gpg-colons.txt").read_text(encoding="utf-8")
ONE, TWO = "58F3521728BBB9685D1A977BD3C57A035AD59FA7", "B855ACEF5BC8FC98385706217E184EC218310D4E"
ONLY_ONE = COLONS[: COLONS.index("pub:-:255:22:7E184")]
KEY = (DATA / "archive-key.asc").read_text(encoding="utf-8")
HEAD = "# Written by gpuboot from /etc/gpuboot/config.yaml; changes here are overwritten.\n"
AREAS = ARCHIVES["debian"].components
COMPONENTS = "Components: main contrib non-free non-free-firmware\n"
ARCHIVE = Source("distribution", "http://archive/debian", "bookworm", "/keys/archive.gpg", AREAS)
TOOLKIT = Source("toolkit", "https://mirror/toolkit", "/", ONE)
TOOLKIT_KEY = "/etc/apt/keyrings/gpuboot-toolkit.asc"


def step(*wanted: Source | OwnArchive) -> PackageSources:
    return PackageSources(wanted)


def written(node: Node, source: Source | OwnArchive) -> str | None:
    step(source).apply(node.host)
    return node.text(aptsources.FILE)


def refused(node: Node, source: Source | OwnArchive) -> GpubootError:
    with pytest.raises(GpubootError) as caught:
        step(source).apply(node.host)
    return caught.value


# -- files


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (ARCHIVE, (f"Types: deb\nURIs: http://archive/debian\nSuites: bookworm\n{COMPONENTS}"
                  "Signed-By: /keys/archive.gpg\n")),
        (Source("toolkit", "/srv/toolkit", "/", "/k.gpg"),
         "Types: deb\nURIs: file:/srv/toolkit\nSuites: /\nSigned-By: /k.gpg\n"),
    ],
)  # fmt: skip
def test_a_source_is_written_in_apts_own_form(node: Node, source: Source, text: str) -> None:
    node.put(source.key)
    assert reason(step(source).check(node.host), Pending) == f"{aptsources.FILE} is not written"
    assert written(node, source) == HEAD + text
    assert reason(step(source).check(node.host), Ok)


def test_a_changed_source_is_written_anew(node: Node) -> None:
    node.put(ARCHIVE.key)
    node.put(aptsources.FILE, "Types: deb\n")
    assert reason(settled(node, step(ARCHIVE)), Ok)


def test_a_key_file_that_is_not_there_is_told(node: Node) -> None:
    with pytest.raises(GpubootError, match=r"no /keys/archive\.gpg") as caught:
        step(ARCHIVE).check(node.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB210", False)


# -- the node's own archive

# debian.sources of Debian 12's cloud image, and what apt 2.6.1 lists for it once it was updated.
SOURCES = """\
# See sources.list(5).

Types: deb deb-src
URIs: http://deb/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/one.gpg

Types: deb
Enabled: no
URIs: http://off/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/off.gpg

# a comment between

Types: deb
URIs: http://deb/debian-security
# a comment within
Suites: bookworm-security
Components: main
signed-by:  /usr/share/keyrings/three.gpg
"""
LIST = "# old style\n\ndeb [arch=amd64 signed-by=/l.gpg] http://l/debian bookworm main\n"
PLAIN = "deb http://l/debian bookworm main\n"
FILE = "/etc/apt/sources.list.d/debian.sources"


def targets(node: Node, *lines: str) -> None:
    node.answers["apt-get indextargets"] = "".join(f"{line}\n" for line in lines)


def stanza(url: str, suite: str, key: str | None) -> str:
    signed = f"Signed-By: {key}\n" if key else ""
    return f"Types: deb\nURIs: {url}\nSuites: {suite}\n{COMPONENTS}{signed}"


def test_the_own_archive_is_copied_with_all_components_and_each_entrys_key(node: Node) -> None:
    node.put(FILE, SOURCES)
    targets(
        node,
        f"http://deb/debian/ bookworm main Packages {FILE}:1",
        f"http://deb/debian/ bookworm main Translations {FILE}:1",
        f"http://deb/debian bookworm-updates main Packages {FILE}:1",
        f"http://deb/debian-security bookworm-security main Packages {FILE}:3",
        f"http://deb/debian bookworm contrib Packages {FILE}:1",
        "http://elsewhere/debian trixie main Packages /etc/apt/sources.list:4",
        "http://mirror/toolkit / Packages /etc/apt/sources.list.d/toolkit.list:1",
        "http://deb/debian bookworm main Packages /etc/apt/sources.list.d/gpuboot.sources:1",
    )
    one, three = "/usr/share/keyrings/one.gpg", "/usr/share/keyrings/three.gpg"
    assert written(node, OwnArchive("bookworm", AREAS)) == HEAD + "\n".join([
        stanza("http://deb/debian", "bookworm", one),
        stanza("http://deb/debian", "bookworm-updates", one),
        stanza("http://deb/debian-security", "bookworm-security", three),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (LIST, 3, "/l.gpg"),
        (LIST.replace(" signed-by=/l.gpg", ""), 3, None),
        (LIST.replace("arch=amd64 signed-by=/l.gpg", "signed-by=/l.gpg arch=amd64"), 3, "/l.gpg"),
        (PLAIN, 1, None),
        (PLAIN, 9, None),
    ],
)
def test_the_key_of_a_line_is_the_one_in_its_brackets(
    node: Node, text: str, line: int, key: str | None
) -> None:
    node.put("/etc/apt/sources.list", text)
    targets(node, f"http://l/debian bookworm main Packages /etc/apt/sources.list:{line}")
    assert written(node, OwnArchive("bookworm", AREAS)) == HEAD + stanza(
        "http://l/debian", "bookworm", key
    )


def test_a_key_that_stands_in_the_entry_itself_is_copied(node: Node) -> None:
    # Without it apt refuses both: "Conflicting values set for option Signed-By" (tried, 2.6.1).
    body = "".join(f" {line or '.'}\n" for line in KEY.splitlines())
    node.put(FILE, f"Types: deb\nURIs: http://deb/debian\nSuites: bookworm\nSigned-By:\n{body}")
    targets(node, f"http://deb/debian bookworm main Packages {FILE}:1")
    assert "BEGIN PGP PUBLIC KEY BLOCK" in (written(node, OwnArchive("bookworm", AREAS)) or "")


def test_a_node_without_the_archive_is_told_so(node: Node) -> None:
    targets(node, "http://elsewhere/ubuntu noble main Packages /etc/apt/sources.list:1")
    error = refused(node, OwnArchive("bookworm", AREAS))
    assert (error.code.id, error.retry) == ("GB212", False)


def test_the_own_archive_is_found_before_the_first_update(node: Node) -> None:
    # Tried with apt 2.6.1 and empty /var/lib/apt/lists, as a fresh image has them. With the
    # option each index stands there twice, for the architecture and for `all`.
    def indextargets(command: Command) -> Result:
        line = f"http://deb/debian bookworm main Packages {FILE}:1\n"
        return Result(0, line * 2 if "--no-release-info" in command.argv else "")

    node.put(FILE, SOURCES)
    node.answers["apt-get indextargets"] = indextargets
    text = written(node, OwnArchive("bookworm", AREAS)) or ""
    assert text.count("Suites: bookworm\n") == 1


def test_a_source_that_apt_cannot_read_hides_no_archive(node: Node) -> None:
    def indextargets(command: Command) -> Result:
        if f"Dir::Etc::SourceList={FILE}" in command.argv:
            return Result(0, f"http://deb/debian bookworm main Packages {FILE}:1\n")
        return Result(100, err="E: Malformed entry 1 in list file /x.list (Suite)\n")

    node.put(FILE, SOURCES)
    node.answers["apt-get indextargets"] = indextargets
    assert "URIs: http://deb/debian\nSuites: bookworm\n" in (
        written(node, OwnArchive("bookworm", AREAS)) or ""
    )


def test_all_our_sources_stand_in_one_file_that_apt_can_be_given_alone(node: Node) -> None:
    node.put(ARCHIVE.key)
    node.put("/k.gpg")
    flat = Source("toolkit", "/srv/toolkit", "/", "/k.gpg")
    step(ARCHIVE, flat).apply(node.host)
    text = node.text(aptsources.FILE) or ""
    assert text.count("\n\n") == 1
    assert text.count("Types: deb\n") == 2
    assert [name for name in node.files() if name.endswith(".sources")] == [aptsources.FILE]


# -- pinned keys


def gpg(listing: str) -> Result:
    """gpg as it ends without a home folder: status 2, whatever it listed."""
    return Result(2, listing, "gpg: keyblock resource: No such file or directory")


def test_a_pinned_key_is_fetched_once_and_kept(node: Node) -> None:
    node.web.pages["https://mirror/toolkit/gpgkey"] = Answer(200, KEY.encode())
    node.answers["gpg"] = gpg(ONLY_ONE)
    assert reason(step(TOOLKIT).check(node.host), Pending) == "the key of toolkit is not there"
    assert reason(settled(node, step(TOOLKIT)), Ok)
    assert node.text(TOOLKIT_KEY) == KEY
    assert f"Signed-By: {TOOLKIT_KEY}\n" in (node.text(aptsources.FILE) or "")
    assert reason(settled(node, step(TOOLKIT)), Ok)
    assert len(node.web.asked) == 1


def test_what_is_asked_for_first_are_signatures_and_keys_that_are_not_there(node: Node) -> None:
    asked = ["http://archive/debian/dists/bookworm/InRelease", "https://mirror/toolkit/InRelease"]
    key = ["https://mirror/toolkit/gpgkey"]
    assert sources.addresses(node.host, [ARCHIVE, TOOLKIT]) == [asked[0], *key, asked[1]]
    node.answers["gpg"] = ONLY_ONE
    node.put(TOOLKIT_KEY, KEY)
    assert sources.addresses(node.host, [ARCHIVE, TOOLKIT]) == asked


def test_a_pinned_key_may_come_from_a_local_folder(node: Node) -> None:
    node.put("/srv/toolkit/gpgkey", KEY)
    node.answers["gpg"] = gpg(ONLY_ONE)
    assert written(node, Source("toolkit", "/srv/toolkit", "/", ONE.lower()))
    assert node.text(TOOLKIT_KEY) == KEY
    assert node.web.asked == []


@pytest.mark.parametrize(
    ("listing", "status", "holds", "retry"),
    [
        (COLONS, 200, f"holds {ONE}, {TWO}", False),
        (ONLY_ONE.replace(ONE, TWO), 200, f"holds {TWO}", False),
        ("", 200, "holds no key", True),
        ("", 404, "holds no key", True),
    ],
    ids=["one key more", "another key", "no key", "not there"],
)
def test_only_the_pinned_key_and_no_other_is_kept(
    node: Node, listing: str, status: int, holds: str, *, retry: bool
) -> None:
    node.web.pages["https://mirror/toolkit/gpgkey"] = Answer(status, KEY.encode())
    node.answers["gpg"] = gpg(listing)
    error = refused(node, TOOLKIT)
    assert (error.code.id, error.retry) == ("GB211", retry)
    assert holds in error.message
    assert error.message.endswith(f"expected {ONE}")
    assert node.files() == []


def test_a_key_that_was_replaced_is_fetched_anew(node: Node) -> None:
    node.put(TOOLKIT_KEY, "another")
    node.web.pages["https://mirror/toolkit/gpgkey"] = Answer(200, KEY.encode())

    def listing(command: Command) -> Result:
        return gpg(ONLY_ONE if command.input == KEY else ONLY_ONE.replace(ONE, TWO))

    node.answers["gpg"] = listing
    assert reason(settled(node, step(TOOLKIT)), Ok)
    assert node.text(TOOLKIT_KEY) == KEY


def test_gpg_is_asked_so_that_it_answers(node: Node) -> None:
    def gnupg(command: Command) -> Result:
        """As tried on Debian 12: without a trust database it may not make one, and gives up."""
        if Path(command.env["GNUPGHOME"]).is_dir() or "always" in command.argv:
            return Result(2, ONLY_ONE, "gpg: keyblock resource: No such file or directory")
        return Result(2, "", "gpg: Fatal: /nonexistent: directory does not exist!")

    node.web.pages["https://mirror/toolkit/gpgkey"] = Answer(200, KEY.encode())
    node.answers["gpg"] = gnupg
    assert reason(settled(node, step(TOOLKIT)), Ok)
