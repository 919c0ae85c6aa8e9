"""Where the time went: the critical path, the chart on a terminal, the picture for a report."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict

import click
import pytest

from gpuboot import boots, chart, checkpoint, picture, timeline
from gpuboot.boots import Boot, Phase, Span
from gpuboot.checkpoint import Checkpoint
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from tests.unit.node import Node

FIRST = Boot(
    "a", "6.1.0-50-amd64", "2026-11-27T00:15:00Z",
    phases=[
        Phase("firmware", -3.0, -1.0), Phase("kernel", 0.0, 2.0),
        Phase("cloud-init-local", 2.2, 3.0), Phase("cloud-config", 3.2, 4.0),
        Phase("cloud-final", 4.0, 64.0),
    ],
    spans=[
        Span("packages", "ok", 4.3, 65.0, "12 packages are missing"),
        Span("driver-built", "ok", 65.0, 180.0), Span("driver-loaded", "reboot", 180.1, 181.0),
    ],
    ended="reboot: nouveau holds 0000:03:00.0", over=181.0,
)  # fmt: skip
SECOND = Boot(
    "b", "6.1.0-50-amd64", "2026-11-27T00:18:20Z", phases=[Phase("kernel", 0.0, 2.0)],
    spans=[Span("node-joined", "ok", 2.1, 14.0), Span("x", "waiting", 14.0, 14.02)],
    ended="ready", over=14.0,
)  # fmt: skip


def found(*which: Boot, seconds: float | None = 195.4) -> timeline.Timeline:
    charts = tuple(timeline.chart(boot, boot.phases) for boot in which)
    return timeline.Timeline("gpu-1", seconds, len(which) - 1, charts)


def critical(boot: Boot) -> list[str]:
    return [bar.name for bar in timeline.chart(boot, boot.phases).bars if bar.critical]


# -- the critical path


def test_the_critical_path_leads_back_from_the_last_step_to_the_firmware() -> None:
    assert critical(FIRST) == [
        "firmware", "kernel", "cloud-init-local", "cloud-config", "packages", "driver-built",
        "driver-loaded",
    ]  # fmt: skip


def test_what_a_reboot_waited_for_is_on_it_and_what_was_done_meanwhile_is_not() -> None:
    waited = Boot("a", "6.1", "", phases=FIRST.phases, spans=[
        Span("packages", "ok", 4.3, 30.0), Span("driver-loaded", "reboot", 30.0, 35.0),
        Span("until the reboot", "waiting", 35.0, 64.6),
    ])  # fmt: skip
    assert critical(waited)[-2:] == ["cloud-config", "cloud-final"]


def test_what_went_on_beside_it_is_not_on_it() -> None:
    assert "cloud-final" not in critical(FIRST)


def test_a_boot_without_a_step_has_no_critical_path() -> None:
    assert critical(Boot("a", "6.1", "", phases=FIRST.phases)) == []


# -- what is remembered


def remembered(node: Node, *history: Boot) -> None:
    record = Checkpoint("machine", "", "", history=list(history), seconds_to_ready=195.4)
    node.put(checkpoint.FILE, json.dumps({"schema": 1, **asdict(record)}))


def test_the_timeline_is_what_the_checkpoint_remembers(node: Node) -> None:
    remembered(node, FIRST, SECOND)
    node.put("/proc/sys/kernel/random/boot_id", "c\n")
    read = timeline.read(node.host)
    assert [boot.boot_id for boot in read.boots] == ["a", "b"]
    assert read.boots[0].bars == found(FIRST).boots[0].bars
    assert read.seconds_to_ready == 195.4


def test_of_the_boot_that_runs_systemd_is_asked_for_what_is_not_remembered(node: Node) -> None:
    boot = Boot("b", "6.1", "", phases=[Phase("rke2-agent", 5.0, 6.0)])
    remembered(node, boot)
    node.put("/proc/sys/kernel/random/boot_id", "b\n")

    def show(command: Command) -> Result:
        if "cloud-final.service" not in command.argv:
            return Result(0, "InitRDTimestampMonotonic=0\nUserspaceTimestampMonotonic=3000000\n")
        # It was restarted.
        return Result(0, "Id=rke2-agent.service\nInactiveExitTimestampMonotonic=900000000\n"
                         "ActiveEnterTimestampMonotonic=901000000\n")  # fmt: skip

    node.answers["systemctl"] = show
    bars = timeline.read(node.host).boots[0].bars
    assert [(bar.name, bar.end) for bar in bars] == [("kernel", 3.0), ("rke2-agent", 6.0)]


@pytest.mark.parametrize("text", [None, "", "{", '{"schema": 1}'])
def test_where_nothing_is_remembered_that_is_said(node: Node, text: str | None) -> None:
    if text is not None:
        node.put(checkpoint.FILE, text)
    with pytest.raises(GpubootError) as caught:
        timeline.read(node.host)
    assert caught.value.code is timeline.NO_TIMELINE


def test_a_record_keeps_its_last_boots_only(node: Node) -> None:
    remembered(node, *(Boot(str(number), "6.1", "") for number in range(boots.KEPT)))
    content = json.loads(node.text(checkpoint.FILE) or "")
    assert len(checkpoint.parse(json.dumps(content)).history) == boots.KEPT


# -- the chart


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_chart_fits_its_columns_and_every_boot_has_one_scale(columns: int) -> None:
    lines = click.unstyle(chart.text(found(FIRST, SECOND), columns)).splitlines()
    assert max(map(len, lines)) <= columns
    rows = [line for line in lines if set(line) & set("▏▎▍▌▋▊▉█▐")]
    assert len(rows) == len(FIRST.phases + FIRST.spans + SECOND.phases + SECOND.spans)
    widths = {line.split()[0 if line[0] != "*" else 1]: line.count("█") for line in rows}
    assert widths["driver-built"] > widths["packages"] > widths["node-joined"] > 0


def test_the_chart_says_what_took_how_long_and_how_each_boot_ended() -> None:
    text = click.unstyle(chart.text(found(FIRST, SECOND), 120))
    assert text.startswith(
        "gpu-1: 3 min 15 s from the first walk to ready, 2 boots, 1 reboot asked"
    )
    assert "boot 1  2026-11-27T00:15:00Z  kernel 6.1.0-50-amd64, reboot: nouveau holds" in text
    assert any(line.startswith("* packages") and line.endswith("1 min 1 s")
               for line in text.splitlines())  # fmt: skip


def test_a_node_that_is_not_ready_and_a_boot_that_was_cut_off_are_told_as_such() -> None:
    boot = Boot("a", "6.1", "2026-11-27T00:15:00Z", spans=[Span("packages", "running", 4.0, 4.0)])
    text = click.unstyle(chart.text(found(boot, seconds=None), 80))
    assert "not ready yet" in text
    assert "cut off or still at it" in text
    assert "packages" in text


def test_a_boot_of_which_nothing_is_known_is_no_obstacle() -> None:
    empty = found(Boot("a", "6.1", "2026-11-27T00:15:00Z"), seconds=None)
    assert "boot 1" in chart.text(empty, 80)
    ElementTree.fromstring(picture.svg(empty))  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.42, "0.42 s"), (7.25, "7.2 s"), (12.3, "12 s"), (211.0, "3 min 31 s")]
)
def test_a_bars_length_is_as_exact_as_a_person_needs_it(seconds: float, said: str) -> None:
    assert chart.took(seconds) == said


# -- the picture

SVG = "{http://www.w3.org/2000/svg}"


def texts(tree: ElementTree.Element) -> Iterator[tuple[float, float, float, str]]:
    """Left, right and base of every text, if its letters are as wide as the font's widest usual."""
    for node in tree.iter(f"{SVG}text"):
        text, x = node.text or "", float(node.get("x", 0))
        wide = len(text) * (9.5 if node.get("class") == "head" else 7.5)
        left = x - wide if node.get("text-anchor") == "end" else x
        yield left, left + wide, float(node.get("y", 0)), text


def test_nothing_overlaps_in_the_picture_and_nothing_lies_outside() -> None:
    tree = ElementTree.fromstring(picture.svg(found(FIRST, SECOND)))  # noqa: S314 - our own
    placed = sorted(texts(tree), key=lambda one: (one[2], one[0]))
    for (_, right, base, text), (left, _, other, beside) in itertools.pairwise(placed):
        assert base != other or right <= left, f"{text} runs into {beside}"
    height = float(tree.get("height", 0))
    assert all(left >= 0 and right <= picture.WIDTH and base < height
               for left, right, base, _ in placed)  # fmt: skip
    bars = [node for node in tree.iter(f"{SVG}rect") if node.get("rx")]
    edge = picture.WIDTH - picture.MARGIN - picture.SECONDS
    assert all(float(bar.get("x", 0)) + float(bar.get("width", 0)) <= edge + 1 for bar in bars)


def test_a_reason_with_signs_of_xml_is_text(node: Node) -> None:
    boot = Boot("a", "6.1", "", spans=[Span("x", "failed", 1.0, 9.0, "<b>&'\"]]>")])
    tree = ElementTree.fromstring(picture.svg(found(boot)))  # noqa: S314 - our own
    assert "x: 8.0 s, <b>&'\"]]>" in [node.text for node in tree.iter(f"{SVG}title")]
