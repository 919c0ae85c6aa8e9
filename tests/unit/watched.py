"""A node that is ready, cards of whose NVML a test says what happens to them, and the monitor."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from gpuboot import monitor, sensors
from gpuboot.config import Config, Rke2
from gpuboot.config import Monitor as Settings
from gpuboot.engine import Outcome
from gpuboot.monitor import Monitor
from tests.unit.node import Node
from tests.unit.test_status import DRIVER, NODE, walk

FIRST, SECOND = "0000:03:00.0", "0000:0b:00.0"
GPUS = [{"pci": FIRST, "uuid": "GPU-1", "memory_mib": 15360}]
TEXTFILE = "/var/lib/prometheus/node-exporter/gpuboot.prom"
CONFIG = f"rke2: {{join: none}}\nmonitor: {{textfile: {TEXTFILE}}}\n"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so"


class NVMLError(Exception):
    """As pynvml's: its number is `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class Gpu:
    """A card as NVML sees it."""

    slot: str
    uuid: str
    temperature: int = 37
    slowed: int = 0
    uncorrected: int = 0
    pending: int = 0
    error: int = 0


@dataclass
class Binding:
    """The part of pynvml that the monitor asks; what a test does to it happens to the cards."""

    gpus: list[Gpu]
    error: int = 0
    open: int = 0  # initialisations without an end
    NVMLError: type[Exception] = field(default=NVMLError)

    def nvmlInit(self) -> None:
        if self.error:
            raise NVMLError(self.error)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if self.gpus[index].error:
            raise NVMLError(self.gpus[index].error)
        return self.gpus[index]

    def nvmlDeviceGetPciInfo(self, gpu: Gpu) -> SimpleNamespace:
        return SimpleNamespace(busId=f"0000{gpu.slot}".upper().encode())

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> bytes:
        return gpu.uuid.encode()

    def nvmlDeviceGetMemoryInfo(self, _: Gpu) -> SimpleNamespace:
        return SimpleNamespace(used=448 << 20, total=15360 << 20)

    def nvmlDeviceGetTemperature(self, gpu: Gpu, _: int) -> int:
        return gpu.temperature

    def nvmlDeviceGetPowerUsage(self, _: Gpu) -> int:
        raise NVMLError(3)  # not supported

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: Gpu) -> int:
        return gpu.slowed

    def nvmlDeviceGetTotalEccErrors(self, gpu: Gpu, _: int, __: int) -> int:
        return gpu.uncorrected

    def nvmlDeviceGetRetiredPagesPendingStatus(self, gpu: Gpu) -> int:
        return gpu.pending


@dataclass
class Watched:
    """A node that is ready, its cards, and the monitor that looks at them."""

    node: Node
    nvml: Binding
    monitor: Monitor

    def looks(self, count: int) -> dict[str, Any]:
        """The last document of so many looks."""
        found: dict[str, Any] = {}
        for _ in range(count):
            self.node.clock.sleep(15)
            found = self.monitor.look()
        assert self.nvml.open == 0  # nothing is held between two looks
        return found

    def restart(self) -> None:
        """The monitor ends, and another one is started."""
        self.monitor.close()
        self.monitor = Monitor(self.node.host, self.monitor.wanted, self.monitor.ask)
        self.monitor.resume()

    def drill(self, line: str) -> None:
        self.node.put(monitor.DRILL, line + "\n")

    def metrics(self) -> str:
        return self.node.text(TEXTFILE) or ""


def watch(node: Node, gpus: list[dict[str, Any]]) -> Watched:
    shows = {"gpus": gpus, "driver": DRIVER, "node": NODE}
    walk(node).end(Outcome("ready", None, "every step holds", shows=shows), None)
    node.link(f"{LIBRARY}.1", "libnvidia-ml.so.535.309.01")
    node.put("/sys/module/nvidia/version", "535.309.01\n")
    for gpu in gpus:
        node.put(f"/sys/bus/pci/devices/{gpu['pci']}/vendor", "0x10de\n")
    node.put("/dev/kmsg")
    node.put(f"{TEXTFILE}.other")
    binding = Binding([Gpu(gpu["pci"], gpu["uuid"]) for gpu in gpus])
    node.put("/etc/gpuboot/config.yaml", CONFIG, mode=0o600)
    config = Config(rke2=Rke2(join="none"), monitor=Settings(textfile=TEXTFILE))
    return Watched(node, binding, Monitor(node.host, config, lambda: sensors.ask(binding)))
