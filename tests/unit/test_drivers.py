"""Which driver a machine is given, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gpuboot import cards, drivers
from gpuboot.config import Config, Driver
from gpuboot.drivers import TABLE, Row
from gpuboot.errors import GpubootError
from gpuboot.existing import Driver as There
from gpuboot.pci import Gpu
from tests.unit.node import DATA, SLOT, facts

PREINSTALLED = There(
    version="550.90.07", kernel_module_type="proprietary",
    module="/lib/modules/6.1.0-50-amd64/kernel/drivers/video/nvidia.ko", package="", dkms=False,
    library="550.90.07", missing=(),
)  # fmt: skip


def choose(
    version: str = "12", device: str = "1eb8", there: There | None = None, **driver: str
) -> drivers.Choice:
    wanted = Config(driver=Driver(**{"source": "distribution", **driver}))
    machine = facts(os_version=version, gpus=(Gpu(SLOT, device, None),), driver=there)
    return drivers.choose(wanted, machine)


def refusal(version: str = "12", device: str = "1eb8", there: There | None = None,
            **driver: str) -> str:  # fmt: skip
    with pytest.raises(GpubootError) as caught:
        choose(version, device, there, **driver)
    assert caught.value.hint
    return f"{caught.value.code.id} {caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.release} {row.text}")
def test_every_driver_of_the_table_can_be_named(row: Row) -> None:
    found = choose(
        row.release.partition(" ")[2], branch=row.branch,
        kernel_module_type=row.kernel_module_type, build=row.build,
    )  # fmt: skip
    assert (found.packages, found.branch, found.kernel_module_type) == (
        row.packages, row.branch, row.kernel_module_type,
    )  # fmt: skip
    assert found.reason
    assert bool(found.warnings) == bool(row.trouble)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.release} {row.text}")
def test_every_package_of_the_table_is_in_the_releases_archive(row: Row) -> None:
    listing = (DATA / f"packages/{row.release.replace(' ', '-')}.txt").read_text()
    archive = dict(line.split()[:2] for line in listing.splitlines() if line[0] != "#")
    assert set(row.packages) <= archive.keys()
    assert archive[row.packages[0]].startswith(f"{row.branch}.")


@pytest.mark.parametrize(("version", "branch"), [("12", "535"), ("13", "550")])
def test_a_t4_gets_the_proprietary_module_of_the_releases_own_branch(
    version: str, branch: str
) -> None:
    found = choose(version)
    assert (found.branch, found.kernel_module_type) == (branch, "proprietary")
    assert "GSP" in found.reason


def test_what_the_release_has_not_is_refused_with_what_it_has() -> None:
    assert refusal(branch="580").startswith(
        "GB122 driver.branch is 580: debian 12".replace("debian", "Debian")
    )
    assert "535 (proprietary), 535 (open)" in refusal(build="precompiled")
    assert refusal(source="auto").startswith("GB102 driver.source is auto")
    assert "driver.source: distribution" in refusal(source="nvidia")
    assert refusal("11").startswith("GB101 debian 11 on amd64 is not supported")


def test_an_unknown_card_is_refused_until_the_operator_names_its_driver() -> None:
    assert refusal(device="fffe").startswith("GB120 10de:fffe")
    assert choose(device="fffe", branch="535", kernel_module_type="open").branch == "535"


def test_a_card_that_no_driver_here_carries_is_refused_with_what_it_needs() -> None:
    assert "Blackwell) needs open 570 or newer" in refusal("13", device="2901")


def test_the_open_module_does_not_go_onto_cards_it_does_not_drive() -> None:
    for device in ("1bb3", "1db6", "15f8"):  # P4, V100, P100
        assert choose(device=device).kernel_module_type == "proprietary"
        assert refusal(device=device, kernel_module_type="open").startswith("GB120")


@pytest.mark.parametrize("source", ["auto", "distribution", "preinstalled"])
def test_a_working_driver_of_somebody_elses_is_adopted(source: str) -> None:
    found = choose(there=PREINSTALLED, source=source)
    assert (found.adopted, found.branch, found.packages) == (True, "550", ())


@pytest.mark.parametrize("package", ["nvidia-kernel-dkms", ""])
def test_what_our_own_packages_brought_is_not_adopted(package: str) -> None:
    ours = replace(
        PREINSTALLED, version="535.1", library="535.1", package=package, dkms=True,
        module="/lib/modules/x/updates/dkms/nvidia-current.ko.xz",
    )  # fmt: skip
    assert choose(there=ours) == choose()


def test_a_driver_that_contradicts_the_configuration_is_not_adopted() -> None:
    assert refusal(there=PREINSTALLED, branch="535").startswith("GB123 driver.branch is 535")
    assert refusal(there=PREINSTALLED, source="preinstalled", kernel_module_type="open").startswith(
        "GB123 driver.kernel-module-type is open"
    )


def test_a_broken_or_missing_preinstalled_driver_is_told_with_its_fault() -> None:
    broken = replace(PREINSTALLED, library="550.1")
    assert "GB121 driver.source is preinstalled: there is none" in refusal(source="preinstalled")
    assert "libnvidia-ml.so.1 is of version 550.1" in refusal(there=broken, source="preinstalled")
    assert "cannot be adopted" in refusal(there=broken, source="auto")


@pytest.mark.parametrize(
    ("device", "family"),
    [("1eb8", "Turing"), ("1db6", "Volta"), ("1bb3", "Pascal"), ("13f2", "Maxwell"),
     ("102d", "Kepler"), ("20b5", "Ampere"), ("2236", "Ampere"), ("27b8", "Ada"),
     ("2330", "Hopper"), ("2901", "Blackwell"), ("ffff", None), ("?", None)],
)  # fmt: skip
def test_a_card_is_of_a_family_by_its_id(device: str, family: str | None) -> None:
    found = cards.family(device)
    assert (found and found.name) == family


def test_no_block_of_ids_is_of_two_families() -> None:
    ends = [end for first, last, _ in cards.BLOCKS for end in (first, last)]
    assert ends == sorted(ends)
    assert not re.search(r"None", str(ends))
