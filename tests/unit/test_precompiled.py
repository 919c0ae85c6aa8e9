"""Modules that come ready-made: which packages bring them, and what is done where none does."""

from __future__ import annotations

import pytest

from gpuboot import kernel
from gpuboot.errors import GpubootError
from gpuboot.headers import KernelHeaders
from gpuboot.packages import Packages
from gpuboot.precompiled import LATELINK, KernelModules, Modules
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending, Reboot
from tests.unit.node import Node, module_text, reason

RUNNING, NEWER = "6.8.0-60-generic", "6.8.0-71-generic"
STEM = "linux-modules-nvidia-580-server"
DKMS = ("nvidia-dkms-580-server",)
READY = Modules(STEM, DKMS)


class Ubuntu:
    """A node whose apt knows an archive of ready-made modules, and kernels that they bring along.

    `archive`: packages with what they depend on.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.installed = {"linux-image-generic": f"linux-image-{RUNNING}, linux-firmware"}
        self.archive: dict[str, str] = {}
        self.answers = ""
        self.unfit: set[str] = set()  # they want other versions than the rest
        node.put("/proc/sys/kernel/osrelease", RUNNING + "\n")
        self.add(RUNNING)
        node.answers |= {
            "dpkg-query": self.query, "apt-cache policy": self.policy, "apt-get": self.get,
            "apt-cache depends": self.depends, "debconf-set-selections": self.answer,
            "modinfo": lambda command: Result(0, module_text(command.argv[1].split("/")[-4])),
        }  # fmt: skip

    def add(self, release: str) -> None:
        self.node.put(f"/boot/vmlinuz-{release}")

    def has(self, release: str, meta: str = "") -> None:
        """The archive has this kernel's module; the meta-package so named leads to it."""
        self.archive[f"{STEM}-{release}"] = f"linux-image-{release}"
        if meta:
            self.archive[f"{STEM}-{meta}"] = f"{STEM}-{release}"
            self.archive[f"linux-image-{meta}"] = f"linux-image-{release}"

    def query(self, command: Command) -> Result:
        form = command.argv[3]
        found = []
        for name, depends in self.installed.items():
            if not command.argv[4:] or any(
                name.startswith(word.rstrip("*")) for word in command.argv[4:]
            ):
                values = {"${Package}": name, "${db:Status-Status}": "installed",
                          "${Version}": "1", "${Depends}": depends}  # fmt: skip
                line = form
                for field, value in values.items():
                    line = line.replace(field, value)
                found.append(line)
        return Result(0, "".join(found))

    def policy(self, command: Command) -> Result:
        known = [name for name in command.argv if name in self.archive or name in self.installed]
        return Result(0, "".join(f"{name}:\n  Candidate: 1\n" for name in known))

    def depends(self, command: Command) -> Result:
        name = command.argv[-1]
        lines = (f"  Depends: {one}\n" for one in self.archive.get(name, "").split(", "))
        return Result(0, f"{name}\n{''.join(lines)}")

    def answer(self, command: Command) -> Result:
        self.answers += command.input or ""
        return Result(0)

    def get(self, command: Command) -> Result:
        if "--simulate" in command.argv:
            return Result(100 if self.unfit & set(command.argv) else 0)
        if "install" in command.argv:
            for name in command.argv[command.argv.index("install") + 1 :]:
                self.install(name)
        return Result(0)

    def install(self, name: str) -> None:
        self.installed[name] = depends = self.archive[name]
        release = name.removeprefix(f"{STEM}-")
        if name.startswith(STEM) and release[0].isdigit():
            assert self.answers == LATELINK, "the module is not linked"
            self.node.put(f"/lib/modules/{release}/kernel/nvidia-580srv/nvidia.ko", release)
        for one in depends.split(", "):
            if one.startswith("linux-image-") and one not in self.installed:
                self.installed[one] = ""
                self.add(one.removeprefix("linux-image-"))
            elif one in self.archive and one not in self.installed:
                self.install(one)


@pytest.fixture
def ubuntu(node: Node) -> Ubuntu:
    return Ubuntu(node)


def check(ubuntu: Ubuntu, modules: Modules = READY) -> Ok | Pending:
    found = KernelModules(modules).check(ubuntu.node.host)
    assert isinstance(found, (Ok, Pending))
    return found


def apply(ubuntu: Ubuntu, modules: Modules = READY) -> Reboot | None:
    return KernelModules(modules).apply(ubuntu.node.host)


def test_a_node_with_its_module_asks_no_archive(ubuntu: Ubuntu) -> None:
    ubuntu.node.put(f"/lib/modules/{RUNNING}/kernel/nvidia-580srv/nvidia.ko", RUNNING)
    assert reason(check(ubuntu), Ok) == "every kernel that needs a module has one"
    assert [line.split()[0] for line in ubuntu.node.ran] == ["modinfo"]
    assert READY.wanted(ubuntu.node.host) == ()


def test_just_the_running_kernels_module_comes_with_the_driver(ubuntu: Ubuntu) -> None:
    ubuntu.has(RUNNING)
    ubuntu.has(NEWER, "generic")
    assert reason(check(ubuntu), Pending)
    assert apply(ubuntu) is None
    assert reason(check(ubuntu), Ok) == f"a ready-made module for kernel {RUNNING} is to be had"
    assert READY.wanted(ubuntu.node.host) == (f"{STEM}-{RUNNING}",)
    assert not any("linux-image" in line for line in ubuntu.node.ran if " install " in line)


def test_the_meta_package_comes_too_where_it_brings_no_other_kernel(ubuntu: Ubuntu) -> None:
    ubuntu.has(RUNNING, "generic")
    apply(ubuntu)
    assert READY.wanted(ubuntu.node.host) == (f"{STEM}-{RUNNING}", f"{STEM}-generic")


@pytest.mark.parametrize("series", ["generic", "virtual", "generic-hwe-24.04"])
def test_a_kernel_without_one_is_replaced_by_the_newest_of_its_series(
    ubuntu: Ubuntu, series: str
) -> None:
    del ubuntu.installed["linux-image-generic"]
    ubuntu.installed[f"linux-image-{series}"] = f"linux-image-{RUNNING}"
    ubuntu.has(NEWER, series.replace("virtual", "generic"))
    ubuntu.archive[f"linux-image-{series}"] = f"linux-image-{NEWER}"
    found = apply(ubuntu)
    assert isinstance(found, Reboot)
    assert found.reason == f"a ready-made module is to be had for {NEWER}, and none for {RUNNING}"
    assert kernel.nvidia_module(ubuntu.node.host, NEWER)
    ubuntu.node.put("/proc/sys/kernel/osrelease", NEWER + "\n")  # it boots
    assert reason(check(ubuntu), Ok)


def test_one_that_does_not_go_with_the_newest_driver_is_none(ubuntu: Ubuntu) -> None:
    ubuntu.has(RUNNING)
    ubuntu.has(NEWER, "generic")
    ubuntu.unfit = {f"{STEM}-{RUNNING}"}
    assert isinstance(apply(ubuntu), Reboot)


def test_dkms_builds_where_the_archive_has_neither(ubuntu: Ubuntu) -> None:
    assert apply(ubuntu) is None
    host = ubuntu.node.host
    assert "DKMS builds it" in reason(check(ubuntu), Ok)
    assert READY.wanted(host) == DKMS
    assert Packages((), None, modules=READY).wanted(host)[:3] == (
        f"linux-headers-{RUNNING}", "linux-headers-generic", *DKMS,
    )  # fmt: skip
    assert reason(KernelHeaders(modules=READY).check(host), Pending)


def test_what_dkms_was_installed_for_it_goes_on_building(ubuntu: Ubuntu) -> None:
    ubuntu.installed[DKMS[0]] = ""
    ubuntu.has(RUNNING)
    assert READY.wanted(ubuntu.node.host) == DKMS


def test_before_apts_lists_are_read_nothing_is_said_about_dkms(ubuntu: Ubuntu) -> None:
    assert not READY.built(ubuntu.node.host)
    assert READY.wanted(ubuntu.node.host) == (f"{STEM}-{RUNNING}",)


def test_where_dkms_may_not_build_the_want_of_a_module_is_told(ubuntu: Ubuntu) -> None:
    with pytest.raises(GpubootError) as caught:
        apply(ubuntu, Modules(STEM))
    assert (caught.value.code.id, caught.value.retry) == ("GB324", True)
    assert RUNNING in caught.value.message
    assert "driver.build" in caught.value.hint


def test_ready_made_modules_need_no_headers(ubuntu: Ubuntu) -> None:
    ubuntu.has(RUNNING)
    apply(ubuntu)
    host = ubuntu.node.host
    assert "ready-made" in reason(KernelHeaders(modules=READY).check(host), Ok)
    assert Packages((), None, modules=READY).wanted(host)[0] == f"{STEM}-{RUNNING}"
    assert not [name for name in Packages((), None, modules=READY).wanted(host)
                if "headers" in name]  # fmt: skip


def test_what_a_ready_made_module_consists_of_is_held(ubuntu: Ubuntu) -> None:
    beside = {f"linux-objects-nvidia-580-server-{RUNNING}", f"linux-signatures-nvidia-{RUNNING}",
              f"{STEM}-{RUNNING}", f"linux-image-{RUNNING}", "linux-image-generic"}  # fmt: skip
    ubuntu.installed |= dict.fromkeys(beside, "")
    ubuntu.node.put(f"/lib/modules/{RUNNING}/kernel/nvidia-580srv/nvidia.ko", RUNNING)
    ubuntu.node.answers["dpkg-query --show --showformat ${db:Status-Want}"] = ""
    assert beside <= set(Packages((), None, modules=READY).loose(ubuntu.node.host))
