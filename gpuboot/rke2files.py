"""RKE2's own files on this node: what is wrong, told before rke2-agent trips over it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gpuboot import agentrules, document, dropin, rke2
from gpuboot import config as configs
from gpuboot.agentkeys import SECRETS
from gpuboot.agentrules import LOST, OPEN, RANCHER, UNREADABLE, VALUE
from gpuboot.document import Value
from gpuboot.errors import Code, GpubootError
from gpuboot.reader import Problem

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.host import Host

# What editors and package tools leave beside a file; nobody wants RKE2 to read these.
_LEFTOVER = re.compile(
    r"(~|\.(bak|backup|old|orig|save|disabled|off|tmp|swp|swo|rpmsave|rpmnew|dpkg-\w+|gpuboot-new)"
    r"|\.(bak|old|orig)[.-]?\w+)$|^#.*#$",
    re.IGNORECASE,
)
# What RKE2 looks for on its PATH (k3s pkg/agent/containerd/runtimes.go).
RUNTIMES = {
    "nvidia": "nvidia-container-runtime",
    "nvidia-experimental": "nvidia-container-runtime-experimental",
    "nvidia-cdi": "nvidia-container-runtime.cdi",
}
_PATH = (
    "/usr/local/nvidia/toolkit", "/opt/kwasm/bin", "/usr/local/sbin", "/usr/local/bin",
    "/usr/sbin", "/usr/bin", "/sbin", "/bin",
)  # fmt: skip
_OTHER_NAME = "/etc/rancher/rke2/config.yml"


@dataclass(frozen=True)
class Look:
    """The files that were looked at, in RKE2's order, and what is wrong with them."""

    files: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _File:
    """One file: its map of keys, None where there is none, and what is wrong with it as a file."""

    top: Value | None
    problems: tuple[Problem, ...] = ()
    read: bool = True


def look(host: Host, config: Config | None) -> Look:
    """Look at the node's files of RKE2; `config` is gpuboot's own, None where that is wrong."""
    names, found = _names(host), [*_open_folders(host), *_ignored(host)]
    files = [_file(host, name) for name in names]
    tops = [file.top for file in files if file.top]
    for file in files:
        found += file.problems
    found += agentrules.check(tops)
    found += _runtimes(host, tops)
    if config and all(file.read for file in files):
        found += _contradiction(host, config, tops, found)
    return Look(tuple(names), tuple(map(_advised, found)))


def _open_folders(host: Host) -> Iterator[Problem]:
    """A folder that others can write is as good as the files in it."""
    for folder in (str(PurePosixPath(dropin.MAIN).parent), dropin.FOLDER):
        if problem := configs.unsafe(host, folder):
            hint = f"chown root: {folder}; chmod go-w {folder}"
            yield replace(problem, expected=None, hint=hint, code=OPEN.id)


def _names(host: Host) -> list[str]:
    """The files RKE2 reads, in its order; the folder itself where we may not look into it."""
    try:
        ours = [dropin.FILE] if host.exists(dropin.FILE) else []
        names = [*dropin.earlier_files(host), *ours, *dropin.later_files(host)]
    except PermissionError:
        return [dropin.FOLDER]
    return [name for name in names if not host.path(name).is_dir()]


def _ignored(host: Host) -> Iterator[Problem]:
    """Files that look as if RKE2 read them, and the other way round."""
    if host.exists(_OTHER_NAME) and not host.exists(dropin.MAIN):
        yield _about(_OTHER_NAME, LOST, "is not read by RKE2", f"{dropin.MAIN} as its name")
    with suppress(PermissionError):  # told of the folder itself
        for name in host.names(dropin.FOLDER):
            full = f"{dropin.FOLDER}/{name}"
            read = name.lower().endswith((".yaml", ".yml"))
            if read and name.startswith("."):
                yield _about(
                    full, LOST, "is hidden, and RKE2 reads it all the same", "a name without a dot"
                )
            elif not read and not name.startswith(".") and not _LEFTOVER.search(name):
                yield _about(full, LOST, "is not read by RKE2", "a name that ends in .yaml")


def _about(file: str, code: Code, message: str, expected: str | None = None) -> Problem:
    return Problem(f"{file}:1", "", message, expected, "warning", code=code.id)


def _file(host: Host, name: str) -> _File:
    content = host.read_bytes(name)
    if content is None:
        return _File(None, (_unread(host, name),), read=False)
    unsafe = _unsafe(host, name)
    found = document.read(name, content)
    if isinstance(found, Problem):
        message = f"{found.message}, so RKE2 cannot parse it and rke2-agent ends"
        broken = replace(found, message=message, code=UNREADABLE.id)
        return _File(None, (*unsafe, broken), read=False)
    if not found:
        return _File(None, unsafe)
    if found[0].kind != "map":
        wrong = found[0].problem(UNREADABLE, "is no map, which ends rke2-agent", "key: value")
        return _File(None, (*unsafe, wrong), read=False)
    further = [
        one.problem(
            LOST,
            "is a second document, which RKE2 does not read",
            "one document in each file",
            severity="warning",
        )
        for one in found[1:2]
    ]
    return _File(found[0], (*unsafe, *_told(host, found[0]), *further))


def _unread(host: Host, name: str) -> Problem:
    if name == dropin.FOLDER or host.forbidden(name):
        message = "only root can read it, so it was not looked at"
        return replace(_about(name, OPEN, message), hint="sudo gpuboot config check")
    message = "cannot be read, which ends rke2-agent"
    return replace(_about(name, UNREADABLE, message, "a readable file"), severity="error")


def _unsafe(host: Host, name: str) -> tuple[Problem, ...]:
    """Whoever can change the file can become root by it."""
    if problem := configs.unsafe(host, name):
        hint = f"chown root: {name}; chmod 0600 {name}"
        return (replace(problem, code=OPEN.id, hint=hint),)
    return ()


def _told(host: Host, top: Value) -> Iterator[Problem]:
    """A secret in a file that others can read."""
    if not (host.mode(top.file) or 0) & (stat.S_IRGRP | stat.S_IROTH):
        return
    for one in agentrules.settings(top):
        if one.name in SECRETS and one.value.kind != "null":
            yield one.value.problem(
                OPEN,
                f"stands in a file that others can read (mode {host.mode(top.file):04o})",
                "0600",
                severity="warning",
                hint=f"chmod 0600 {top.file}",
            )


def _runtimes(host: Host, tops: Sequence[Value]) -> Iterator[Problem]:
    """A default runtime that RKE2 would not find: it does not start then."""
    every = agentrules.effective([one for top in tops for one in agentrules.settings(top)])
    data = every.get("data-dir", [])
    base = (data[-1].text if data else None) or dropin.DATA
    for item in every.get("default-runtime", [])[-1:]:
        program = RUNTIMES.get(item.text or "")
        if program is None or any(
            host.exists(f"{folder}/{program}") for folder in _path(host, base)
        ):
            continue
        ours = item.text == "nvidia"
        yield item.problem(
            VALUE,
            f"{program} is not installed, and RKE2 does not start without it"
            + ("; gpuboot installs it before the node joins" if ours else ""),
            severity="warning" if ours else "error",
            hint="gpuboot status" if ours else f"install {program}, or take the key out",
        )


def _path(host: Host, data: str) -> list[str]:
    """Where RKE2 looks for runtimes: two folders of its own, and the service's PATH."""
    folders = [*_PATH, f"{data}/bin"]
    for name in rke2.ENVIRONMENT:
        for line in (host.read(name) or "").splitlines():
            key, _, value = line.strip().partition("=")
            if key == "PATH":
                folders += [part for part in value.strip("'\"").split(":") if part.startswith("/")]
    return folders


def _contradiction(
    host: Host, config: Config, tops: Sequence[Value], found: Sequence[Problem]
) -> Iterator[Problem]:
    """What gpuboot's own step says of these files (GB510), unless a rule has said it already."""
    agent = config.rke2.config
    if config.mode == "none":
        return
    try:
        dropin.Rke2Config({}, agent.node_label, agent.node_taint).text(host)
    except GpubootError as error:
        where, _, message = error.message.partition(": ")
        file = re.sub(r":[0-9]+$", "", where)
        key = "node-label" if message.startswith("node-label") else "node-taint"
        if any(one.file == file and one.key.rstrip("+") == key and one.severity == "error"
               for one in found):  # fmt: skip
            return
        place = _place(file, key, message, tops) if where == file else Problem(where, "", message)
        message = message.removeprefix(f"{key} ")
        yield replace(place, message=message, hint=error.hint, code=error.code.id)


def _place(file: str, key: str, message: str, tops: Sequence[Value]) -> Problem:
    """Where in a file the label or taint stands that a message of dropin's is about."""
    every = [one for top in tops for one in agentrules.settings(top) if one.value.file == file]
    mine = [one for one in every if one.name == key]
    items = [item for one in mine for item in one.items if f" {item.printed} " in message]
    for value in [*items, *(one.value for one in mine)]:
        return Problem(f"{file}:{value.line}", value.key, message)
    return Problem(f"{file}:1", "", message)


def _advised(problem: Problem) -> Problem:
    """Two of the files are not the operator's to edit."""
    if problem.code == OPEN.id or problem.severity == "notice":
        return problem
    if problem.file == RANCHER:
        advice = "Rancher writes this file: correct the cluster in Rancher, and check its YAML with"
        return replace(problem, hint=f"{advice} gpuboot config check --rancher FILE")
    if problem.file == dropin.FILE:
        advice = "gpuboot writes this file: correct /etc/gpuboot/config.yaml, then: gpuboot run"
        return replace(problem, hint=advice)
    return problem
