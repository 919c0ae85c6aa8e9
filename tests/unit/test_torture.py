"""The torture's own arithmetic: what is dealt out, and what counts as a difference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.rehearsal import torture

MODE, SECRET = "-rw-r--r-- 0:0", "-rw------- 0:0"
FIRST = {"etc/a": [MODE, "same"], "etc/key": [SECRET, "one"]}
SECOND = {"etc/a": [MODE, "same"], "etc/key": [SECRET, "two"]}


@pytest.mark.parametrize("kills", [1, 5, 50, 52])
def test_the_machine_is_killed_as_often_as_was_asked_for(kills: int) -> None:
    dealt = Counter(kind for life in torture.lives(3, kills) for kind in life.kills)
    assert dealt["machine"] == kills
    assert dealt["gpuboot"] == dealt["apt"] == len(torture.lives(3, kills))


def test_the_same_seed_gives_the_same_lives_and_another_seed_gives_others() -> None:
    assert torture.lives(7, 50) == torture.lives(7, 50)
    assert torture.lives(7, 50) != torture.lives(8, 50)


def test_a_node_like_the_uncut_ones_has_no_difference() -> None:
    third = {**FIRST, "etc/key": [SECRET, "three"]}
    assert torture.compare(FIRST, SECOND, third) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"etc/a": [MODE, "other"]}, "/etc/a has another content"),
        ({"etc/a": [SECRET, "same"]}, f"/etc/a is {SECRET}, expected {MODE}"),
        ({"etc/key": [MODE, "x"]}, f"/etc/key is {MODE}, expected {SECRET}"),
        ({"etc/.a.gpuboot-new": [SECRET, "torn"]}, "/etc/.a.gpuboot-new is there"),
    ],
)  # fmt: skip
def test_what_differs_is_named(change: dict[str, list[str]], told: str) -> None:
    assert torture.compare(FIRST, SECOND, {**FIRST, **change}) == [told]


def test_a_file_that_is_missing_is_named() -> None:
    assert torture.compare(FIRST, SECOND, {"etc/a": FIRST["etc/a"]}) == ["/etc/key is missing"]


def test_the_order_in_which_apt_has_noted_packages_is_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "var/lib/apt/extended_states"
    file.parent.mkdir(parents=True)
    file.write_text("Package: a\nAuto-Installed: 1\n\nPackage: b\nAuto-Installed: 1\n\n")
    before = torture.fingerprint(tmp_path)
    file.write_text("Package: b\nAuto-Installed: 1\n\nPackage: a\nAuto-Installed: 1\n\n")
    assert torture.fingerprint(tmp_path) == before
    file.write_text("Package: b\nAuto-Installed: 1\n\n")
    assert torture.fingerprint(tmp_path) != before


def test_a_log_has_only_to_be_there(tmp_path: Path) -> None:
    """Two uncut nodes that live in the same seconds write the same one."""
    (tmp_path / "make.log").write_text("01:02:03 begun\n")
    before = torture.fingerprint(tmp_path)
    (tmp_path / "make.log").write_text("04:05:06 begun\n")
    assert torture.fingerprint(tmp_path) == before


def test_a_fingerprint_tells_content_links_and_what_was_removed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").write_text("a")
    (tmp_path / "etc/a").chmod(0o640)
    (tmp_path / "etc/link").symlink_to("/somewhere")
    (tmp_path / "var/log/journal").mkdir(parents=True)
    (tmp_path / "var/log/journal/x").write_text("lives")
    found = torture.fingerprint(tmp_path)
    assert set(found) == {"etc/a", "etc/link"}
    assert found["etc/a"][0].startswith("-rw-r----- ")
    assert found["etc/link"][1] == "/somewhere"
    (tmp_path / "etc/a").write_text("b")
    assert torture.fingerprint(tmp_path)["etc/a"][1] != found["etc/a"][1]
