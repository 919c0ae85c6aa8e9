"""The packages of a worker: one transaction, one version of the toolkit, and held."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pytest

from gpuboot import aptsources, dkms, headers, packages
from gpuboot.catalog import TABLE
from gpuboot.errors import GpubootError
from gpuboot.packages import TOOLKIT, Packages, UpgradesBlocked
from gpuboot.process import Command, Result
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
    deferred: list[bool] = field(default_factory=list)  # whether DKMS was off while apt worked

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
        self.deferred.append(self.node.host.exists("/etc/dkms/no-autoinstall"))
        if "install" in command.argv:
            self.asked_for = list(command.argv[command.argv.index("install") + 1 :])
            for word in self.asked_for:
                if word.endswith("-"):
                    del self.installed[word[:-1]]
                    continue
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
    others = dict.fromkeys((*headers.packages(node.host, KERNEL), "python3-pynvml"), "1")
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
    assert reason(step().check(dpkg.node.host), Pending).startswith("dpkg was interrupted")

    def configure(_: Command) -> Result:
        dpkg.node.answers["dpkg --audit"] = ""
        return Result(0)

    dpkg.node.answers["dpkg --force-confdef,confold --configure"] = configure
    assert reason(settled(dpkg.node, step()), Ok)


def test_apt_builds_no_module_and_dkms_is_itself_again_afterwards(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    assert dpkg.deferred == [True, True]  # update and install
    assert not dpkg.node.host.exists("/etc/dkms/no-autoinstall")


def test_a_package_whose_build_failed_is_configured_without_it(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    dpkg.node.answers["dpkg --audit"] = "half configured: nvidia-kernel-dkms\n"
    half = "Package: nvidia-kernel-dkms\nStatus: install ok half-configured\nVersion: 535\n"
    dpkg.node.put("/var/lib/dpkg/status", half)

    def configure(_: Command) -> Result:
        if dpkg.node.host.exists("/etc/dkms/no-autoinstall"):
            dpkg.node.answers["dpkg --audit"] = ""
        return Result(1)

    dpkg.node.answers["dpkg --force-confdef,confold --configure"] = configure
    assert reason(settled(dpkg.node, step()), Ok)


def test_a_dkms_that_a_power_cut_left_switched_off_is_switched_on(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    dpkg.node.put("/etc/dkms/no-autoinstall", dkms.NOTICE)
    assert "DKMS was switched off" in reason(step().check(dpkg.node.host), Pending)
    assert reason(settled(dpkg.node, step()), Ok)
    assert not dpkg.node.host.exists("/etc/dkms/no-autoinstall")


def test_the_other_kind_of_module_goes_in_the_same_transaction(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    dpkg.node.ran.clear()
    dpkg.installed["nvidia-open-kernel-dkms"] = "1"
    wanted = replace(step(), unwanted=("nvidia-open-kernel-dkms", "nvidia-open-kernel-support"))
    assert reason(wanted.check(dpkg.node.host), Pending).startswith(
        "nvidia-open-kernel-dkms must go"
    )
    assert reason(settled(dpkg.node, wanted), Ok)
    assert "nvidia-open-kernel-dkms-" in dpkg.asked_for
    assert "nvidia-open-kernel-support-" not in dpkg.asked_for
    assert sum("install" in line.split() for line in dpkg.node.ran) == 1


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
    coming = dict.fromkeys(headers.kernel_packages(dpkg.node.host, newer), "2")
    told = set(step().loose(dpkg.node.host, coming))
    assert told == {*step().driver, *TOOLKIT, *headers.kernel_packages(dpkg.node.host, newer)}
    coming[f"linux-headers-{KERNEL}"] = "1"
    told = set(step().loose(dpkg.node.host, coming))
    assert told >= {f"linux-image-{KERNEL}", f"linux-headers-{KERNEL}", f"linux-image-{newer}"}


def test_what_the_operator_has_held_stays_held(dpkg: Dpkg) -> None:
    dpkg.holds = {"curl"}
    settled(dpkg.node, step())
    assert "curl" in dpkg.holds


def test_a_hold_that_the_operator_took_off_is_a_difference(dpkg: Dpkg) -> None:
    settled(dpkg.node, step())
    built(dpkg)
    dpkg.holds.remove("nvidia-smi")
    found = step().check(dpkg.node.host)
    assert found == Pending("1 package is not held, nvidia-smi", None, "apt-mark hold nvidia-smi")


def test_a_node_with_its_module_lacks_no_headers(dpkg: Dpkg) -> None:
    settled(dpkg.node, step())
    for name in headers.packages(dpkg.node.host, KERNEL):
        del dpkg.installed[name]
    found = step().check(dpkg.node.host)
    assert reason(found, Pending).startswith("2 packages are missing, linux-headers-6.1")
    assert isinstance(found, Pending)
    assert found.hint == f"apt-get install linux-headers-{KERNEL} linux-headers-amd64"
    built(dpkg)
    assert reason(step().check(dpkg.node.host), Ok) == "7 packages are installed"


# -- unattended upgrades


OURS = sorted({name for row in TABLE for name in row.packages}
              | {f"{row.stem}-6.8.0-60-generic" for row in TABLE if row.stem})  # fmt: skip


def blocked(text: str) -> list[re.Pattern[str]]:
    """The regular expressions of unattended-upgrades' setting, which it uses with re.match."""
    assert "Unattended-Upgrade::Package-Blacklist {" in text
    return [re.compile(line) for line in re.findall(r'^ +"(.*)";$', text, re.MULTILINE)]


@pytest.mark.parametrize(
    "name", [*BESIDE, *IMAGES, *TOOLKIT, *OURS, "linux-image-cloud-amd64",
             "nvidia-driver", "libnvoptix1", "nvidia-tesla-535-kernel-dkms",
             "libnvidia-tesla-535-ml1"]
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


# -- other people's packages and sources

THEIRS = "Package: theirs\nStatus: install ok half-configured\nVersion: 1\n"
FAILED = """\
dpkg: error processing package theirs (--configure):
 installed theirs package post-installation script subprocess returned error exit status 3
Errors were encountered while processing:
 theirs
E: Sub-process /usr/bin/dpkg returned an error code (1)
"""


def broken(dpkg: Dpkg) -> None:
    """A package of somebody else's whose script fails whenever dpkg tries it."""
    dpkg.node.put("/var/lib/dpkg/status", THEIRS)
    dpkg.node.answers |= {
        "dpkg --audit": "only half configured: theirs\n",
        "dpkg --force-confdef,confold": Result(1, err=FAILED),
    }
    get = dpkg.get

    def failing(command: Command) -> Result:
        get(command)
        return Result(100, err=FAILED) if "install" in command.argv else Result(0)

    dpkg.node.answers["apt-get"] = failing


def test_a_package_of_somebody_elses_that_fails_does_not_stop_ours(dpkg: Dpkg) -> None:
    broken(dpkg)
    wanted = step()
    assert reason(wanted.check(dpkg.node.host), Pending) == "dpkg was interrupted: theirs"
    found = settled(dpkg.node, wanted)
    assert isinstance(found, Ok)
    assert found.drift == ("theirs, which is not ours, is half-configured",)
    assert found.code
    assert found.code.id == "GB218"
    assert str(found.hint).startswith("dpkg --configure theirs ")


def test_where_ours_fail_with_somebody_elses_that_is_the_error(dpkg: Dpkg) -> None:
    broken(dpkg)

    def failing(command: Command) -> Result:
        return Result(100, err=FAILED) if "install" in command.argv else Result(0)

    dpkg.node.answers["apt-get"] = failing
    with pytest.raises(GpubootError, match="failed to configure theirs"):
        step().apply(dpkg.node.host)


def test_on_a_node_that_has_all_it_is_tried_once_a_walk_without_network(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    broken(dpkg)
    dpkg.node.ran.clear()
    wanted = step()
    assert reason(wanted.check(dpkg.node.host), Pending)
    assert reason(settled(dpkg.node, wanted), Ok)
    assert not [line for line in dpkg.node.ran if line.startswith("apt-get")]


def test_a_package_of_ours_that_fails_is_the_error(dpkg: Dpkg) -> None:
    told = Result(100, err=FAILED.replace("theirs", "nvidia-kernel-dkms"))
    dpkg.node.answers["apt-get install"] = told

    def get(command: Command) -> Result:
        return told if "install" in command.argv else Result(0)

    dpkg.node.answers["apt-get"] = get
    with pytest.raises(GpubootError, match="failed to configure nvidia-kernel-dkms") as caught:
        step().apply(dpkg.node.host)
    assert caught.value.code.id == "GB205"
    assert not [line for line in dpkg.node.ran if line.startswith("dpkg --force")]  # no 2nd build


MIXED = """\
{name}:
  Installed: {version}
  Candidate: {version}
  Version table:
 *** {version} {priority}
        {places}100 /var/lib/dpkg/status
     1 500
        500 http://archive/debian bookworm/non-free amd64 Packages
"""
CUDA = "600 https://nvidia/cuda  Packages\n        "


def mixed(dpkg: Dpkg, version: str = "580-1") -> None:
    """nvidia-smi came from a repository of its own, which our sources do not name."""
    dpkg.installed["nvidia-smi"] = version
    policy = dpkg.policy

    def answer(command: Command) -> Result:
        ours = not set(aptsources.EVERYBODYS) <= set(command.argv)
        rest = replace(command, argv=tuple(w for w in command.argv if w != "nvidia-smi"))
        text = policy(rest).out
        if "nvidia-smi" in command.argv:
            text += MIXED.format(name="nvidia-smi", version=version, priority=100 if ours else 600,
                                 places="" if ours else CUDA)  # fmt: skip
        return Result(0, text)

    dpkg.node.answers["apt-cache policy"] = answer


def test_a_driver_of_two_sources_is_refused_and_both_are_named(dpkg: Dpkg) -> None:
    mixed(dpkg)
    with pytest.raises(GpubootError) as caught:
        step().apply(dpkg.node.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB217", True)
    assert "nvidia-smi 580-1 installed from https://nvidia/cuda" in error.message
    assert "would come from http://archive/debian bookworm/non-free" in error.message
    assert error.hint.startswith("apt-get purge nvidia-smi, then: gpuboot run")
    assert dpkg.asked_for == []


def test_a_part_that_only_another_source_has_is_refused_and_both_are_named(dpkg: Dpkg) -> None:
    del dpkg.to_be_had["nvidia-smi"]
    policy = dpkg.policy
    kernel = MIXED.format(name="nvidia-kernel-dkms", version="0", priority=100, places="")

    def answer(command: Command) -> Result:
        text = policy(command).out
        if not set(aptsources.EVERYBODYS) <= set(command.argv):
            return Result(0, text + kernel.replace("Candidate: 0", "Candidate: 1"))
        cuda = MIXED.format(name="nvidia-smi", version="580-1", priority=600, places=CUDA)
        return Result(0, text + cuda)

    dpkg.node.answers["apt-cache policy"] = answer
    with pytest.raises(GpubootError) as caught:
        step().apply(dpkg.node.host)
    assert caught.value.code.id == "GB217"
    assert caught.value.message.startswith(
        "nvidia-smi could only come from https://nvidia/cuda Packages; the rest of the driver would"
        " come from http://archive/debian bookworm/non-free"
    )
    assert dpkg.asked_for == []


def test_a_whole_driver_of_another_source_is_not_judged_here(dpkg: Dpkg) -> None:
    mixed(dpkg)
    dpkg.installed["nvidia-kernel-dkms"] = "580-1"
    assert reason(settled(dpkg.node, step()), Ok)


def test_the_toolkit_is_brought_to_the_version_that_our_source_has(dpkg: Dpkg) -> None:
    policy = dpkg.policy

    def answer(command: Command) -> Result:
        text = policy(command).out.replace(
            f"nvidia-container-toolkit:\n  Installed: (none)\n  Candidate: {NEWEST}\n",
            MIXED.format(name="nvidia-container-toolkit", version="1.21.0-1", priority=100,
                         places="").replace("     1 500", f"     {NEWEST} 500"))  # fmt: skip
        return Result(0, text)

    dpkg.node.answers["apt-cache policy"] = answer
    settled(dpkg.node, step())
    assert f"nvidia-container-toolkit={NEWEST}" in dpkg.asked_for
