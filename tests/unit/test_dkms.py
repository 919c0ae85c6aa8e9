"""The driver's module for every kernel that runs or boots next."""

from __future__ import annotations

import pytest

from gpuboot.dkms import DriverBuilt
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.step import Ok, Pending
from tests.unit.node import KERNEL, Node, reason, settled

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
        return Result(0, f"{kernel} SMP\n" if command.argv[2] == "vermagic" else "535.309.01\n")

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
