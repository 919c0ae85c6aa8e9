"""The driver that a machine has already: what of it is seen, whose it is, and what it lacks."""

from __future__ import annotations

import pytest

from gpuboot import existing, facts
from gpuboot.existing import Driver
from gpuboot.process import Result
from tests.unit.node import KERNEL, Node, module_text

VERSION = "550.90.07"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
BUILT = f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko.xz"
RUN_FILE = f"/lib/modules/{KERNEL}/kernel/drivers/video/nvidia.ko"


@pytest.fixture(autouse=True)
def running(node: Node) -> None:
    node.put("/proc/sys/kernel/osrelease", f"{KERNEL}\n")


def put_module(node: Node, name: str = RUN_FILE, licence: str = "NVIDIA") -> None:
    node.put(name, "module")
    node.answers[f"modinfo {node.root}{name}"] = module_text(KERNEL, VERSION)
    node.answers[f"modinfo --field license {node.root}{name}"] = f"{licence}\n"


def put_libraries(node: Node, version: str = VERSION) -> None:
    for stem in ("libnvidia-ml.so", "libcuda.so"):
        node.put(f"{LIBRARIES}/{stem}.{version}")
        node.link(f"{LIBRARIES}/{stem}.1", f"{stem}.{version}")
    for name in existing.PROGRAMS:
        node.put(f"/usr/bin/{name}")


def put_dkms(node: Node, name: str = "nvidia-current", version: str = VERSION) -> None:
    node.put(f"/var/lib/dkms/{name}/{version}/source")


def look(node: Node) -> Driver:
    found = existing.look(node.host)
    assert found
    return found


def test_a_machine_without_any_has_none(node: Node) -> None:
    assert existing.look(node.host) is None
    node.put(f"/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/nouveau/nouveau.ko")
    assert existing.look(node.host) is None


def test_one_of_the_run_installer_is_whole_and_no_packages(node: Node) -> None:
    put_module(node)
    put_libraries(node)
    found = look(node)
    assert found == Driver(VERSION, "proprietary", RUN_FILE, "", False, VERSION, ())
    assert (found.fault, found.branch, found.name, found.origin) == (
        "", "550", "nvidia", "no package",
    )  # fmt: skip


@pytest.mark.parametrize("listing", ["nvidia-kernel-dkms.list", "nvidia-kernel-dkms:amd64.list"])
def test_one_of_a_package_is_found_by_the_files_that_dkms_builds_from(
    node: Node, listing: str
) -> None:
    put_module(node, BUILT)
    put_libraries(node)
    put_dkms(node)
    node.put(f"/var/lib/dpkg/info/{listing}", f"/.\n/usr/src/nvidia-current-{VERSION}/dkms.conf\n")
    node.put("/var/lib/dpkg/info/nvidia-smi.list", "/.\n/usr/bin/nvidia-smi\n")
    found = look(node)
    assert (found.package, found.dkms, found.name) == ("nvidia-kernel-dkms", True, "nvidia-current")
    assert found.fault == ""


def test_another_version_of_the_same_package_is_not_its_owner(node: Node) -> None:
    put_module(node, BUILT)
    put_dkms(node)
    node.put("/var/lib/dpkg/info/nvidia-kernel-dkms.list",
             f"/usr/src/nvidia-current-{VERSION}1/dkms.conf\n")  # fmt: skip
    assert look(node).package == ""


@pytest.mark.parametrize("prefix", ["", "/usr"])
def test_a_precompiled_module_is_of_the_package_that_has_the_file(node: Node, prefix: str) -> None:
    put_module(node)
    put_libraries(node)
    node.put("/var/lib/dpkg/info/linux-modules-nvidia-550.list", f"{prefix}{RUN_FILE}\n")
    assert look(node).package == "linux-modules-nvidia-550"


@pytest.mark.parametrize(
    ("name", "licence", "kind"),
    [
        (BUILT, "?", "proprietary"),
        (BUILT.replace("current", "current-open"), "?", "open"),
        (BUILT.replace("current", "tesla-535"), "?", "proprietary"),
        (RUN_FILE, "NVIDIA", "proprietary"),
        (RUN_FILE, "Dual MIT/GPL", "open"),
        (RUN_FILE, "", ""),
    ],
)
def test_the_kind_of_module_is_told_by_its_name_or_its_licence(
    node: Node, name: str, licence: str, kind: str
) -> None:
    put_module(node, name, licence)
    assert look(node).kernel_module_type == kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [("NVIDIA UNIX x86_64 Kernel Module", "proprietary"),
     ("NVIDIA UNIX Open Kernel Module for x86_64", "open")],
)  # fmt: skip
def test_a_loaded_module_tells_its_kind_itself(node: Node, said: str, kind: str) -> None:
    put_module(node, licence="?")
    node.put("/sys/module/nvidia/version", f"{VERSION}\n")
    node.put("/proc/driver/nvidia/version", f"NVRM version: {said}  {VERSION}  Release Build\n")
    assert look(node).kernel_module_type == kind


def test_what_another_loaded_version_says_is_not_believed(node: Node) -> None:
    put_module(node)
    node.put("/sys/module/nvidia/version", "1.2\n")
    node.put("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module 1.2\n")
    assert look(node).kernel_module_type == "proprietary"


def test_libraries_of_another_version_are_its_fault(node: Node) -> None:
    put_module(node)
    put_libraries(node, "550.1")
    assert look(node).fault == f"the module is {VERSION}, libnvidia-ml.so.1 is of version 550.1"


def test_no_libraries_are_its_fault(node: Node) -> None:
    put_module(node)
    assert look(node).fault == f"the module is {VERSION}, libnvidia-ml.so.1 is missing"


def test_libraries_alone_are_a_driver_without_a_module(node: Node) -> None:
    put_libraries(node)
    assert look(node).fault == "there is no module for the running kernel"


@pytest.mark.parametrize("absent", ["/usr/bin/nvidia-smi", f"{LIBRARIES}/libcuda.so.1"])
def test_a_part_that_is_missing_is_named(node: Node, absent: str) -> None:
    put_module(node)
    put_libraries(node)
    (node.root / absent.lstrip("/")).unlink()
    assert look(node).fault == f"{absent.rpartition('/')[2]} missing"


def test_a_module_that_was_built_for_another_kernel_is_none(node: Node) -> None:
    put_module(node)
    node.answers[f"modinfo {node.root}{RUN_FILE}"] = module_text("6.1.0-40-amd64", VERSION)
    assert existing.look(node.host) is None
    node.answers[f"modinfo {node.root}{RUN_FILE}"] = Result(1, err="modinfo: ERROR")
    assert existing.look(node.host) is None


def test_what_dkms_can_build_is_as_good_as_a_module(node: Node) -> None:
    put_libraries(node)
    put_dkms(node, "nvidia-tesla-535", "535.1")
    put_dkms(node)
    found = look(node)
    assert (found.version, found.module, found.dkms, found.fault) == (VERSION, "", True, "")


def test_a_tree_of_dkms_with_another_version_than_the_libraries_is_not_the_driver(
    node: Node,
) -> None:
    put_libraries(node)
    put_dkms(node, version="535.1")
    assert look(node).fault == "there is no module for the running kernel"


def test_the_facts_have_it(node: Node) -> None:
    put_module(node)
    put_libraries(node)
    assert facts.gather(node.host).driver == existing.look(node.host)


def test_where_udev_makes_the_device_files_no_program_need(node: Node) -> None:
    put_module(node)
    put_libraries(node)
    (node.root / "usr/bin/nvidia-modprobe").unlink()
    assert look(node).fault == "nvidia-modprobe missing"
    node.put("/lib/udev/rules.d/71-nvidia.rules")
    assert look(node).fault == ""
