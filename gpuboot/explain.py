"""Every error code that gpuboot knows, gathered from the modules that raise them."""

from __future__ import annotations

import importlib
import pkgutil

import gpuboot
from gpuboot.errors import Code


def codes() -> dict[str, Code]:
    """All codes by their id, in order."""
    found: dict[str, Code] = {}
    for module in pkgutil.iter_modules(gpuboot.__path__):
        if module.name == "__main__":
            continue
        content = vars(importlib.import_module(f"gpuboot.{module.name}"))
        found |= {value.id: value for value in content.values() if isinstance(value, Code)}
    return dict(sorted(found.items()))


def text(code: Code) -> str:
    """What `gpuboot explain` prints."""
    lines = [f"{code.id}: {code.title}", "", "Usual causes:"]
    lines += [f"  - {cause}" for cause in code.causes]
    lines += ["", "Next:"]
    lines += [f"  {command}" for command in code.commands]
    return "\n".join(lines)
