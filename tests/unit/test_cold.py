"""The floor that `make bench` measures a new worker against."""

from __future__ import annotations

import pytest

from tests.cold import longest_chain

PARTS = {"update": 2.0, "install": 60.0, "load": 1.0, "cdi": 1.0, "fetch": 5.0, "unpack": 3.0,
         "join": 10.0}  # fmt: skip


@pytest.mark.parametrize(
    ("fetch", "floor"), [(5.0, 2.0 + 60.0 + 1.0 + 1.0 + 10.0), (90.0, 90.0 + 3.0 + 10.0)]
)
def test_the_floor_is_the_longer_of_two_chains_and_then_the_join(
    fetch: float, floor: float
) -> None:
    assert longest_chain({**PARTS, "fetch": fetch}) == pytest.approx(floor)
