"""The card and its driver: present, not held by another, loaded, and answering."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import pytest

from gpuboot.errors import GpubootError
from gpuboot.host import Command, Result
from gpuboot.nvidia import DriverLoaded, GpuPresent, GpusAnswer, NouveauBlocked
from gpuboot.step import Ok, Pending, Reboot, Waiting
from tests.unit.node import KERNEL, SLOT, Node, code, module_text, reason, settled

TWO = "0000:1b:00.0"
DRIVER = "535.309.01"
PYTHON = sys.executable


def raised(node: Node, step: GpuPresent | GpusAnswer | DriverLoaded) -> GpubootError:
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


# -- loaded


class Modules:
    """The kernel's modules on a node with one T4: which are loaded, which let go."""

    def __init__(self, node: Node, *loaded: str, busy: tuple[str, ...] = ()) -> None:
        self.node = node
        self.busy = busy
        self.refuses: Result | None = None
        for name in loaded:
            self.load(name)
        node.put("/proc/sys/kernel/osrelease", KERNEL)
        node.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko")
        node.answers |= {
            "lspci": self.lspci, "modprobe": self.modprobe, "modinfo": self.modinfo,
            "nvidia-modprobe": self.nodes, "systemctl": "", "journalctl": "NVRM: a line\n",
        }  # fmt: skip

    def load(self, name: str, version: str = DRIVER) -> None:
        self.node.put(f"/sys/module/{name.replace('-', '_')}/version", version + "\n")

    def loaded(self, name: str) -> bool:
        return self.node.host.exists(f"/sys/module/{name}/version")

    def lspci(self, _: Command) -> Result:
        rivals = [name for name in ("nouveau", "nova_core", "vfio-pci") if self.loaded(name)]
        driver = (rivals or ["nvidia" if self.loaded("nvidia") else ""])[0]
        self.node.bus((SLOT, driver))
        text = self.node.answers["lspci"]
        self.node.answers["lspci"] = self.lspci
        assert isinstance(text, str)
        return Result(0, text)

    def modprobe(self, command: Command) -> Result:
        names = list(command.argv[1:])
        if names[0] != "-r":
            if self.refuses:
                return self.refuses
            self.load(names[0])
            return Result(0)
        if set(names) & set(self.busy):
            return Result(1, err=f"modprobe: FATAL: Module {names[-1]} is in use.")
        for name in names[1:]:
            folder = f"/sys/module/{name}"
            self.node.host.remove(f"{folder}/version")
            self.node.host.path(folder).rmdir()
        return Result(0)

    def modinfo(self, _: Command) -> Result:
        return Result(0, module_text(KERNEL, DRIVER))

    def nodes(self, command: Command) -> Result:
        names = {"255": "nvidiactl", "0": "nvidia-uvm" if "-u" in command.argv else "nvidia0"}
        for word in command.argv:
            if word in names:
                self.node.put(f"/dev/{names[word]}")
        return Result(0)


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        ([], "the nvidia module is not loaded"),
        (["nouveau"], f"nouveau holds {SLOT}"),
        (["nova_core"], f"nova_core holds {SLOT}"),
        (["nvidia", "nvidia_uvm"], "/etc/modules-load.d/gpuboot.conf is not written"),
    ],
)
def test_the_driver_is_loaded_without_a_reboot(node: Node, loaded: list[str], said: str) -> None:
    modules = Modules(node, *loaded)
    assert reason(DriverLoaded().check(node.host), Pending) == said
    found = settled(node, DriverLoaded())
    assert isinstance(found, Ok), found
    assert found.shows == {"driver": {"version": DRIVER, "kernel_module_type": "proprietary"}}
    assert modules.loaded("nvidia_uvm")
    assert (node.text("/etc/modules-load.d/gpuboot.conf") or "").endswith("nvidia\nnvidia-uvm\n")
    drop_in = "/etc/systemd/system/systemd-modules-load.service.d/gpuboot.conf"
    assert "ExecStartPost=-/usr/bin/nvidia-modprobe -u -c 0" in (node.text(drop_in) or "")


@pytest.mark.parametrize("rival", ["nouveau", "nova_core"])
def test_a_busy_rival_needs_a_reboot_and_a_new_initramfs(node: Node, rival: str) -> None:
    Modules(node, rival, busy=(rival,))
    node.put("/usr/sbin/update-initramfs")
    node.answers["update-initramfs"] = ""
    assert DriverLoaded().apply(node.host) == Reboot(f"{rival} holds {SLOT}")
    assert node.ran[-1] == "update-initramfs -u"
    assert "modprobe nvidia" not in node.ran


def test_without_an_initramfs_tool_a_reboot_is_asked_for_all_the_same(node: Node) -> None:
    Modules(node, "nouveau", busy=("nouveau",))
    assert isinstance(DriverLoaded().apply(node.host), Reboot)


def test_nouveau_that_holds_no_card_and_stays_is_no_obstacle(node: Node) -> None:
    modules = Modules(node, "nouveau", busy=("nouveau",))
    node.answers["lspci"] = modules.lspci

    def elsewhere(_: Command) -> Result:
        node.bus((SLOT, "nvidia" if modules.loaded("nvidia") else ""))
        text, node.answers["lspci"] = str(node.answers["lspci"]), elsewhere
        return Result(0, text)

    node.answers["lspci"] = elsewhere
    assert isinstance(settled(node, DriverLoaded()), Ok)


def test_an_older_loaded_driver_is_replaced_without_a_reboot(node: Node) -> None:
    modules = Modules(node)
    for name in ("nvidia", "nvidia_uvm", "nvidia_modeset"):
        modules.load(name, "525.1")
    assert reason(DriverLoaded().check(node.host), Pending) == (
        f"nvidia 525.1 is loaded, {DRIVER} is installed"
    )
    assert isinstance(settled(node, DriverLoaded()), Ok)
    assert "modprobe -r nvidia_uvm nvidia_modeset nvidia" in node.ran
    assert "systemctl stop nvidia-persistenced.service" in node.ran


def test_an_older_driver_in_use_needs_a_reboot(node: Node) -> None:
    Modules(node, busy=("nvidia",)).load("nvidia", "525.1")
    assert DriverLoaded().apply(node.host) == Reboot(
        f"nvidia 525.1 is in use, {DRIVER} is installed"
    )


REFUSALS = [
    "modprobe: ERROR: could not insert 'nvidia_current': Key was rejected by service",
    "modprobe: ERROR: could not insert 'nvidia_current': No such device",
]


@pytest.mark.parametrize("said", REFUSALS)
def test_a_module_the_kernel_refuses_is_final_and_told_with_the_kernels_lines(
    node: Node, said: str
) -> None:
    Modules(node).refuses = Result(1, err=said + "\nmodprobe: more\n")
    with pytest.raises(GpubootError) as caught:
        DriverLoaded().apply(node.host)
    error = caught.value
    assert (error.code.id, error.retry) == ("GB302", False)
    assert error.message == f"modprobe nvidia: {said}"
    assert error.evidence.endswith("NVRM: a line")


@pytest.mark.parametrize("gone", ["nvidiactl", "nvidia0", "nvidia-uvm"])
def test_a_missing_device_file_is_made_again(node: Node, gone: str) -> None:
    Modules(node)
    settled(node, DriverLoaded())
    node.host.remove(f"/dev/{gone}")
    assert reason(DriverLoaded().check(node.host), Pending) == f"/dev/{gone} missing"
    assert isinstance(settled(node, DriverLoaded()), Ok)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May\n", "proprietary"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.42.06  Rel\n", "open"),
    ],
)
def test_the_kind_of_module_is_what_the_driver_says(node: Node, text: str, kind: str) -> None:
    Modules(node)
    settled(node, DriverLoaded())
    node.put("/proc/driver/nvidia/version", text)
    found = DriverLoaded().check(node.host)
    assert isinstance(found, Ok)
    assert found.shows["driver"]["kernel_module_type"] == kind


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
        (
            {"error": "Driver/library version mismatch", "value": 18, "transient": False}, {},
            "nvml: Driver/library version mismatch", False,
        ),
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
