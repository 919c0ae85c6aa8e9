"""The packages of a worker: one transaction, one version of the toolkit, and held."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from gpuboot import headers, packages
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.packages import TOOLKIT, Packages, UpgradesBlocked
from gpuboot.plan import DEBIAN_DRIVER
from gpuboot.step import Ok, Pending
from tests.unit.node import KERNEL, Node, module_text, reason, settled

NEWEST = "1.20.0-1"
DRIVER = "535.309.01-0+deb12u1"


@dataclass
class Dpkg:
    """The packages of a node: what is installed, held, and to be had."""

    node: Node
    installed: dict[str, str] = field(default_factory=dict)
    to_be_had: dict[str, str] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    asked_for: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.node.answers |= {
            "dpkg --audit": "", "dpkg-query": self.query,
            "apt-mark hold": self.hold, "apt-cache policy": self.policy, "apt-get": self.get,
        }  # fmt: skip

    def query(self, command: Command) -> Result:
        if "Status-Want" in command.argv[3]:
            return Result(0, "".join(f"hold\t{name}\n" for name in self.holds))
        names = command.argv[4:] or tuple(self.installed)
        rows = ((name, self.installed.get(name)) for name in names)
        return Result(0, "".join(f"{name}\tinstalled\t{v}\n" for name, v in rows if v))

    def hold(self, command: Command) -> Result:
        self.holds |= set(command.argv[2:])
        return Result(0)

    def policy(self, command: Command) -> Result:
        known = [name for name in command.argv[2:] if name in self.to_be_had]
        return Result(0, "".join(
            f"{name}:\n  Installed: (none)\n  Candidate: {self.to_be_had[name]}\n" for name in known
        ))  # fmt: skip

    def get(self, command: Command) -> Result:
        if "install" in command.argv:
            self.asked_for = list(command.argv[command.argv.index("install") + 1 :])
            for word in self.asked_for:
                name, _, version = word.partition("=")
                self.installed[name] = version or self.to_be_had[name]
        return Result(0)


def step(toolkit: str | None = None) -> Packages:
    return Packages(("nvidia-kernel-dkms", "nvidia-smi"), toolkit, ("python3-pynvml",),
                    {"http_proxy": "http://me:horse@p"})  # fmt: skip


@pytest.fixture
def dpkg(node: Node) -> Dpkg:
    node.put("/proc/sys/kernel/osrelease", KERNEL + "\n")
    driver = dict.fromkeys(step().driver, DRIVER)
    others = dict.fromkeys((*headers.packages(KERNEL), "python3-pynvml"), "1")
    return Dpkg(node, to_be_had={**driver, **others, **dict.fromkeys(TOOLKIT, NEWEST)})


def built(dpkg: Dpkg) -> None:
    """DKMS has built the module."""
    dpkg.node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
    dpkg.node.answers["modinfo"] = module_text(KERNEL)


def test_what_is_missing_is_installed_at_once_and_held(dpkg: Dpkg) -> None:
    found = reason(step().check(dpkg.node.host), Pending)
    assert found.startswith("9 packages are missing")
    assert "linux-headers-6.1.0-50-amd64, linux-headers-amd64" in found
    assert reason(settled(dpkg.node, step()), Ok) == "9 packages are installed"
    assert sum("install" in line.split() for line in dpkg.node.ran) == 1
    kernel = {f"linux-headers-{KERNEL}", "linux-headers-amd64"}
    assert dpkg.holds == {"nvidia-kernel-dkms", "nvidia-smi", *TOOLKIT, *kernel}
    assert set(dpkg.asked_for) >= {f"{name}={NEWEST}" for name in TOOLKIT}


def test_a_node_that_has_all_needs_no_network(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    dpkg.holds = {"nvidia-smi"}
    dpkg.node.ran.clear()
    found = reason(step().check(dpkg.node.host), Pending)
    assert "not held" in found
    assert "libnvidia-container-tools" in found
    assert reason(settled(dpkg.node, step()), Ok)
    assert not [line for line in dpkg.node.ran if line.startswith("apt-get")]


@pytest.mark.parametrize(
    ("wanted", "installed"),
    [("1.19.1", "1.19.1-1"), ("1.19.1-2", "1.19.1-2"), ("1.20.0", NEWEST), (None, NEWEST)],
)
def test_a_wanted_version_of_the_toolkit_is_asked_for_by_name(
    dpkg: Dpkg, wanted: str | None, installed: str
) -> None:
    settled(dpkg.node, step(wanted))
    assert {dpkg.installed[name] for name in TOOLKIT} == {installed}


@pytest.mark.parametrize(
    ("wanted", "versions"),
    [
        (None, ["1.20.0-1", "1.20.0-1", "1.20.0-1", "1.19.1-1"]),
        ("1.19.1", ["1.20.0-1"] * 4),
        ("1.2.0", ["1.20.0-1"] * 4),
        ("1.20.0-2", ["1.20.0-1"] * 4),
    ],
)
def test_a_toolkit_of_mixed_or_other_versions_is_put_right(
    dpkg: Dpkg, wanted: str | None, versions: list[str]
) -> None:
    step().apply(dpkg.node.host)
    dpkg.installed |= dict(zip(TOOLKIT, versions, strict=True))
    assert "not of the wanted version" in reason(step(wanted).check(dpkg.node.host), Pending)
    assert reason(settled(dpkg.node, step(wanted)), Ok)


def test_an_interrupted_dpkg_is_ended_first(dpkg: Dpkg) -> None:
    dpkg.node.answers["dpkg --audit"] = "half configured: nvidia-kernel-dkms\n"
    assert reason(step().check(dpkg.node.host), Pending) == "dpkg was interrupted"

    def configure(_: Command) -> Result:
        dpkg.node.answers["dpkg --audit"] = ""
        return Result(0)

    dpkg.node.answers["dpkg --force-confold --configure"] = configure
    assert reason(settled(dpkg.node, step()), Ok)


@pytest.mark.parametrize(
    ("gone", "hint"),
    [
        (["nvidia-smi", "python3-pynvml"], "apt-cache policy nvidia-smi"),
        (["linux-headers-amd64"], "apt-cache policy linux-headers-amd64"),
    ],
)
def test_all_packages_that_no_source_has_are_named(dpkg: Dpkg, gone: list[str], hint: str) -> None:
    for name in gone:
        del dpkg.to_be_had[name]
    with pytest.raises(GpubootError) as caught:
        step().apply(dpkg.node.host)
    error = caught.value
    assert (error.code.id, error.message) == ("GB204", f"no source has {', '.join(gone)}")
    assert error.hint.startswith(hint)
    assert not error.retry
    assert dpkg.installed == {}


# -- holds


# What apt-get brought along with nvidia-kernel-dkms, nvidia-smi and libcuda1 on Debian 12, and the
# packages of its larger sets; none of them is named by the driver's smallest set.
BESIDE = ["libnvidia-cfg1", "libnvidia-ptxjitcompiler1", "libnvidia-pkcs11-openssl3",
          "nvidia-alternative", "nvidia-kernel-support", "nvidia-legacy-check", "libegl-nvidia0",
          "libgl1-nvidia-glvnd-glx", "libnvcuvid1", "xserver-xorg-video-nvidia"]  # fmt: skip
IMAGES = ["linux-image-amd64", f"linux-image-{KERNEL}", "linux-headers-amd64",
          f"linux-headers-{KERNEL}"]  # fmt: skip


def test_everything_that_came_with_the_driver_and_the_kernel_is_held(dpkg: Dpkg) -> None:
    strangers = {"curl": "7.88", "linux-image-6.1.0-9-amd64": "6.1.67-1", "dkms": "3.0.10-8"}
    dpkg.installed = {**dict.fromkeys(BESIDE, DRIVER), **dict.fromkeys(IMAGES, "1"), **strangers}
    settled(dpkg.node, step())
    assert dpkg.holds == {*step().driver, *TOOLKIT, *BESIDE, *IMAGES}


def test_the_kernel_that_boots_next_is_held_too(dpkg: Dpkg) -> None:
    newer = "linux-image-6.1.0-56-amd64"
    dpkg.node.put("/boot/vmlinuz-6.1.0-56-amd64")
    dpkg.to_be_had["linux-headers-6.1.0-56-amd64"] = "1"
    dpkg.installed = {newer: "1"}
    settled(dpkg.node, step())
    assert {newer, "linux-headers-6.1.0-56-amd64", f"linux-headers-{KERNEL}"} <= dpkg.holds


def test_a_plan_tells_the_holds_of_what_it_would_install(dpkg: Dpkg) -> None:
    dpkg.installed = dict.fromkeys(IMAGES, "1")
    coming = {**dict.fromkeys([*step().driver, *BESIDE], DRIVER), "dkms": "3.0.10-8"}
    told = step().loose(dpkg.node.host, coming)
    assert set(told) == {*step().driver, *TOOLKIT, *BESIDE, *IMAGES}
    assert "dkms" not in step().loose(dpkg.node.host, dict.fromkeys(coming, ""))


def test_a_plan_tells_no_hold_on_a_kernel_that_is_to_be_replaced(dpkg: Dpkg) -> None:
    newer = "6.1.0-56-amd64"
    dpkg.installed = {f"linux-image-{KERNEL}": "1", "linux-image-amd64": "1"}
    coming = dict.fromkeys(headers.kernel_packages(newer), "2")
    told = set(step().loose(dpkg.node.host, coming))
    assert told == {*step().driver, *TOOLKIT, *headers.kernel_packages(newer)}
    coming[f"linux-headers-{KERNEL}"] = "1"
    told = set(step().loose(dpkg.node.host, coming))
    assert told >= {*headers.kernel_packages(newer), *headers.kernel_packages(KERNEL)}


def test_what_the_operator_has_held_stays_held(dpkg: Dpkg) -> None:
    dpkg.holds = {"curl"}
    settled(dpkg.node, step())
    assert "curl" in dpkg.holds


def test_a_hold_that_the_operator_took_off_is_a_difference(dpkg: Dpkg) -> None:
    settled(dpkg.node, step())
    built(dpkg)
    dpkg.holds.remove("nvidia-smi")
    found = reason(step().check(dpkg.node.host), Pending)
    assert found == "1 package is not held, nvidia-smi"


def test_a_node_with_its_module_lacks_no_headers(dpkg: Dpkg) -> None:
    settled(dpkg.node, step())
    for name in headers.packages(KERNEL):
        del dpkg.installed[name]
    found = step().check(dpkg.node.host)
    assert reason(found, Pending).startswith("2 packages are missing, linux-headers-6.1")
    assert isinstance(found, Pending)
    assert found.hint == f"apt-get install linux-headers-{KERNEL} linux-headers-amd64"
    built(dpkg)
    assert reason(step().check(dpkg.node.host), Ok) == "7 packages are installed"


# -- unattended upgrades


def blocked(text: str) -> list[re.Pattern[str]]:
    """The regular expressions of unattended-upgrades' setting, which it uses with re.match."""
    assert "Unattended-Upgrade::Package-Blacklist {" in text
    return [re.compile(line) for line in re.findall(r'^ +"(.*)";$', text, re.MULTILINE)]


@pytest.mark.parametrize(
    "name", [*BESIDE, *IMAGES, *TOOLKIT, *DEBIAN_DRIVER, "linux-image-cloud-amd64", "nvidia-driver",
             "libnvoptix1", "nvidia-tesla-535-kernel-dkms", "libnvidia-tesla-535-ml1"]
)  # fmt: skip
def test_unattended_upgrades_leave_driver_toolkit_and_kernel_alone(node: Node, name: str) -> None:
    settled(node, UpgradesBlocked())
    assert any(one.match(name) for one in blocked(node.text(packages.UPGRADES) or ""))


@pytest.mark.parametrize("name", ["openssl", "linux-libc-dev", "libnvme1", "systemd", "libc6"])
def test_unattended_upgrades_do_everything_else(node: Node, name: str) -> None:
    settled(node, UpgradesBlocked())
    assert not any(one.match(name) for one in blocked(node.text(packages.UPGRADES) or ""))


def test_what_the_operator_makes_of_the_file_stays(node: Node) -> None:
    assert reason(settled(node, UpgradesBlocked()), Ok)
    assert node.host.mode(packages.UPGRADES) == 0o644
    node.put(packages.UPGRADES, "// mine\n")
    assert reason(UpgradesBlocked().check(node.host), Ok)
    assert UpgradesBlocked().writes(node.host) == {}
    assert node.text(packages.UPGRADES) == "// mine\n"


def test_a_proxys_password_is_not_in_the_steps_text() -> None:
    assert "horse" not in repr(step())
