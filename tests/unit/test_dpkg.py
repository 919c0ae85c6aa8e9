"""dpkg that was cut off is noticed, and ended as an undisturbed installation would have ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpuboot import aptfailure, dpkg
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from tests.unit.node import Node
from tests.unit.test_aptlock import held


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

    def __init__(
        self, node: Node, *, mended_by: str, says: int = 100, unpacks: bool = True
    ) -> None:
        self.mess = "dkms is in a mess\n"
        self.flag = "reinstreq"  # dpkg's, of dkms, until it could be unpacked again
        self._unpacks = unpacks
        self.asked: list[str] = []
        self.seen = ""  # the status that was simulated with
        self._mended_by = mended_by
        self._says = says  # apt's exit status where it has not mended
        self.simulated: Callable[[Command], Result] = self._simulated
        node.put(dpkg.STATUS, STATUS)
        node.answers |= {
            "dpkg --audit": lambda _: Result(0, self.mess),
            "dpkg --force-confdef,confold": self._dpkg,
            "dpkg-query": lambda _: Result(0, f"{self.flag}\tdkms\nok\tgcc-12\n"),
            "apt-get": self._apt,
            "env": self._fetch, "apt-mark": "",
        }  # fmt: skip

    def _dpkg(self, command: Command) -> Result:
        verb, last = command.argv[2], command.argv[-1]
        self._done(
            "configure"
            if verb == "--configure"
            else f"unpack {[file.name for file in Path(last).iterdir()]}"
        )
        if verb == "--unpack" and not self._unpacks:
            return Result(1, err="dpkg: error: failed to write: No space left on device")
        if verb == "--unpack":
            self.flag = "ok"
        return Result(0 if not self.mess else 1)

    def _fetch(self, command: Command) -> Result:
        folder = Path(command.argv[1].removeprefix("--chdir="))
        for name in command.argv[command.argv.index("download") + 1 :]:
            (folder / f"{name}.deb").touch()
        return Result(0)

    def _apt(self, command: Command) -> Result:
        words = command.argv
        if "--simulate" in words or "--print-uris" in words:
            return self.simulated(command)
        if words[-1] == "update":
            return Result(0)
        asked = " ".join(word for word in words[words.index("install") :])
        self._done(asked)
        return Result(0 if not self.mess else self._says, err="E: Unmet dependencies.")

    def _simulated(self, command: Command) -> Result:
        option = next(word for word in command.argv if word.startswith("Dir::State::status="))
        self.seen = Path(option.partition("=")[2]).read_text(encoding="utf-8")
        return Result(0, SIMULATED)

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


def test_what_needs_a_half_done_package_is_no_sound_one(node: Node) -> None:
    state = Dpkg(node, mended_by="install make=4.3-4.1")
    support = "\nPackage: nvidia-kernel-support\nStatus: install ok installed\nVersion: 535\n"
    node.put(dpkg.STATUS, STATUS + support)
    simulated = state.simulated

    def unmet(command: Command) -> Result:
        result = simulated(command)
        if "nvidia-kernel-support" not in state.seen:
            return result
        said = " nvidia-kernel-support : Depends: nvidia-modprobe (>= 535) but it is not going to"
        head = "The following packages have unmet dependencies:"
        return Result(100, f"{head}\n{said} be installed\n", "E: Unmet dependencies.\n")

    state.simulated = unmet
    dpkg.mend(node.host, wanted, {})
    assert state.asked[-1] == "install make=4.3-4.1"


def test_what_needs_one_of_those_that_were_asked_for_is_mended_with_them(node: Node) -> None:
    state = Dpkg(node, mended_by="install make=4.3-4.1 linux-headers-amd64")
    dpkg.mend(node.host, wanted, {})
    assert state.asked[-1] == "install make=4.3-4.1 linux-headers-amd64"
    assert "apt-mark manual linux-headers-amd64" in node.ran  # and stays one that was asked for


def test_what_remains_is_left_to_apt(node: Node) -> None:
    state = Dpkg(node, mended_by="install")
    dpkg.mend(node.host, wanted, {})
    assert state.asked[-1] == "install"


def test_what_cannot_be_unpacked_again_is_an_error_before_apt_passes_it_over(node: Node) -> None:
    state = Dpkg(node, mended_by="install", unpacks=False)
    with pytest.raises(GpubootError, match="dpkg could not unpack dkms again") as caught:
        dpkg.mend(node.host, wanted, {})
    assert (caught.value.code, caught.value.retry) == (aptfailure.INSTALL_FAILED, True)
    assert "No space left on device" in caught.value.evidence
    assert state.asked == ["configure", "unpack ['dkms.deb']"]


@pytest.mark.parametrize("says", [0, 100])
def test_what_no_repair_mends_is_an_error(node: Node, says: int) -> None:
    Dpkg(node, mended_by="nothing", says=says)
    with pytest.raises(GpubootError) as caught:
        dpkg.mend(node.host, wanted, {})
    assert (caught.value.code, caught.value.retry) == (aptfailure.INSTALL_FAILED, True)


# -- other people's packages

FAILING = STATUS.replace("reinstreq half-installed", "ok installed").replace(
    "Package: gcc-12\nStatus: install ok unpacked",
    "Package: theirs\nStatus: install ok half-configured",
)


def test_a_package_of_somebody_elses_that_stays_broken_stops_nobody(node: Node) -> None:
    state = Dpkg(node, mended_by="nothing")
    node.put(dpkg.STATUS, FAILING)
    node.answers["dpkg-query"] = "ok\ttheirs\n"
    assert dpkg.mend(node.host, wanted, {}) == {"theirs": "half-configured"}
    assert state.asked[0] == "configure"
    assert dpkg.told(dpkg.unsound(node.host)) == ("theirs, which is not ours, is half-configured",)


def test_where_ours_lack_nothing_no_archive_is_asked_for_other_peoples(node: Node) -> None:
    state = Dpkg(node, mended_by="nothing")
    node.put(dpkg.STATUS, FAILING)
    assert dpkg.mend(node.host, wanted, {}, lacking=False) == {"theirs": "half-configured"}
    assert state.asked == ["configure"]
    assert not [line for line in node.ran if line.startswith("apt-get")]


def test_a_part_of_a_package_that_no_source_has_is_named_with_what_to_type(node: Node) -> None:
    Dpkg(node, mended_by="nothing")
    node.answers |= {
        "dpkg-query": "reinstreq\ttheirs\n",
        "env": Result(100, err="E: Can't find a source to download version '1' of 'theirs:amd64'"),
    }
    with pytest.raises(GpubootError) as caught:
        dpkg.mend(node.host, wanted, {})
    error = caught.value
    assert (error.code.id, error.retry) == ("GB218", True)
    assert error.message == "theirs is half installed, and no source has it any more"
    assert error.hint == "dpkg --remove --force-remove-reinstreq theirs"


def test_what_is_half_done_is_no_trouble_while_dpkg_is_at_work(node: Node) -> None:
    Dpkg(node, mended_by="nothing")
    assert dpkg.unsound(node.host) == {"dkms": "half-installed", "gcc-12": "unpacked"}
    lock = "/var/lib/dpkg/lock-frontend"
    node.put(lock)
    with held(node.root / lock.lstrip("/")):
        assert dpkg.unsound(node.host) == {}


def test_records_that_no_package_accounts_for_are_trouble_too(node: Node) -> None:
    node.answers["dpkg --audit"] = ""
    node.put("/var/lib/dpkg/updates/0001")
    assert dpkg.unsound(node.host) == {dpkg.BROKEN_RECORDS: "interrupted"}


def test_nothing_is_asked_while_dpkg_configures(node: Node) -> None:
    calls: list[Command] = []

    def call(command: Command) -> Result:
        calls.append(command)
        return Result(0)

    node.answers["dpkg"] = call
    dpkg.configure(node.host, {})
    [command] = calls
    assert command.argv == ("dpkg", "--force-confdef,confold", "--configure", "--pending")
    assert command.env["DEBIAN_FRONTEND"] == "noninteractive"
    assert command.patient
