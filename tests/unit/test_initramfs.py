"""The initramfs while packages are installed: made once at the most, and only if it must be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gpuboot import initramfs
from gpuboot.errors import GpubootError
from gpuboot.packages import Packages
from gpuboot.process import Command, Result
from gpuboot.step import Pending
from tests.unit.node import KERNEL, Node

WRAPPER = Path(__file__).parents[2] / "packaging/path/update-initramfs"
NOUVEAU = f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/nouveau/nouveau.ko"
NOVA = f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/nova-core/nova_core.ko.zst"
TRIGGER = "# added by debhelper\nactivate-noawait update-initramfs\n"


class Packaged:
    """A node with an initramfs, whose packages ask for a new one as they come."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.installed = {"udev": "252", "initramfs-tools": "0.142"}
        node.put("/proc/sys/kernel/osrelease", KERNEL)
        node.put("/usr/sbin/update-initramfs")
        node.put("/var/lib/dpkg/info/udev.triggers", TRIGGER)
        node.put("/var/lib/dpkg/info/udev.postinst", "udevadm control --reload\n")
        node.answers |= {"dpkg-query": self._query, "lsinitramfs": "", "update-initramfs": ""}

    def _query(self, _: Command) -> Result:
        return Result(0, "".join(f"{n}\tinstalled\t{v}\n" for n, v in self.installed.items()))

    def install(self, name: str, version: str, script: str = TRIGGER) -> None:
        """As dpkg does while packages are deferred: the trigger's run leaves a line in the note."""
        self.node.put(f"/var/lib/dpkg/info/{name}.triggers", script)
        self.installed[name] = version
        if script:
            note = self.node.text(initramfs.NOTE)
            assert note is not None
            self.node.put(initramfs.NOTE, f"{note}asked\n")

    @property
    def made(self) -> list[str]:
        return [line for line in self.node.ran if line.startswith("update-initramfs")]


@pytest.fixture
def packaged(node: Node) -> Packaged:
    return Packaged(node)


def test_where_no_package_asks_no_image_is_made(packaged: Packaged) -> None:
    with initramfs.deferred(packaged.node.host):
        packaged.install("nvidia-smi", "535", "")
    assert packaged.made == []
    assert not initramfs.left(packaged.node.host)


def test_the_drivers_own_wish_makes_none_where_nouveau_is_not_in_it(packaged: Packaged) -> None:
    with initramfs.deferred(packaged.node.host):
        packaged.install("glx-alternative-nvidia", "1.2.2")
        packaged.install("glx-alternative-nvidia", "1.2.2")
    assert packaged.made == []
    assert not initramfs.left(packaged.node.host)


@pytest.mark.parametrize("module", [NOUVEAU, NOVA])
def test_an_image_with_a_rival_is_made_once_for_the_kernel_that_boots_next(
    packaged: Packaged, module: str
) -> None:
    packaged.node.put("/boot/vmlinuz-6.1.0-56-amd64")
    packaged.node.answers["lsinitramfs"] = module
    with initramfs.deferred(packaged.node.host):
        packaged.install("glx-alternative-nvidia", "1.2.2")
        packaged.install("glx-alternative-nvidia", "1.2.2")
    assert packaged.made == ["update-initramfs -u -k 6.1.0-56-amd64"]


@pytest.mark.parametrize("name", ["udev", "cryptsetup-initramfs", "initramfs-tools"])
def test_what_is_part_of_the_image_is_put_into_it(packaged: Packaged, name: str) -> None:
    with initramfs.deferred(packaged.node.host):
        packaged.install("glx-alternative-nvidia", "1.2.2")
        packaged.install(name, "9", "dpkg-trigger --no-await update-initramfs\n")
    assert packaged.made == ["update-initramfs -u"]


def test_a_comment_about_the_image_is_no_wish(packaged: Packaged) -> None:
    with initramfs.deferred(packaged.node.host):
        packaged.install("glx-alternative-nvidia", "1.2.2")
        packaged.installed["strange"] = "1"
        packaged.node.put("/var/lib/dpkg/info/strange.postinst", "# see update-initramfs(8)\n")
    assert packaged.made == []


def test_what_a_cut_off_walk_owes_is_made_by_the_next(packaged: Packaged) -> None:
    packaged.node.put(initramfs.NOTE, f"{initramfs.NOTICE}asked\n")
    found = Packages(("nvidia-smi",), None).check(packaged.node.host)
    packaged.node.answers["dpkg --audit"] = ""
    assert isinstance(found, Pending)
    assert "initramfs was left for later" in found.reason
    with initramfs.deferred(packaged.node.host):
        """Everything was installed before the power failed."""
    assert packaged.made == ["update-initramfs -u"]
    assert not initramfs.left(packaged.node.host)


def test_a_note_without_a_wish_is_only_taken_away(packaged: Packaged) -> None:
    packaged.node.put(initramfs.NOTE, initramfs.NOTICE)
    with initramfs.deferred(packaged.node.host):
        """dpkg was cut off before it came to the trigger."""
    assert packaged.made == []
    assert not initramfs.left(packaged.node.host)


def test_an_image_that_could_not_be_made_is_still_owed(packaged: Packaged) -> None:
    packaged.node.answers["update-initramfs"] = Result(1, err="cannot write /boot/initrd.img")
    with pytest.raises(GpubootError), initramfs.deferred(packaged.node.host):
        packaged.install("udev", "253")
    assert initramfs.left(packaged.node.host)


def test_packages_that_failed_leave_their_wish_for_the_next_walk(packaged: Packaged) -> None:
    def cut_off() -> None:
        with initramfs.deferred(packaged.node.host):
            packaged.install("udev", "253")
            raise KeyError

    with pytest.raises(KeyError):
        cut_off()
    assert initramfs.left(packaged.node.host)
    assert packaged.made == []


@pytest.mark.parametrize(
    ("words", "package", "noted", "left"),
    [
        ("-u", "", True, True),  # initramfs-tools' own script, once it has come to the trigger
        ("-u", "", False, False),  # nobody defers it: no installation of gpuboot's is under way
        ("-u", "udev", True, False),  # a package's script: it asks for the trigger
        ("-u -k all", "", True, False),
        ("-c -k 6.1.0-56-amd64", "", True, False),  # a new kernel's first image
    ],
)
def test_the_wrapper_holds_back_the_triggers_image_alone(
    tmp_path: Path, words: str, package: str, noted: bool, left: bool
) -> None:
    note, real, wrapper = (tmp_path / name for name in ("note", "real", "update-initramfs"))
    real.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/made\n')
    text = WRAPPER.read_text(encoding="utf-8")
    text = text.replace("/usr/sbin/update-initramfs", str(real)).replace(initramfs.NOTE, str(note))
    wrapper.write_text(text)
    for file in (real, wrapper):
        file.chmod(0o755)
    if noted:
        note.write_text(initramfs.NOTICE)
    subprocess.run([wrapper, *words.split()], check=True, stdout=subprocess.DEVNULL,
                   env={"PATH": "/usr/bin:/bin", "DPKG_MAINTSCRIPT_PACKAGE": package})  # fmt: skip
    made = tmp_path / "made"
    assert (made.read_text() if made.exists() else None) == (None if left else f"{words}\n")
    assert noted is note.exists()
    if noted:
        assert note.read_text() == initramfs.NOTICE + ("asked\n" if left else "")
