"""The agent's log: what the journal is told, and what standard error is told without one."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuboot import log

logger = logging.getLogger("gpuboot.test")


class Journal:
    """The journal's socket; what comes is read as systemd.io/JOURNAL_NATIVE_PROTOCOL says."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.place)
        self.socket.setblocking(False)

    def entry(self) -> dict[str, str]:
        rest = self.socket.recv(1 << 20)
        fields = {}
        while rest:
            line, _, rest = rest.partition(b"\n")
            name, sign, value = line.partition(b"=")
            if not sign:
                size = int.from_bytes(rest[:8], "little")
                value, rest = rest[8 : 8 + size], rest[9 + size :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the logger as it was to the tests that come later."""
    own = logging.getLogger("gpuboot")
    before = own.handlers, own.propagate, own.level
    yield
    for handler in own.handlers:
        handler.close()
    own.handlers, own.propagate, level = before
    own.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    log.start(lambda text: text.replace("s3cret", "<secret>"), verbose=False, place=made.place)
    yield made
    made.socket.close()


def test_an_entry_has_its_priority_and_the_step_in_which_it_was_said(journal: Journal) -> None:
    with log.during("driver-loaded"):
        logger.warning("%s holds it", "nouveau")
    assert journal.entry() == {
        "MESSAGE": "nouveau holds it", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "gpuboot",
        "GPUBOOT_STEP": "driver-loaded",
    }  # fmt: skip


def test_an_error_has_its_code(journal: Journal) -> None:
    logger.error("refused", extra={"code": "GB302"})
    assert journal.entry()["GPUBOOT_CODE"] == "GB302"


def test_evidence_of_many_lines_is_one_entry(journal: Journal) -> None:
    logger.info("refused\nNVRM: one\nNVRM: two=2")
    assert journal.entry()["MESSAGE"] == "refused\nNVRM: one\nNVRM: two=2"
    with pytest.raises(BlockingIOError):
        journal.entry()


def test_no_step_is_told_outside_of_one_nor_by_another_thread(journal: Journal) -> None:
    with log.during("packages"):
        other = threading.Thread(target=lambda: logger.info("fetched ahead"))
        other.start()
        other.join()
    logger.info("after")
    assert all("GPUBOOT_STEP" not in journal.entry() for _ in range(2))


def test_a_step_in_a_step_gives_way_to_the_outer_one_again(journal: Journal) -> None:
    with log.during("outer"):
        with log.during("inner"):
            logger.info("1")
        logger.info("2")
    assert [journal.entry()["GPUBOOT_STEP"] for _ in range(2)] == ["inner", "outer"]


def test_a_secret_is_masked(journal: Journal) -> None:
    logger.error("token s3cret", exc_info=(ValueError, ValueError("s3cret"), None))
    assert "s3cret" not in journal.entry()["MESSAGE"]


def test_half_of_a_character_is_no_obstacle(journal: Journal) -> None:
    logger.info("a file's name", extra={"code": "\udcff"})  # pytest cannot carry such a message
    assert journal.entry()["GPUBOOT_CODE"] == "?"


def test_what_the_journal_does_not_take_goes_to_standard_error(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    log.start(str, verbose=False, place=journal.place)
    logger.info("x" * (1 << 22))
    journal.socket.close()
    Path(journal.place).unlink()
    logger.info("nobody listens")
    assert capsys.readouterr().err.splitlines() == ["x" * (1 << 22), "nobody listens"]


def test_without_a_journal_the_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(str, verbose=True)
    with log.during("packages"):
        logger.debug("$ apt-get update")
    assert capsys.readouterr().err == "$ apt-get update\n"


def test_commands_are_logged_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(str, verbose=False)
    logger.debug("$ apt-get update")
    assert capsys.readouterr().err == ""
