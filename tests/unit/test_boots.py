"""What took how long in a boot: the walk's news, and systemd's own instants."""

from __future__ import annotations

import pytest

from gpuboot import boots
from gpuboot.boots import Boot, Phase, Recorder, Span
from gpuboot.process import Command, Result
from tests.unit.node import Node

MANAGER = """\
FirmwareTimestampMonotonic=4500000
LoaderTimestampMonotonic=1500000
InitRDTimestampMonotonic=900000
UserspaceTimestampMonotonic=2100000
"""
UNITS = """\
Id=cloud-init-local.service
InactiveExitTimestampMonotonic=2500000
ActiveEnterTimestampMonotonic=3500000
ActiveExitTimestampMonotonic=0

Id=cloud-init-main.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0
ActiveExitTimestampMonotonic=0

Id=cloud-final.service
InactiveExitTimestampMonotonic=9000000
ActiveEnterTimestampMonotonic=0
ActiveExitTimestampMonotonic=0
"""


def heard(*news: tuple[float, str, str], boot: Boot | None = None) -> list[Span]:
    recorder = Recorder(boot or Boot("b", "6.1", ""), 0.0)
    recorder.resume(10.0)
    for now, step, state in news:
        recorder.hear(now, step, state, "why")
    return recorder.boot.spans


def test_what_was_done_for_a_step_is_one_span_whatever_it_told_meanwhile() -> None:
    news = [(10.1, "preflight", "ok"), (10.2, "packages", "running"),
            (15.0, "packages", "running"), (71.2, "packages", "ok")]  # fmt: skip
    assert heard(*news) == [Span("packages", "ok", 10.2, 71.2, "why")]


def test_a_check_that_takes_long_is_told_of() -> None:
    assert heard((10.1, "a", "ok"), (13.0, "b", "ok")) == [Span("b", "ok", 10.1, 13.0, "why")]


def test_what_is_only_found_to_differ_is_no_span() -> None:
    assert heard((10.1, "packages", "pending"), (10.2, "cdi", "pending")) == []


def test_a_step_that_was_cut_off_is_there_as_running() -> None:
    assert heard((10.1, "packages", "running")) == [Span("packages", "running", 10.1, 10.1, "why")]


def test_waiting_for_the_same_again_and_again_is_one_long_wait() -> None:
    boot = Boot("b", "6.1", "")
    recorder = Recorder(boot, 0.0)
    for begin in (10.0, 20.0, 60.0):
        recorder.resume(begin)
        recorder.hear(begin + 1, "preflight", "ok", "")  # slow, and no news
        recorder.hear(begin + 2, "gpu-present", "waiting", "none")
    assert boot.spans == [
        Span("preflight", "ok", 10.0, 11.0, ""), Span("gpu-present", "waiting", 11.0, 62.0, "none"),
    ]  # fmt: skip
    Recorder(boot, 0.0).resume(90.0)
    assert boot.spans[-1].end == 90.0


def test_another_wait_is_another_span() -> None:
    spans = heard((10.1, "a", "waiting"), (20.0, "b", "waiting"))
    assert [span.step for span in spans] == ["a", "b"]


def test_a_boot_that_never_ends_keeps_its_record_small() -> None:
    news = [(10.0 + number, f"step-{number}", "failed") for number in range(1000)]
    spans = heard(*news)
    assert len(spans) == boots.SPANS
    assert spans[-1].step == "step-999"


def phases(node: Node, manager: str, units: str) -> list[Phase]:
    def show(command: Command) -> Result:
        return Result(0, units if "cloud-final.service" in command.argv else manager)

    node.answers["systemctl"] = show
    return boots.phases(node.host)


def test_firmware_and_loader_lie_before_the_kernels_start(node: Node) -> None:
    assert phases(node, MANAGER, "") == [
        Phase("firmware", -4.5, -1.5), Phase("boot loader", -1.5, 0.0), Phase("kernel", 0.0, 0.9),
        Phase("initramfs", 0.9, 2.1),
    ]  # fmt: skip


def test_a_machine_without_firmware_times_has_a_kernel(node: Node) -> None:
    known = MANAGER.replace("4500000", "0").replace("1500000", "0").replace("900000", "0")
    assert phases(node, known, "") == [Phase("kernel", 0.0, 2.1)]


def test_a_stage_that_is_not_there_or_not_over_is_left_out(node: Node) -> None:
    assert phases(node, "", UNITS) == [Phase("cloud-init-local", 2.5, 3.5)]


@pytest.mark.parametrize(
    "said",
    ["", "System has not been booted with systemd\n", "A=b\n\nId=x",
     "InactiveExitTimestampMonotonic=1\nActiveEnterTimestampMonotonic=2\n"],
)  # fmt: skip
def test_what_systemd_does_not_say_is_not_there(node: Node, said: str) -> None:
    assert phases(node, said, said) == []
