"""The probe that asks the libraries, as far as no card is needed."""

from __future__ import annotations

import json

import pytest

from gpuboot import nvml, pci
from tests.unit.node import Node


@pytest.mark.parametrize(
    ("bus_id", "slot"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3B:00.0", "0000:3b:00.0"),
        ("00000001:03:00.0", "0001:03:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("0000000A:AF:1F.7", "000a:af:1f.7"),
    ],
)
def test_a_bus_id_is_written_as_lspci_writes_it(bus_id: str, slot: str) -> None:
    assert pci.slot(bus_id) == slot


@pytest.mark.parametrize("library", ["nvml", "cuda"])
def test_on_a_machine_without_a_driver_the_probe_says_so(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # These libraries come with the driver; where it is installed, the answer is another one.
    status = nvml.main([library])
    answer = json.loads(capsys.readouterr().out)
    assert status == (1 if "error" in answer else 0)
    assert set(answer) & {"error", "gpus", "count"}


FOLDER = "/usr/lib/x86_64-linux-gnu"


def test_the_librarys_version_is_that_of_the_file_behind_all_links(node: Node) -> None:
    node.link(f"{FOLDER}/libnvidia-ml.so.1", "../../../etc/alternatives/nvidia--ml")
    node.link("/etc/alternatives/nvidia--ml", f"{FOLDER}/nvidia/current/libnvidia-ml.so.1")
    node.link(f"{FOLDER}/nvidia/current/libnvidia-ml.so.1", "libnvidia-ml.so.535.309.01")
    assert nvml.library(node.host) == "535.309.01"


def test_a_library_without_alternatives_is_found_too(node: Node) -> None:
    node.link("/usr/lib64/libnvidia-ml.so.1", "libnvidia-ml.so.580.178.04")
    assert nvml.library(node.host) == "580.178.04"


@pytest.mark.parametrize("target", ["libnvidia-ml.so.1", "libnvidia-ml.so", "/nowhere", "a/../.."])
def test_a_link_that_leads_nowhere_has_no_version(node: Node, target: str) -> None:
    node.link(f"{FOLDER}/libnvidia-ml.so.1", target)
    assert nvml.library(node.host) is None


def test_without_the_library_there_is_no_version(node: Node) -> None:
    assert nvml.library(node.host) is None
