"""What is detected of a machine."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from gpuboot import facts
from tests.unit.node import KERNEL, Node
from tests.unit.node import facts as machine_facts

DEBIAN = """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
"""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ID=debian\n", {"ID": "debian"}),
        ("VERSION_ID='12'\n", {"VERSION_ID": "12"}),
        ('NAME="a b"\n', {"NAME": "a b"}),
        ('NAME="a \\"b\\" c"\n', {"NAME": 'a "b" c'}),
        ("# ID=x\n\nID=y\n", {"ID": "y"}),
        ("no equals sign\nID=y\n", {"ID": "y"}),
        ('NAME="open\nID=y\n', {"ID": "y"}),
        ("EMPTY=\n", {"EMPTY": ""}),
        ("URL=https://a/?b=c\n", {"URL": "https://a/?b=c"}),
        ("", {}),
    ],
)
def test_os_release_is_read_as_a_shell_would(text: str, values: dict[str, str]) -> None:
    assert facts.os_release(text) == values


def test_a_whole_machine_is_told(node: Node) -> None:
    node.put("/usr/lib/os-release", DEBIAN)
    node.put("/proc/sys/kernel/osrelease", KERNEL + "\n")
    node.put("/proc/sys/kernel/hostname", "gpu-1\n")
    node.put("/proc/sys/kernel/random/boot_id", "b-1\n")
    node.put("/etc/machine-id", "m\n")
    node.put("/sys/class/dmi/id/sys_vendor", "VMware, Inc.\n")
    node.put("/sys/class/dmi/id/product_uuid", "4206A5A4\n")
    node.put("/var/lib/cloud/data/instance-id", "i-1\n")
    node.answers["dpkg --print-architecture"] = "amd64\n"
    node.bus(("0000:03:00.0", "nouveau"))
    found = facts.gather(node.host)
    assert (found.os_id, found.os_version, found.codename) == ("debian", "12", "bookworm")
    assert (found.kernel, found.next_kernel, found.architecture) == (KERNEL, KERNEL, "amd64")
    assert (found.machine_id, found.instance_id, found.boot_id) == ("m", "i-1", "b-1")
    assert (found.vendor, found.product_uuid, found.hostname) == (
        "VMware, Inc.", "4206a5a4", "gpu-1",
    )  # fmt: skip
    assert [gpu.driver for gpu in found.gpus] == ["nouveau"]


def test_an_empty_machine_is_told_as_such(node: Node) -> None:
    found = facts.gather(node.host)
    assert (found.os_id, found.kernel, found.gpus, found.vendor) == ("", "", (), "")


@pytest.mark.parametrize(
    ("variable", "firmware", "secure"),
    [
        (b"\x06\0\0\0\x01", "efi", True),
        (b"\x06\0\0\0\x00", "efi", False),
        (None, "efi", None),
        (None, "bios", False),
    ],
)
def test_secure_boot_is_on_off_or_unknown(
    node: Node, variable: bytes | None, firmware: str, *, secure: bool | None
) -> None:
    if firmware == "efi":
        node.put("/sys/firmware/efi/fw_platform_size", "64\n")
    if variable is not None:
        node.put(facts.EFI_VARIABLE, variable)
    found = facts.gather(node.host)
    assert (found.firmware, found.secure_boot) == (firmware, secure)


@pytest.mark.parametrize(
    "change",
    [{"kernel": 6}, {"hostname": None}, {"gpus": None}, {"gpus": [{"slot": 1}]}, {"more": "x"}],
)
def test_what_is_no_recording_of_facts_is_refused(change: dict[str, object]) -> None:
    recorded = asdict(machine_facts())
    assert facts.parse(recorded) == machine_facts()
    with pytest.raises((ValueError, TypeError, KeyError)):
        facts.parse({**recorded, **change})
