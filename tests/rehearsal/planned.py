"""Whether asking for the plan changed nothing, and whether the walk did what the plan had said.

What was said comes from the node's own probe (probes/plan.py), what was done from the node's
files: dpkg's log and status, /etc, and the boots that the rehearsal has counted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = "var/lib/lab/plan.json"  # of the probe
OPERATORS = "/etc/gpuboot/"  # its files speak of gpuboot, and are not gpuboot's
DROP_IN = "/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml"  # its taints leave it after the join
MASK = "<secret>"


@dataclass(frozen=True)
class Work:
    """What a walk would do, or has done."""

    packages: Mapping[str, str]  # the version that is there then, or "removed"
    held: frozenset[str]
    files: frozenset[str]
    units: frozenset[str]  # that are started at every boot


def findings(root: Path, *, ready: bool, rebooted: int, corrected: bool = False) -> list[str]:
    """What the plan changed, and where the walk and the plan differ.

    `ready`: the walk has reached its end, so that everything planned must be done. `corrected`:
    somebody has changed configuration or machine since, so that the plan says nothing any more.
    """
    file = root / RESULT
    if not file.is_file():
        return [f"gpuboot plan: expected /{RESULT} / found nothing"]
    probed = json.loads(file.read_text(encoding="utf-8"))
    found = list(_changes(probed))
    if corrected:
        return found
    plan = probed["plan"]
    if plan is None and probed["exit"] == 0:
        found.append(f"gpuboot plan: expected JSON / found {probed['stderr'].strip() or 'nothing'}")
    said, done = _said(plan), _done(root, probed["before"])
    found += _unplanned(said, done, names_only=_names_only(plan))
    if ready:
        found += _undone(root, said, done)
        found += _contents(root, plan)
    return [*found, *_reboots(plan, rebooted, ready=ready)]


def _changes(probed: Mapping[str, Any]) -> Iterator[str]:
    for command, seen in (("plan", probed), ("preflight", probed["preflight"])):
        for line in seen["changed"]:
            yield f"gpuboot {command}: expected no change / found {line}"


def _said(plan: Mapping[str, Any] | None) -> Work:
    """What was planned; one that ended with an error plans nothing."""
    if plan is None:
        return Work({}, frozenset(), frozenset(), frozenset())
    return Work(
        {
            package["name"]: "removed" if package["action"] == "remove" else package["version"]
            for package in plan["packages"]
        },
        frozenset(plan["held"]),
        frozenset(file["name"] for file in plan["files"]),
        frozenset(plan["units"]),
    )


def _names_only(plan: Mapping[str, Any] | None) -> bool:
    """Whether the plan could not ask the archive: then it does not know what else comes along."""
    return plan is not None and any(
        package["version"] is None and package["action"] != "remove" for package in plan["packages"]
    )


def _done(root: Path, before: Mapping[str, Any]) -> Work:
    with (root / "var/log/dpkg.log").open("rb") as log:
        log.seek(before["dpkg_log"])
        text = log.read().decode("utf-8", "replace")
    rows = re.findall(r"^\S+ \S+ (install|upgrade|remove) ([^\s:]+)\S* \S+ (\S+)$", text, re.M)
    status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    held = re.findall(r"^Package: (\S+)\nStatus: hold ", status, re.M)
    wants = (root / "etc/systemd/system").glob("*.wants/*")
    return Work(
        # gpuboot itself is installed and removed by others.
        {
            name: "removed" if verb == "remove" else version
            for verb, name, version in rows
            if name != "gpuboot"
        },
        frozenset(held) - set(before["held"]),
        frozenset(_written(root, before["etc"])),
        frozenset(link.name for link in wants),
    )


def _written(root: Path, before: Mapping[str, str]) -> Iterator[str]:
    """Files below /etc that are new or changed, speak of gpuboot, and belong to no package."""
    lists = (root / "var/lib/dpkg/info").glob("*.list")
    owned = {line for file in lists for line in file.read_text(encoding="utf-8").splitlines()}
    for path in sorted((root / "etc").rglob("*")):
        name = f"/{path.relative_to(root)}"
        if name in owned or name.startswith(OPERATORS) or ".wants/" in name:
            continue
        content = _content(path)
        if content is None or hashlib.sha256(content).hexdigest() == before.get(name):
            continue
        if "gpuboot" in name or b"gpuboot" in content:
            yield name


def _content(path: Path) -> bytes | None:
    # Links are left alone: theirs lead out of the node, and gpuboot makes none but units'.
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def _unplanned(said: Work, done: Work, *, names_only: bool) -> Iterator[str]:
    for name, version in sorted(done.packages.items()):
        if not names_only and said.packages.get(name) != version:
            planned = said.packages.get(name, "nothing")
            yield f"package {name}: expected {planned}, as planned / found {version}"
    # By its versions the plan knows what comes along with the driver, and is held with it.
    held = frozenset[str]() if names_only else done.held - said.held
    for what, extra in (("file", done.files - said.files), ("hold on", held)):
        for name in sorted(extra):
            yield f"{what} {name}: expected nothing, as planned / found it"


def _undone(root: Path, said: Work, done: Work) -> Iterator[str]:
    # What does not speak of gpuboot, such as an image archive, only has to be there.
    others = {name for name in said.files if "gpuboot" not in name}
    there = {name for name in others if (root / name.lstrip("/")).exists()}
    for kind, missing in (
        ("package", said.packages.keys() - done.packages.keys()),
        ("file", said.files - done.files - there),
        ("hold on", said.held - done.held),
        ("enabled unit", said.units - done.units),
    ):
        for name in sorted(missing):
            yield f"{kind} {name}: expected as planned / found nothing done"


def _contents(root: Path, plan: Mapping[str, Any] | None) -> Iterator[str]:
    """Lines that were planned and are not there; a masked one cannot be compared."""
    for file in plan["files"] if plan else ():
        path = root / file["name"].lstrip("/")
        if file["name"] == DROP_IN or file["diff"] is None or not path.is_file():
            continue
        there = path.read_text(encoding="utf-8", errors="replace").splitlines()
        added = re.findall(r"^\+(?!\+\+ )(.*)$", file["diff"], re.M)
        for line in added:
            if line not in there and MASK not in line:
                yield f"file {file['name']}: expected {line}, as planned / found no such line"


def _reboots(plan: Mapping[str, Any] | None, rebooted: int, *, ready: bool) -> Iterator[str]:
    answer = plan["reboot"]["answer"] if plan else "no"
    if answer == "no" and rebooted:
        yield f"reboots: expected none, as planned / found {rebooted}"
    if answer == "yes" and ready and not rebooted:
        yield "reboots: expected one, as planned / found none"
