"""Which driver a machine is given, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gpuboot import cards, drivers
from gpuboot.catalog import NVIDIA, RELEASES, TABLE, Row
from gpuboot.config import Config, Driver
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
    version: str = "12",
    device: str = "1eb8",
    there: There | None = None,
    system: str = "debian",
    **driver: str,
) -> drivers.Choice:
    wanted = Config(driver=Driver(**{"source": "distribution", **driver}))
    gpus = (Gpu(SLOT, device, None),)
    return drivers.choose(wanted, facts(os_id=system, os_version=version, gpus=gpus, driver=there))


def refusal(version: str = "12", device: str = "1eb8", there: There | None = None,
            **driver: str) -> str:  # fmt: skip
    with pytest.raises(GpubootError) as caught:
        choose(version, device, there, **driver)
    assert caught.value.hint
    return f"{caught.value.code.id} {caught.value.message}; {caught.value.hint}"


def cell(row: Row) -> str:
    return f"{row.release} {row.source} {row.text} {row.build}"


def archive(row: Row) -> dict[str, list[str]]:
    """The recorded packages of the row's source, with the versions that it has."""
    nvidias = f"nvidia-{row.release.replace(' ', '').replace('.', '')}"
    name = nvidias if row.source == NVIDIA else row.release.replace(" ", "-")
    listing = (DATA / f"packages/{name}.txt").read_text()
    found: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if line[0] != "#":
            package, version, _ = line.split()
            found.setdefault(package, []).append(version)
    return found


@pytest.mark.parametrize("row", TABLE, ids=cell)
def test_every_driver_of_the_table_can_be_named(row: Row) -> None:
    system, version = row.release.split()
    found = choose(
        version, system=system, source=row.source, branch=row.branch,
        kernel_module_type=row.kernel_module_type, build=row.build,
    )  # fmt: skip
    assert (found.source, found.packages, found.branch, found.kernel_module_type, found.stem) == (
        row.source, row.packages, row.branch, row.kernel_module_type, row.stem,
    )  # fmt: skip
    assert found.reason
    assert bool(found.warnings) == bool(row.trouble)


@pytest.mark.parametrize("row", TABLE, ids=cell)
def test_every_package_of_the_table_is_in_its_sources_archive(row: Row) -> None:
    there = archive(row)
    assert set(row.packages) <= there.keys()
    assert any(version.startswith(f"{row.branch}.") for version in there[row.packages[0]])
    if row.stem:
        assert any(re.fullmatch(rf"{row.stem}-\d.*-generic", name) for name in there)
        assert f"{row.stem}-generic" in there


def test_every_release_has_a_row() -> None:
    assert {row.release for row in TABLE} == set(RELEASES)


def test_no_cell_of_the_table_is_there_twice() -> None:
    assert len({cell(row) for row in TABLE}) == len(TABLE)


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
    assert "set driver.source: distribution" in refusal("26.04", system="ubuntu", source="nvidia")
    told = refusal("11")
    assert told.startswith("GB101 debian 11 on amd64 is not supported")
    assert "Debian 12 and 13, Ubuntu 22.04, 24.04 and 26.04" in told


@pytest.mark.parametrize(
    ("system", "version", "source", "build"),
    [
        ("debian", "12", "nvidia", "dkms"),
        ("ubuntu", "22.04", "distribution", "precompiled"),
        ("ubuntu", "24.04", "distribution", "precompiled"),
    ],
)
def test_left_to_itself_it_is_the_branch_that_is_kept_up(
    system: str, version: str, source: str, build: str
) -> None:
    found = choose(version, system=system, source="auto")
    assert (found.source, found.branch, found.build) == (source, "580", build)
    assert (found.kernel_module_type, found.gsp_off) == ("proprietary", True)
    assert "with the GSP firmware off, which times out on Turing cards" in found.reason
    assert found.signed == (build == "precompiled")


def test_debian_13_gets_the_newest_branch_that_has_both_modules() -> None:
    found = choose("13", source="auto")
    assert (found.source, found.branch, found.kernel_module_type) == (
        "nvidia",
        "595",
        "proprietary",
    )


def test_a_source_that_is_not_named_is_the_one_that_has_what_is_named() -> None:
    assert choose(source="auto", branch="535").source == "distribution"
    assert choose(source="auto", branch="580.126.20").pin == "580.126.20*"
    assert choose(source="auto").pin == "580.*"
    assert refusal(branch="535.309.01").startswith("GB122")


def test_what_has_been_installed_once_stays_as_long_as_nothing_else_is_named() -> None:
    there = replace(
        PREINSTALLED, version="535.1", library="535.1", package="nvidia-kernel-dkms", dkms=True,
        module="/lib/modules/x/updates/dkms/nvidia-current.ko",
    )  # fmt: skip
    assert choose(there=there, source="auto").source == "distribution"
    assert choose(there=replace(there, library="535.2"), source="auto").source == "nvidia"
    assert choose(there=there, source="nvidia").source == "nvidia"


def test_but_not_the_kind_of_module_that_somebody_had_asked_for() -> None:
    there = replace(
        PREINSTALLED, version="550.1", library="550.1", package="nvidia-open-kernel-dkms",
        dkms=True, module="", kernel_module_type="open",
    )  # fmt: skip
    assert choose("13", there=there, kernel_module_type="open").kernel_module_type == "open"
    for source in ("auto", "distribution"):
        found = choose("13", there=there, source=source)
        assert (found.source, found.branch) == ("distribution", "550")
        assert found.kernel_module_type == "proprietary"


@pytest.mark.parametrize("branch", ["535", "570"])
def test_a_branch_whose_packages_are_transitional_is_the_one_they_lead_to(branch: str) -> None:
    found = choose("24.04", system="ubuntu", branch=branch)
    assert (found.branch, found.stem) == ("580", "linux-modules-nvidia-580-server")
    assert f"the packages of {branch} are transitional ones to it" in found.reason


def test_where_nothing_is_precompiled_dkms_builds_unless_nobody_could_load_it() -> None:
    machine = facts(os_id="ubuntu", os_version="24.04", gpus=(Gpu(SLOT, "1eb8", None),))
    wanted = Config(driver=Driver(source="distribution"))
    assert drivers.choose(wanted, machine).otherwise == ("nvidia-dkms-580-server",)
    safe = drivers.choose(wanted, replace(machine, secure_boot=True))
    assert (safe.otherwise, safe.signed) == ((), True)
    assert choose("24.04", system="ubuntu", build="precompiled").otherwise == ()
    assert choose("24.04", system="ubuntu", build="dkms").stem == ""


@pytest.mark.parametrize("package", ["linux-modules-nvidia-580-server-6.8.0-60-generic",
                                     "libnvidia-compute-580-server"])  # fmt: skip
def test_what_ubuntus_packages_have_linked_is_not_adopted(package: str) -> None:
    there = replace(PREINSTALLED, version="580.1", library="580.1", package=package)
    assert choose("24.04", there=there, system="ubuntu") == choose("24.04", system="ubuntu")
    assert choose("24.04", there=replace(there, package=""), system="ubuntu").adopted


@pytest.mark.parametrize("package", ["nvidia-kernel-source-580", "nvidia-dkms-580",
                                     "libnvidia-compute-580"])  # fmt: skip
def test_nor_is_what_the_packages_of_nvidias_repository_have_built_there(package: str) -> None:
    there = replace(PREINSTALLED, version="580.1", library="580.1", package=package, dkms=True)
    fresh = choose("24.04", system="ubuntu", source="nvidia")
    assert fresh.pin
    assert choose("24.04", there=there, system="ubuntu", source="nvidia") == fresh


@pytest.mark.parametrize(
    ("device", "kind", "off"),
    [("1eb8", "auto", True), ("1eb8", "open", False), ("2236", "auto", False)],
)
def test_the_gsp_firmware_is_off_for_the_cards_it_times_out_on(
    device: str, kind: str, *, off: bool
) -> None:
    assert choose(device=device, kernel_module_type=kind).gsp_off is off


@pytest.mark.parametrize(("device", "off"), [("1eb8", True), ("2236", False)])
def test_so_it_is_with_a_driver_that_is_adopted(device: str, *, off: bool) -> None:
    assert choose(device=device, there=PREINSTALLED).gsp_off is off


def test_a_card_that_is_still_to_come_is_taken_for_a_t4() -> None:
    wanted = Config(driver=Driver(source="distribution"))
    assert drivers.choose(wanted, facts()).gsp_off


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
    assert "can be in the way" in choose(there=broken, source="auto").warnings[0]


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
