"""The measure of the herd: its clock, and what it calls a herd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import herd
from tests.herd import Asked, Clock, Member, Time, Web
from tests.model.cluster import Cluster


def pool(*again: float, first: int = 429) -> list[Member]:
    """Nodes that were all turned away at first and accepted at these seconds."""
    members = []
    for second in again:
        web = Web("https://s", Clock(Time()), Cluster(b""))
        web.asked = [Asked(0.0, first), Asked(second, 200)]
        members.append(Member(web, joined=second))
    return members


SPREAD = [5 + number / 20 for number in range(100)]


def test_time_goes_on_only_when_all_sleep_and_then_in_order() -> None:
    time = Time()
    seen: list[tuple[float, str]] = []

    def work(name: str, *sleeps: float) -> None:
        for seconds in sleeps:
            time.sleep(seconds)
            seen.append((time.seconds, name))

    time.run([lambda: work("a", 3, 3), lambda: work("b", 5), *[lambda: work("c", 1)] * 20])
    assert seen == [(1, "c")] * 20 + [(3, "a"), (5, "b"), (6, "a")]


def test_the_busiest_second_may_begin_anywhere() -> None:
    assert herd.busiest([]) == 0
    assert herd.busiest([0.1, 0.9, 1.05, 1.8, 4.0]) == 3


def test_a_pool_that_spreads_its_retries_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert herd.judged(pool(*SPREAD), pool(*[5.0] * 100)) == []
    herd.told(pool(*SPREAD))
    said = capsys.readouterr().out
    assert " 100 accepted at try 2\n" in said
    assert "100 of 100 joined, the last one 10 s" in said


@pytest.mark.parametrize(
    ("members", "control", "said"),
    [
        (pool(*[5 + number / 200 for number in range(100)]), pool(*[5.0] * 100), "a herd"),
        (pool(*SPREAD), pool(*SPREAD), "nothing is proven"),
        (pool(*SPREAD, first=herd.LOST), pool(*[5.0] * 100), "this machine is too busy"),
        ([*pool(*SPREAD), Member(pool(5.0)[0].web)], pool(*[5.0] * 100), "1 nodes have not joined"),
    ],
)  # fmt: skip
def test_a_herd_and_a_measure_that_proves_nothing_are_told(
    members: list[Member], control: list[Member], said: str
) -> None:
    assert any(said in wrong for wrong in herd.judged(members, control))


# Silencing a warning is not safe among threads, of which an agent has none but this pool has two.
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_small_pool_joins_over_real_tls(tmp_path: Path) -> None:
    members = herd.pool(tmp_path, 2, Clock)
    assert all(member.joined for member in members)
    assert [one.status for member in members for one in member.web.asked] == [200, 200]
    lines = (tmp_path / "cluster/requests.log").read_text().splitlines()
    assert sum(json.loads(line)["path"] == "/v1-rke2/readyz" for line in lines) == 2
