"""What apt and dpkg say, and what it means."""

from __future__ import annotations

import re

import pytest

from gpuboot import apt
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from tests.unit.node import DATA, Node

HEADING = re.compile(r"^## (GB\d+) (retry|final): (.*)$\n", re.MULTILINE)


def blocks() -> list[tuple[str, bool, str, str]]:
    """Code, whether another try helps, title and text of each block of apt-errors.md."""
    _, *parts = HEADING.split((DATA / "apt-errors.md").read_text(encoding="utf-8"))
    rows = zip(*(iter(parts),) * 4, strict=True)
    return [
        (code, retry == "retry", title.removesuffix(" (texts)"), text)
        for code, retry, title, text in rows
    ]


BLOCKS = [
    pytest.param(
        code, retry, text, id=title,
    )
    for code, retry, title, text in blocks()
]  # fmt: skip


@pytest.mark.parametrize(("code", "retry", "text"), BLOCKS)
@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_failure_is_told_by_its_cause(code: str, text: str, stream: str, *, retry: bool) -> None:
    result = Result(100, text) if stream == "out" else Result(100, err=text)
    error = apt.failure(result)
    assert (error.code.id, error.retry) == (code, retry)


def test_the_evidence_is_what_apt_calls_errors_and_warnings() -> None:
    _, _, _, text = next(block for block in blocks() if block[2] == "signed by another key")
    error = apt.failure(Result(100, text))
    assert error.evidence.splitlines()[-1].startswith("E: The repository")
    assert "Reading package lists" not in error.evidence
    assert "NO_PUBKEY 7E184EC218310D4E" in error.message


def said(title: str) -> GpubootError:
    """The failure that the block of this title tells of."""
    return apt.failure(Result(100, next(text for _, _, name, text in blocks() if name == title)))


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("apt 3, signed by another key", "Missing key FA59D52CB407D8E2F871988C9478D070B87A8EBA"),
        ("apt 3, the key has expired", "Expired on 2025-01-31T00:00:00Z"),
        ("apt 3, the key is bound to its name by SHA-1", "SHA1 is not considered secure since"),
        ("apt 3, the clock is behind", "Not live until 2026-12-02T23:30:00Z"),
        ("apt 3, the key file is gone", 'Failed to parse keyring "/root/absent.gpg"'),
    ],
)
def test_a_refused_signature_is_told_with_its_source_and_why(title: str, message: str) -> None:
    error = said(title)
    assert "http://mirror/debian trixie InRelease: " in error.message
    assert message in error.message
    assert "  " not in error.message


def test_a_clock_that_is_behind_is_what_to_look_at_first() -> None:
    behind = [error for *_, text in blocks() if (error := apt.failure(Result(100, text))).hint
              == apt.CLOCK_HINT]  # fmt: skip
    assert said("apt 3, the clock is behind").hint == apt.CLOCK_HINT
    assert len(behind) == 3
    assert {error.code for error in behind} == {apt.SIGNATURE_REFUSED}


def test_the_evidence_of_a_conflict_names_the_packages() -> None:
    assert said("held packages").evidence.splitlines() == [
        "The following packages have unmet dependencies:",
        " nvidia-kernel-dkms : Depends: nvidia-installer-cleanup but it is not installable",
        "E: Unable to correct problems, you have held broken packages.",
    ]
    conflict = said("apt 3, a dependency that nobody has").evidence
    assert "\n   2. a:amd64 Depends not-there\n" in conflict


def test_that_a_source_is_there_twice_is_no_evidence() -> None:
    evidence = said("apt 3, the lists are locked").evidence
    assert evidence.splitlines()[-1] == "E: Unable to lock directory /var/lib/apt/lists/"


def test_a_failure_without_any_error_line_shows_the_end_of_what_was_said() -> None:
    assert apt.failure(Result(1, "something\nelse\n")).evidence == "something\nelse"


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


# -- how apt is called


def test_apt_asks_nothing_restarts_nothing_and_is_never_stopped_by_us(node: Node) -> None:
    calls: list[Command] = []

    def call(command: Command) -> Result:
        calls.append(command)
        return Result(0)

    node.answers |= {
        "apt-get": call,
    }
    proxy = {"http_proxy": "http://p"}
    apt.update(node.host, proxy)
    apt.install(node.host, ["dkms", "nvidia-smi=1"], proxy)
    apt.fix_broken(node.host, ["dkms=1"], proxy)
    apt.fix_broken(node.host, [], proxy)
    assert len(calls) == 4
    for command in calls:
        assert command.patient
        assert command.env == {
            "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", **proxy,
        }  # fmt: skip
    assert all("--yes" in command.argv for command in calls if command.argv[0] == "apt-get")
    assert calls[1].argv[-2:] == ("dkms", "nvidia-smi=1")


def test_a_failed_update_is_raised_with_its_meaning(node: Node) -> None:
    node.answers["apt-get"] = Result(100, err="E: Failed to fetch http://x  Could not resolve 'x'")
    with pytest.raises(GpubootError) as caught:
        apt.update(node.host, {})
    assert caught.value.code is apt.SOURCE_FAILED


def test_an_apt_that_was_killed_is_told_as_such() -> None:
    found = apt.failure(Result(-9, "Unpacking dkms ...\n"))
    assert (found.code, found.retry) == (apt.INSTALL_FAILED, True)
    assert found.message == "apt-get was killed by signal 9"
