"""GPUs on the PCI bus, as lspci or sysfs tells of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gpuboot import pci
from gpuboot.pci import Gpu
from gpuboot.process import Result
from tests.unit.node import DATA, SLOT, Node

LSPCI = (DATA / "lspci.txt").read_text(encoding="utf-8")
RECORD = {
    "Slot": SLOT, "Class": "3D controller [0302]", "Vendor": "NVIDIA Corporation [10de]",
    "Device": "TU104GL [Tesla T4] [1eb8]", "Rev": "a1",
}  # fmt: skip
GOOD = "0x00000000fd000000 0x00000000fdffffff 0x0000000000040200"
UNSET = "0x0000000000000000 0x0000000000ffffff 0x0000000020040200"


def record(**changes: str) -> str:
    return "".join(f"{name}:\t{value}\n" for name, value in {**RECORD, **changes}.items())


def test_of_all_devices_only_nvidias_gpus_are_found() -> None:
    assert pci.parse(LSPCI) == [
        Gpu("0000:13:00.0", "1eb8", "nvidia", subsystem="10de:12a2"),
        Gpu("0000:1b:00.0", "2236", None, subsystem="10de:1482"),
        Gpu("0000:1c:00.0", "1fb0", "nouveau", subsystem="10de:1488"),
        Gpu("0000:2a:00.0", "1eb8", "nvidia", answers=False, subsystem="10de:12a2"),
        Gpu("10000:01:00.0", "1eb8", "nouveau", subsystem="10de:12a2"),
    ]


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({}, [Gpu(SLOT, "1eb8", None)]),
        ({"Rev": "ff"}, [Gpu(SLOT, "1eb8", None, answers=False)]),
        ({"Driver": "vfio-pci", "Module": "nouveau"}, [Gpu(SLOT, "1eb8", "vfio-pci")]),
        ({"Device": "Device [2bb5]"}, [Gpu(SLOT, "2bb5", None)]),
        ({"Device": "TU104GL [Tesla T4] (rev [1]) [1EB8]"}, [Gpu(SLOT, "1eb8", None)]),
        ({"Slot": "000A:3B:00.0"}, [Gpu("000a:3b:00.0", "1eb8", None)]),
        ({"Class": "VGA compatible controller [0300]"}, [Gpu(SLOT, "1eb8", None)]),
        ({"Class": "Audio device [0403]"}, []),
        ({"Class": "PCI bridge [0604]"}, []),
        ({"Class": "USB controller [0c03]"}, []),
        ({"Vendor": "Advanced Micro Devices, Inc. [AMD/ATI] [1002]"}, []),
        ({"Vendor": "Some [10de] Reseller [1234]"}, []),
    ],
)
def test_a_record_is_judged_by_its_numbers(changes: Mapping[str, str], gpus: list[Gpu]) -> None:
    assert pci.parse(record(**changes)) == gpus


@pytest.mark.parametrize("text", ["", "\n\n", "Slot:\n", "pcilib: Cannot open /proc/bus/pci\n"])
def test_no_record_is_no_gpu(text: str) -> None:
    assert pci.parse(text) == []


def test_gpus_come_in_the_order_of_their_slots(node: Node) -> None:
    node.bus(("0000:1b:00.0", ""), ("0000:03:00.0", "nvidia"))
    assert [gpu.slot for gpu in pci.gpus(node.host)] == ["0000:03:00.0", "0000:1b:00.0"]


def test_lspcis_warnings_do_not_count(node: Node) -> None:
    warning = "lspci: Unable to load libkmod resources: error -2\n"
    node.answers["lspci"] = Result(0, record(), warning)
    assert len(pci.gpus(node.host)) == 1


def device(node: Node, slot: str, vendor: str, number: str, kind: str) -> None:
    folder = f"/sys/bus/pci/devices/{slot}"
    for name, text in (("vendor", vendor), ("device", number), ("class", kind)):
        node.put(f"{folder}/{name}", f"0x{text}\n")


@pytest.mark.parametrize("failure", [None, Result(1, "half", "lspci: Cannot find any capability")])
def test_without_a_working_lspci_sysfs_is_read(node: Node, failure: Result | None) -> None:
    if failure:
        node.answers["lspci"] = failure
    device(node, "0000:00:0f.0", "15ad", "0405", "030000")
    device(node, "0000:13:00.0", "10de", "1eb8", "030200")
    device(node, "0000:13:00.1", "10de", "10f8", "040300")
    device(node, "0001:2a:00.0", "10de", "1eb8", "030000")
    node.link("/sys/bus/pci/devices/0000:13:00.0/driver", "../../../bus/pci/drivers/nouveau")
    node.put("/sys/bus/pci/devices/0001:2a:00.0/revision", "0xff\n")
    assert pci.gpus(node.host) == (
        Gpu("0000:13:00.0", "1eb8", "nouveau"),
        Gpu("0001:2a:00.0", "1eb8", None, answers=False),
    )


def test_a_machine_without_a_bus_has_no_gpus(node: Node) -> None:
    assert pci.gpus(node.host) == ()


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        ([GOOD, GOOD], []),
        ([UNSET, GOOD, UNSET], [0, 2]),
        ([GOOD] * 6 + [UNSET] * 7, []),
        (["0x0 0x0 0x0", GOOD, "0x0 0x0 0x0", "0x0 0x0 0x0"], [0, 3]),  # no kernel placed them
        (["garbage", ""], []),
        ([], []),
    ],
)
def test_a_region_without_an_address_is_found(node: Node, lines: list[str], bad: list[int]) -> None:
    node.put(f"/sys/bus/pci/devices/{SLOT}/resource", "\n".join(lines) + "\n")
    assert pci.unassigned(node.host, Gpu(SLOT, "1eb8", None)) == bad


@pytest.mark.parametrize(
    ("number", "name"), [("1eb8", "Tesla T4"), ("2236", "10de:2236"), ("ffff", "10de:ffff")]
)
def test_a_gpu_has_a_name_or_its_id(number: str, name: str) -> None:
    assert Gpu(SLOT, number, None).model == name
