"""The driver in the kernel: what stands in its way, and a reboot only where nothing else helps."""

from __future__ import annotations

import os
import time

import pytest

from gpuboot.driver import DriverLoaded
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending, Reboot, Waiting
from tests.model.machine import FakeClock
from tests.unit.modules import DRIVER, OLD, Modules
from tests.unit.node import ABSENT, KERNEL, SLOT, Node, code, reason, settled

IMAGE = f"/boot/initrd.img-{KERNEL}"
STACK = ("nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm")
SHELL = "/user.slice/user-1000.slice/session-3.scope"


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        ([], "the nvidia module is not loaded"),
        (["nouveau"], f"nouveau holds {SLOT}"),
        (["nova_core"], f"nova_core holds {SLOT}"),
        (["nova_core", "nova_drm"], f"nova_core holds {SLOT}"),
        (["nvidia"], "the nvidia-uvm module is not loaded"),
        (["nvidia", "nvidia_uvm"], "/etc/modules-load.d/gpuboot.conf is not written"),
    ],
)
def test_the_driver_is_loaded_without_a_reboot(node: Node, loaded: list[str], said: str) -> None:
    modules = Modules(node, *loaded)
    assert reason(DriverLoaded().check(node.host), Pending) == said
    found = settled(node, DriverLoaded())
    assert isinstance(found, Ok), found
    assert found.shows == {"driver": {"version": DRIVER, "kernel_module_type": "proprietary"}}
    assert modules.loaded("nvidia_uvm")
    assert modules.active == {"nvidia-persistenced.service"}
    assert (node.text("/etc/modules-load.d/gpuboot.conf") or "").endswith("nvidia\nnvidia-uvm\n")
    drop_in = "/etc/systemd/system/systemd-modules-load.service.d/gpuboot.conf"
    assert "ExecStartPost=-/usr/bin/nvidia-modprobe -u -c 0" in (node.text(drop_in) or "")


# -- nouveau and its like


def test_a_rival_that_the_kernel_uses_needs_a_reboot(node: Node) -> None:
    modules = Modules(node, "nouveau")
    modules.in_use = {"nouveau"}
    node.put("/sys/module/nouveau/refcnt", "1\n")
    assert DriverLoaded().apply(node.host) == Reboot(
        f"nouveau holds {SLOT}; in use by the kernel itself (nouveau: refcnt 1)",
        "in use by the kernel itself (nouveau: refcnt 1)",
    )
    assert "modprobe nvidia" not in node.ran


def test_a_process_that_draws_on_the_card_is_named_and_never_ended(node: Node) -> None:
    modules = Modules(node, "nouveau")
    node.put(f"/sys/bus/pci/devices/{SLOT}/drm/card1/dev")
    modules.opens(812, "/dev/dri/card1", "Xorg", "/system.slice/display-manager.service")
    modules.opens(813, "/dev/dri/card0", "another card's", "/system.slice/other.service")
    assert DriverLoaded().apply(node.host) == Reboot(
        f"nouveau holds {SLOT}; in use by Xorg (display-manager.service)",
        "in use by Xorg (pid 812, display-manager.service)",
    )
    assert modules.loaded("nouveau")
    assert "rmmod nouveau" not in node.ran
    assert not [line for line in node.ran if line.startswith(("kill", "systemctl stop"))]


def test_the_reason_reads_the_same_in_the_next_boot_where_only_the_pid_differs(node: Node) -> None:
    modules = Modules(node, "nouveau")
    node.put(f"/sys/bus/pci/devices/{SLOT}/drm/card1/dev")
    asked = []
    for pid in (812, 907):
        modules.opens(pid, "/dev/dri/card1", "Xorg", "/system.slice/display-manager.service")
        asked.append(DriverLoaded().apply(node.host))
        modules.ends(pid)
    first, second = asked
    assert first
    assert second
    assert first.reason == second.reason
    assert first.evidence != second.evidence


def test_a_console_on_the_rivals_screen_is_named(node: Node) -> None:
    Modules(node, "nouveau").in_use = {"nouveau"}
    node.put("/proc/fb", "0 vmwgfxdrmfb\n1 nouveaudrmfb\n")
    found = DriverLoaded().apply(node.host)
    assert found
    assert found.reason == f"nouveau holds {SLOT}; in use by the console"


def test_a_screen_that_no_console_uses_is_no_obstacle(node: Node) -> None:
    Modules(node, "nouveau")
    node.put("/proc/fb", "1 nouveaudrmfb\n")
    assert isinstance(settled(node, DriverLoaded()), Ok)


def test_a_console_on_an_older_drivers_screen_keeps_all_of_it_loaded(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    modules.in_use = {"nvidia_drm"}
    node.put("/proc/fb", "0 nvidia-drmdrmfb\n")
    found = DriverLoaded().apply(node.host)
    assert found
    assert found.reason.endswith("in use by the console")
    assert [modules.loaded(name) for name in STACK] == [OLD] * 4


def test_a_module_that_stands_on_the_rival_is_named(node: Node) -> None:
    Modules(node, "nouveau")
    node.put("/sys/module/nouveau/holders/nvidia_wmi_ec_backlight")
    found = DriverLoaded().apply(node.host)
    assert found
    assert found.reason == f"nouveau holds {SLOT}; in use by module nvidia_wmi_ec_backlight"


def test_a_rival_that_holds_no_card_is_left_alone(node: Node) -> None:
    modules = Modules(node, "nouveau")

    def elsewhere(_: Command) -> Result:
        node.bus((SLOT, "nvidia" if modules.loaded("nvidia") else ""))
        text, node.answers["lspci"] = str(node.answers["lspci"]), elsewhere
        return Result(0, text)

    node.answers["lspci"] = elsewhere
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert modules.loaded("nouveau")


def test_a_card_that_was_given_to_vfio_is_waited_for_and_not_taken(node: Node) -> None:
    Modules(node, "vfio-pci")
    found = DriverLoaded().check(node.host)
    assert reason(found, Waiting) == f"vfio-pci holds {SLOT}"
    assert code(found).id == "GB305"


def test_a_rival_that_takes_the_card_while_nvidia_loads_needs_a_reboot(node: Node) -> None:
    modules = Modules(node)

    def lost(_: Command) -> Result:
        modules.load("nouveau")
        return Result(1, err="modprobe: ERROR: could not insert 'nvidia_current': No such device")

    node.answers["modprobe"] = lost
    assert DriverLoaded().apply(node.host) == Reboot(f"nouveau holds {SLOT}")


# -- another version


def test_an_older_loaded_driver_is_replaced_without_a_reboot(node: Node) -> None:
    modules = Modules(node, *STACK, "nvidia_peermem", version=OLD)
    modules.serves("nvidia-persistenced", 300)
    modules.serves("nvidia-dcgm", 301)
    found = DriverLoaded().check(node.host)
    assert reason(found, Pending) == f"nvidia {OLD} is loaded, {DRIVER} is installed"
    assert isinstance(found, Pending)
    assert found.code
    assert found.code.id == "GB304"
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert (modules.loaded("nvidia"), modules.loaded("nvidia_uvm")) == (DRIVER, DRIVER)
    assert modules.active == {"nvidia-persistenced.service", "nvidia-dcgm.service"}


KINDS = {
    "proprietary": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Sun May\n",
    "open": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.309.01  Release\n",
}


def test_the_other_kind_of_module_is_replaced_too_although_its_version_is_the_same(
    node: Node,
) -> None:
    modules = Modules(node, *STACK)
    node.put("/proc/driver/nvidia/version", KINDS["open"])

    def load(command: Command) -> Result:
        node.put("/proc/driver/nvidia/version", KINDS["proprietary"])
        return modules.modprobe(command)

    node.answers["modprobe"] = load
    step = DriverLoaded("proprietary")
    assert reason(step.check(node.host), Pending) == (
        f"nvidia {DRIVER} is loaded, {DRIVER} (proprietary) is installed"
    )
    assert isinstance(settled(node, step), Ok)
    assert "rmmod nvidia" in node.ran


@pytest.mark.parametrize(
    ("wanted", "text"), [(None, KINDS["open"]), ("open", KINDS["open"]), ("open", "")]
)
def test_a_kind_that_is_wanted_or_not_known_is_no_reason_to_reload(
    node: Node, wanted: str | None, text: str
) -> None:
    Modules(node, *STACK)
    if text:
        node.put("/proc/driver/nvidia/version", text)
    settled(node, DriverLoaded(wanted))
    assert "rmmod nvidia" not in node.ran


def test_services_that_did_not_run_are_not_started(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    settled(node, DriverLoaded())
    assert modules.active == {"nvidia-persistenced.service"}


def test_a_strangers_process_on_an_older_driver_is_named_and_loses_nothing(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    modules.serves("nvidia-persistenced", 300)
    modules.opens(4711, "/dev/nvidia-uvm", "python3", SHELL)
    modules.opens(4712, "/dev/nvidia0", "python3", SHELL)
    assert DriverLoaded().apply(node.host) == Reboot(
        f"nvidia {OLD} is loaded, {DRIVER} is installed; in use by python3 (session-3.scope)",
        "in use by python3 (pid 4711, session-3.scope)\n"
        "in use by python3 (pid 4712, session-3.scope)",
    )
    assert [modules.loaded(name) for name in STACK] == [OLD] * 4  # nothing is half unloaded
    assert modules.active == {"nvidia-persistenced.service"}  # and runs again
    assert {"4711", "4712"} <= set(modules.users())


def test_a_program_that_is_about_to_end_is_waited_for(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    modules.opens(4711, "/dev/nvidiactl", "nvidia-smi")

    class Passing(FakeClock):
        def sleep(self, seconds: float) -> None:
            modules.ends(4711)

    node.host.clock = Passing()
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert modules.loaded("nvidia") == DRIVER


def test_what_is_unloaded_half_way_is_mended_by_the_next_walk(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    modules.in_use = {"nvidia"}
    found = DriverLoaded().apply(node.host)
    assert found
    assert "in use by the kernel itself (nvidia: refcnt 0)" in found.reason
    assert (modules.loaded("nvidia"), modules.loaded("nvidia_uvm")) == (OLD, None)
    modules.in_use = set()
    assert reason(DriverLoaded().check(node.host), Pending)
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert modules.loaded("nvidia_uvm") == DRIVER


def test_many_holders_do_not_fill_the_line(node: Node) -> None:
    modules = Modules(node, *STACK, version=OLD)
    for pid in range(100, 108):
        modules.opens(pid, "/dev/nvidia0", f"job{pid}")
    found = DriverLoaded().apply(node.host)
    assert found
    assert found.reason.endswith("in use by job100, job101, job102 …")
    assert len(found.evidence.splitlines()) == 8


# -- the initramfs before a reboot


def initramfs(node: Node, *names: str) -> None:
    """An image of the next kernel that holds these files; update-initramfs adds ours."""
    held = list(names)

    def renew(_: Command) -> Result:
        held.append("etc/modprobe.d/gpuboot.conf")
        node.answers["lsinitramfs"] = "\n".join(held)
        node.put(IMAGE, "new")
        return Result(0)

    node.put("/usr/sbin/update-initramfs")
    node.put(IMAGE, "old")
    node.answers |= {"lsinitramfs": "\n".join(held), "update-initramfs": renew}


NOUVEAU = f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/nouveau/nouveau.ko"


@pytest.mark.parametrize("name", [NOUVEAU, f"{NOUVEAU}.xz"])
def test_an_initramfs_that_would_load_nouveau_again_is_renewed_once(node: Node, name: str) -> None:
    modules = Modules(node, "nouveau")
    modules.in_use = {"nouveau"}
    initramfs(node, "etc/modprobe.d", name)
    for _ in range(2):
        assert isinstance(DriverLoaded().apply(node.host), Reboot)
    assert [line for line in node.ran if line.startswith("update-initramfs")] == [
        f"update-initramfs -u -k {KERNEL}"
    ]


@pytest.mark.parametrize(
    "names",
    [
        [f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/vmwgfx/vmwgfx.ko"],
        [NOUVEAU, "etc/modprobe.d/gpuboot.conf"],
        ["usr/share/doc/nouveau.ko.txt"],
    ],
)
def test_an_initramfs_that_loads_no_nouveau_is_left_as_it_is(node: Node, names: list[str]) -> None:
    modules = Modules(node, "nouveau")
    modules.in_use = {"nouveau"}
    initramfs(node, *names)
    assert isinstance(DriverLoaded().apply(node.host), Reboot)
    assert node.text(IMAGE) == "old"


def test_it_is_the_initramfs_of_the_kernel_that_boots_next(node: Node) -> None:
    modules = Modules(node, "nouveau")
    modules.in_use = {"nouveau"}
    initramfs(node, NOUVEAU)
    node.put("/boot/vmlinuz-6.1.0-56-amd64")
    assert isinstance(DriverLoaded().apply(node.host), Reboot)
    assert node.ran[-1] == "update-initramfs -u -k 6.1.0-56-amd64"
    assert "initrd.img-6.1.0-56-amd64" in node.ran[-2]


@pytest.mark.parametrize(
    ("rival", "file"),
    [("nouveau", "drm/nouveau/nouveau.ko"), ("nova_core", "nova-core/nova_core.ko.zst")],
)
def test_a_rival_that_could_be_unloaded_is_kept_out_of_the_next_boot(
    node: Node, rival: str, file: str
) -> None:
    Modules(node, rival)
    initramfs(node, f"usr/lib/modules/{KERNEL}/kernel/drivers/gpu/{file}")
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert node.text(IMAGE) == "new"


def test_an_initramfs_that_cannot_be_read_is_renewed(node: Node) -> None:
    modules = Modules(node, "nouveau")
    modules.in_use = {"nouveau"}
    initramfs(node)
    node.answers["lsinitramfs"] = Result(1, err="cpio: premature end of archive")
    assert isinstance(DriverLoaded().apply(node.host), Reboot)
    assert node.text(IMAGE) == "new"


def test_without_an_initramfs_tool_a_reboot_is_asked_for_all_the_same(node: Node) -> None:
    Modules(node, "nouveau").in_use = {"nouveau"}
    assert isinstance(DriverLoaded().apply(node.host), Reboot)


CURRENT = f"usr/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko"


@pytest.mark.parametrize(
    ("name", "image_made", "renewed"),
    [(CURRENT, 1000, True), (CURRENT, 3000, False), (NOUVEAU, 1000, False)],
    ids=["older than the module", "newer than the module", "without the module"],
)
def test_an_initramfs_with_an_older_nvidia_module_is_renewed(
    node: Node, name: str, image_made: int, *, renewed: bool
) -> None:
    Modules(node, *STACK, version=OLD).in_use = {"nvidia"}
    initramfs(node, name)
    soon = time.time()  # in the future, or the time of this very change would count
    os.utime(node.host.path(IMAGE), (soon + image_made,) * 2)
    os.utime(
        node.host.path(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko"), (soon + 2000,) * 2
    )
    assert isinstance(DriverLoaded().apply(node.host), Reboot)
    assert (node.text(IMAGE) == "new") is renewed


# -- what the kernel refuses

REFUSALS = [
    "modprobe: ERROR: could not insert 'nvidia_current': Key was rejected by service",
    "modprobe: ERROR: could not insert 'nvidia_current': No such device",
]


@pytest.mark.parametrize("said", REFUSALS)
def test_a_module_the_kernel_refuses_is_final_and_told_with_the_kernels_lines(
    node: Node, said: str
) -> None:
    Modules(node).refuses = Result(1, err=said + "\nmodprobe: more\n")
    with pytest.raises(GpubootError) as caught:
        DriverLoaded().apply(node.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB302", False)
    assert error.message == f"modprobe nvidia: {said}"
    assert error.evidence.endswith("NVRM: a line")


# -- device files and what is shown


@pytest.mark.parametrize("gone", ["nvidiactl", "nvidia0", "nvidia-uvm"])
def test_a_missing_device_file_is_made_again(node: Node, gone: str) -> None:
    Modules(node)
    settled(node, DriverLoaded())
    node.host.remove(f"/dev/{gone}")
    assert reason(DriverLoaded().check(node.host), Pending) == f"/dev/{gone} missing"
    assert isinstance(settled(node, DriverLoaded()), Ok)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May\n", "proprietary"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.42.06  Rel\n", "open"),
    ],
)
def test_the_kind_of_module_is_what_the_driver_says(node: Node, text: str, kind: str) -> None:
    Modules(node)
    settled(node, DriverLoaded())
    node.put("/proc/driver/nvidia/version", text)
    found = DriverLoaded().check(node.host)
    assert isinstance(found, Ok)
    assert found.shows["driver"]["kernel_module_type"] == kind


def test_a_driver_that_came_without_the_persistence_daemon_is_loaded_all_the_same(
    node: Node,
) -> None:
    modules = Modules(node)
    node.unit("nvidia-persistenced.service", **ABSENT)
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert modules.active == set()


def test_where_there_is_no_nvidia_modprobe_the_device_files_are_made_by_hand(node: Node) -> None:
    def mknod(command: Command) -> Result:
        node.put(command.argv[2])
        return Result(0)

    Modules(node)
    node.put("/lib/udev/rules.d/71-nvidia.rules")
    node.put("/proc/devices", "Character devices:\n195 nvidia\n505 nvidia-uvm\n\nBlock devices:\n")
    node.put("/dev/nvidiactl")  # udev has made this one
    node.answers["mknod"] = mknod
    assert reason(settled(node, DriverLoaded()), Ok)
    assert [line for line in node.ran if "mknod" in line or "nvidia-modprobe" in line] == [
        "mknod --mode=0666 /dev/nvidia-uvm c 505 0",
        "mknod --mode=0666 /dev/nvidia-uvm-tools c 505 1",
        "mknod --mode=0666 /dev/nvidia0 c 195 0",
    ]  # fmt: skip
