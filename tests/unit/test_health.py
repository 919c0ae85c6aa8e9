"""Signs become faults, and faults end, without flapping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuboot import health, xids
from gpuboot.health import BEGINS, BLIND, ENDS, FINE, Health, Sign, bad, unseen

LOST = bad("the card does not answer", xids.REPLACE)
AWAY = unseen("NVML does not answer")


def looks(found: Health, *signs: Sign, begin: float = 0.0) -> list[str]:
    """What is news of a row of looks, a second apart."""
    news = []
    for number, sign in enumerate(signs):
        news += found.look(begin + number, {"gpu": sign})
    return news


def test_one_bad_look_is_no_fault_and_some_are() -> None:
    found = Health()
    assert looks(found, FINE, LOST, FINE, LOST) == []
    assert found.verdict().state == health.HEALTHY
    assert looks(found, LOST, begin=4.0) == ["gpu: the card does not answer; to do: replace"]
    assert found.verdict().state == health.UNHEALTHY
    assert (worst := found.verdict().worst)
    assert worst.since == 3.0  # the first bad look of that row


def test_what_is_sure_is_a_fault_at_once() -> None:
    found = Health()
    assert looks(found, bad("Xid 79", xids.REPLACE, sure=True)) == ["gpu: Xid 79; to do: replace"]


def test_a_fault_ends_after_some_fine_looks_and_not_after_one() -> None:
    found = Health()
    looks(found, *[LOST] * BEGINS)
    assert looks(found, *[FINE] * (ENDS - 1), LOST, *[FINE] * (ENDS - 1)) == []
    assert found.verdict().state == health.UNHEALTHY
    assert looks(found, FINE) == ["gpu: over: the card does not answer"]
    assert found.verdict().state == health.HEALTHY


def test_what_cannot_be_seen_neither_begins_nor_ends_a_fault() -> None:
    found = Health()
    assert looks(found, *[AWAY] * (BLIND - 1)) == []
    assert looks(found, AWAY, AWAY) == ["gpu: cannot be seen: NVML does not answer"]
    assert found.verdict().state == health.UNKNOWN
    assert looks(found, FINE) == ["gpu: seen again"]
    looks(found, *[LOST] * BEGINS)
    looks(found, *[AWAY] * 50)
    assert found.verdict().state == health.UNHEALTHY
    assert looks(found, *[FINE] * ENDS)[-1] == "gpu: over: the card does not answer"


def test_blindness_between_bad_looks_does_not_start_the_count_anew() -> None:
    found = Health()
    looks(found, LOST, AWAY, LOST)
    assert found.verdict().state == health.UNHEALTHY


def test_a_fault_that_gets_worse_is_told_and_keeps_its_beginning() -> None:
    found = Health()
    looks(found, *[bad("slow", xids.NONE)] * BEGINS)
    assert looks(found, LOST) == ["gpu: the card does not answer; to do: replace"]
    assert found.faults["gpu"].since == 0.0


def test_the_worst_fault_is_the_one_that_asks_for_most() -> None:
    found = Health()
    signs = {"a": bad("x", xids.RESET, sure=True), "b": bad("y", xids.REPLACE, sure=True),
             "c": bad("z", xids.NONE, sure=True)}  # fmt: skip
    found.look(0.0, signs)
    assert (worst := found.verdict().worst)
    assert worst.check == "b"


def test_a_check_that_is_gone_takes_its_fault_along() -> None:
    found = Health()
    looks(found, *[LOST] * BEGINS)
    assert found.look(9.0, {}) == ["gpu: over"]
    assert found.verdict().state == health.HEALTHY


def test_a_check_that_waits_for_its_turn_is_neither_forgotten_nor_counted() -> None:
    found = Health()
    found.look(0.0, {"gpu": LOST}, ["gpu"])
    for second in range(1, 10):
        assert found.look(float(second), {}, ["gpu"]) == []
    assert found.verdict().state == health.HEALTHY
    assert found.look(10.0, {"gpu": LOST}, ["gpu"]) != []


SIGNS = st.sampled_from([FINE, LOST, AWAY])


@given(st.lists(SIGNS, max_size=80))
def test_news_of_a_fault_is_bounded_by_how_often_it_can_begin_and_end(signs: list[Sign]) -> None:
    found = Health()
    news = looks(found, *signs)
    begins = [text for text in news if "to do" in text]
    ends = [text for text in news if ": over" in text]
    assert 0 <= len(begins) - len(ends) <= 1
    assert len(begins) <= len(signs) // BEGINS + 1
    assert len(ends) * (BEGINS + ENDS) <= max(len(signs), 0)


@pytest.mark.parametrize("number", list(xids.XIDS))
def test_each_xid_has_an_action_that_somebody_can_take(number: int) -> None:
    kind = xids.XIDS[number]
    assert kind.action in xids.ACTIONS
    assert xids.ADVICE[kind.action]
    assert not kind.meaning.endswith(".")


FROM = "NVRM: Xid (PCI:0000:03:00): 154, GPU recovery action changed from "


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("NVRM: Xid (PCI:0000:13:00): 79, pid=7, GPU has fallen off the bus.",
         ("0000:13:00", 79, xids.REPLACE)),
        ("NVRM: Xid (PCI:0000:3B:00 GPU-I:01): 94, pid=1, x", ("0000:3b:00", 94, xids.NONE)),
        ("NVRM: Xid (0000:03:00): 48, DBE", ("0000:03:00", 48, xids.DRAIN)),
        ("NVRM: GPU 0000:03:00.0: GPU has fallen off the bus.", ("0000:03:00", 79, xids.REPLACE)),
        (f"{FROM}0x0 (None) to 0x1 (GPU Reset Required)", ("0000:03:00", 154, xids.RESET)),
        (f"{FROM}0x1 (GPU Reset Required) to 0x0 (None)", ("0000:03:00", 154, xids.NONE)),
        ("NVRM: Xid (PCI:0000:03:00): 999, who knows", ("0000:03:00", 999, xids.DRAIN)),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.309.01", None),
        ("usb 1-1: new device", None), ("", None),
    ],
)  # fmt: skip
def test_a_line_of_the_kernels_is_read(line: str, event: tuple[str, int, str] | None) -> None:
    found = xids.read(line)
    assert (found and (found.pci, found.number, found.action)) == event


def test_an_error_concerns_the_card_at_its_address_and_no_other() -> None:
    found = xids.Event("0000:03:00", 79)
    assert found.concerns("0000:03:00.0")
    assert not found.concerns("0000:0b:00.0")
