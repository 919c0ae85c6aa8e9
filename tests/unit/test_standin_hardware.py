"""The rehearsal's NVML and CUDA libraries, asked through the real pynvml on a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rehearsal import hardware

VERSION = "535.309.01"
SLOT = "0000:3b:00.0"

# One process per question: a library that failed to start stays as it is.
ASK_NVML = """
import json, pynvml as nvml
try:
    nvml.nvmlInit()
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        assert nvml.nvmlDeviceGetName(gpu) == "Tesla T4"
        set_ = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, set_)
        try:
            event = nvml.nvmlEventSetWait_v2(set_, 0).eventData
        except nvml.NVMLError as error:
            event = f"error {error.value}"
        nvml.nvmlDeviceSetPersistenceMode(gpu, 1)
        found.append({
            "uuid": nvml.nvmlDeviceGetUUID(gpu),
            "bus": nvml.nvmlDeviceGetPciInfo(gpu).busId,
            "id": nvml.nvmlDeviceGetPciInfo(gpu).pciDeviceId,
            "memory": nvml.nvmlDeviceGetMemoryInfo(gpu).total,
            "temperature": nvml.nvmlDeviceGetTemperature(gpu, 0),
            "ecc": nvml.nvmlDeviceGetEccMode(gpu),
            "errors": nvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0),
            "persistent": nvml.nvmlDeviceGetPersistenceMode(gpu),
            "gsp": nvml.nvmlDeviceGetGspFirmwareMode(gpu)[0],
            "event": event,
            "minor": nvml.nvmlDeviceGetMinorNumber(gpu),
        })
    print(json.dumps({
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "cuda": nvml.nvmlSystemGetCudaDriverVersion(),
        "gpus": found,
    }))
except nvml.NVMLError as error:
    print(json.dumps({"error": error.value}))
"""

ASK_CUDA = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
code = cuda.cuInit(0)
count, version, text = ctypes.c_int(-1), ctypes.c_int(), ctypes.c_char_p()
cuda.cuGetErrorString(code, ctypes.byref(text))
cuda.cuDriverGetVersion(ctypes.byref(version))
if code == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
print(json.dumps([code, text.value.decode(), count.value, version.value]))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("libraries")
    hardware.build_libraries(out, VERSION)
    for name in ("libnvidia-ml.so", "libcuda.so"):
        (out / f"{name}.1").symlink_to(f"{name}.{VERSION}")
    return out


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with one T4 that is driven by nvidia, as in sysfs."""
    device(tmp_path, SLOT, driver="nvidia")
    write(tmp_path / "sys/module/nvidia/version", VERSION)
    write(tmp_path / "dev/nvidiactl")
    write(tmp_path / "dev/nvidia-uvm")
    (tmp_path / "run/lab/persistence").mkdir(parents=True)
    write(tmp_path / f"lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin")
    return tmp_path


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def device(root: Path, slot: str, *, driver: str, kind: str = "0x030200") -> None:
    folder = root / "sys/bus/pci/devices" / slot
    for name, text in (("vendor", "0x10de"), ("device", "0x1eb8"), ("class", kind)):
        write(folder / name, text)
    (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def ask(question: str, libraries: Path, root: Path) -> object:
    answer = subprocess.run(
        [sys.executable, "-c", question],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "LAB_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def uuid_of_the_kernel(slot: str) -> str:
    """The UUID that /proc/driver/nvidia shows: NVML has to say the same."""
    return subprocess.run(
        [sys.executable, "-c", f"import lab_kernel; print(lab_kernel.uuid('{slot}'))"],
        env={**os.environ, "PYTHONPATH": str(hardware.STANDINS / "hardware"),
             "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def test_a_t4_answers(libraries: Path, node: Path) -> None:
    write(node / f"run/lab/ecc/{SLOT}", "2")
    write(node / f"run/lab/xid/{SLOT}", "79")
    assert ask(ASK_NVML, libraries, node) == {
        "driver": VERSION,
        "cuda": 12020,
        "gpus": [
            {
                "uuid": uuid_of_the_kernel(SLOT),
                "bus": "00000000:3B:00.0",
                "id": 0x1EB810DE,
                "memory": 15360 * 1024 * 1024,
                "temperature": 37,
                "ecc": [1, 1],
                "errors": 2,
                "persistent": 1,
                "gsp": 1,
                "event": 79,
                "minor": 0,
            }
        ],
    }


def test_without_the_module_the_driver_is_not_loaded(libraries: Path, tmp_path: Path) -> None:
    assert ask(ASK_NVML, libraries, tmp_path) == {"error": 9}


def test_another_module_version_is_a_mismatch(libraries: Path, node: Path) -> None:
    write(node / "sys/module/nvidia/version", "550.163.01")
    assert ask(ASK_NVML, libraries, node) == {"error": 18}
    assert ask(ASK_CUDA, libraries, node) == [
        803, "system has unsupported display driver / cuda driver combination", -1, 12020,
    ]  # fmt: skip


def test_only_gpus_that_nvidia_drives_are_counted(libraries: Path, node: Path) -> None:
    device(node, "0000:04:00.0", driver="nouveau")
    device(node, "0000:05:00.1", driver="nvidia", kind="0x040300")  # an audio function
    answer = ask(ASK_NVML, libraries, node)
    assert isinstance(answer, dict)
    assert [gpu["bus"] for gpu in answer["gpus"]] == ["00000000:3B:00.0"]


def test_a_lost_gpu_is_counted_but_gives_no_handle(libraries: Path, node: Path) -> None:
    write(node / f"run/lab/faults/{SLOT}", "lost")
    assert ask(ASK_NVML, libraries, node) == {"error": 15}
    assert ask(ASK_CUDA, libraries, node) == [999, "unknown error", -1, 12020]


def test_a_gpu_whose_init_fails_is_not_there(libraries: Path, node: Path) -> None:
    write(node / f"run/lab/faults/{SLOT}", "init-fails")
    answer = ask(ASK_NVML, libraries, node)
    assert isinstance(answer, dict)
    assert answer["gpus"] == []


def test_gsp_is_off_when_the_module_was_told_so(libraries: Path, node: Path) -> None:
    write(node / "proc/driver/nvidia/params", "EnableMSI: 1\nEnableGpuFirmware: 0")
    answer = ask(ASK_NVML, libraries, node)
    assert isinstance(answer, dict)
    assert answer["gpus"][0]["gsp"] == 0
    assert answer["gpus"][0]["event"] == "error 10"


def test_cuda_counts_the_gpus(libraries: Path, node: Path) -> None:
    assert ask(ASK_CUDA, libraries, node) == [0, "no error", 1, 12020]


def test_cuda_needs_uvm(libraries: Path, node: Path) -> None:
    (node / "dev/nvidia-uvm").unlink()
    assert ask(ASK_CUDA, libraries, node) == [999, "unknown error", -1, 12020]


def test_cuda_without_the_module_has_no_device(libraries: Path, tmp_path: Path) -> None:
    assert ask(ASK_CUDA, libraries, tmp_path) == [
        100, "no CUDA-capable device is detected", -1, 12020,
    ]  # fmt: skip


# -- NVML without pynvml

PROBE = "import json; from gpuboot import nvml; print(json.dumps(nvml.nvml()))"
BARE = f"import sys; sys.modules['pynvml'] = None; {PROBE}"


def test_without_pynvml_the_probe_says_the_same(libraries: Path, node: Path) -> None:
    answer = ask(BARE, libraries, node)
    assert answer == ask(PROBE, libraries, node)
    assert answer == {
        "driver": VERSION,
        "gpus": [
            {
                "pci": "0000:3b:00.0",
                "name": "Tesla T4",
                "uuid": uuid_of_the_kernel(SLOT),
                "memory_mib": 15360,
            }
        ],
    }


LOOK = """
import json
from gpuboot import nvml, sensors
seen = sensors.ask(nvml.binding())
cards = [card.shown() for card in seen.cards]
print(json.dumps({"error": seen.error, "lost": dict(seen.lost), "cards": cards}))
"""
BARE_LOOK = f"import sys; sys.modules['pynvml'] = None\n{LOOK}"


@pytest.mark.parametrize("program", [LOOK, BARE_LOOK], ids=["pynvml", "without"])
def test_the_monitor_reads_every_gauge(libraries: Path, node: Path, program: str) -> None:
    write(node / f"run/lab/ecc/{SLOT}", "2")
    write(node / f"run/lab/pending/{SLOT}", "1")
    write(node / f"run/lab/slowed/{SLOT}", str(0x40 | 0x80))
    answer = ask(program, libraries, node)
    card = {
        "pci": SLOT, "uuid": uuid_of_the_kernel(SLOT), "temperature_c": 37, "memory_used_mib": 448,
        "memory_mib": 15360, "power_w": 9.3, "ecc_uncorrected": 2, "pages_pending": True,
        "slowed": ["hardware thermal slowdown", "power brake"], "persistence": False,
    }  # fmt: skip
    assert answer == {"error": 0, "lost": {}, "cards": [card]}


@pytest.mark.parametrize("program", [LOOK, BARE_LOOK], ids=["pynvml", "without"])
def test_the_monitor_sees_a_card_that_is_lost(libraries: Path, node: Path, program: str) -> None:
    write(node / f"run/lab/faults/{SLOT}", "lost")
    answer = ask(program, libraries, node)
    assert answer == {"error": 0, "lost": {"0": "GPU is lost"}, "cards": []}


def test_without_pynvml_trouble_is_told_in_the_same_way(libraries: Path, node: Path) -> None:
    write(node / "sys/module/nvidia/version", "550.163.01")
    answer, other = ask(BARE, libraries, node), ask(PROBE, libraries, node)
    assert isinstance(answer, dict)
    assert isinstance(other, dict)
    assert answer["error"] == "Driver/library version mismatch"  # in the library's own words
    assert answer["value"] == other["value"] == 18


def test_without_pynvml_a_missing_library_is_told(tmp_path: Path) -> None:
    answer = ask(BARE, tmp_path, tmp_path)
    assert isinstance(answer, dict)
    assert (answer["value"], answer["error"]) == (12, "NVML Shared Library Not Found")
