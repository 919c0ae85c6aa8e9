"""What a walk would find and do on this machine now: every step's check, and no apply."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuboot import apt, config, facts, plan, sources
from gpuboot.errors import GpubootError
from gpuboot.nvidia import RIVALS
from gpuboot.packages import Packages
from gpuboot.sources import PackageSources
from gpuboot.step import Ok, Pending, Reboot, Waiting, Writes

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host
    from gpuboot.step import Step

_STATES = {Ok: "ok", Pending: "pending", Waiting: "waiting", Reboot: "reboot"}
SCHEMA = 1


def preview(host: Host, *, offline: bool) -> dict[str, Any]:
    """What `gpuboot plan --json` prints; only reads, but for apt's state in a temporary folder.

    `steps` (name, state, reason, code), `packages` (name, version, bytes; null where unknown),
    `download_bytes`, `files` (name, diff), `reboot` (answer: no, maybe, yes; reason) and
    `trusted` (what, by what). Raises ConfigError, and GB20x if apt cannot resolve.
    """
    wanted = config.load(host)
    host.web.proxy = plan.proxy(wanted)
    machine = facts.gather(host)
    road = plan.build(wanted, machine)
    steps: list[dict[str, Any]] = []
    for step in road.steps:
        after = next((other["name"] for other in steps if other["state"] == "pending"), None)
        steps.append(_looked_at(host, step, after))
    packages = _packages(host, road.steps, steps, offline=offline)
    sizes = [package["bytes"] for package in packages if package["bytes"] is not None]
    return {
        "schema": SCHEMA,
        "steps": steps,
        "packages": packages,
        "download_bytes": sum(sizes) if sizes or not packages else None,
        "files": _files(host, road.steps),
        "reboot": _reboot(machine, steps),
        "trusted": _trusted(wanted),
    }


def elsewhere(host: Host, machine: Facts) -> dict[str, Any]:
    """The plan for another machine's recorded facts: nothing can be looked at there."""
    wanted = config.load(host)
    road = plan.build(wanted, machine)
    names = [name for step in road.steps if isinstance(step, Packages) for name in step.names]
    return {
        "schema": SCHEMA,
        "steps": [
            {"name": step.name, "state": None, "reason": "not looked at", "code": None}
            for step in road.steps
        ],
        "packages": [{"name": name, "version": None, "bytes": None} for name in names],
        "download_bytes": None,
        "files": [],
        "reboot": _reboot(machine, []),
        "trusted": _trusted(wanted),
    }


def _looked_at(host: Host, step: Step, after: str | None) -> dict[str, Any]:
    """What the step's check says now; `after` is the first step before it that is pending.

    What cannot be had yet is no failure while the step that provides it has not been taken.
    """
    try:
        finding = step.check(host)
    except GpubootError as error:
        if after and step.name not in ("rke2-hold", "preflight", "gpu-present", "rke2-config"):
            reason = f"can only be told after {after}"
            return {"name": step.name, "state": "pending", "reason": reason, "code": None}
        state = "waiting" if error.retry else "failed"
        return {"name": step.name, "state": state, "reason": error.message, "code": error.code.id}
    return {
        "name": step.name,
        "state": _STATES[type(finding)],
        "reason": finding.reason,
        "code": finding.code.id if isinstance(finding, Waiting) else None,
    }


def _packages(
    host: Host, steps: Sequence[Step], looked_at: Sequence[Mapping[str, Any]], *, offline: bool
) -> list[dict[str, Any]]:
    """What apt would fetch: with versions and sizes, or only our own names when offline."""
    states = {step["name"]: step["state"] for step in looked_at}
    if states.get(Packages.name) == "ok":
        return []
    step = next(step for step in steps if isinstance(step, Packages))
    if offline:
        there = apt.installed(host, step.names)
        missing = [name for name in step.names if name not in there]
        return [{"name": name, "version": None, "bytes": None} for name in missing]
    source = next(step for step in steps if isinstance(step, PackageSources))
    with tempfile.TemporaryDirectory(prefix="gpuboot-plan-") as folder:
        options = _private_apt(host, source, Path(folder))
        apt.update(host, step.env, options)
        found = apt.downloads(host, step.resolved(host, options), options, step.env)
    return [{"name": one.name, "version": one.version, "bytes": one.size} for one in found]


def _private_apt(host: Host, step: PackageSources, folder: Path) -> list[str]:
    """apt's options for lists and cache of its own, and the sources that the walk would write."""
    parts = folder / "sources.list.d"
    for name in ("lists/partial", "cache/archives/partial", "sources.list.d"):
        (folder / name).mkdir(parents=True)
    for name in host.names(sources.FOLDER):
        (parts / name).write_text(host.read(f"{sources.FOLDER}/{name}") or "", encoding="utf-8")
    for source in step.sources:
        text = sources.text(host, source, keys=folder)
        (parts / source.file.rpartition("/")[2]).write_text(text, encoding="utf-8")
    settings = {
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceParts": parts,
        "APT::Sandbox::User": "root",  # the folder is ours alone
        "Debug::NoLocking": "true",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _files(host: Host, steps: Sequence[Step]) -> list[dict[str, str]]:
    """The files the walk would write, each as a difference from what is there."""
    found = []
    for step in steps:
        if not isinstance(step, Writes):
            continue
        try:
            contents = step.writes(host)
        except GpubootError:
            continue  # told by the step's own line
        for name, text in contents.items():
            before = (host.read(name) or "").splitlines(keepends=True)
            after = text.splitlines(keepends=True)
            diff = difflib.unified_diff(before, after, name, name, n=2)
            if difference := host.mask("".join(diff)):
                found.append({"name": name, "diff": difference})
    return found


def _trusted(wanted: config.Config) -> list[dict[str, str]]:
    """What vouches for each thing that is downloaded."""
    found = [{"what": "packages", "by": "signatures of the sources' keys"}]
    if wanted.mode == "agent":
        by = "rke2.sha256" if wanted.rke2.sha256 else "TLS (its checksum file); rke2.sha256 pins it"
        found.append({"what": "RKE2", "by": by})
    return found


def _reboot(machine: Facts, steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether the walk will reboot: only trying to unload a rival driver can tell for certain."""
    if due := next((step for step in steps if step["state"] == "reboot"), None):
        return {"answer": "yes", "reason": due["reason"]}
    for gpu in machine.gpus:
        if gpu.driver in RIVALS:
            reason = f"{gpu.driver} holds {gpu.slot}; if it cannot be unloaded"
            return {"answer": "maybe", "reason": reason}
    return {"answer": "no", "reason": "nothing stands in the driver's way"}
