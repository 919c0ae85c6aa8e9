"""The driver's module for every kernel that runs or boots next."""

from __future__ import annotations

import pytest

from gpuboot.dkms import DriverBuilt
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.step import Ok, Pending
from tests.unit.node import KERNEL, Node, module_text, reason, settled

# What a real dkms 3.0.10 printed on a full and on a read-only disk (Debian 12, 2026-11-25).
FULL = f"""\
 - Installation
   - Installing to /lib/modules/{KERNEL}/updates/dkms/
cp: error writing '/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko': No space left on device
depmod...
"""
READ_ONLY = """\
rm: cannot remove '/var/lib/dkms/nvidia-current/535.309.01/build': Read-only file system
Error! Bad return status for module build on kernel: 6.1.0-50-amd64 (x86_64)
"""
FULL_LOG = """\
DKMS make.log for nvidia-current-535.309.01 for kernel 6.1.0-50-amd64 (x86_64)
/tmp/cchrlmGG.s: Fatal error: can't fill 256 bytes in section .data: 'No space left on device'
"""
TREE = "/var/lib/dkms/nvidia-current"

NEXT = "6.1.0-56-amd64"
LOG = """\
DKMS make.log for nvidia-current-open-550.163.01 for kernel 6.12.117+deb13-amd64 (x86_64)
  CC [M]  nvidia/nv-pci.o
nvidia/nv-pci.c:237:9: error: too few arguments to function 'pci_resize_resource'
make[3]: *** [scripts/Makefile.build:203: nvidia/nv-pci.o] Error 1
make: *** [Makefile:79: modules] Error 2
"""


def place(kernel: str) -> str:
    return f"/lib/modules/{kernel}/updates/dkms/nvidia-current.ko"


@pytest.fixture
def built(node: Node) -> Node:
    """A node whose DKMS builds whatever it is asked for; modinfo tells the folder's kernel."""

    def modinfo(command: Command) -> Result:
        kernel = command.argv[-1].partition("/lib/modules/")[2].partition("/")[0]
        return Result(0, module_text(kernel))

    def dkms(command: Command) -> Result:
        node.put(place(command.argv[-1]))
        return Result(0)

    node.put("/proc/sys/kernel/osrelease", KERNEL)
    node.answers |= {"modinfo": modinfo, "dkms autoinstall": dkms}
    return node


def test_a_module_for_every_kernel_is_needed(built: Node) -> None:
    step = DriverBuilt()
    built.put(f"/boot/vmlinuz-{NEXT}")
    built.put(place(KERNEL))
    assert reason(step.check(built.host), Pending) == f"there is no NVIDIA module for kernel {NEXT}"
    assert reason(settled(built, step), Ok) == (
        f"NVIDIA module 535.309.01 for {KERNEL}, 535.309.01 for {NEXT}"
    )
    assert [line for line in built.ran if "dkms" in line.split()] == [f"dkms autoinstall -k {NEXT}"]


@pytest.mark.parametrize("status", [0, 10, 1, 21, 77])
def test_dkms_is_judged_by_the_module_and_not_by_its_status(built: Node, status: int) -> None:
    built.answers["dkms autoinstall"] = Result(status, "", "Error! Your kernel headers are missing")
    with pytest.raises(GpubootError, match=f"no NVIDIA module for kernel {KERNEL}") as caught:
        DriverBuilt().apply(built.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB301", False)
    assert error.evidence == "Error! Your kernel headers are missing"


def test_a_dkms_that_failed_and_still_built_is_good(built: Node) -> None:
    def dkms(_: Command) -> Result:
        built.put(place(KERNEL))
        return Result(11, err="Error! One or more modules failed to install during autoinstall.")

    built.answers["dkms autoinstall"] = dkms
    assert reason(settled(built, DriverBuilt()), Ok)


def test_the_compilers_errors_are_the_evidence(built: Node) -> None:
    built.answers["dkms autoinstall"] = Result(10, err="Error! Bad return status for module build")
    built.put("/var/lib/dkms/nvidia-current/535.309.01/build/make.log", LOG)
    built.put("/var/lib/dkms/dkms_dbversion", "2.0.0")
    with pytest.raises(GpubootError) as caught:
        DriverBuilt().apply(built.host)
    assert caught.value.evidence.splitlines() == LOG.splitlines()[2:]


def torn(built: Node) -> None:
    """What a power cut leaves soon after DKMS was done: it counts as installed, and is half."""
    built.put(f"{TREE}/535.309.01/{KERNEL}/x86_64/module/nvidia-current.ko", "half")
    built.link(f"{TREE}/kernel-{KERNEL}-x86_64", f"535.309.01/{KERNEL}/x86_64")
    built.put("/var/lib/dkms/dkms_dbversion", "2.0.0")
    built.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko", "half")

    def modinfo(_: Command) -> Result:
        if built.text(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko") == "half":
            return Result(1, err="modinfo: ERROR: could not get modinfo: Invalid argument")
        return Result(0, module_text(KERNEL))

    built.answers |= {"modinfo": modinfo, "dkms autoinstall": ""}


def test_a_module_that_a_power_cut_tore_is_built_anew(built: Node) -> None:
    torn(built)
    tree = f"{TREE}/535.309.01/{KERNEL}/x86_64/module/nvidia-current.ko"

    def build(_: Command) -> Result:
        built.put(tree, "whole")
        return Result(0)

    def install(_: Command) -> Result:
        built.put(place(KERNEL), built.text(tree) or "")
        return Result(0)

    module = "nvidia-current/535.309.01"
    built.answers[f"dkms build --force {module} -k {KERNEL}"] = build
    built.answers[f"dkms install --force {module} -k {KERNEL}"] = install
    assert reason(settled(built, DriverBuilt()), Ok) == f"NVIDIA module 535.309.01 for {KERNEL}"


@pytest.mark.parametrize(
    ("result", "log", "said"),
    [
        (Result(0, FULL), "", FULL.splitlines()[2]),
        (Result(11, err=READ_ONLY), "", READ_ONLY.splitlines()[0]),
        (Result(11, err=READ_ONLY.splitlines()[1]), FULL_LOG, FULL_LOG.splitlines()[1]),
    ],
    ids=["full, and no failure", "read-only", "full while compiling"],
)
def test_a_disk_that_takes_no_module_is_worth_another_try(
    built: Node, result: Result, log: str, said: str
) -> None:
    built.answers["dkms autoinstall"] = result
    built.put(f"{TREE}/535.309.01/build/make.log", log)
    with pytest.raises(GpubootError) as caught:
        DriverBuilt().apply(built.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB012", True)
    assert caught.value.message == f"dkms: {said}"
