"""The plan as a person reads it."""

from __future__ import annotations

from typing import Any

import click
import pytest

from gpuboot import planview


def step(
    name: str, state: str | None = "pending", reason: str = "why", **more: object
) -> dict[str, Any]:
    return {"name": name, "state": state, "reason": reason, "code": None, "hint": None,
            "drift": [], **more}  # fmt: skip


def package(
    name: str, action: str = "install", version: str | None = "1.0", **more: object
) -> dict[str, Any]:
    return {"name": name, "action": action, "version": version, "before": None, "bytes": 2_000_000,
            **more}  # fmt: skip


def document(**changes: object) -> dict[str, Any]:
    return {
        "steps": [step("rke2-hold", "ok"), step("preflight", "ok"), step("packages")],
        "packages": [], "download_bytes": None, "files": [], "held": [], "units": [],
        "trusted": [], "warnings": [], "live": False, "driver": None,
        "reboot": {"answer": "no", "reason": "nothing stands in the way"},
        "expected": {"seconds": 91, "steps": {"packages": 90}, "own": [], "reboot_seconds": 40},
        **changes,
    }  # fmt: skip


def lines(width: int | None = None, **changes: object) -> list[str]:
    return click.unstyle(planview.text(document(**changes), width)).splitlines()


def test_the_first_line_says_what_it_comes_to() -> None:
    found = lines(
        packages=[package("a"), package("b")], download_bytes=4_000_000,
        files=[{"name": "/etc/x", "diff": "--- /etc/x\n+++ /etc/x\n@@ -0,0 +1 @@\n+a\n"}],
        reboot={"answer": "maybe", "reason": "nouveau"},
    )  # fmt: skip
    assert found[0] == (
        "1 of 3 steps to do, 2 packages (4 MB to fetch), 1 file, about 2 min, reboot: maybe"
    )


def test_where_nothing_is_to_be_done_that_is_what_is_said() -> None:
    done = {"seconds": 0, "steps": {}, "own": [], "reboot_seconds": 40}
    found = lines(steps=[step("a", "ok"), step("b", "ok")], expected=done)
    assert found[:4] == ["Nothing is to be done: every step holds.", "", "Steps", "  ✓ a, b"]


def test_steps_with_the_same_to_tell_share_their_lines_and_others_say_why() -> None:
    away = [step(name, None, "not asked: --offline") for name in ("x", "y")]
    told = step("gpu", "waiting", "no GPU", code="GB110", hint="lspci")
    drift = step("b", "ok", drift=["label c"])
    found = lines(steps=[step("a", "ok"), drift, told, *away])
    assert found[2:9] == [
        "Steps", "  ✓ a", "  ✓ b                   why", "      differs: label c",
        "  … gpu                 no GPU [GB110]", "      next: lspci",
        "  · x, y: not asked: --offline",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ([], "as is usual"),
        (["packages", "driver-built"], "as it took here before"),
        (["packages"], "packages as it took here before, the rest as is usual"),
    ],
)
def test_how_long_it_takes_is_told_with_how_that_is_known(own: list[str], said: str) -> None:
    expected = {"seconds": 241, "steps": {"packages": 90, "driver-built": 150}, "own": own,
                "reboot_seconds": 40}  # fmt: skip
    assert lines(expected=expected)[-2] == (
        f"time:    about 5 min (packages 1 min 30 s, driver-built 2 min 30 s; {said});"
        " a reboot adds about 40 s"
    )


def test_packages_stand_in_columns_with_what_becomes_of_them() -> None:
    found = lines(
        packages=[
            package("nvidia-smi"), package("dkms", "upgrade", "3.0", before="2.8"),
            package("old", "remove", None, before="1.0"), package("unknown", version=None),
        ],
        download_bytes=None,
    )  # fmt: skip
    at = found.index("4 packages")
    assert found[at + 1 : at + 5] == [
        "  nvidia-smi  1.0      2.0 MB", "  dkms        3.0      2.0 MB  upgraded from 2.8",
        "  old         1.0 is removed", "  unknown",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_no_sentence_is_wider_than_the_terminal(width: int) -> None:
    long = "there are no headers for a kernel that needs a module, and none in any of the sources"
    found = lines(
        width, steps=[step("packages", reason=long), step("b", None, long)], warnings=[long],
        held=["a-package"] * 20, reboot={"answer": "yes", "reason": long},
        driver={"branch": "535", "kernel_module_type": "open", "source": "x", "reason": long},
        packages=[package("a")] * 3, download_bytes=1,
    )  # fmt: skip
    assert max(map(len, found)) <= width
