"""Rancher's cluster manifests: what in them keeps GPU nodes from joining or staying."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpuboot import document, pools, userdata
from gpuboot.agentkeys import LISTS
from gpuboot.agentrules import KNOWN_LATER, LOST, UNREADABLE, VALUE
from gpuboot.document import Value
from gpuboot.pools import BOOTSTRAP, DRAIN, HEALTH, REBOOT, STARTUP, VSPHERE, Pool, duration
from gpuboot.reader import Problem
from gpuboot.reader import duration as shown
from gpuboot.secret import blotted

CLUSTER = "provisioning.cattle.io/"
CAPI = "cluster.x-k8s.io/"
OVERWRITTEN = frozenset({"node-label", "node-taint"})  # planner/config.go addLabels, addTaints
EXCLUDED = "machine.cluster.x-k8s.io/exclude-node-draining"
MACHINE_CONFIG = "rke-machine-config.cattle.io/"


@dataclass(frozen=True)
class Manifest:
    """One Kubernetes object in a file."""

    value: Value

    def _text(self, *names: str) -> str:
        found = self.value.get(*names)
        return (found.text or "") if found else ""

    @property
    def kind(self) -> str:
        return self._text("kind")

    @property
    def name(self) -> str:
        return self._text("metadata", "name")

    def of(self, group: str, kind: str = "") -> bool:
        """Whether it is of this API group, and of this kind."""
        return self._text("apiVersion").startswith(group) and kind in ("", self.kind)


def check(files: Sequence[tuple[str, bytes]]) -> list[Problem]:
    """What is wrong in these files' manifests; keys that no rule knows are left alone."""
    found: list[Problem] = []
    manifests: list[Manifest] = []
    for name, content in files:
        read = document.read(name, content)
        if isinstance(read, Problem):
            found.append(replace(read, code=UNREADABLE.id))
        else:
            manifests += [one for value in read for one in _manifests(value)]
    clusters = [one for one in manifests if one.of(CLUSTER, "Cluster")]
    configs = [one for one in manifests if one.of(MACHINE_CONFIG)]
    deployments = [one for one in manifests if one.of(CAPI, "MachineDeployment")]
    checks = [one for one in manifests if one.of(CAPI, "MachineHealthCheck")]
    if not found and not clusters + configs + deployments + checks:
        where = f"{files[0][0]}:1" if files else ""
        message = "holds no cluster, machine config or health check: nothing was checked"
        expected = "a Cluster of provisioning.cattle.io/v1"
        found.append(Problem(where, "", message, expected, "warning", code=KNOWN_LATER.id))
    for cluster in clusters:
        found += _cluster(cluster, configs)
    found += _user_data(clusters, configs)
    found += [problem for one in deployments for problem in _deployment(one)]
    found += [problem for one in checks for problem in _health_check(one)]
    return found


def _manifests(value: Value) -> Iterator[Manifest]:
    """An object, or those in a List, as `kubectl get -o yaml` prints them."""
    one = Manifest(value)
    items = value.get("items")
    if one.kind.endswith("List") and items:
        yield from (Manifest(replace(item, key="")) for item in items.items())
    else:
        yield one


# -- a cluster ----------------------------------------------------------------------------------


def _cluster(cluster: Manifest, configs: Sequence[Manifest]) -> Iterator[Problem]:
    rke = cluster.value.get("spec", "rkeConfig")
    if rke is None or rke.kind != "map":
        place = rke or cluster.value.get("kind") or cluster.value
        message = "has no rkeConfig: Rancher has not made its machines, so nothing was checked"
        yield replace(place, key="spec").problem(KNOWN_LATER, message, severity="notice")
        return
    rke = replace(rke, key="")
    listed = rke.get("machinePools")
    found = _pools(listed, configs) if listed else []
    yield from _global(rke, found)
    for pool in found:
        yield from pools.check(pool)
    if not any(pool.gpu for pool in found):
        yield (listed or rke).problem(
            KNOWN_LATER,
            "no pool looks like one with GPUs, so timeouts, drain and user-data were not checked",
            "a label or taint of nvidia.com/, or gpu in the pool's name",
            severity="notice",
        )


def _pools(listed: Value, configs: Sequence[Manifest]) -> list[Pool]:
    found = []
    for number, item in enumerate(listed.items()):
        name, reference = item.get("name"), item.get("machineConfigRef")
        kind, named = (item.get("machineConfigRef", key) for key in ("kind", "name"))
        wanted = (kind.text, named.text) if reference and kind and named else None
        config = [one for one in configs if wanted and (one.kind, one.name) == wanted]
        key = f"machinePools[{blotted((name and name.text) or str(number))}]"
        found.append(Pool(replace(item, key=key), config[0].value if config else None))
    return found


def _global(rke: Value, every: Sequence[Pool]) -> Iterator[Problem]:
    """machineGlobalConfig, and what machineSelectorConfig lays over it."""
    common = rke.get("machineGlobalConfig")
    selectors = rke.get("machineSelectorConfig")
    laid_over = selectors.items() if selectors else []
    configs = [one for item in laid_over if (one := item.get("config"))]
    for one in [common, *configs]:
        if one:
            yield from _lost(one)
    for item in [*([common] if common else []), *(_unselected(laid_over))]:
        yield from _runtime_for_all(item, every)
    for one in configs:
        for key, value in one.entries():
            if key in LISTS - OVERWRITTEN and common and (other := common.get(key)):
                yield value.problem(
                    LOST,
                    f"replaces the {key} of machineGlobalConfig (line {other.line})",
                    "the whole list here",
                    severity="warning",
                )


def _unselected(laid_over: Sequence[Value]) -> Iterator[Value]:
    """The configuration of those that select no machines, and so have all of them."""
    for item in laid_over:
        selector, found = item.get("machineLabelSelector"), item.get("config")
        if found and not (selector and any(part.entries() or part.items()
                                           for _, part in selector.entries())):  # fmt: skip
            yield found


def _lost(config: Value) -> Iterator[Problem]:
    for key, value in config.entries():
        if key.removesuffix("+") in OVERWRITTEN:
            what = "labels" if "label" in key else "taints"
            yield value.problem(
                LOST,
                "is overwritten by Rancher for every node",
                f"machinePools[].{what}",
            )
        elif value.kind in ("number", "map"):
            yield value.problem(
                LOST,
                f"is {value.what}, which Rancher drops; it keeps texts, booleans and lists",
                "quotes around it" if value.kind == "number" else "a text or a list",
                severity="warning",
            )


def _runtime_for_all(config: Value, every: Sequence[Pool]) -> Iterator[Problem]:
    value = config.get("default-runtime")
    if not value or not (value.text or "").startswith("nvidia"):
        return
    others = [pool.value.key for pool in every if not pool.gpu]
    if others or not every:
        yield value.problem(
            VALUE,
            "is set for every node, and RKE2 does not start where that runtime is not installed"
            + (f": {', '.join(others)}" if others else ""),
            "machineSelectorConfig with a selector for the GPU pool",
        )


# -- machine configs and Cluster API ------------------------------------------------------------


def _user_data(clusters: Sequence[Manifest], configs: Sequence[Manifest]) -> Iterator[Problem]:
    """The user-data of each machine config, by whatever pools it is used."""
    every = [
        pool
        for cluster in clusters
        if (listed := cluster.value.get("spec", "rkeConfig", "machinePools"))
        for pool in _pools(listed, configs)
    ]
    for config in configs:
        if config.kind != VSPHERE:
            continue
        users = [pool for pool in every if pool.config is config.value]
        gpu = any(pool.gpu for pool in users)
        value = config.value.get("cloudConfig")
        place = value or config.value.get("kind") or config.value
        if value and value.kind != "null":
            yield from userdata.check(value, gpu=gpu)
        elif gpu:
            yield userdata.no_run(replace(place, key="cloudConfig"))


def _deployment(one: Manifest) -> Iterator[Problem]:
    template = one.value.get("spec", "template")
    annotations = template.get("metadata", "annotations") if template else None
    excluded = annotations.get(EXCLUDED) if annotations else None
    if excluded:
        yield excluded.problem(
            DRAIN,
            "machines are deleted without a drain, under their running jobs",
            "no such annotation on GPU machines",
            severity="warning",
        )


def _health_check(one: Manifest) -> Iterator[Problem]:
    """A health check, as v1beta1 writes it or v1beta2 (in seconds, below checks)."""
    spec = one.value.get("spec")
    if not spec or spec.kind != "map":
        return
    checks = spec.get("checks")
    startup = spec.get("nodeStartupTimeout") or spec.get("checks", "nodeStartupTimeoutSeconds")
    limit = _seconds(startup) if startup else STARTUP
    if startup and limit is None:
        yield startup.problem(HEALTH, "is no duration", _expected(startup))
    elif limit and limit < BOOTSTRAP:
        said = shown(limit) if startup else "nodeStartupTimeout is unset: 10m"
        yield (startup or spec).problem(
            HEALTH,
            f"{said} is shorter than the bootstrap of a GPU node may take",
            "45m, if it selects GPU machines",
            severity="warning",
        )
    conditions = (
        checks.get("unhealthyNodeConditions") if checks else spec.get("unhealthyConditions")
    )
    for condition in conditions.items() if conditions else []:
        timeout = condition.get("timeoutSeconds" if checks else "timeout")
        seconds = _seconds(timeout) if timeout else None
        if timeout and seconds is None:
            yield timeout.problem(HEALTH, "is no duration", _expected(timeout))
        elif timeout and seconds and seconds < REBOOT:
            yield timeout.problem(
                HEALTH,
                f"{shown(seconds)} is shorter than a reboot with a driver to build",
                "10m or more, if it selects GPU machines",
                severity="warning",
            )


def _seconds(value: Value) -> float | None:
    """A timeout in seconds, where the key says so, or else as Go writes a duration."""
    if value.key.endswith("Seconds"):
        text = value.text or ""
        return float(text) if value.kind == "number" and re.fullmatch("[0-9]{1,9}", text) else None
    return duration(value)


def _expected(value: Value) -> str:
    return "a number" if value.key.endswith("Seconds") else 'a text such as "45m"'
