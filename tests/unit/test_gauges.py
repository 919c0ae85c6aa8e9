"""What the cards say now, in `gpuboot status`."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from gpuboot import gauges
from gpuboot.engine import Outcome
from gpuboot.gauges import Gauges
from gpuboot.process import NOT_FOUND, Command, Result
from tests.unit.node import Node
from tests.unit.test_status import DRIVER, NODE, booted, look, walk, walking

__all__ = ["booted"]  # a fixture

ASKED = " ".join(gauges.QUESTION)
GPUS = [{"pci": "0000:03:00.0", "memory_mib": 15360}, {"pci": "0000:0b:00.0", "memory_mib": 15360}]
READY = Outcome("ready", None, "every step holds",
                shows={"gpus": GPUS, "driver": DRIVER, "node": NODE})  # fmt: skip
LOST = ("Unable to determine the device handle for GPU0: GPU is lost.  Reboot the system to"
        " recover this GPU\n")  # fmt: skip


def test_each_card_has_its_temperature_and_its_memory(booted: Node) -> None:
    walk(booted).end(READY, None)
    booted.answers[ASKED] = "00000000:0B:00.0, 61, 12034\n00000000:03:00.0, 37, [N/A]\n"
    first, second = look(booted)["gpus"]
    assert (first["temperature_c"], first["memory_used_mib"]) == (37, None)
    assert (second["temperature_c"], second["memory_used_mib"]) == (61, 12034)


def test_a_card_that_does_not_answer_any_more_is_not_ready(booted: Node) -> None:
    walk(booted).end(READY, None)
    booted.answers[ASKED] = Result(15, LOST)
    seen = look(booted)
    assert (seen["state"], seen["code"]) == ("degraded", gauges.NO_ANSWER.id)
    assert "GPU is lost" in seen["reason"]
    with walking(booted):  # it will judge by itself
        assert look(booted)["state"] == "ready"


@pytest.mark.parametrize("said", [Result(NOT_FOUND, err="nvidia-smi: command not found"), "", "x"])
def test_no_nvidia_smi_and_an_answer_of_another_kind_are_no_trouble(
    booted: Node, said: Result | str
) -> None:
    walk(booted).end(READY, None)
    booted.answers[ASKED] = said
    seen = look(booted)
    assert seen["state"] == "ready"
    assert seen["gpus"] == GPUS


def test_a_driver_that_holds_whoever_asks_does_not_hold_the_status(booted: Node) -> None:
    def hangs(command: Command) -> Result:
        assert command.timeout == gauges.PATIENCE
        raise TimeoutError("nvidia-smi")

    walk(booted).end(READY, None)
    booted.answers[ASKED] = hangs
    assert look(booted)["state"] == "ready"


def test_one_that_not_even_dies_is_waited_for_no_longer_than_that(booted: Node) -> None:
    seen_enough = threading.Event()

    def sleeps(_: Command) -> Result:
        seen_enough.wait(10)
        return Result(0)

    booted.answers[ASKED] = sleeps
    begun = time.monotonic()
    assert Gauges(booted.host, patience=0.1).read() == {}
    assert time.monotonic() - begun < 5
    seen_enough.set()


@pytest.mark.parametrize("module", [True, False])
def test_nothing_is_asked_that_would_load_a_driver(booted: Node, *, module: bool) -> None:
    walk(booted).end(READY, None)
    if not module:
        (booted.root / "sys/module/nvidia/version").unlink()
        (booted.root / "sys/module/nvidia").rmdir()
    look(booted)
    assert (ASKED in booted.ran) is module


def test_a_walk_under_way_on_a_fresh_node_is_not_asked_about(booted: Node) -> None:
    walk(booted)
    with walking(booted):
        look(booted)
    assert ASKED not in booted.ran


def test_looking_imports_nothing_that_is_dear(booted: Node) -> None:
    """In a process of its own: this one has imported everything."""
    walk(booted).end(READY, None)
    booted.answers[ASKED] = "00000000:03:00.0, 37, 448\n"
    program = f"""
import sys
from pathlib import Path
import gpuboot.cli, gpuboot.statusview
from gpuboot.host import Host
from gpuboot.process import Result
answers = {{
    {ASKED!r}: "00000000:03:00.0, 37, 448",
    "systemctl is-active rke2-agent.service": "active",
}}
root = Path({str(booted.root)!r})
host = Host(root, runner=lambda command: Result(0, answers.get(" ".join(command.argv), "")))
found = gpuboot.status.look(host)
assert found["state"] == "ready", found
assert "37 °C" in gpuboot.statusview.text(found)
dear = {{"requests", "urllib3", "psutil", "tenacity", "pynvml", "yaml", "logging", "ssl", "http"}}
print(sorted(dear & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
