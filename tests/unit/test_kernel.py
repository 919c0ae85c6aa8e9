"""Kernels, and the modules that are really theirs."""

from __future__ import annotations

import random

import pytest

from gpuboot import kernel
from gpuboot.dkms import DriverBuilt
from gpuboot.errors import GpubootError
from gpuboot.headers import KernelHeaders
from gpuboot.kernel import Module
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending, Reboot
from tests.unit.node import KERNEL, Node, module_text, reason
from tests.unit.test_headers import Debian


@pytest.mark.parametrize(
    "releases",
    [
        ["6.1.0-9-amd64", "6.1.0-50-amd64", "6.1.0-56-amd64", "6.12.107+deb13-amd64"],
        ["6.12.107+deb13-amd64", "6.12.117+deb13-amd64", "7.0.0-1-amd64"],
        ["5.15.0-9-generic", "5.15.0-101-generic", "6.8.0-1-generic"],
        ["6.1.0-50-amd64", "6.1.0-50-cloud-amd64"],
        ["6.1.0-rc7-amd64", "6.1.0-1-amd64"],
        ["6.13~rc2-amd64", "6.13-amd64", "6.13.1-amd64"],
        ["6.12.115+deb13-amd64", "6.12.115+deb13.1-amd64", "6.12.116+deb13-amd64"],
        ["6.12.117+deb12-amd64", "6.12.117+deb13-amd64"],
        ["6.1.0-50-amd64", "6.1.0-50-cloud-amd64", "6.1.0-50-rt-amd64"],
        ["", "6", "6.1.0", "6.1.0-1", "6.1.0-1-amd64"],
    ],
)
def test_releases_sort_by_their_numbers(releases: list[str]) -> None:
    mixed = random.Random(1).sample(releases, len(releases))  # noqa: S311 - an order, no secret
    assert sorted(mixed, key=kernel.version_key) == releases


@pytest.mark.parametrize(
    ("boot", "release"),
    [
        ([], KERNEL),
        (["vmlinuz-6.1.0-50-amd64"], "6.1.0-50-amd64"),
        (["vmlinuz-6.1.0-50-amd64", "vmlinuz-6.1.0-9-amd64"], "6.1.0-50-amd64"),
        (["vmlinuz-6.1.0-50-amd64", "vmlinuz-6.1.0-56-amd64.old"], "6.1.0-50-amd64"),
        (["config-6.1.0-56-amd64", "initrd.img-6.1.0-56-amd64"], KERNEL),
    ],
)
def test_the_newest_kernel_in_boot_comes_next(node: Node, boot: list[str], release: str) -> None:
    node.put("/proc/sys/kernel/osrelease", KERNEL + "\n")
    for name in boot:
        node.put(f"/boot/{name}")
    assert kernel.next_boot(node.host) == release


GRUB_CFG = """\
set default="{default}"
menuentry 'Debian GNU/Linux' {{
	linux	/boot/vmlinuz-{first} root=/dev/sda1 ro
}}
submenu 'Advanced options' {{
	menuentry 'newest' {{
		linux	/boot/vmlinuz-{first} root=/dev/sda1 ro
	}}
	menuentry 'older' --id older {{
		linux	/boot/vmlinuz-{second} root=/dev/sda1 ro
	}}
}}
"""
NEWER = "6.1.0-56-amd64"


@pytest.mark.parametrize(
    ("default", "release", "by"),
    [
        ("0", NEWER, "GRUB's choice"),
        ("1>older", KERNEL, "GRUB's choice"),
        ("1>1", KERNEL, "GRUB's choice"),
    ],
)
def test_grub_decides_which_kernel_boots_next(
    node: Node, default: str, release: str, by: str
) -> None:
    for name in (KERNEL, NEWER):
        node.put(f"/boot/vmlinuz-{name}")
    node.put("/boot/grub/grub.cfg", GRUB_CFG.format(default=default, first=NEWER, second=KERNEL))
    assert kernel.choice(node.host) == (release, by)


@pytest.mark.parametrize(
    "text", ["", "menuentry 'x' {\n", "}", GRUB_CFG.format(default="0", first="gone", second="")]
)
def test_where_grubs_file_says_nothing_the_newest_boots_next(node: Node, text: str) -> None:
    for name in (KERNEL, NEWER):
        node.put(f"/boot/vmlinuz-{name}")
    node.put("/boot/grub/grub.cfg", text)
    assert kernel.choice(node.host) == (NEWER, "the newest in /boot")


def test_the_kernels_that_matter_are_the_running_one_and_the_next(node: Node) -> None:
    node.put("/proc/sys/kernel/osrelease", KERNEL + "\n")
    assert kernel.matter(node.host) == (KERNEL,)
    node.put(f"/boot/vmlinuz-{KERNEL}")
    node.put(f"/boot/vmlinuz-{NEWER}")
    node.put("/boot/vmlinuz-6.1.0-9-amd64")
    assert kernel.matter(node.host) == (KERNEL, NEWER)


def modinfo(node: Node, magic: str) -> None:
    """What modinfo says of every module."""
    node.answers["modinfo"] = module_text(magic)


@pytest.mark.parametrize(
    "place",
    ["updates/dkms/nvidia-current.ko", "updates/dkms/nvidia.ko.xz", "updates/nvidia.ko.zst",
     "updates/dkms/nvidia-current-open.ko.xz", "updates/dkms/nvidia-tesla-535.ko",
     "updates/dkms/nvidia-tesla-535-open.ko", "updates/dkms/nvidia-tesla.ko",
     "kernel/nvidia-580-server-open/nvidia.ko.zst", "kernel/nvidia-535srv/nvidia.ko",
     "extra/nvidia.ko.gz", "kernel/drivers/video/nvidia.ko"],
)  # fmt: skip
def test_a_module_built_for_the_kernel_is_found(node: Node, place: str) -> None:
    node.put(f"/lib/modules/{KERNEL}/{place}")
    modinfo(node, KERNEL)
    assert kernel.nvidia_module(node.host, KERNEL) == Module(
        f"/lib/modules/{KERNEL}/{place}", "535.309.01"
    )


@pytest.mark.parametrize("magic", ["6.1.0-49-amd64", "6.1.0-50-amd64-more", ""])
def test_a_module_built_for_another_kernel_does_not_count(node: Node, magic: str) -> None:
    node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    modinfo(node, magic)
    assert kernel.nvidia_module(node.host, KERNEL) is None


def test_a_module_is_read_once_until_its_file_is_another(node: Node) -> None:
    file = f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko.xz"
    node.put(file, "one")
    modinfo(node, KERNEL)
    for _ in range(3):
        assert kernel.nvidia_module(node.host, KERNEL)
    assert len(node.ran) == 1
    node.put(file, "another")
    modinfo(node, "6.1.0-49-amd64")
    assert kernel.nvidia_module(node.host, KERNEL) is None
    modinfo(node, KERNEL)
    assert kernel.nvidia_module(node.host, KERNEL), "what did not hold is looked at again"


def test_a_torn_module_does_not_count(node: Node) -> None:
    node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    node.answers["modinfo"] = Result(1, err="modinfo: ERROR: could not get modinfo: Invalid ELF")
    assert kernel.nvidia_module(node.host, KERNEL) is None


@pytest.mark.parametrize(
    "place",
    ["updates/dkms/nvidia-uvm.ko", "updates/dkms/nvidia-current-drm.ko", "updates/dkms/nvidia.ko~",
     "updates/dkms/nvidia-tesla-535-uvm.ko", "updates/dkms/nvidia-tesla-535-open-peermem.ko",
     "updates/dkms/nvidia-drm.ko", "kernel/nvidia-535srv/nvidia-modeset.ko",
     "updates/dkms/.nvidia.ko.gpuboot-new", "kernel/drivers/gpu/drm/nouveau/nouveau.ko"],
)  # fmt: skip
def test_other_modules_are_not_the_driver(node: Node, place: str) -> None:
    node.put(f"/lib/modules/{KERNEL}/{place}")
    modinfo(node, KERNEL)
    assert kernel.nvidia_module(node.host, KERNEL) is None


def test_a_module_for_another_folder_is_found_behind_a_stale_one(node: Node) -> None:
    node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    node.put(f"/lib/modules/{KERNEL}/extra/nvidia.ko")

    def answer(command: Command) -> Result:
        return Result(0, module_text(KERNEL if "extra" in command.argv[-1] else "old"))

    node.answers["modinfo"] = answer
    found = kernel.nvidia_module(node.host, KERNEL)
    assert found
    assert found.path.endswith("extra/nvidia.ko")


def test_a_loaded_module_has_a_version(node: Node) -> None:
    node.put("/sys/module/nvidia/version", "535.309.01\n")
    assert kernel.loaded(node.host, "nvidia")
    assert kernel.loaded_version(node.host, "nvidia") == "535.309.01"
    assert not kernel.loaded(node.host, "nouveau")
    assert kernel.loaded_version(node.host, "nouveau") is None


# -- what a peer gets wrong: it upgrades the kernel, and reboots without a look at what boots


def test_after_a_kernels_upgrade_the_next_kernel_is_looked_at_before_any_reboot(
    node: Node,
) -> None:
    debian = Debian(node)
    debian.has_metas()
    debian.pinned = KERNEL
    with pytest.raises(GpubootError, match="boots next"):
        KernelHeaders().apply(node.host)
    debian.pinned = None
    debian.add(NEWER)
    assert kernel.next_boot(node.host) == NEWER
    assert isinstance(KernelHeaders().apply(node.host), Reboot)


def test_a_module_is_needed_for_the_kernel_that_an_upgrade_has_brought(node: Node) -> None:
    debian = Debian(node)
    debian.build(KERNEL)
    assert isinstance(DriverBuilt().check(node.host), Ok)
    debian.add(NEWER)
    assert reason(DriverBuilt().check(node.host), Pending).endswith(f"for kernel {NEWER}")


def test_the_kernels_messages_are_told_the_oldest_first(node: Node) -> None:
    """journalctl has the last ones first where it is asked for a number of those that match."""
    node.answers["journalctl --dmesg --boot --grep NVRM --lines 20 --reverse"] = "third\nsecond\n"
    assert kernel.messages(node.host, "NVRM") == "second\nthird"
