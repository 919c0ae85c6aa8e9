"""The card: present, not held by another driver, and answering."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import pytest

from gpuboot.errors import GpubootError
from gpuboot.nvidia import GpuPresent, GpusAnswer, NouveauBlocked
from gpuboot.process import Result
from gpuboot.step import Ok, Pending, Waiting
from tests.unit.modules import Modules
from tests.unit.node import SLOT, Node, code, reason, settled

TWO = "0000:1b:00.0"
DRIVER = "535.309.01"
PYTHON = sys.executable


def raised(node: Node, step: GpuPresent | GpusAnswer) -> GpubootError:
    with pytest.raises(GpubootError) as caught:
        step.check(node.host)
    return caught.value


# -- present


@pytest.mark.parametrize("model", ["any", "T4", "tesla t4", "10de:1eb8", "10DE:1EB8"])
@pytest.mark.parametrize("count", [None, 1])
def test_the_wanted_card_is_found(node: Node, model: str, count: int | None) -> None:
    node.bus((SLOT, "nouveau"))
    found = GpuPresent(count, model).check(node.host)
    assert isinstance(found, Ok)
    assert found.reason == f"Tesla T4 at {SLOT}"
    assert found.shows == {"gpus": [{"pci": SLOT, "id": "10de:1eb8", "name": "Tesla T4"}]}


@pytest.mark.parametrize(
    ("slots", "count", "model", "id_", "said"),
    [
        ([], None, "any", "GB110", "no NVIDIA GPU is on the PCI bus"),
        ([], 1, "T4", "GB110", "no NVIDIA GPU is on the PCI bus"),
        ([SLOT], 2, "any", "GB111", f"wanted are 2 GPUs, found Tesla T4 at {SLOT}"),
        ([SLOT, TWO], 1, "any", "GB111", "wanted are 1 GPUs, found"),
        ([SLOT], None, "A10", "GB111", f"wanted is A10, found Tesla T4 at {SLOT}"),
        ([SLOT], None, "10de:2236", "GB111", "wanted is 10de:2236, found"),
    ],
)
def test_another_card_than_the_wanted_is_waited_for(
    node: Node, slots: list[str], count: int | None, model: str, id_: str, said: str
) -> None:
    node.bus(*((slot, "") for slot in slots))
    found = GpuPresent(count, model).check(node.host)
    assert reason(found, Waiting).startswith(said)
    assert code(found).id == id_


def test_a_card_that_somebody_has_given_away_is_waited_for(node: Node) -> None:
    node.bus((SLOT, "nouveau"), (TWO, "vfio-pci"))
    found = GpuPresent(None, "any").check(node.host)
    assert reason(found, Waiting) == f"vfio-pci holds {TWO}"
    assert code(found).id == "GB305"
    assert isinstance(found, Waiting)
    assert found.hint
    assert TWO in found.hint


@pytest.mark.parametrize("driver", ["", "nvidia", "nouveau", "nova_core", "NovaCore"])
def test_drivers_that_come_by_themselves_are_nobodys_choice(node: Node, driver: str) -> None:
    node.bus((SLOT, driver))
    assert reason(GpuPresent(None, "any").check(node.host), Ok)


def test_a_card_that_does_not_answer_is_told(node: Node) -> None:
    node.bus((SLOT, ""))
    node.answers["lspci"] = str(node.answers["lspci"]).replace("a1", "ff")
    error = raised(node, GpuPresent(None, "any"))
    assert (error.code.id, error.message) == ("GB112", f"GPU {SLOT} does not answer (rev ff)")


def test_a_card_without_addresses_is_told_with_its_regions(node: Node) -> None:
    node.bus((SLOT, ""))
    unset = "0x0000000000000000 0x0000000000ffffff 0x0000000020040200\n"
    node.put(f"/sys/bus/pci/devices/{SLOT}/resource", unset * 2)
    error = raised(node, GpuPresent(None, "any"))
    assert error.message == f"GPU {SLOT}: memory region 0, 1 has no address"
    assert (error.code.id, error.retry) == ("GB112", False)


# -- nouveau


def test_nouveau_is_blocked_by_a_file(node: Node) -> None:
    assert reason(NouveauBlocked().check(node.host), Pending)
    assert reason(settled(node, NouveauBlocked()), Ok)
    text = node.text("/etc/modprobe.d/gpuboot.conf") or ""
    for line in ("blacklist nouveau", "blacklist nova_core", "options nouveau modeset=0"):
        assert line in text.splitlines()
    node.put("/etc/modprobe.d/gpuboot.conf", "blacklist nouveau\n")
    assert reason(settled(node, NouveauBlocked()), Ok)


@pytest.mark.parametrize(
    ("step", "off"),
    [
        (NouveauBlocked(), True),
        (NouveauBlocked(gsp_off=False), False),
    ],
)
def test_the_module_is_told_to_do_without_the_gsp_firmware_where_it_is_to(
    node: Node, step: NouveauBlocked, *, off: bool
) -> None:
    settled(node, step)
    text = node.text("/etc/modprobe.d/gpuboot.conf") or ""
    assert ("options nvidia NVreg_EnableGpuFirmware=0" in text) is off
    assert "blacklist nouveau" in text
    assert step.writes(node.host) == {"/etc/modprobe.d/gpuboot.conf": text}


def test_the_options_follow_the_choice(node: Node) -> None:
    settled(node, NouveauBlocked(gsp_off=True))
    assert reason(NouveauBlocked(gsp_off=False).check(node.host), Pending)
    assert reason(settled(node, NouveauBlocked(gsp_off=False)), Ok)


# -- answering

GPU = {"pci": SLOT, "name": "Tesla T4", "uuid": "GPU-1", "memory_mib": 15360}


def probes(node: Node, nvml: object, cuda: object) -> None:
    for library, answer in (("nvml", nvml), ("cuda", cuda)):
        reply = answer if isinstance(answer, Result) else Result(0, json.dumps(answer))
        node.answers[f"{PYTHON} -m gpuboot.nvml {library}"] = reply
    node.answers["journalctl"] = "NVRM: Xid (PCI:0000:03:00): 79\n"


def nvml(*gpus: Mapping[str, object]) -> dict[str, object]:
    return {"driver": DRIVER, "gpus": gpus}


def test_nvml_and_cuda_that_agree_with_the_bus_are_the_proof(node: Node) -> None:
    node.bus((SLOT, "nvidia"), (TWO, "nvidia"))
    probes(node, nvml({**GPU, "pci": TWO}, GPU), {"count": 2})
    found = GpusAnswer().check(node.host)
    assert isinstance(found, Ok)
    assert found.shows["gpus"][1] == {**GPU, "id": "10de:1eb8"}


@pytest.mark.parametrize(
    ("nvml_says", "cuda_says", "message", "retry"),
    [
        (nvml(), {"count": 1}, f"NVML sees no GPU, the PCI bus has {SLOT}", False),
        (nvml(GPU, {**GPU, "pci": TWO}), {"count": 1}, f"NVML sees {SLOT}, {TWO}, the PCI", False),
        (nvml({**GPU, "pci": TWO}), {"count": 1}, f"NVML sees {TWO}, the PCI bus has", False),
        (nvml(GPU), {"count": 0}, "CUDA sees 0 GPUs, the PCI bus has 1", False),
        ({"error": "In use by another client", "value": 19, "transient": True}, {},
         "nvml: In use by another client", True),
        ({"error": "python3-pynvml is not installed"}, {}, "nvml: python3-pynvml is", False),
        (nvml(GPU), {"error": "cuInit failed: no CUDA-capable device is detected (100)"},
         "cuda: cuInit failed: no CUDA-capable", False),
        (Result(-11), {}, "nvml: the probe ended with status -11", False),
        (Result(1, "", "Traceback\nImportError: x"), {}, "nvml: Traceback\nImportError: x", False),
    ],
)  # fmt: skip
def test_a_disagreement_is_told(
    node: Node, nvml_says: object, cuda_says: object, message: str, *, retry: bool
) -> None:
    node.bus((SLOT, "nvidia"))
    probes(node, nvml_says, cuda_says)
    error = raised(node, GpusAnswer())
    assert error.message.startswith(message)
    assert (error.code.id, error.retry) == ("GB303", retry)


# -- of one version

FOLDER = "/usr/lib/x86_64-linux-gnu"


def libraries(node: Node, version: str) -> None:
    """As Debian's packages lay them: by way of an alternative."""
    node.link(f"{FOLDER}/libnvidia-ml.so.1", "/etc/alternatives/nvidia--libnvidia-ml.so.1")
    current = f"{FOLDER}/nvidia/current/libnvidia-ml.so"
    node.link("/etc/alternatives/nvidia--libnvidia-ml.so.1", f"{current}.1")
    node.link(f"{current}.1", f"libnvidia-ml.so.{version}")
    node.put(f"{current}.{version}")


def test_libraries_and_module_of_one_version_are_asked(node: Node) -> None:
    node.bus((SLOT, "nvidia"))
    node.put("/sys/module/nvidia/version", f"{DRIVER}\n")
    libraries(node, DRIVER)
    probes(node, nvml(GPU), {"count": 1})
    assert reason(GpusAnswer().check(node.host), Ok)


def test_libraries_of_another_version_are_told_with_both_and_not_asked(node: Node) -> None:
    node.bus((SLOT, "nvidia"))
    node.put("/sys/module/nvidia/version", f"{DRIVER}\n")
    libraries(node, "550.163.01")
    node.answers["journalctl"] = "NVRM: API mismatch: the client 'nvidia-smi' (pid 7) has\n"
    error = raised(node, GpusAnswer())
    assert error.message == (
        f"the driver's libraries are 550.163.01, its loaded module is {DRIVER}"
    )
    assert (error.code.id, error.retry) == ("GB304", True)
    assert "API mismatch" in error.evidence
    assert "drain" in error.hint
    assert not [line for line in node.ran if "gpuboot.nvml" in line]


def test_libraries_that_no_module_on_the_disk_fits_are_no_matter_of_a_reboot(node: Node) -> None:
    Modules(node, "nvidia")
    libraries(node, "550.163.01")
    error = raised(node, GpusAnswer())
    assert error.code.id == "GB304"
    assert error.hint.startswith("bring the driver's packages to one version")


def test_a_mismatch_that_only_nvml_sees_is_the_same_trouble(node: Node) -> None:
    node.bus((SLOT, "nvidia"))
    node.put("/sys/module/nvidia/version", f"{DRIVER}\n")
    said = "Driver/library version mismatch"
    probes(node, {"error": said, "value": 18, "transient": False}, {})
    error = raised(node, GpusAnswer())
    assert error.code.id == "GB304"
    assert error.message == f"the driver's libraries are unknown, its loaded module is {DRIVER}"
    assert said in error.evidence
