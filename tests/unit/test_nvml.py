"""The probe that asks the libraries, as far as no card is needed."""

from __future__ import annotations

import json

import pytest

from gpuboot import nvml


@pytest.mark.parametrize(
    ("bus_id", "slot"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3B:00.0", "0000:3b:00.0"),
        ("00000001:03:00.0", "0001:03:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("0000000A:AF:1F.7", "000a:af:1f.7"),
    ],
)
def test_a_bus_id_is_written_as_lspci_writes_it(bus_id: str, slot: str) -> None:
    assert nvml.slot(bus_id) == slot


@pytest.mark.parametrize("library", ["nvml", "cuda"])
def test_on_a_machine_without_a_driver_the_probe_says_so(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # These libraries come with the driver; where it is installed, the answer is another one.
    status = nvml.main([library])
    answer = json.loads(capsys.readouterr().out)
    assert status == (1 if "error" in answer else 0)
    assert set(answer) & {"error", "gpus", "count"}
