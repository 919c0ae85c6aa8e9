"""The devices that containers may ask for."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

import gpuboot
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending
from gpuboot.toolkit import REFRESH, SPEC, WATCH, Cdi
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


# -- made by the toolkit's own unit


class Refresh:
    """The toolkit's unit and nvidia-ctk; `works` tells which of them writes a specification."""

    def __init__(self, node: Node, *works: str, restart: Result | None = None) -> None:
        self.node, self.works = node, works
        self.ended = restart or Result(0)
        node.unit(REFRESH, ActiveState="failed")
        node.unit(WATCH, ActiveState="failed")
        node.answers |= {
            "systemctl reset-failed": "",
            f"systemctl restart {REFRESH}": lambda _: self.made("unit", self.ended),
            f"systemctl start --no-block {WATCH}": "",
            f"nvidia-ctk cdi generate --output={SPEC}": lambda _: self.made(
                "command", Result(0) if "command" in works else Result(1, err="no NVML")
            ),
            "journalctl": "ERROR_LIB_RM_VERSION_MISMATCH\n",
        }

    def made(self, who: str, ended: Result) -> Result:
        if who in self.works:
            listing(self.node, ONE)
            self.node.put(SPEC, spec(DRIVER))
        return ended


def ran(node: Node, words: str) -> list[int]:
    return [place for place, line in enumerate(node.ran) if line.startswith(words)]


def test_the_refresh_unit_is_restarted_even_after_it_gave_up(card: Node) -> None:
    Refresh(card, "unit")
    assert reason(settled(card, Cdi()), Ok)
    (restarted,) = ran(card, f"systemctl restart {REFRESH}")
    for name in (REFRESH, WATCH):
        (forgiven,) = ran(card, f"systemctl reset-failed {name}")
        assert forgiven < restarted
    assert not ran(card, "nvidia-ctk cdi generate")


def test_what_watches_for_a_new_driver_gave_up_too_and_is_started_again(card: Node) -> None:
    Refresh(card, "unit")
    settled(card, Cdi())
    assert ran(card, f"systemctl start --no-block {WATCH}")


def test_a_watch_that_somebody_has_disabled_stays_off(card: Node) -> None:
    Refresh(card, "unit")
    card.unit(WATCH, UnitFileState="disabled")
    settled(card, Cdi())
    assert not ran(card, "systemctl start")


@pytest.mark.parametrize(
    "restart",
    [Result(0), Result(1, err="Job for nvidia-cdi-refresh.service failed"), TimeoutError()],
    ids=["passed over by its conditions", "failed", "waits for the rest of the boot"],
)
def test_where_the_unit_writes_nothing_the_file_is_generated(
    card: Node, restart: Result | TimeoutError
) -> None:
    refresh = Refresh(card, "command")

    def answer(_: Command) -> Result:
        if isinstance(restart, TimeoutError):
            raise restart
        return refresh.made("unit", restart)

    card.answers[f"systemctl restart {REFRESH}"] = answer
    assert reason(settled(card, Cdi()), Ok)


@pytest.mark.parametrize("properties", [ABSENT, {"LoadState": "masked", "UnitFileState": "masked"}])
def test_without_a_usable_unit_the_file_is_generated(
    card: Node, properties: Mapping[str, str]
) -> None:
    Refresh(card, "command")
    card.unit(REFRESH, **properties)
    assert reason(settled(card, Cdi()), Ok)
    assert not ran(card, "systemctl restart")


def test_a_refresh_that_brings_nothing_is_told_with_its_journal(card: Node) -> None:
    Refresh(card, restart=Result(1))
    with pytest.raises(GpubootError) as caught:
        Cdi().apply(card.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB310", True)
    assert error.message == "containers cannot ask for nvidia.com/gpu=all, nvidia.com/gpu=0"
    assert error.evidence == "ERROR_LIB_RM_VERSION_MISMATCH\nno NVML"


# -- for the driver that is loaded

DRIVER = "535.309.01"


def spec(version: str) -> str:
    """The part of a specification that names the driver's libraries."""
    names = ("libnvidia-ml.so", "libcuda.so")
    return "".join(f"      - hostPath: /usr/lib/x86_64-linux-gnu/{n}.{version}\n" for n in names)


@pytest.fixture
def loaded(card: Node) -> Node:
    card.put("/sys/module/nvidia/version", f"{DRIVER}\n")
    listing(card, ONE)
    return card


@pytest.mark.parametrize("place", ["/var/run/cdi/nvidia.yaml", "/etc/cdi/nvidia.yaml"])
def test_a_specification_for_an_older_driver_is_made_anew(loaded: Node, place: str) -> None:
    Refresh(loaded, "unit")
    loaded.put(place, spec("525.147.05"))
    assert reason(Cdi().check(loaded.host), Pending) == (
        f"containers would get the libraries of driver 525.147.05, {DRIVER} is loaded"
    )
    assert reason(settled(loaded, Cdi()), Ok)


@pytest.mark.parametrize("text", [spec(DRIVER), "", "kind: nvidia.com/gpu\n"])
def test_a_specification_for_the_loaded_driver_stays(loaded: Node, text: str) -> None:
    loaded.put("/var/run/cdi/nvidia.yaml", text)
    assert reason(Cdi().check(loaded.host), Ok)


def test_an_older_file_of_a_template_does_not_count_beside_the_current_one(loaded: Node) -> None:
    loaded.put("/var/run/cdi/nvidia.yaml", spec(DRIVER))
    loaded.put("/etc/cdi/nvidia.yaml", spec("525.147.05"))
    assert reason(Cdi().check(loaded.host), Ok)


# -- over a daemon-reload


def test_device_files_are_found_by_their_numbers(loaded: Node) -> None:
    def links(_: Command) -> Result:
        loaded.link("/dev/char/1:3", "../nvidia0")
        return Result(0)

    loaded.link("/dev/nvidia0", "/dev/null")  # a character device that needs no root to make
    loaded.put("/dev/nvidia-caps/x")
    loaded.answers["nvidia-ctk system create-dev-char-symlinks --create-all"] = links
    assert reason(Cdi().check(loaded.host), Pending) == "/dev/char has no link to /dev/nvidia0"
    assert reason(settled(loaded, Cdi()), Ok)
    assert not ran(loaded, "systemctl")


# -- what is RKE2's


def test_nothing_of_ours_configures_a_container_runtime() -> None:
    commands = []
    for file in sorted(Path(gpuboot.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.List, ast.Tuple)):
                words = [word.value for word in node.elts if isinstance(word, ast.Constant)]
                if words[:1] == ["nvidia-ctk"]:
                    commands.append(" ".join(map(str, words[1:])))
    assert len(commands) >= 3
    assert not [words for words in commands if "runtime" in words or "configure" in words]


@pytest.mark.parametrize("folder", ["gpuboot", "systemd", "packaging", "cloud-init"])
def test_no_file_of_ours_tells_anybody_to_configure_one(folder: str) -> None:
    top = Path(gpuboot.__file__).parents[1]
    texts = {file: file.read_bytes() for file in (top / folder).rglob("*") if file.is_file()}
    assert texts
    assert not [file for file, text in texts.items() if b"runtime configure" in text]
