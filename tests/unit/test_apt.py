"""apt as we call it: what it is asked, and what is read from its answers."""

from __future__ import annotations

import pytest

from gpuboot import apt, aptfailure, aptsources
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from tests.unit.node import Node

# -- what is installed


def dpkg(node: Node, *rows: str) -> None:
    node.answers["dpkg-query"] = Result(1, "".join(f"{row}\n" for row in rows), "no packages found")


@pytest.mark.parametrize(
    "status",
    ["not-installed", "config-files", "half-installed", "unpacked", "half-configured",
     "triggers-awaited", "triggers-pending"],
)  # fmt: skip
def test_only_a_configured_package_is_installed(node: Node, status: str) -> None:
    dpkg(node, "dkms\tinstalled\t3.0.10-8", f"nvidia-kernel-dkms\t{status}\t535.309.01-0")
    assert apt.installed(node.host, ["dkms", "nvidia-kernel-dkms"]) == {"dkms": "3.0.10-8"}


def test_a_package_that_dpkg_knows_only_by_name_is_not_installed(node: Node) -> None:
    dpkg(node, "nvidia-smi\tnot-installed\t")
    assert apt.installed(node.host, ["nvidia-smi", "libcuda1"]) == {}


# -- what could be installed

# apt-get --simulate and --print-uris of apt 3.0.4, in a Debian 13 rehearsal tree (2026-11-25).
SIMULATED = """\
Reading package lists...
Building dependency tree...
Solving dependencies...
The following NEW packages will be installed:
  dkms nvidia-smi
Inst dkms (3.2.2-1~deb13u1 gpuboot rehearsal:stable [all])
Inst nvidia-smi (550.163.01-2 gpuboot rehearsal:stable [amd64])
Conf dkms (3.2.2-1~deb13u1 gpuboot rehearsal:stable [all])
Conf nvidia-smi (550.163.01-2 gpuboot rehearsal:stable [amd64])
"""
URIS = """\
Reading package lists...
'http://mirror/pool/main/dkms_3.2.2-1%7edeb13u1_all.deb' \
dkms_3.2.2-1~deb13u1_all.deb 60084 MD5Sum:ea1513a1ebedd18fb6c5acfe72af15e5
'http://mirror/pool/non-free/nvidia-smi_550.163.01-2_amd64.deb' \
nvidia-smi_550.163.01-2_amd64.deb 20672 MD5Sum:2acffefa83812d13bde73eb317fa2a5f
"""


def test_changes_are_told_with_version_and_size_by_apt_3_too(node: Node) -> None:
    def answer(command: Command) -> Result:
        return Result(0, SIMULATED if "--simulate" in command.argv else URIS)

    node.answers["apt-get"] = answer
    assert apt.changes(node.host, ["dkms", "nvidia-smi"], [], {}) == [
        apt.Change("dkms", "install", "3.2.2-1~deb13u1", None, 60084),
        apt.Change("nvidia-smi", "install", "550.163.01-2", None, 20672),
    ]


# apt-cache policy of apt 2.6.1 on Debian 12, the last block of apt 3.0.4 on Debian 13; a package
# that apt does not know has no block.
POLICY = """\
base-files:
  Installed: 12.4+deb12u11
  Candidate: 12.4+deb12u15
  Version table:
     12.4+deb12u15 500
        500 http://deb/debian bookworm/main amd64 Packages
 *** 12.4+deb12u11 100
        100 /var/lib/dpkg/status
nvidia-smi:
  Installed: (none)
  Candidate: (none)
  Version table:
libnvidia-container1:
  Installed: (none)
  Candidate: 1.20.0-1
  Version table:
     1.20.0-1 500
        500 http://mirror/toolkit  Packages
libc6:i386:
  Installed: (none)
  Candidate: 2.36-9+deb12u10
  Version table:
     2.36-9+deb12u10 500
linux-headers-amd64:
  Installed: 6.12.118-1
  Candidate: 6.12.118-1
  Version table:
 *** 6.12.118-1 500
        500 http://mirror/debian trixie/main amd64 Packages
        100 /var/lib/dpkg/status
"""


def test_candidates_are_those_that_apt_would_install(node: Node) -> None:
    node.answers["apt-cache policy"] = POLICY
    assert apt.candidates(node.host, ["base-files", "unheard-of"]) == {
        "base-files": "12.4+deb12u15",
        "libnvidia-container1": "1.20.0-1",
        "libc6:i386": "2.36-9+deb12u10",
        "linux-headers-amd64": "6.12.118-1",
    }


def test_where_apt_knows_none_there_are_no_candidates(node: Node) -> None:
    node.answers["apt-cache policy"] = ""
    assert apt.candidates(node.host, ["unheard-of"]) == {}


def test_held_packages_are_a_set(node: Node) -> None:
    node.answers["dpkg-query"] = "hold\tlibcuda1\ninstall\tdkms\nhold\tnvidia-smi\n"
    assert apt.held(node.host) == {"libcuda1", "nvidia-smi"}


def test_what_is_only_installed_is_offered_by_no_source(node: Node) -> None:
    node.answers["apt-cache policy"] = POLICY + ONLY_INSTALLED
    known = apt.policy(node.host, ["libcuda1", "linux-headers-amd64"])
    assert known["linux-headers-amd64"].versions == {
        "6.12.118-1": ("http://mirror/debian trixie/main amd64 Packages",)
    }
    assert (known["libcuda1"].installed, known["libcuda1"].candidate) == ("580.1-1", "580.1-1")
    assert known["libcuda1"].offered == "535.2-1"
    assert known["base-files"].offered == "12.4+deb12u15"


# A package that came from elsewhere, as apt 2.6.2 tells of it.
ONLY_INSTALLED = """\
libcuda1:
  Installed: 580.1-1
  Candidate: 580.1-1
  Version table:
 *** 580.1-1 100
        100 /var/lib/dpkg/status
     535.2-1 500
        500 http://mirror/debian bookworm/non-free amd64 Packages
"""


# -- how apt is called


class Calls:
    """apt-get and its like, each ending as `says` has it; what was called in a walk."""

    def __init__(self, node: Node, *says: Result) -> None:
        self.made: list[Command] = []
        self._says = list(says)
        node.answers |= {"apt-get": self, "apt-mark": self, "apt-get indextargets": Result(0)}

    def __call__(self, command: Command) -> Result:
        self.made.append(command)
        return self._says.pop(0) if self._says else Result(0)

    @property
    def verbs(self) -> list[str]:
        """What apt was asked for, with a star where it was to read our sources alone."""
        return [
            next(word for word in call.argv if word in ("update", "install", "hold"))
            + ("*" if set(aptsources.ONLY) <= set(call.argv) else "")
            for call in self.made
        ]


def test_apt_asks_nothing_restarts_nothing_and_is_never_stopped_by_us(node: Node) -> None:
    calls = Calls(node)
    proxy = {"http_proxy": "http://p"}
    apt.update(node.host, proxy)
    apt.install(node.host, ["dkms", "nvidia-smi=1"], proxy)
    apt.fix_broken(node.host, ["dkms=1"], proxy)
    apt.fix_broken(node.host, [], proxy)
    assert len(calls.made) == 4
    for command in calls.made:
        assert command.patient
        assert command.input is None  # and so the end of file is all that it can read
        assert command.env == {
            "DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NONINTERACTIVE_SEEN": "true",
            "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none",
            "APT_LISTBUGS_FRONTEND": "none", "UCF_FORCE_CONFFOLD": "1", **proxy,
            "PATH": "/usr/lib/gpuboot/path:/usr/sbin:/usr/bin:/sbin:/bin",
        }  # fmt: skip
    assert all("--yes" in command.argv for command in calls.made)
    for command in calls.made[1:]:
        assert "Dpkg::Options::=--force-confold" in command.argv
    assert calls.made[1].argv[-2:] == ("dkms", "nvidia-smi=1")


def test_a_failed_update_is_raised_with_its_meaning_and_the_sources_entry(node: Node) -> None:
    refused = Result(100, err="E: Failed to fetch http://x/debian/InRelease  Could not resolve 'x'")
    Calls(node, refused, refused)
    node.answers["apt-get indextargets"] = (
        "http://x/ a main Packages /etc/apt/sources.list:1\n"
        f"http://x/debian / Packages {aptsources.FILE}:2\n"
    )
    with pytest.raises(GpubootError) as caught:
        apt.update(node.host, {})
    assert caught.value.code is aptfailure.SOURCE_FAILED
    assert caught.value.message.endswith(f"Could not resolve 'x' ({aptsources.FILE}:2)")


FOREIGN = Result(100, err="E: The repository 'http://them x Release' is not signed.")


def test_a_source_that_is_not_ours_is_named_and_stops_nobody(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(node, FOREIGN)
    node.answers["apt-get indextargets"] = (
        "http://them x main Packages /etc/apt/sources.list.d/them.list:3\n"
    )
    apt.obtain(node.host, lambda: ["dkms"], {})
    assert calls.verbs == ["update", "update*", "install*"]
    assert "is broken: E: The repository 'http://them x Release' is not signed." in caplog.text
    assert "(/etc/apt/sources.list.d/them.list:3)" in caplog.text


def test_a_source_of_ours_that_fails_beside_a_foreign_one_is_the_error(node: Node) -> None:
    Calls(node, FOREIGN, Result(100, err="E: Failed to fetch http://ours/InRelease  503 x"))
    with pytest.raises(GpubootError, match="http://ours/InRelease"):
        apt.obtain(node.host, lambda: ["dkms"], {})


def test_sources_that_apt_cannot_read_hide_none_of_the_others(node: Node) -> None:
    broken = Result(100, err="E: Malformed entry 1 in list file /x.list (Suite)\n"
                             "E: The list of sources could not be read.\n")  # fmt: skip

    def listed(command: Command) -> Result:
        good = "http://deb/debian x main Packages /etc/apt/sources.list.d/good.sources:1\n"
        alone = [word for word in command.argv if word.startswith("Dir::Etc::SourceList=")]
        return Result(0, good) if alone and alone[0].endswith("/good.sources") else broken

    for name in ("good.sources", "bad.list", "noted.txt"):
        node.put(f"{aptsources.FOLDER}/{name}")
    node.answers["apt-get indextargets"] = listed
    assert aptsources.targets(node.host) == [
        "http://deb/debian x main Packages /etc/apt/sources.list.d/good.sources:1"
    ]
    assert aptsources.unreadable(node.host) == "Malformed entry 1 in list file /x.list (Suite)"


GONE = Result(100, err="E: Failed to fetch http://m/a_1.deb  404  Not Found [IP: 1.2.3.4 80]\n"
                       "E: Unable to fetch some archives, maybe run apt-get update")  # fmt: skip
DAMAGED = Result(100, err="E: Failed to fetch http://m/Packages  Hash Sum mismatch")
PAST_CACHES = set(apt.PAST_CACHES)


def test_stale_lists_are_read_once_more_at_once_past_every_cache(node: Node) -> None:
    asked: list[list[str]] = [["a=1"], ["a=2"]]
    calls = Calls(node, Result(0), GONE)
    apt.obtain(node.host, lambda: asked.pop(0), {})
    assert calls.verbs == ["update", "install*", "update", "install*"]
    assert [set(call.argv) >= PAST_CACHES for call in calls.made] == [False, False, True, True]
    assert calls.made[-1].argv[-1] == "a=2"  # what is to be had is looked up anew


def test_an_index_that_is_damaged_is_read_once_more_at_once(node: Node) -> None:
    calls = Calls(node, DAMAGED, DAMAGED)
    apt.obtain(node.host, lambda: ["a"], {})
    assert calls.verbs == ["update", "update*", "update", "install*"]


def test_lists_that_stay_stale_are_waited_for_under_a_code_of_their_own(node: Node) -> None:
    calls = Calls(node, Result(0), GONE, Result(0), GONE)
    with pytest.raises(GpubootError) as caught:
        apt.obtain(node.host, lambda: ["a"], {})
    assert (caught.value.code.id, caught.value.retry) == ("GB207", True)
    assert calls.verbs.count("install*") == 2


def test_a_state_of_apts_own_is_read_at_once_and_with_no_other_sources(node: Node) -> None:
    calls = Calls(node)
    apt.update(node.host, {}, ["-c", "/private/apt.conf"])
    assert calls.verbs == ["update"]
    assert "/private/apt.conf" in calls.made[0].argv


def test_a_source_that_apt_cannot_read_keeps_nothing_from_being_held_or_mended(node: Node) -> None:
    broken = Result(100, err="E: The list of sources could not be read.")
    calls = Calls(node, broken, Result(0), broken, Result(0))
    apt.hold(node.host, ["dkms"])
    apt.fix_broken(node.host, [], {})
    assert calls.verbs == ["hold", "hold*", "install", "install*"]


# -- what our sources lack

THEIRS = """\
linux-headers-6.1.0-50-amd64:
  Installed: (none)
  Candidate: 6.1.170-1
  Version table:
     6.1.170-1 500
        500 http://security/debian bookworm-security/main amd64 Packages
"""
UNMET = Result(
    100,
    err="The following packages have unmet dependencies:\n"
    " libc6-dev : Depends: libc6 (= 1) but 2 is to be installed\n"
    "E: Unable to correct problems, you have held broken packages.\n",
)


def known_elsewhere(node: Node) -> None:
    """Our sources have nvidia-smi; the headers are in one of the node's own."""

    def answer(command: Command) -> Result:
        if set(aptsources.ONLY) <= set(command.argv):
            ours = (
                "nvidia-smi:\n  Installed: (none)\n  Candidate: 1\n  Version table:\n     1 500\n"
            )
            return Result(0, f"{ours}        500 http://mirror bookworm/main amd64 Packages\n")
        return Result(0, THEIRS)

    node.answers["apt-cache policy"] = answer


def test_of_what_our_sources_lack_everybodys_are_asked(node: Node) -> None:
    known_elsewhere(node)
    known = apt.policy(node.host, ["nvidia-smi", "linux-headers-6.1.0-50-amd64"])
    assert {name: one.offered for name, one in known.items()} == {
        "nvidia-smi": "1", "linux-headers-6.1.0-50-amd64": "6.1.170-1",
    }  # fmt: skip


def test_where_everybodys_cannot_be_read_only_ours_are_known(node: Node) -> None:
    def answer(command: Command) -> Result:
        return (
            Result(0)
            if set(aptsources.ONLY) <= set(command.argv)
            else Result(100, err="E: Malformed")
        )

    node.answers["apt-cache policy"] = answer
    assert apt.policy(node.host, ["nvidia-smi"]) == {}


@pytest.mark.parametrize(
    "refusal", [UNMET, Result(100, err="E: Unable to locate package linux-headers-6.1.0-50-amd64")]
)
def test_what_ours_lack_may_come_from_anybody_and_all_else_just_from_ours(
    node: Node, refusal: Result
) -> None:
    known_elsewhere(node)
    calls = Calls(node, refusal)
    apt.install(node.host, ["nvidia-smi", "linux-headers-6.1.0-50-amd64", "toolkit=2"], {})
    assert calls.verbs == ["install*", "install"]
    assert calls.made[1].argv[-3:] == ("nvidia-smi=1", "linux-headers-6.1.0-50-amd64", "toolkit=2")


def test_a_transaction_that_fails_otherwise_is_tried_with_no_other_sources(node: Node) -> None:
    calls = Calls(node, Result(100, err="dpkg: error processing package dkms (--configure):"))
    with pytest.raises(GpubootError, match="failed to configure dkms"):
        apt.install(node.host, ["dkms"], {})
    assert calls.verbs == ["install*"]


def test_a_source_that_apt_cannot_read_hides_no_package_of_ours(node: Node) -> None:
    def answer(command: Command) -> Result:
        ours = set(aptsources.ONLY) <= set(command.argv)
        return Result(0, POLICY) if ours else Result(100, err="E: Malformed entry 1 in list file x")

    node.answers["apt-cache policy"] = answer
    assert "base-files" in apt.candidates(
        node.host, ["base-files"], ["-o", "Dir::Cache::pkgcache="]
    )
