"""The few functions of NVML that we ask, by pynvml's names, where pynvml is not installed.

A template's own driver comes without it, and Debian's package would bring Debian's libnvidia-ml1
over that driver's. The signatures are nvml.h's, which keeps them for good.
"""

from __future__ import annotations

import ctypes
from typing import Any

NO_LIBRARY, NO_FUNCTION = 12, 13
STRING = 96  # bytes: NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE


class NVMLError(Exception):
    """What NVML answers instead of 0."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t, third version."""

    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pciDeviceId", ctypes.c_uint),
        ("pciSubSystemId", ctypes.c_uint),
        ("busId", ctypes.c_char * 32),
    )


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def nvmlInit() -> None:
    _call("nvmlInit_v2")


def nvmlShutdown() -> None:
    _call("nvmlShutdown")


def nvmlSystemGetDriverVersion() -> str:
    return _string("nvmlSystemGetDriverVersion")


def nvmlDeviceGetCount() -> int:
    count = ctypes.c_uint()
    _call("nvmlDeviceGetCount_v2", ctypes.byref(count))
    return count.value


def nvmlDeviceGetHandleByIndex(index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    return handle


def nvmlDeviceGetPciInfo(handle: ctypes.c_void_p) -> PciInfo:
    info = PciInfo()
    _call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(info))
    return info


def nvmlDeviceGetName(handle: ctypes.c_void_p) -> str:
    return _string("nvmlDeviceGetName", handle)


def nvmlDeviceGetUUID(handle: ctypes.c_void_p) -> str:
    return _string("nvmlDeviceGetUUID", handle)


def nvmlDeviceGetMemoryInfo(handle: ctypes.c_void_p) -> Memory:
    memory = Memory()
    _call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return memory


def nvmlDeviceGetTemperature(handle: ctypes.c_void_p, sensor: int) -> int:
    return _number("nvmlDeviceGetTemperature", handle, ctypes.c_uint(sensor))


def nvmlDeviceGetPowerUsage(handle: ctypes.c_void_p) -> int:
    return _number("nvmlDeviceGetPowerUsage", handle)


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: ctypes.c_void_p) -> int:
    reasons = ctypes.c_ulonglong()
    _call("nvmlDeviceGetCurrentClocksThrottleReasons", handle, ctypes.byref(reasons))
    return reasons.value


def nvmlDeviceGetPersistenceMode(handle: ctypes.c_void_p) -> int:
    return _number("nvmlDeviceGetPersistenceMode", handle)


def nvmlDeviceGetTotalEccErrors(handle: ctypes.c_void_p, kind: int, counter: int) -> int:
    count = ctypes.c_ulonglong()
    words = (ctypes.c_uint(kind), ctypes.c_uint(counter))
    _call("nvmlDeviceGetTotalEccErrors", handle, *words, ctypes.byref(count))
    return count.value


def nvmlDeviceGetRetiredPagesPendingStatus(handle: ctypes.c_void_p) -> int:
    return _number("nvmlDeviceGetRetiredPagesPendingStatus", handle)


def _number(name: str, *arguments: Any) -> int:  # noqa: ANN401 - whatever C takes
    number = ctypes.c_uint()
    _call(name, *arguments, ctypes.byref(number))
    return number.value


def _string(name: str, *arguments: Any) -> str:  # noqa: ANN401 - whatever C takes
    text = ctypes.create_string_buffer(STRING)
    _call(name, *arguments, text, ctypes.c_uint(STRING))
    return text.value.decode("utf-8", "replace")


def _call(name: str, *arguments: Any) -> None:  # noqa: ANN401
    """Raises NVMLError."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        raise NVMLError(NO_LIBRARY, "NVML Shared Library Not Found") from None
    function = getattr(library, name, None)
    if function is None:
        raise NVMLError(NO_FUNCTION, f"NVML has no {name}")
    if value := function(*arguments):
        told = library.nvmlErrorString
        told.restype = ctypes.c_char_p
        raise NVMLError(value, (told(value) or b"NVML failed").decode("utf-8", "replace"))
