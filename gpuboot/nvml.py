"""Asks NVML or libcuda about the GPUs, as a program of its own that prints JSON and ends.

A library that was once loaded holds the device open and outlives its own upgrade, so the agent
never loads it: it runs `python3 -m gpuboot.nvml nvml` or `… cuda`.
"""

from __future__ import annotations

import ctypes
import json
import posixpath
import re
import sys
from typing import TYPE_CHECKING, Any

from gpuboot import pci

if TYPE_CHECKING:
    from gpuboot.host import Host

TRANSIENT = (10, 19, 27)  # NVML: timeout, in use, not ready
VERSION_MISMATCH = 18  # NVML: the library is of another version than the module

FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")


def main(argv: list[str]) -> int:
    """Print what the library says: `{"gpus": [...]}`, `{"count": n}` or `{"error": text}`."""
    answer = cuda() if argv == ["cuda"] else nvml()
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


def nvml() -> dict[str, Any]:
    """Driver version and GPUs: `pci` (as lspci writes it), `name`, `uuid`, `memory_mib`."""
    pynvml = binding()
    try:
        pynvml.nvmlInit()
        gpus = [
            _gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        version = text(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        value = getattr(error, "value", None)
        return {"error": str(error), "value": value, "transient": value in TRANSIENT}
    return {"driver": version, "gpus": gpus}


def binding() -> Any:  # noqa: ANN401 - neither module's types are the other's
    """pynvml, or what stands in for it on a machine that came with a driver of its own."""
    try:
        import pynvml
    except ImportError:
        from gpuboot import barenvml as pynvml
    return pynvml


def _gpu(pynvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401 - the module has no types
    return {
        "pci": pci.slot(text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
        "name": text(pynvml.nvmlDeviceGetName(handle)),
        "uuid": text(pynvml.nvmlDeviceGetUUID(handle)),
        "memory_mib": pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20,
    }


def text(value: bytes | str) -> str:
    """NVML's strings are bytes in the releases of Debian 12, str in newer ones."""
    return value.decode() if isinstance(value, bytes) else value


def library(host: Host) -> str | None:
    """The version of the installed NVML: what libnvidia-ml.so.1 stands for, by its file's name."""
    for folder in FOLDERS:
        name = f"{folder}/libnvidia-ml.so.1"
        for _ in range(8):  # links; in Debian through /etc/alternatives
            target = host.link(name)
            if target is None:
                break
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if match := re.fullmatch(r"libnvidia-ml\.so\.(\d+(?:\.\d+)+)", posixpath.basename(name)):
            return match[1]
    return None


def cuda() -> dict[str, Any]:
    """How many GPUs a CUDA program would find."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"error": f"libcuda.so.1: {error}"}
    count = ctypes.c_int(0)
    for name, arguments in (("cuInit", (0,)), ("cuDeviceGetCount", (ctypes.byref(count),))):
        code = getattr(library, name)(*arguments)
        if code != 0:
            return {"error": f"{name} failed: {_cuda_text(library, code)}"}
    return {"count": count.value}


def _cuda_text(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({code})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
