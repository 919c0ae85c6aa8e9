"""What a walk would find and do on this machine now: every step's check, and no apply."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuboot import (
    apt,
    aptfailure,
    boots,
    checkpoint,
    config,
    facts,
    findings,
    headers,
    kernel,
    plan,
    preflight,
    release,
    rke2,
    sources,
)
from gpuboot.errors import GpubootError
from gpuboot.host import write_failed
from gpuboot.images import ImagesPlaced
from gpuboot.nvidia import RIVALS
from gpuboot.packages import Packages
from gpuboot.precompiled import without_module
from gpuboot.secret import MASK
from gpuboot.sources import PackageSources
from gpuboot.step import Enables, Writes

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.facts import Facts
    from gpuboot.host import Host
    from gpuboot.plan import Plan
    from gpuboot.step import Step

SCHEMA = 1
INSTANT = 1.0  # seconds; what a step takes of which nothing else is known

# What holds a secret in a line of a difference: the old one may be unknown to us.
_TOKEN = re.compile(r'^(.\s*"?(?:agent-)?token"?\s*:|.HTTPS?_PROXY=).+', re.MULTILINE)
# apt's settings for a state of its own. #clear: a program may hang on updates, and write.
_PRIVATE = """\
#clear APT::Update;
#clear AptCli::Hooks;
Dir::State::Lists "{0}/lists";
Dir::Cache "{0}/cache";
Dir::Log "{0}/log";
Dir::Etc::SourceList "{0}/gpuboot.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "{0}/preferences";
APT::Sandbox::User "root";
Debug::NoLocking "true";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "10";
Acquire::https::Timeout "10";
"""


def preview(host: Host, looking: findings.Looking) -> dict[str, Any]:
    """What `gpuboot plan --json` prints; only reads, but for apt's state in a temporary folder.

    `live` (rke2-agent runs, so nothing disruptive is done), `steps` (name, state, reason, code,
    hint, drift; state ok, pending, drift, waiting, reboot, failed, or null where it was not looked
    at), `packages` (name, action, version, before, bytes; null where unknown), `download_bytes`,
    `held`, `files` (name, diff; null for a download), `units` that are enabled, `reboot` (answer:
    no, maybe, yes; reason), `expected` (seconds; of which the steps; reboot_seconds, which another
    boot adds; own: the steps whose time is this machine's own), `trusted` (what, by), `warnings`
    and `trouble` (null, or why the packages are names only: code, message, hint, evidence),
    `driver` (what was chosen and why: source, branch, kernel_module_type, build, signed, packages,
    reason; null where preflight tells why none was). Raises ConfigError and GB105.
    """
    wanted = config.load(host)
    host.web.proxy = plan.proxy(wanted)
    machine = facts.gather(host)
    road = plan.build(wanted, machine)
    live = rke2.live(host)
    steps: list[dict[str, Any]] = []
    for step in road.steps:
        steps.append(findings.look(host, road, step, steps, looking, live=live))
    acting = [step for step, seen in zip(road.steps, steps, strict=True)
              if seen["state"] == "pending"]  # fmt: skip
    packages, trouble = _packages(host, road, acting, looking)
    coming = {package["name"]: package["version"] or "" for package in packages
              if package["action"] != "remove"}  # fmt: skip
    sizes = [package["bytes"] for package in packages if package["bytes"] is not None]
    return {
        "schema": SCHEMA,
        "live": live,
        "steps": steps,
        "packages": packages,
        "download_bytes": sum(sizes) if sizes or not packages else None,
        "held": [name for step in acting if isinstance(step, Packages)
                 for name in step.loose(host, coming)],
        "files": _files(host, acting),
        "units": [unit for step in acting if isinstance(step, Enables)
                  for unit in step.enables(host)],
        "reboot": _reboot(host, wanted, machine, road, steps, packages, live=live),
        "expected": _expected(host, steps, live=live),
        "trusted": _trusted(wanted, {step.name for step in acting}),
        "warnings": _warnings(wanted, road),
        "trouble": trouble,
        "driver": _driver(road),
    }  # fmt: skip


def elsewhere(host: Host, machine: Facts) -> dict[str, Any]:
    """The plan for another machine's recorded facts: nothing can be looked at there.

    Raises ConfigError and GB105.
    """
    wanted = config.load(host)
    road = plan.build(wanted, machine)
    steps = {step.name: findings.line(step.name, None, "not looked at") for step in road.steps}
    for error in preflight.refused(machine, wanted):
        steps["preflight"] = findings.failed("preflight", error)
    names = _for_kernels(machine, road)
    names += [name for step in road.steps if isinstance(step, Packages) for name in step.names]
    return {
        "schema": SCHEMA,
        "live": False,
        "steps": list(steps.values()),
        "packages": _names_only(names),
        "download_bytes": None,
        "held": [],
        "files": [],
        "units": [],
        "reboot": _rivals(machine) or _no_reboot(machine),
        "expected": _typical(steps),
        "trusted": _trusted(wanted, {step.name for step in road.steps}),
        "warnings": _warnings(wanted, road),
        "trouble": None,
        "driver": _driver(road),
    }


def _for_kernels(machine: Facts, road: Plan) -> list[str]:
    """What the recorded kernels' modules need, as far as that can be told from afar."""
    found = []
    for one in (machine.kernel, machine.next_kernel):
        if road.driver and road.driver.stem:
            found.append(f"{road.driver.stem}-{one}")
        else:
            found += [headers.package(one), f"linux-headers-{kernel.flavour(one) or 'amd64'}"]
    return list(dict.fromkeys(found))


def _driver(road: Plan) -> dict[str, Any] | None:
    if road.driver is None:
        return None
    return {name: value for name, value in asdict(road.driver).items() if name != "warnings"}


def _warnings(wanted: Config, road: Plan) -> list[str]:
    return [*config.unwise(wanted), *(road.driver.warnings if road.driver else ())]


# -- packages -----------------------------------------------------------------------------------


def _packages(
    host: Host, road: Plan, acting: Sequence[Step], looking: findings.Looking
) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """What apt would do, and why that could not be told: then only our own names are known."""
    step = next((step for step in acting if isinstance(step, Packages)), None)
    if step is None:
        return [], None
    trouble = None
    if not looking.offline:
        source = next(step for step in road.steps if isinstance(step, PackageSources))
        try:
            return _resolved(host, source, step), None
        except GpubootError as error:
            trouble = _trouble(host, error)
        except OSError as error:  # of the temporary folder
            trouble = _trouble(host, write_failed(str(error.filename or "a file"), error))
    names = step.wanted(host)
    there = apt.installed(host, names)
    return _names_only([name for name in names if name not in there]), trouble


def _resolved(host: Host, source: PackageSources, step: Packages) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="gpuboot-plan-") as folder:
        options = _private_apt(host, source, Path(folder))
        found = step.changes(host, options)
    return [{"name": one.name, "action": one.action, "version": one.version, "before": one.before,
             "bytes": one.size} for one in found]  # fmt: skip


def _names_only(names: Sequence[str]) -> list[dict[str, Any]]:
    unknown = {"action": "install", "version": None, "before": None, "bytes": None}
    return [{"name": name, **unknown} for name in names]


def _trouble(host: Host, error: GpubootError) -> dict[str, str]:
    hint = error.hint
    if error.code is aptfailure.SOURCE_FAILED:
        hint = f"{hint}; without any archive: gpuboot plan --offline"
    return {"code": error.code.id, "message": host.mask(error.message), "hint": hint,
            "evidence": host.mask(error.evidence)}  # fmt: skip


def _private_apt(host: Host, step: PackageSources, folder: Path) -> list[str]:
    """apt's options for lists and cache of its own, and the sources that the walk would write."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    text = sources.text(host, step.sources, keys=folder)
    (folder / "gpuboot.sources").write_text(text, encoding="utf-8")
    (folder / "preferences").write_text(sources.preferences(step.pin) or "", encoding="utf-8")
    (folder / "apt.conf").write_text(_PRIVATE.format(folder), encoding="utf-8")
    return ["-c", str(folder / "apt.conf")]


# -- the rest -----------------------------------------------------------------------------------


def _files(host: Host, acting: Sequence[Step]) -> list[dict[str, str | None]]:
    """The files the walk would write, each as a difference from what is there."""
    found: list[dict[str, str | None]] = []
    for step in acting:
        if not isinstance(step, Writes):
            continue
        try:
            contents = step.writes(host)
        except GpubootError:
            continue  # told by the step's own line
        for name, text in contents.items():
            if text is None:
                found.append({"name": name, "diff": None})
            elif difference := _difference(host, name, text):
                found.append({"name": name, "diff": difference})
    return found


def _difference(host: Host, name: str, text: str) -> str:
    before = (host.read(name) or "").splitlines(keepends=True)
    after = text.splitlines(keepends=True)
    diff = "".join(difflib.unified_diff(before, after, name, name, n=2))
    return _TOKEN.sub(rf"\1 {MASK}", host.mask(diff))


def _trusted(wanted: Config, acting: set[str]) -> list[dict[str, str]]:
    """What vouches for each thing that is downloaded."""
    found = []
    if Packages.name in acting:
        found.append({"what": "packages", "by": "signatures of the sources' keys"})
    want = wanted.rke2
    if rke2.Rke2Installed.name in acting and (want.version or want.channel):
        what = f"RKE2 {want.version}" if want.version else f"RKE2 of channel {want.channel}"
        found.append({"what": what, "by": _release_trusted(wanted)})
    if ImagesPlaced.name in acting:
        by = _listed(wanted).partition(";")[0]
        found.append({"what": "image archives of RKE2", "by": by})
    return found


def _release_trusted(wanted: Config) -> str:
    return "rke2.sha256" if wanted.rke2.sha256 else _listed(wanted)


def _listed(wanted: Config) -> str:
    """What the release's own list of checksums is worth."""
    if wanted.sources.rke2.url.startswith("/"):
        return "its checksum file in the same folder"
    if wanted.sources.rke2.url.startswith("http:"):
        return f"nothing, over plain http: refused ({release.UNVERIFIED.id}), set rke2.sha256"
    return "TLS (its checksum file); rke2.sha256 pins it"


def _expected(host: Host, steps: Sequence[Mapping[str, Any]], *, live: bool) -> dict[str, Any]:
    """How long the walk will take, from this machine's earlier boots and what is usual."""
    record = checkpoint.remembered(host)
    history = record.history if record else []
    skipped = ("ok", "drift", None) if live else ("ok", "drift")
    names = [step["name"] for step in steps if step["state"] not in skipped]
    return _times(names, boots.usual(history), boots.reboot(history))


def _typical(names: Iterable[str]) -> dict[str, Any]:
    return _times(names, {}, boots.REBOOT)


def _times(names: Iterable[str], own: Mapping[str, float], reboot: float) -> dict[str, Any]:
    known = {**boots.TYPICAL, **own}
    times = {name: known.get(name, INSTANT) for name in names}
    return {
        "seconds": round(sum(times.values())),
        "steps": {name: round(time) for name, time in times.items() if time > INSTANT},
        "own": [name for name in times if name in own],
        "reboot_seconds": round(reboot),
    }


def _reboot(
    host: Host,
    wanted: Config,
    machine: Facts,
    road: Plan,
    steps: Sequence[Mapping[str, Any]],
    packages: Sequence[Mapping[str, Any]],
    *,
    live: bool,
) -> dict[str, str]:
    """Whether the walk will reboot: only trying to unload a driver can tell for certain."""
    if live:
        return {"answer": "no", "reason": "rke2-agent is active: a live node is not rebooted"}
    due = next((step for step in steps if step["state"] == "reboot"), None)
    found = {"answer": "yes", "reason": due["reason"]} if due else None
    found = found or _other_kernel(host, machine, road, packages) or _rivals(machine)
    found = found or _other_driver(host, road, packages) or _no_reboot(machine)
    if found["answer"] != "no" and not wanted.reboot.allow:
        found["reason"] += "; reboot.allow is false, so it would wait for you"
    return found


def _other_kernel(
    host: Host, machine: Facts, road: Plan, packages: Sequence[Mapping[str, Any]]
) -> dict[str, str] | None:
    """The kernel is upgraded because nothing serves this one; before the driver comes a reboot."""
    names = [str(package["name"]) for package in packages]
    stem = road.driver.stem if road.driver else ""
    ready = any(name.startswith(f"{stem}-") for name in names) if stem else False
    own = f"{stem}-{machine.kernel}" if ready else headers.package(machine.kernel)
    upgraded = any(name.startswith("linux-image-") for name in names)
    if not upgraded or own in names or machine.kernel not in without_module(host):
        return None
    lacks = "ready-made module" if ready else "headers"
    reason = f"the archive has no {lacks} for {machine.kernel} any more; a newer kernel is booted"
    return {"answer": "yes", "reason": reason}


def _rivals(machine: Facts) -> dict[str, str] | None:
    for gpu in machine.gpus:
        if gpu.driver in RIVALS:
            reason = f"{gpu.driver} holds {gpu.slot}; if it cannot be unloaded"
            return {"answer": "maybe", "reason": reason}
    return None


def _other_driver(
    host: Host, road: Plan, packages: Sequence[Mapping[str, Any]]
) -> dict[str, str] | None:
    """A loaded driver of another version than the one that is or will be installed."""
    loaded = kernel.loaded_version(host, "nvidia")
    built = kernel.nvidia_module(host, kernel.running(host))
    brings = road.driver.packages[:1] if road.driver else ()  # the module
    coming = next((package for package in packages if package["name"] in brings), None)
    if coming:
        wanted = str(coming["version"] or "another")
    elif built:
        wanted = built.version
    else:
        return None
    if loaded is None or wanted.partition("-")[0] == loaded:
        return None
    reason = f"nvidia {loaded} is loaded, {wanted} is wanted; if it cannot be unloaded"
    return {"answer": "maybe", "reason": reason}


def _no_reboot(machine: Facts) -> dict[str, str]:
    reason = "nothing stands in the driver's way"
    if machine.next_kernel != machine.kernel:
        reason += f"; kernel {machine.next_kernel}, which boots next, gets its module too"
    return {"answer": "no", "reason": reason}
