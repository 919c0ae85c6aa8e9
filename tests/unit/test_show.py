"""What everything that is shown on a terminal is made of."""

from __future__ import annotations

import click
import pytest

from gpuboot import show


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (60, "1 min 0 s"),
     (211.4, "3 min 31 s"), (3725, "62 min 5 s")],
)  # fmt: skip
def test_a_duration_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert show.duration(seconds) == said


@pytest.mark.parametrize("state", ["ok", "pending", "running", "waiting", "reboot", "failed"])
def test_every_state_of_a_step_has_a_mark(state: str) -> None:
    line = click.unstyle(show.step({"name": "x", "state": state, "reason": "r", "seconds": 91.6}))
    mark, name, rest = line.split(maxsplit=2)
    assert (mark, name, rest) == (show.MARKS[state][0], "x", "r  1 min 32 s")


def test_a_step_with_nothing_to_tell_ends_with_its_name() -> None:
    line = click.unstyle(show.step({"name": "cdi", "state": "pending", "reason": ""}))
    assert line == "  · cdi"


def test_a_table_has_two_columns() -> None:
    assert show.table([("a", "1"), ("long name", "2")]) == "a          1\nlong name  2"


def test_a_long_text_goes_on_below_itself_and_a_path_is_left_whole() -> None:
    head = click.style("head  ", fg="red")
    path = "/var/lib/rancher/rke2/agent/logs/kubelet.log"
    lines = [click.unstyle(line) for line in show.row(head, f"one two three {path} four", 26)]
    assert lines == ["head  one two three", f"      {path}", "      four"]
    assert show.row(head, "one " * 50, None) == [head + "one " * 50]


def test_a_number_is_not_parted_from_its_unit() -> None:
    assert show.wrapped("it took about 1 min 24 s in all", 20) == [
        "it took about",
        "1 min 24 s in all",
    ]
