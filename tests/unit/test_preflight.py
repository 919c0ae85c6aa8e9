"""What preflight finds in a configuration on this machine."""

from __future__ import annotations

import pytest

from gpuboot import preflight
from gpuboot.config import Config, Driver
from tests.unit.node import facts


@pytest.mark.parametrize(
    ("version", "branch", "problem"),
    [
        ("12", None, None),
        ("12", "535", None),
        ("12", "550", "driver.branch is 550: Debian 12 has 535"),
        ("13", None, None),
        ("13", "550", None),
        ("13", "535", "driver.branch is 535: Debian 13 has 550"),
        ("13", "580", "driver.branch is 580: Debian 13 has 550"),
        # that this Debian itself is not supported is another trouble
        ("11", "470", None),
    ],
)
def test_a_branch_is_the_one_that_this_debian_has(
    version: str, branch: str | None, problem: str | None
) -> None:
    config = Config(driver=Driver(source="distribution", branch=branch))
    assert preflight.unsupported(config, facts(os_version=version)) == problem


@pytest.mark.parametrize(("version", "refused"), [("12", True), ("13", False)])
def test_the_open_module_is_refused_where_it_cannot_be_installed(
    version: str, refused: bool
) -> None:
    config = Config(driver=Driver(source="distribution", kernel_module_type="open"))
    problem = preflight.unsupported(config, facts(os_version=version))
    assert ("kernel-module-type" in (problem or "")) == refused
