"""The devices that containers may ask for."""

from __future__ import annotations

import pytest

from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.step import Ok, Pending
from gpuboot.toolkit import REFRESH, Cdi
from tests.unit.node import ABSENT, SLOT, Node, reason, settled

LIST = "nvidia-ctk --quiet cdi list"
ONE = "nvidia.com/gpu=0\nnvidia.com/gpu=GPU-1\nnvidia.com/gpu=all\n"


def listing(node: Node, text: str) -> None:
    node.answers[LIST] = text


@pytest.fixture
def card(node: Node) -> Node:
    node.bus((SLOT, "nvidia"))
    listing(node, "")
    return node


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", "nvidia.com/gpu=all, nvidia.com/gpu=0"),
        ("nvidia.com/gpu=all\n", "nvidia.com/gpu=0"),
        ("nvidia.com/gpu=0\nnvidia.com/gpu=GPU-1\n", "nvidia.com/gpu=all"),
        ("nvidia.com/gpu=01\nnvidia.com/gpu=all\n", "nvidia.com/gpu=0"),
    ],
)
def test_every_device_must_be_listed(card: Node, text: str, missing: str) -> None:
    listing(card, text)
    found = reason(Cdi().check(card.host), Pending)
    assert found == f"containers cannot ask for {missing}"


def test_a_listing_for_every_card_holds(card: Node) -> None:
    listing(card, 'level=info msg="Found 3 CDI devices"\n' + ONE)
    assert reason(Cdi().check(card.host), Ok).endswith("nvidia.com/gpu=all, nvidia.com/gpu=0")


def test_a_listing_that_failed_does_not_count(card: Node) -> None:
    card.answers[LIST] = Result(1, ONE, "broken")
    assert reason(Cdi().check(card.host), Pending)


def test_the_refresh_unit_is_restarted_even_after_it_gave_up(card: Node) -> None:
    def restart(_: Command) -> Result:
        listing(card, ONE)
        return Result(0)

    card.unit(REFRESH, ActiveState="failed")
    card.answers |= {
        f"systemctl restart {REFRESH}": restart,
        f"systemctl reset-failed {REFRESH}": "",
    }
    assert reason(settled(card, Cdi()), Ok)
    assert card.ran.index(f"systemctl reset-failed {REFRESH}") < card.ran.index(
        f"systemctl restart {REFRESH}"
    )


def test_an_older_toolkit_without_the_unit_generates_the_file(card: Node) -> None:
    def generate(_: Command) -> Result:
        listing(card, ONE)
        return Result(0)

    card.unit(REFRESH, **ABSENT)
    card.answers["nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml"] = generate
    assert reason(settled(card, Cdi()), Ok)


def test_a_refresh_that_brings_nothing_is_told_with_its_journal(card: Node) -> None:
    card.unit(REFRESH)
    card.answers |= {"systemctl restart": "", "systemctl reset-failed": "", "journalctl": "no nvml"}
    with pytest.raises(GpubootError) as caught:
        Cdi().apply(card.host)
    error = caught.value
    assert (error.code.id, error.evidence, error.retry) == ("GB310", "no nvml", True)
