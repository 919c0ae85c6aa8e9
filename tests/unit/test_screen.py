"""What lives on a terminal: a walk that is followed, a status that is drawn again and again."""

from __future__ import annotations

import re

import click
import pytest

from gpuboot import screen
from tests.unit.test_statusview import document


def test_following_ends_with_the_walk(capsys: pytest.CaptureFixture[str]) -> None:
    documents = [document("running"), document("ready")]
    found = screen.follow(lambda: documents.pop(0), poll=0)
    assert found["state"] == "ready"
    out = capsys.readouterr().out
    assert out.count("✓ packages") == 1
    assert "driver-built: why" in out


def test_watching_draws_on_a_screen_of_its_own_until_somebody_has_seen_enough() -> None:
    drawn: list[str] = []
    documents = [document("running"), document("waiting"), document("ready")]

    def look() -> dict[str, object]:
        if len(documents) == 1:
            raise KeyboardInterrupt
        return documents.pop(0)

    found = screen.watch(look, poll=0, write=drawn.append)
    assert found["state"] == "waiting"
    assert (drawn[0], drawn[-1]) == (screen.ENTER, screen.LEAVE)
    states = [click.unstyle(one.removeprefix(screen.HOME)).split()[0] for one in drawn[1:-1]]
    assert states == ["running", "waiting"]


def test_a_frame_is_as_wide_and_high_as_the_terminal_and_leaves_nothing_of_the_one_before() -> None:
    text = "\n".join(["short", click.style("x" * 50, fg="red") + "y" * 50, *"abcdefgh"])
    drawn = screen.frame(text, 20, 5)
    rows = [click.unstyle(row) for row in drawn.removeprefix(screen.HOME).split("\n")]
    plain = [re.sub(r"\x1b\[[JK]", "", row) for row in rows]
    assert plain == ["short", "x" * 19 + "…", "a", "b", "…"]
    assert drawn.endswith(screen.REST_OF_LINE + screen.REST_OF_SCREEN)


@pytest.mark.parametrize("columns", [1, 2, 3, 7])
def test_a_line_of_many_colours_is_cut_where_its_letters_end(columns: int) -> None:
    line = "".join(click.style(letter, fg="green") for letter in "abcdef")
    drawn = screen.frame(line, columns, 3)
    row = click.unstyle(drawn.removeprefix(screen.HOME).partition(screen.REST_OF_LINE)[0])
    assert len(row) <= columns
    assert row == ("abcdef" if columns >= 6 else "abcdef"[: columns - 1] + "…")
