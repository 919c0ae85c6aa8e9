"""What apt and dpkg say, and what it means."""

from __future__ import annotations

import re

import pytest

from gpuboot import aptfailure
from gpuboot.errors import GpubootError
from gpuboot.process import Result
from tests.unit.node import DATA

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
    error = aptfailure.failure(result)
    assert (error.code.id, error.retry) == (code, retry)


def test_the_evidence_is_what_apt_calls_errors_and_warnings() -> None:
    _, _, _, text = next(block for block in blocks() if block[2] == "signed by another key")
    error = aptfailure.failure(Result(100, text))
    assert error.evidence.splitlines()[-1].startswith("E: The repository")
    assert "Reading package lists" not in error.evidence
    assert "NO_PUBKEY 7E184EC218310D4E" in error.message


def said(title: str) -> GpubootError:
    """The failure that the block of this title tells of."""
    return aptfailure.failure(
        Result(100, next(text for _, _, name, text in blocks() if name == title))
    )


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
    errors = [aptfailure.failure(Result(100, text)) for *_, text in blocks()]
    behind = [error for error in errors if error.hint == aptfailure.CLOCK_HINT]
    assert said("apt 3, the clock is behind").hint == aptfailure.CLOCK_HINT
    assert len(behind) == 5
    assert {error.code for error in behind} == {aptfailure.CLOCK_BEHIND}


@pytest.mark.parametrize(
    ("title", "code", "hint"),
    [
        ("signed by another key", "GB208", "if key 7E184EC218310D4E is the owner's, put it into"),
        ("apt 3, signed by another key", "GB208", "if key FA59D52CB407D8E2F871988C9478"),
        ("apt 3, the key file is gone", "GB208", "ls -l /root/absent.gpg"),
        ("apt 2.6, the key has expired, really", "GB209", "timedatectl (if the clock is right: a"),
        ("apt 3, the key has expired", "GB209", "timedatectl (if the clock is right: a newer copy"),
        ("apt 2.6, a signature made with SHA-1", "GB213", "the source's owner has to sign anew"),
        ("apt 3, a signature made with SHA-1", "GB213", "the source's owner has to sign anew"),
        ("apt 2.6, the index is out of date", "GB214", "timedatectl (if the clock is right: the"),
        ("apt 2.6, changed after it was signed", "GB203", "apt-get update"),
        ("apt 2.6, the mirror turns us away", "GB202", "apt-get update"),
        ("somebody else's package is half installed", "GB218",
         "dpkg --remove --force-remove-reinstreq nowhere"),
    ],
)  # fmt: skip
def test_each_trouble_with_keys_and_sources_has_a_code_and_a_remedy_of_its_own(
    title: str, code: str, hint: str
) -> None:
    error = said(title)
    assert error.code.id == code
    assert error.hint.startswith(hint)


def test_the_packages_whose_scripts_fail_are_named() -> None:
    assert said("somebody else's script fails").message == "dpkg failed to configure failing"
    assert said("full while unpacking").code is aptfailure.DISK_FULL


def test_the_evidence_is_without_sums() -> None:
    evidence = said("apt 2.6, the index does not match its sum").evidence
    assert "Hash Sum mismatch" in evidence
    assert "SHA256" not in evidence


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
    assert aptfailure.failure(Result(1, "something\nelse\n")).evidence == "something\nelse"


def test_an_apt_that_was_killed_is_told_as_such() -> None:
    found = aptfailure.failure(Result(-9, "Unpacking dkms ...\n"))
    assert (found.code, found.retry) == (aptfailure.INSTALL_FAILED, True)
    assert found.message == "apt-get was killed by signal 9"
