"""Every error code that gpuboot knows, gathered from the modules that raise them."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import asdict
from typing import Any

import gpuboot
from gpuboot.errors import Code, Elsewhere


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
    lines += ["", "What was looked at:", f"  {code.evidence}", "", "Next:"]
    lines += [f"  {command}" for command in code.commands]
    return "\n".join([*lines, "", f"All codes: man gpuboot-errors, or {code.doc}"])


def document(code: Code) -> dict[str, Any]:
    """What `gpuboot explain --json` prints of a code: its fields, and `doc`, where it is described.

    `elsewhere` are those of the commands that are no commands of this node.
    """
    elsewhere = [str(one) for one in code.commands if isinstance(one, Elsewhere)]
    return {**asdict(code), "elsewhere": elsewhere, "doc": code.doc}
