"""The packages of a worker: one transaction, one version of the toolkit, and held."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from gpuboot import dkms, packages
from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.packages import TOOLKIT, Packages
from gpuboot.step import Ok, Pending
from tests.unit.node import KERNEL, Node, reason, settled

NEWEST = "1.20.0-1"


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
        rows = ((name, self.installed.get(name)) for name in command.argv[4:])
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
    return Packages(packages.headers(KERNEL), ("nvidia-kernel-dkms", "nvidia-smi"), toolkit,
                    ("python3-pynvml",), {"http_proxy": "http://me:horse@p"})  # fmt: skip


@pytest.fixture
def dpkg(node: Node) -> Dpkg:
    names = [name for name in step().names if name not in TOOLKIT]
    return Dpkg(node, to_be_had={**dict.fromkeys(names, "1"), **dict.fromkeys(TOOLKIT, NEWEST)})


@pytest.mark.parametrize(
    ("kernel", "meta"),
    [
        ("6.1.0-50-amd64", "linux-headers-amd64"),
        ("6.1.0-50-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-50-rt-amd64", "linux-headers-rt-amd64"),
        ("6.12.117+deb13-amd64", "linux-headers-amd64"),
        ("6.12.117+deb13-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-0.deb11.5-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-50-arm64", "linux-headers-arm64"),
        ("6.1.0", "linux-headers-amd64"),
    ],
)
def test_headers_are_the_kernels_and_the_meta_package_of_its_flavour(
    kernel: str, meta: str
) -> None:
    assert packages.headers(kernel) == (f"linux-headers-{kernel}", meta)


def test_what_is_missing_is_installed_at_once_and_held(dpkg: Dpkg) -> None:
    found = reason(step().check(dpkg.node.host), Pending)
    assert found.startswith("9 packages are missing")
    assert "linux-headers-6.1.0-50-amd64, linux-headers-amd64" in found
    assert reason(settled(dpkg.node, step()), Ok) == "9 packages are installed"
    assert sum("install" in line.split() for line in dpkg.node.ran) == 1
    assert dpkg.holds == {"nvidia-kernel-dkms", "nvidia-smi", *TOOLKIT}
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


def test_apt_builds_no_module_and_dkms_is_itself_again_afterwards(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    assert dpkg.deferred == [True, True]  # update and install
    assert not dpkg.node.host.exists("/etc/dkms/no-autoinstall")


def test_a_package_whose_build_failed_is_configured_without_it(dpkg: Dpkg) -> None:
    step().apply(dpkg.node.host)
    dpkg.node.answers["dpkg --audit"] = "half configured: nvidia-kernel-dkms\n"

    def configure(_: Command) -> Result:
        if dpkg.node.host.exists("/etc/dkms/no-autoinstall"):
            dpkg.node.answers["dpkg --audit"] = ""
        return Result(1)

    dpkg.node.answers["dpkg --force-confold --configure"] = configure
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
        ([f"linux-headers-{KERNEL}"], "the archive keeps headers only for recent kernels"),
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


def test_a_proxys_password_is_not_in_the_steps_text() -> None:
    assert "horse" not in repr(step())
