"""The monitor: what happens to a card becomes a fault, a metric and a sentence, and ends again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuboot import aptlog, kmsg, monitor, news, sensors, status, xids
from gpuboot.health import BEGINS, BLIND, ENDS
from gpuboot.sensors import QUIET
from tests import day
from tests.unit.node import Node
from tests.unit.test_status import booted, look
from tests.unit.watched import CONFIG, FIRST, GPUS, LIBRARY, SECOND, TEXTFILE, Gpu, Watched, watch

__all__ = ["booted"]  # a fixture


@pytest.fixture
def watched(booted: Node, tmp_path: Path) -> Watched:
    return watch(booted, GPUS)


def test_a_healthy_node_stays_so_and_shows_its_readings(watched: Watched) -> None:
    found = watched.looks(5)
    assert (found["state"], found["faults"], found["blind"]) == ("healthy", [], {})
    assert f'gpuboot_gpu_temperature_celsius{{pci="{FIRST}",uuid="GPU-1"}} 37' in watched.metrics()
    assert 'gpuboot_state{state="ready"} 1' in watched.metrics()
    assert "gpuboot_gpu_power_watts" not in watched.metrics()  # this card does not tell
    seen = look(watched.node)
    assert seen["gpus"][0]["temperature_c"] == 37
    assert not any(line.startswith("nvidia-smi") for line in watched.node.ran)


Change = Callable[[Watched], None]


def lost(watched: Watched) -> None:
    watched.nvml.gpus[0].error = sensors.LOST


def found_again(watched: Watched) -> None:
    watched.nvml.gpus[0].error = 0


def off_the_bus(watched: Watched) -> None:
    (watched.node.root / f"sys/bus/pci/devices/{FIRST}/vendor").unlink()
    watched.nvml.gpus.clear()


def back_on_the_bus(watched: Watched) -> None:
    watched.node.put(f"/sys/bus/pci/devices/{FIRST}/vendor", "0x10de\n")
    watched.nvml.gpus.append(Gpu(FIRST, "GPU-1"))


def hot(watched: Watched) -> None:
    watched.nvml.gpus[0].slowed, watched.nvml.gpus[0].temperature = 0x40, 93


def cool(watched: Watched) -> None:
    watched.nvml.gpus[0].slowed, watched.nvml.gpus[0].temperature = 0, 60


def set_memory(uncorrected: int, pending: int) -> Change:
    def change(watched: Watched) -> None:
        watched.nvml.gpus[0].uncorrected = uncorrected
        watched.nvml.gpus[0].pending = pending

    return change


def set_library(version: str) -> Change:
    def change(watched: Watched) -> None:
        (watched.node.root / f"{LIBRARY}.1".lstrip("/")).unlink()
        watched.node.link(f"{LIBRARY}.1", f"libnvidia-ml.so.{version}")

    return change


def unloaded(watched: Watched) -> None:
    watched.nvml.error = 9


def loaded(watched: Watched) -> None:
    watched.nvml.error = 0


def another_card(watched: Watched) -> None:
    watched.nvml.gpus[0].uuid = "GPU-2"


def the_same_card(watched: Watched) -> None:
    watched.nvml.gpus[0].uuid = "GPU-1"


@pytest.mark.parametrize(
    ("breaks", "mends", "check", "action", "why"),
    [
        (lost, found_again, f"gpu {FIRST}", xids.REPLACE, "does not answer: NVML error 15"),
        (off_the_bus, back_on_the_bus, f"gpu {FIRST}", xids.REPLACE, "not on the PCI bus any more"),
        (another_card, the_same_card, f"gpu {FIRST}", xids.DRAIN, "another card now: GPU-2"),
        (hot, cool, f"clocks {FIRST}", xids.NONE, "slowed down: hardware thermal"),
        (set_memory(1, 0), set_memory(0, 0), f"memory {FIRST}", xids.DRAIN, "1 errors of memory"),
        (set_memory(0, 1), set_memory(0, 0), f"memory {FIRST}", xids.RESET, "wait for a reset"),
        (
            set_library("580.1"),
            set_library("535.309.01"),
            "driver",
            xids.DRAIN,
            "535.309.01 and library 580.1",
        ),
        (unloaded, loaded, "driver", xids.REBOOT, "module is not loaded"),
    ],
)
def test_what_is_wrong_becomes_a_fault_and_ends_with_it(
    watched: Watched, breaks: Change, mends: Change, check: str, action: str, why: str
) -> None:
    watched.looks(1)
    breaks(watched)
    assert watched.looks(BEGINS - 1)["state"] == "healthy"
    found = watched.looks(1)
    fault = next(one for one in found["faults"] if one["check"] == check)
    assert fault["action"] == action
    assert why in fault["reason"]
    labels = f'check="{check}",about="gpu",action="{action}"'
    assert f"gpuboot_fault{{{labels}}} 1" in watched.metrics()
    assert "gpuboot_gpu_healthy 0" in watched.metrics()
    seen = look(watched.node)
    assert (seen["state"], seen["code"]) == ("degraded", status.FAULT.id)
    assert seen["hint"] == xids.ADVICE[action]
    mends(watched)
    assert watched.looks(ENDS - 1)["state"] == "unhealthy"
    assert watched.looks(1)["state"] == "healthy"
    assert "gpuboot_gpu_healthy 1" in watched.metrics()
    assert look(watched.node)["state"] == "ready"


@pytest.mark.parametrize("number", [48, 64, 79, 95, 119, 999])
def test_an_xid_that_asks_for_something_is_a_fault_at_once(watched: Watched, number: int) -> None:
    watched.looks(1)
    watched.drill(f"NVRM: Xid (PCI:0000:03:00): {number}, pid=1, text")
    found = watched.looks(1)
    assert found["state"] == "unhealthy"
    assert found["faults"][0]["reason"].startswith(f"Xid {number}, ")
    assert f'gpuboot_xid_errors_total{{pci="0000:03:00",xid="{number}"}} 1' in watched.metrics()
    assert watched.looks(QUIET + ENDS)["state"] == "healthy"
    assert "gpuboot_xid_errors_total" in watched.metrics()  # a counter does not go back


@pytest.mark.parametrize("number", [13, 31, 43, 63, 94])
def test_a_programs_error_is_counted_and_no_fault(watched: Watched, number: int) -> None:
    watched.drill(f"NVRM: Xid (PCI:0000:03:00): {number}, pid=1, text")
    assert watched.looks(3)["state"] == "healthy"
    assert f'xid="{number}"}} 1' in watched.metrics()


def test_a_card_that_is_lost_after_an_xid_is_not_well_by_time(watched: Watched) -> None:
    watched.drill("NVRM: Xid (PCI:0000:03:00): 79, GPU has fallen off the bus.")
    lost(watched)
    assert watched.looks(3 * QUIET)["state"] == "unhealthy"
    found_again(watched)
    assert watched.looks(ENDS + 1)["state"] == "healthy"


def test_one_card_of_two_is_missed(booted: Node) -> None:
    two = watch(booted, [*GPUS, {"pci": SECOND, "uuid": "GPU-2", "memory_mib": 15360}])
    assert two.looks(2)["state"] == "healthy"
    two.nvml.gpus.pop()
    found = two.looks(BEGINS)
    assert [one["check"] for one in found["faults"]] == [f"gpu {SECOND}"]
    assert "gpuboot_gpus_expected 2" in two.metrics()
    assert "gpuboot_gpus_answering 1" in two.metrics()


def test_nvml_that_says_nothing_is_blindness_and_no_fault(watched: Watched) -> None:
    watched.looks(1)
    watched.nvml.error = 999
    found = watched.looks(BLIND)
    assert (found["state"], found["faults"]) == ("unknown", [])
    assert f'gpuboot_check_blind{{check="gpu {FIRST}"}} 1' in watched.metrics()
    assert look(watched.node)["state"] == "ready"
    watched.nvml.error = 0
    assert watched.looks(1)["state"] == "healthy"


def test_a_kernel_log_that_cannot_be_read_is_told_and_tried_again(watched: Watched) -> None:
    (watched.node.root / "dev/kmsg").unlink()
    assert "kernel log" in watched.looks(BLIND)["blind"]
    watched.drill("NVRM: Xid (PCI:0000:03:00): 48, a drill needs no kernel log")
    assert watched.looks(1)["state"] == "unhealthy"
    watched.node.put("/dev/kmsg")
    assert watched.looks(1)["blind"] == {}


def test_a_folder_for_the_textfile_that_is_missing_is_told_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    folder = (watched.node.root / TEXTFILE.lstrip("/")).parent
    (folder / "gpuboot.prom.other").unlink()
    folder.rmdir()
    watched.looks(4)
    told = [text for text in caplog.messages if text.startswith("textfile: there is no folder")]
    assert len(told) == 1
    folder.mkdir()
    watched.looks(1)
    assert "gpuboot_info" in watched.metrics()
    assert not watched.monitor.outgrown


def test_a_folder_that_came_after_the_sandbox_is_a_reason_to_be_started_anew(
    watched: Watched,
) -> None:
    folder = (watched.node.root / TEXTFILE.lstrip("/")).parent
    (folder / "gpuboot.prom.other").unlink()
    folder.rmdir()
    watched.looks(2)
    folder.write_text("")  # there by now, and nothing can be written into it
    watched.looks(1)
    assert watched.monitor.outgrown


@pytest.mark.parametrize("gone", ["boottime", "interval", "faults", "gpus", "advice"])
def test_a_word_of_the_monitors_that_is_not_whole_is_none(watched: Watched, gone: str) -> None:
    lost(watched)
    found = watched.looks(BEGINS)
    del found[gone]
    watched.node.put(monitor.FILE, json.dumps(found))
    assert "health" not in look(watched.node)


def test_a_monitor_that_is_not_at_work_any_more_is_not_believed(watched: Watched) -> None:
    lost(watched)
    watched.looks(BEGINS)
    assert look(watched.node)["state"] == "degraded"
    watched.node.clock.sleep(15 * status.STALE + 1)
    watched.node.answers["nvidia-smi"] = "00000000:03:00.0, 40, 12\n"
    seen = look(watched.node)
    assert (seen["state"], seen["gpus"][0]["temperature_c"]) == ("ready", 40)


def test_one_look_at_what_the_cards_live_on_is_not_taken_for_several(watched: Watched) -> None:
    watched.node.put("/boot/vmlinuz-6.1.0-56-amd64")
    assert watched.looks(monitor.SURROUNDINGS)["state"] == "healthy"
    found = watched.looks(1)
    assert [one["check"] for one in found["faults"]] == ["next kernel"]
    (watched.node.root / "boot/vmlinuz-6.1.0-56-amd64").unlink()
    assert watched.looks(monitor.SURROUNDINGS * ENDS)["state"] == "healthy"


def test_the_journal_tells_each_change_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    lost(watched)
    watched.looks(20)
    found_again(watched)
    watched.looks(20)
    told = [text for text in caplog.messages if text.startswith(f"gpu {FIRST}")]
    assert [text.partition(": ")[2][:20] for text in told] == [
        "0000:03:00.0 does no", "over: 0000:03:00.0 d",
    ]  # fmt: skip


def test_a_day_of_looks_leaves_files_of_the_same_size(watched: Watched) -> None:
    watched.looks(10)

    def sizes() -> list[int]:
        names = watched.node.files()
        return [(watched.node.root / name.lstrip("/")).lstat().st_size for name in names]

    before = sizes()
    assert watched.looks(2000)["state"] == "healthy"
    assert max(abs(a - b) for a, b in zip(before, sizes(), strict=True)) < 16


def test_the_kernels_records_are_read_as_they_come(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    writer = os.open(tmp_path / "kmsg", os.O_RDWR)
    found = kmsg.Kmsg(tmp_path / "kmsg")
    assert found.lines() == []
    os.write(writer, b"3,1234,567890,-;NVRM: Xid (PCI:0000:03:00): 79, x\n SUBSYSTEM=pci\n")
    assert found.lines() == [(0.56789, "NVRM: Xid (PCI:0000:03:00): 79, x")]
    assert found.lines() == []
    os.write(writer, b"no prefix\n")
    assert found.lines() == [(0.0, "")]
    found.close()
    os.close(writer)


def test_a_monitor_that_is_started_anew_goes_on_from_what_was_known(watched: Watched) -> None:
    lost(watched)
    watched.looks(BEGINS)
    told = watched.node.text(news.FILE)
    watched.restart()
    assert watched.looks(1)["state"] == "unhealthy"
    assert watched.node.text(news.FILE) == told
    found_again(watched)
    assert watched.looks(ENDS - 1)["state"] == "unhealthy"
    watched.restart()
    assert watched.looks(ENDS)["state"] == "healthy"


def test_a_drill_is_over_when_the_monitor_was_started_anew(watched: Watched) -> None:
    watched.drill("NVRM: Xid (PCI:0000:03:00): 48, pid=1, DBE")
    assert watched.looks(1)["state"] == "unhealthy"
    watched.restart()
    assert watched.looks(ENDS - 1)["state"] == "unhealthy"
    assert watched.looks(1)["state"] == "healthy"


def test_what_was_not_seen_before_a_restart_is_not_seen_after_it(watched: Watched) -> None:
    watched.nvml.error = 999
    watched.looks(BLIND)
    watched.restart()
    assert watched.looks(1)["state"] == "unknown"
    watched.nvml.error = 0
    assert watched.looks(1)["state"] == "healthy"


@pytest.mark.parametrize("left", ["", "{", "[]", '{"boot_id": 1}', '{"faults": 3}'])
def test_what_an_earlier_monitor_has_left_damaged_is_not_taken(watched: Watched, left: str) -> None:
    watched.node.put(monitor.FILE, left)
    watched.restart()
    assert watched.looks(1)["state"] == "healthy"


def test_what_the_monitor_of_another_boot_has_left_is_not_taken(watched: Watched) -> None:
    lost(watched)
    found = {**watched.looks(BEGINS), "boot_id": "another"}
    watched.node.put(monitor.FILE, json.dumps(found))
    found_again(watched)
    watched.restart()
    assert watched.looks(1)["state"] == "healthy"


def test_an_error_of_hours_ago_is_counted_and_no_fault(watched: Watched) -> None:
    (watched.node.root / "dev/kmsg").unlink()
    os.mkfifo(watched.node.root / "dev/kmsg")
    writer = os.open(watched.node.root / "dev/kmsg", os.O_RDWR)
    early = int(watched.node.clock.boottime() * 1e6)
    watched.node.clock.sleep(3 * 3600)
    os.write(writer, b"3,1,%d,-;NVRM: Xid (PCI:0000:03:00): 48, DBE\n" % early)
    found = watched.looks(1)
    assert (found["state"], found["xids"][0]["count"]) == ("healthy", 1)
    now = int(watched.node.clock.boottime() * 1e6)
    os.write(writer, b"3,2,%d,-;NVRM: Xid (PCI:0000:03:00): 48, DBE\n" % now)
    found = watched.looks(1)
    assert (found["state"], found["xids"][0]["count"]) == ("unhealthy", 2)
    os.close(writer)


def test_a_library_that_this_process_has_kept_is_a_reason_to_be_started_anew(
    watched: Watched,
) -> None:
    watched.nvml.error = sensors.MISMATCH
    assert [watched.looks(1) and watched.monitor.outgrown for _ in range(BLIND)] == [
        *[False] * (BLIND - 1), True,
    ]  # fmt: skip
    found = watched.looks(1)
    assert (found["state"], found["faults"]) == ("unknown", [])


def test_a_library_that_was_replaced_is_told_with_who_did_it(watched: Watched) -> None:
    watched.node.put(aptlog.HISTORY, HISTORY)
    watched.looks(1)
    set_library("580.1")(watched)
    (fault,) = watched.looks(BEGINS)["faults"]
    assert fault["reason"] == (
        "module 535.309.01 and library 580.1 differ; "
        "changed by unattended-upgrade on 2026-11-30 06:25:11"
    )


HISTORY = """
Start-Date: 2026-11-29  10:00:00
Commandline: apt-get -o Acquire::http::Proxy=http://me:secret@proxy install libnvidia-ml1
Install: libnvidia-ml1:amd64 (535.1-1)
End-Date: 2026-11-29  10:00:09

Start-Date: 2026-11-30  06:25:11
Commandline: /usr/bin/unattended-upgrade
Upgrade: libc6:amd64 (2.36-9, 2.36-10), libnvidia-ml1:amd64 (535.1-1, 580.1-1)
End-Date: 2026-11-30  06:25:19

Start-Date: 2026-11-30  07:00:00
Commandline: apt-get install nvidia-container-toolkit
Upgrade: nvidia-container-toolkit:amd64 (1.19-1, 1.20-1)
End-Date: 2026-11-30  07:00:02
"""


def test_a_configuration_that_was_changed_is_taken_while_the_monitor_is_at_work(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.looks(1)
    watched.node.put("/etc/gpuboot/config.yaml", "monitor: {interval2: 3s}\n", mode=0o600)
    watched.looks(2 * monitor.SURROUNDINGS)
    told = [text for text in caplog.messages if text.startswith("the configuration is not taken")]
    assert len(told) == 1
    assert "interval2" in told[0]
    watched.node.put("/etc/gpuboot/config.yaml", CONFIG + "\n", mode=0o600)
    text = CONFIG.replace("monitor: {", "monitor: {interval: 3s, ")
    watched.node.put("/etc/gpuboot/config.yaml", text, mode=0o600)
    assert watched.looks(monitor.SURROUNDINGS)["interval"] == 3


def test_a_node_that_lacks_something_may_have_healthy_gpus(watched: Watched) -> None:
    watched.node.put("/boot/vmlinuz-6.1.0-56-amd64")
    found = watched.looks(monitor.SURROUNDINGS + 1)
    assert (found["state"], found["gpu"]["state"], found["node"]) == (
        "unhealthy", "healthy", "degraded",
    )  # fmt: skip
    assert "gpuboot_gpu_healthy 1" in watched.metrics()
    assert 'check="next kernel",about="node",action="none"} 1' in watched.metrics()
    told = json.loads(watched.node.text(news.FILE) or "")
    assert (told["state"], told["node"][:7]) == ("healthy", "kernel ")
    seen = look(watched.node)
    assert (seen["state"], seen["hint"]) == ("degraded", "gpuboot run")


def test_the_document_is_json_and_names_what_to_do(watched: Watched) -> None:
    lost(watched)
    watched.looks(BEGINS)
    found = json.loads(watched.node.text(monitor.FILE) or "")
    assert found["action"] == xids.REPLACE
    assert found["advice"].startswith("drain the node, power the VM off and on")


def test_node_feature_discovery_is_told_where_it_is(watched: Watched) -> None:
    watched.looks(1)
    assert not watched.node.host.exists(news.FEATURES)
    watched.node.put(f"{news.FEATURES}/other", "x")
    lost(watched)
    watched.looks(BEGINS)
    said = watched.node.text(f"{news.FEATURES}/gpuboot")
    assert said == "gpuboot-gpus.state=unhealthy\ngpuboot-gpus.action=replace\n"


def test_what_flickers_at_the_edge_is_told_to_nobody(watched: Watched) -> None:
    watched.looks(1)
    told = watched.node.text(news.FILE)
    for _ in range(50):
        lost(watched)
        watched.looks(BEGINS - 1)
        found_again(watched)
        watched.looks(1)
    assert watched.node.text(news.FILE) == told


@pytest.mark.long
def test_a_day_costs_no_memory_and_few_words(tmp_path: Path) -> None:
    """5,760 looks, with a card that is lost every two hours."""
    found = day.measured(tmp_path)
    assert found.grown_kib < 1024
    assert abs(found.files_grown) < 1024
    assert found.words == 1 + 2 * day.LOSSES - 1  # one begins; two for each loss; the last lasts
