"""Whatever the machine and the configuration are: a driver with its reason, or a plain refusal."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboot import cards, drivers
from gpuboot.catalog import NVIDIA, RELEASES, TABLE
from gpuboot.config import Config, Driver
from gpuboot.errors import GpubootError
from gpuboot.existing import Driver as There
from gpuboot.facts import Facts
from gpuboot.pci import Gpu
from tests.conftest import Figure
from tests.unit.node import DATA, facts

BRANCHES = ("470", "535", "550", "570", "580", "615")
TYPES = ("proprietary", "open")
DEVICES = st.one_of(
    st.just("1eb8"),
    st.sampled_from(["1eb8", "1db6", "1bb3", "20b5", "2236", "2901", "13bd", "fffe", "0000"]),
    st.integers(0, 0xFFFF).map("{:04x}".format),
)
WANTED = st.builds(
    Driver,
    source=st.just("distribution") | st.sampled_from(["auto", "nvidia", "preinstalled"]),
    branch=st.none() | st.sampled_from(BRANCHES),
    build=st.just("auto") | st.sampled_from(["precompiled", "dkms"]),
    kernel_module_type=st.just("auto") | st.sampled_from(TYPES),
)
VERSIONS = st.sampled_from(["", "535.309.01", "550.163.01", "580.126.20", "570"])
FILES = ("", "updates/dkms/nvidia-current.ko", "updates/dkms/nvidia-tesla-535.ko.xz",
         "kernel/drivers/video/nvidia.ko")  # fmt: skip
MIXED = st.builds(
    There,
    version=VERSIONS,
    kernel_module_type=st.sampled_from(["", *TYPES]),
    module=st.sampled_from(FILES).map(lambda name: name and f"/lib/modules/6.1.0-50-amd64/{name}"),
    package=st.sampled_from(["", "nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "nvidia-dkms"]),
    dkms=st.booleans(),
    library=VERSIONS,
    missing=st.sampled_from([(), ("nvidia-smi",)]),
)
HEALTHY = st.builds(
    lambda one: replace(one, version="550.90.07", library="550.90.07", module=FILES[-1],
                        package="", missing=()),
    MIXED,
)  # fmt: skip
EXISTING = st.one_of(MIXED, HEALTHY)
KNOWN = st.sampled_from([tuple(release.split()) for release in RELEASES])
RELEASED = KNOWN | KNOWN | st.sampled_from([("debian", "11"), ("ubuntu", "20.04"), ("", "")])
KERNELS = st.sampled_from(["6.1.0-50-amd64", "6.8.0-60-generic", "6.17.0-1018-gcp", "6.1.0", ""])
CARDS = st.lists(DEVICES, max_size=3).map(
    lambda devices: tuple(Gpu(f"0000:0{at}:00.0", one, None) for at, one in enumerate(devices))
)


def archive(release: str, source: str) -> set[str]:
    """The names of the packages that a source has for a release."""
    nvidias = f"nvidia-{release.replace(' ', '').replace('.', '')}"
    name = nvidias if source == NVIDIA else release.replace(" ", "-")
    lines = (DATA / f"packages/{name}.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line[0] != "#"}


ARCHIVES = {(row.release, row.source): archive(row.release, row.source) for row in TABLE}


def chosen(wanted: Driver, machine: Facts) -> drivers.Choice | GpubootError:
    try:
        return drivers.choose(Config(driver=wanted), machine)
    except GpubootError as error:
        return error


def look(wanted: Driver, machine: Facts) -> str:
    """Choose, and check what comes of it; in a word what that was."""
    found = chosen(wanted, machine)
    if isinstance(found, GpubootError):
        assert found.message
        assert found.hint
        assert not found.retry
        return "refused"
    assert found.reason
    assert found == chosen(wanted, machine)
    if found.adopted:
        assert found.packages == ()
        assert machine.driver
        assert not machine.driver.fault
        return "adopted"
    there = ARCHIVES[drivers.release_of(machine), found.source]
    assert {*found.packages, *found.otherwise} <= there
    assert wanted.source in ("auto", found.source)
    assert wanted.build in ("auto", found.build)
    assert bool(found.stem) == (found.build == "precompiled")
    assert not found.stem or f"{found.stem}-generic" in there
    assert not (machine.secure_boot and found.otherwise)
    assert wanted.branch in (None, found.branch) or wanted.branch in found.reason
    assert not found.gsp_off or found.kernel_module_type == "proprietary"
    assert wanted.kernel_module_type in ("auto", found.kernel_module_type)
    for gpu in machine.gpus:
        family = cards.family(gpu.device)
        if family:
            assert family.carried(int(found.branch), found.kernel_module_type)
        else:
            assert wanted.branch
            assert wanted.kernel_module_type != "auto"
    return "chosen"


def explore(examples: int) -> Counter[str]:
    """Look at that many machines; what came of them."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples)
    @given(WANTED, RELEASED, st.none() | EXISTING, CARDS, KERNELS, st.none() | st.booleans())
    def every(
        wanted: Driver,
        release: tuple[str, str],
        there: There | None,
        gpus: tuple[Gpu, ...],
        kernel: str,
        secure_boot: bool | None,
    ) -> None:
        system, version = release
        machine = facts(
            os_id=system, os_version=version, driver=there, gpus=gpus, kernel=kernel,
            secure_boot=secure_boot,
        )  # fmt: skip
        seen[look(wanted, machine)] += 1

    every()
    return seen


def test_any_machine_gets_a_driver_or_a_reason() -> None:
    seen = explore(400)
    assert set(seen) == {"refused", "adopted", "chosen"}


@pytest.mark.long
def test_any_of_very_many_machines_gets_a_driver_or_a_reason(figure: Figure) -> None:
    start = time.monotonic()
    seen = explore(12_000)
    assert seen.total() >= 10_000
    told = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()))
    figure(f"a driver for {seen.total()} machines: {told}, in {time.monotonic() - start:.0f} s")
