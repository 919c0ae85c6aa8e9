"""dpkg that was cut off is noticed, and ended as an undisturbed installation would have ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuboot import apt, dpkg
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from tests.unit.node import Node


@pytest.mark.parametrize(
    ("audit", "updates", "cut"),
    [
        ("", [], False),
        ("The following packages are only half configured:\n nvidia-kernel-dkms\n", [], True),
        ("", ["0001"], True),
        ("", ["tmp.i"], False),
    ],
)
def test_a_cut_off_dpkg_is_noticed(
    node: Node, audit: str, updates: list[str], *, cut: bool
) -> None:
    node.answers["dpkg --audit"] = audit
    for name in updates:
        node.put(f"/var/lib/dpkg/updates/{name}")
    assert dpkg.interrupted(node.host) is cut


# Somebody's dpkg, which locks as dpkg does and lives until its standard input ends.
HOLDER = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def locked(node: Node) -> Iterator[subprocess.Popen[str]]:
    node.put(dpkg.LOCK)
    argv = [sys.executable, "-c", HOLDER, str(node.host.path(dpkg.LOCK))]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process


def test_an_installation_under_way_is_seen_by_its_lock(node: Node) -> None:
    assert not dpkg.busy(node.host)
    with locked(node):
        assert dpkg.busy(node.host)
    assert not dpkg.busy(node.host)


def test_an_installation_is_let_end_and_not_for_ever(node: Node) -> None:
    with locked(node) as process:
        dpkg.let_end(node.host)
        assert node.clock.seconds > apt.LOCK_WAIT
        assert process.poll() is None
    before = node.clock.seconds
    dpkg.let_end(node.host)
    assert node.clock.seconds - before < 1


# -- mending

STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36

Package: dkms
Status: install reinstreq half-installed
Version: 3.0.10

Package: gcc-12
Status: install ok unpacked
Version: 12.2.0-14
"""
SIMULATED = """\
Inst gcc-12 (12.2.0-14 Debian:12 [amd64])
Inst make (4.3-4.1 Debian:12 [amd64])
Inst dkms (3.0.10 Debian:12 [all])
Inst linux-headers-amd64 (6.1.1 Debian:12 [amd64])
"""


class Dpkg:
    """dpkg in a mess, until apt has done what `mended_by` says; what apt was asked for."""

    def __init__(self, node: Node, *, mended_by: str, says: int = 100) -> None:
        self.mess = "dkms is in a mess\n"
        self.asked: list[str] = []
        self.seen = ""  # the status that was simulated with
        self._mended_by = mended_by
        self._says = says  # apt's exit status where it has not mended
        node.put(dpkg.STATUS, STATUS)
        node.answers |= {
            "dpkg --audit": lambda _: Result(0, self.mess), "dpkg --force-confold": self._dpkg,
            "dpkg-query": "reinstreq\tdkms\nok\tgcc-12\n", "apt-get": self._apt,
            "env": self._fetch, "apt-mark": "",
        }  # fmt: skip

    def _dpkg(self, command: Command) -> Result:
        verb, last = command.argv[2], command.argv[-1]
        self._done(
            "configure"
            if verb == "--configure"
            else f"unpack {[file.name for file in Path(last).iterdir()]}"
        )
        return Result(0 if not self.mess else 1)

    def _fetch(self, command: Command) -> Result:
        folder = Path(command.argv[1].removeprefix("--chdir="))
        for name in command.argv[command.argv.index("download") + 1 :]:
            (folder / f"{name}.deb").touch()
        return Result(0)

    def _apt(self, command: Command) -> Result:
        words = command.argv
        if "--simulate" in words or "--print-uris" in words:
            option = next(word for word in words if word.startswith("Dir::State::status="))
            self.seen = Path(option.partition("=")[2]).read_text(encoding="utf-8")
            return Result(0, SIMULATED)
        if words[-1] == "update":
            return Result(0)
        asked = " ".join(word for word in words[words.index("install") :])
        self._done(asked)
        return Result(0 if not self.mess else self._says, err="E: Unmet dependencies.")

    def _done(self, asked: str) -> None:
        self.asked.append(asked)
        if asked == self._mended_by:
            self.mess = ""


def wanted() -> list[str]:
    return ["dkms", "linux-headers-amd64"]


def test_where_configuring_is_enough_no_archive_is_asked(node: Node) -> None:
    state = Dpkg(node, mended_by="configure")
    dpkg.mend(node.host, wanted, {})
    assert state.asked == ["configure"]
    assert not [line for line in node.ran if line.startswith("apt-get")]


def test_apt_is_told_what_a_sound_node_would_get(node: Node) -> None:
    state = Dpkg(node, mended_by="install make=4.3-4.1")
    dpkg.mend(node.host, wanted, {})
    assert state.seen.count("Package:") == 1
    assert "Package: libc6" in state.seen
    assert state.asked == [
        "configure", "unpack ['dkms.deb']", "install make=4.3-4.1",
    ]  # fmt: skip
    [repair] = [line for line in node.ran if "--fix-broken" in line]
    assert "--mark-auto" in repair  # by name, and yet not as asked for by name


def test_what_remains_is_left_to_apt(node: Node) -> None:
    state = Dpkg(node, mended_by="install")
    dpkg.mend(node.host, wanted, {})
    assert state.asked[-1] == "install"


@pytest.mark.parametrize("says", [0, 100])
def test_what_no_repair_mends_is_an_error(node: Node, says: int) -> None:
    Dpkg(node, mended_by="nothing", says=says)
    with pytest.raises(GpubootError) as caught:
        dpkg.mend(node.host, wanted, {})
    assert (caught.value.code, caught.value.retry) == (apt.INSTALL_FAILED, True)
