"""What is wrong with a passed-through card, by the bus and by the kernel's log."""

from __future__ import annotations

import json
import sys

import pytest

from gpuboot import passthrough, survey
from gpuboot.driver import DriverLoaded
from gpuboot.errors import GpubootError
from gpuboot.nvidia import GpuPresent, GpusAnswer
from gpuboot.pci import Gpu
from gpuboot.process import Result
from tests.unit.node import KERNEL, SLOT, Node, module_text

T4 = Gpu(SLOT, "1eb8", "nvidia", subsystem="10de:12a2")
A100 = Gpu(SLOT, "20b5", "nvidia")
# As the module says it (open-gpu-kernel-modules; facts: nvidia 1.4).
LINES = {
    "bar": ("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\n"
            f"NVRM: BAR1 is 0M @ 0x0 (PCI:{SLOT})"),
    "irq": "NVRM: Can't find an IRQ for your NVIDIA card!",
    "held": "NVRM: request_mem_region failed for 16M @ 0xfd000000. rivatv, rivafb, nvidiafb",
    "probe": "NVRM: The NVIDIA probe routine was not called for 1 device(s).",
    "init": (f"NVRM: GPU {SLOT}: RmInitAdapter failed! (0x26:0x56:1463)\n"
             f"NVRM: GPU {SLOT}: rm_init_adapter failed, device minor number 0"),
    "bus": f"NVRM: GPU {SLOT}: GPU has fallen off the bus.",
    "xid 79": f"NVRM: Xid (PCI:{SLOT[:-2]}): 79, pid=1, GPU has fallen off the bus.",
    "xid 119": f"NVRM: Xid (PCI:{SLOT[:-2]} GPU-I:00): 119, Timeout after 6s of waiting for RPC",
    "xid 120": f"NVRM: Xid (PCI:{SLOT[:-2]}): 120, GSP task exception",
    "gsp": f"NVRM: GPU{SLOT} _kgspBootGspRm: GSP failed to boot",
}  # fmt: skip


def vmware(node: Node, *, efi: bool = True) -> None:
    node.put("/sys/class/dmi/id/sys_vendor", "VMware, Inc.\n")
    if efi:
        node.put("/sys/firmware/efi/fw_platform_size", "64\n")


def diagnose(node: Node, lines: str, gpu: Gpu = T4) -> GpubootError:
    node.answers["journalctl"] = "\n".join(reversed(lines.splitlines()))  # as journalctl does
    found = passthrough.diagnose(node.host, [gpu])
    assert found
    assert not found.retry  # and no reboot is asked for: an error ends the walk
    return found


@pytest.mark.parametrize(
    ("what", "code", "told"),
    [
        ("bar", "GB112", "its memory regions are invalid"),
        ("irq", "GB112", "it has no interrupt"),
        ("held", "GB112", "another driver holds its memory"),
        ("probe", "GB112", "another driver has it"),
        ("init", "GB113", "it could not be initialised (0x26:0x56:1463)"),
        ("bus", "GB114", "it has fallen off the bus"),
        ("xid 79", "GB114", "it has fallen off the bus"),
        ("xid 119", "GB116", "its GSP firmware does not answer (Xid 119)"),
        ("xid 120", "GB116", "its GSP firmware does not answer (Xid 120)"),
        ("gsp", "GB116", "its GSP firmware does not start"),
    ],
)
def test_what_the_kernel_says_is_told_with_its_code(
    node: Node, what: str, code: str, told: str
) -> None:
    found = diagnose(node, LINES[what])
    assert (found.code.id, found.message) == (code, f"GPU {SLOT}: {told}")
    assert found.evidence == LINES[what]
    assert found.hint


def test_of_two_cards_the_one_that_an_xid_names_is_told(node: Node) -> None:
    other = Gpu("0000:0b:00.0", "1eb8", "nvidia")
    node.answers["journalctl"] = "NVRM: Xid (PCI:0000:0b:00): 79, GPU has fallen off the bus."
    found = passthrough.diagnose(node.host, [T4, other])
    assert found
    assert found.message == "GPU 0000:0b:00.0: it has fallen off the bus"


def test_the_worst_counts_where_there_are_several(node: Node) -> None:
    lines = "\n".join([LINES["probe"], LINES["init"], LINES["bus"]])
    assert diagnose(node, lines).code.id == "GB114"


def test_a_driver_that_only_says_hello_has_no_complaint(node: Node) -> None:
    node.answers["journalctl"] = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.309.01"
    assert passthrough.diagnose(node.host, [T4]) is None


def test_xids_of_applications_are_no_fault_of_the_card(node: Node) -> None:
    node.answers["journalctl"] = "\n".join(
        f"NVRM: Xid (PCI:{SLOT[:-2]}): {number}, pid=7" for number in (13, 31, 43, 45, 790)
    )
    assert passthrough.diagnose(node.host, [T4]) is None


# -- the remedy


@pytest.mark.parametrize("efi", [True, False])
def test_on_vsphere_the_settings_are_named_and_for_a_t4_those_that_are_not_needed(
    node: Node, *, efi: bool
) -> None:
    vmware(node, efi=efi)
    hint = diagnose(node, LINES["init"]).hint
    assert "all guest memory reserved" in hint
    assert ("boots by BIOS" in hint) is not efi
    assert "a T4 needs no pciPassthru.use64bitMMIO" in hint
    assert "no hypervisor.cpuid.v0=FALSE" in hint


def test_a_big_card_on_vsphere_needs_its_window(node: Node) -> None:
    vmware(node)
    hint = diagnose(node, LINES["init"], A100).hint
    assert "pciPassthru.use64bitMMIO=TRUE and pciPassthru.64bitMMIOSizeGB" in hint
    assert "T4" not in hint


def test_elsewhere_nothing_is_said_of_vspheres_settings(node: Node) -> None:
    node.put("/sys/class/dmi/id/sys_vendor", "QEMU\n")
    for lines in LINES.values():
        assert "pciPassthru" not in diagnose(node, lines).hint


@pytest.mark.parametrize("what", ["bus", "xid 79"])
def test_a_lost_card_wants_the_power_off_not_a_reboot(node: Node, what: str) -> None:
    vmware(node)
    assert diagnose(node, LINES[what]).hint.startswith("power the VM off and on")


@pytest.mark.parametrize("what", ["xid 119", "xid 120", "gsp"])
def test_where_the_open_module_runs_the_other_kind_is_advised(node: Node, what: str) -> None:
    said = "NVRM version: NVIDIA UNIX {}  580.126.20  Release Build\n"
    node.put("/proc/driver/nvidia/version", said.format("Open Kernel Module for x86_64"))
    assert "set driver.kernel-module-type: proprietary" in diagnose(node, LINES[what]).hint
    node.put("/proc/driver/nvidia/version", said.format("x86_64 Kernel Module"))
    assert "kernel-module-type" not in diagnose(node, LINES[what]).hint


# -- by the bus


def test_regions_without_an_address_are_told_with_the_remedy(node: Node) -> None:
    vmware(node)
    good, none = "0xfd000000 0xfdffffff 0x40200\n", "0x0 0x0 0x0\n"
    node.put(f"/sys/bus/pci/devices/{SLOT}/resource", good + none * 2 + good)
    node.bus((SLOT, ""))
    with pytest.raises(GpubootError) as caught:
        GpuPresent(None, "any").check(node.host)
    assert caught.value.code.id == "GB112"
    assert caught.value.message == f"GPU {SLOT}: memory region 1 has no address"
    assert "a T4 needs no pciPassthru.use64bitMMIO" in caught.value.hint


@pytest.mark.parametrize(
    ("gpu", "refused"),
    [
        (T4, False),
        (Gpu(SLOT, "1eb8", None), False),  # unknown
        (Gpu(SLOT, "1eb8", None, subsystem="103c:1234"), False),  # another maker's board
        (Gpu(SLOT, "1eb8", None, subsystem="10de:0000"), False),  # not handed through
        (Gpu(SLOT, "1eb8", None, subsystem="10de:1309"), True),
        (Gpu(SLOT, "20b5", None, subsystem="10de:1533"), False),  # no T4: nothing is known
    ],
)
def test_a_vgpu_profile_is_told_by_its_subsystem(gpu: Gpu, *, refused: bool) -> None:
    found = passthrough.shared(gpu)
    assert (found is not None) is refused
    if found:
        assert found.code.id == "GB115"
        assert "GRID driver" in found.hint


# -- where it is asked


def test_a_module_that_found_no_device_tells_why(node: Node) -> None:
    node.bus((SLOT, ""))
    node.put("/proc/sys/kernel/osrelease", f"{KERNEL}\n")
    node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    node.answers |= {
        "modinfo": module_text(KERNEL), "journalctl": LINES["bar"],
        "modprobe": Result(1, err="modprobe: ERROR: could not insert 'nvidia': No such device"),
    }  # fmt: skip
    with pytest.raises(GpubootError) as caught:
        DriverLoaded().apply(node.host)
    assert caught.value.code.id == "GB112"
    node.answers["modprobe"] = Result(1, err="could not insert: Key was rejected by service")
    with pytest.raises(GpubootError) as caught:
        DriverLoaded().apply(node.host)
    assert caught.value.code.id == "GB302"


@pytest.mark.parametrize(
    "answer", ['{"driver": "535.309.01", "gpus": []}', '{"error": "GPU is lost", "value": 15}']
)
def test_libraries_that_see_no_card_are_explained_by_the_kernel(node: Node, answer: str) -> None:
    node.bus((SLOT, "nvidia"))
    node.answers |= {"journalctl": LINES["init"], "-": ""}
    node.answers |= {f"{sys.executable} -m gpuboot.nvml nvml": answer}
    with pytest.raises(GpubootError) as caught:
        GpusAnswer().check(node.host)
    assert caught.value.code.id == "GB113"


def test_what_passes_by_itself_is_tried_again(node: Node) -> None:
    node.bus((SLOT, "nvidia"))
    answer = '{"error": "not ready", "value": 27, "transient": true}'
    node.answers |= {f"{sys.executable} -m gpuboot.nvml nvml": answer,
                     "journalctl": LINES["init"]}  # fmt: skip
    with pytest.raises(GpubootError) as caught:
        GpusAnswer().check(node.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB303", True)


def test_preflight_tells_it_too(node: Node) -> None:
    node.bus((SLOT, "nvidia"))
    node.answers["journalctl"] = LINES["bus"]
    for name in ("/usr/bin/x", "/var/x"):  # whose free space is looked at
        node.put(name)
    assert "GB114" in [trouble.code for trouble in survey.survey(node.host, root=False)]


def test_preflight_says_nothing_of_a_complaint_that_is_over(node: Node) -> None:
    probe = f"{sys.executable} -m gpuboot.nvml"
    for name in ("/usr/bin/x", "/var/x"):
        node.put(name)
    node.bus((SLOT, "nvidia"))
    node.put("/sys/module/nvidia/version", "535.309.01\n")
    gpu = {"pci": SLOT, "name": "Tesla T4", "uuid": "GPU-1"}
    node.answers |= {"journalctl": LINES["probe"], f"{probe} cuda": '{"count": 1}',
                     f"{probe} nvml": json.dumps({"gpus": [gpu]})}  # fmt: skip
    assert "GB112" not in [trouble.code for trouble in survey.survey(node.host, root=False)]
    node.answers[f"{probe} cuda"] = '{"count": 0}'
    assert "GB112" in [trouble.code for trouble in survey.survey(node.host, root=False)]
