"""A machine pool of a Rancher cluster: what in it keeps GPU nodes from joining or staying.

How pools become nodes: rancher pkg/controllers/capr and pkg/capr/planner; a health check is made
by template.go (deploymentHealthChecks).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpuboot import labels
from gpuboot.agentrules import KNOWN_LATER, LABEL, LOST, TAINT, refused_label, taints_twice
from gpuboot.document import Value
from gpuboot.errors import Code, Elsewhere
from gpuboot.labels import Taint
from gpuboot.reader import Problem
from gpuboot.secret import quoted
from gpuboot.settings import Agent

HEALTH = Code(
    "GB566",
    "a health check replaces machines before they are ready",
    (
        "nodeStartupTimeout is unset beside unhealthyNodeTimeout: a node has 10 minutes to join.",
        "A reboot, or a driver that is built anew, takes longer than unhealthyNodeTimeout.",
    ),
    (Elsewhere("kubectl get machinehealthchecks -A"), "gpuboot config check --rancher FILE"),
    evidence="the health check's and the pool's timeouts",
)
DRAIN = Code(
    "GB567",
    "machines with GPUs are deleted without a drain",
    ("drainBeforeDelete is unset or false: running jobs are killed with their machine.",),
    ("gpuboot config check --rancher FILE",),
    evidence="the pool's drainBeforeDelete",
)

GPU_PREFIX = "nvidia.com/"
# Other drivers have other fields, and some put Rancher's line first.
VSPHERE = "VmwarevsphereConfig"
# DKMS alone takes five to ten minutes; add a reboot, slow mirrors and a VM that is still cloned.
BOOTSTRAP = 1800.0
# Rancher's own default, cluster_types.go
STARTUP = 600.0
# A reboot with a driver that is built anew for another kernel.
REBOOT = 600.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True)
class Pool:
    """A machine pool and its machine config."""

    value: Value
    config: Value | None  # the machine config, where the files have it

    @property
    def user_data(self) -> Value | None:
        return self.config.get("cloudConfig") if self.config else None

    @property
    def gpu(self) -> bool:
        """Whether its nodes are meant to have GPUs, as labels, taints, name or user-data say."""
        name = self.value.get("name")
        taints = self.value.get("taints")
        keys = [key.text for taint in taints.items() if (key := taint.get("key"))] if taints else []
        for where in ("labels", "machineDeploymentLabels"):
            named = self.value.get(where)
            keys += [key for key, _ in named.entries()] if named else []
        told = self.user_data.text if self.user_data else None
        return (
            any((key or "").startswith(GPU_PREFIX) for key in keys)
            or bool(name and re.search(r"(?<!no-)(?<!non-)gpu", (name.text or "").lower()))
            or "gpuboot" in (told or "")
        )


def check(pool: Pool) -> Iterator[Problem]:
    """What is wrong with a pool; keys that no rule knows are left alone."""
    for rule in (_labels, _deployment_labels, _taints, _timeouts, _drain, _unseen_user_data):
        yield from rule(pool)


def _labels(pool: Pool) -> Iterator[Problem]:
    named = pool.value.get("labels")
    if not named or named.kind == "null":
        return
    if named.kind != "map":
        yield named.problem(LABEL, f"is {named.what}", "key: value for each label")
    for key, value in named.entries():
        place = replace(value, key=named.key)
        if value.kind != "text":
            yield place.problem(
                LABEL,
                f"the value of {quoted(key)} is {value.what}, no text",
                "quotes around it",
                severity="warning" if value.kind == "null" else "error",
            )
            continue
        try:
            label = labels.label(f"{key}={value.text}")
        except ValueError as error:
            yield place.problem(LABEL, f"{error}: the kubelet does not start", "key: value")
            continue
        if problem := refused_label(place, label):
            yield problem


def _deployment_labels(pool: Pool) -> Iterator[Problem]:
    """Labels of the MachineDeployment, which many take for the nodes'."""
    named = pool.value.get("machineDeploymentLabels")
    own = pool.value.get("labels")
    there = {key for key, _ in own.entries()} if own else set()
    for key, value in named.entries() if named else []:
        if key not in there:
            yield replace(value, key=named.key if named else "").problem(
                LOST,
                f"label {quoted(key)} stays on the MachineDeployment and reaches no node",
                "labels (Terraform: machine_labels)",
                severity="warning",
            )


def _taints(pool: Pool) -> Iterator[Problem]:
    listed = pool.value.get("taints")
    if not listed or listed.kind == "null":
        return
    if listed.kind != "list":
        yield listed.problem(TAINT, f"is {listed.what}", "a list of: key, value, effect")
    found: list[tuple[Value, Taint]] = []
    for item in listed.items():
        try:
            found.append((item, _taint(item)))
        except ValueError as error:
            yield item.problem(TAINT, str(error), "key, value, effect")
    yield from taints_twice(found)
    for item, taint in found:
        yield from _ours(item, taint)
    if found:
        yield listed.problem(
            KNOWN_LATER,
            "taints are set when a node registers: a later change here reaches no node that has"
            " joined",
            severity="notice",
            hint="for nodes that have joined: kubectl taint node NODE KEY=VALUE:EFFECT",
        )


def _taint(item: Value) -> Taint:
    """A taint of a pool. Raises ValueError with what is wrong."""
    if item.kind != "map":
        raise ValueError(f"is {item.what}")
    parts = {}
    for name in ("key", "value", "effect"):
        part = item.get(name)
        if part and part.kind not in ("text", "null"):
            raise ValueError(f"its {name} is {part.what}, no text; quotes are missing")
        parts[name] = (part.text or "") if part and part.kind == "text" else ""
    value = f"={parts['value']}" if parts["value"] else ""
    return labels.taint(f"{parts['key']}{value}:{parts['effect']}")


def _ours(item: Value, taint: Taint) -> Iterator[Problem]:
    """A taint that gpuboot sets too."""
    for text in Agent().node_taint:
        ours = labels.taint(text)
        if taint == ours:
            yield item.problem(
                KNOWN_LATER,
                f"taint {taint} is gpuboot's default too; it finds it here and adds none",
                severity="notice",
            )
        elif (taint.key, taint.effect) == (ours.key, ours.effect):
            yield item.problem(
                TAINT,
                f"taint {taint} contradicts gpuboot's default {ours}: the node does not join",
                f"{ours}, or rke2.config.node-taint in gpuboot's configuration",
                severity="warning",
            )


def _timeouts(pool: Pool) -> Iterator[Problem]:
    unhealthy, startup = (
        pool.value.get(name) for name in ("unhealthyNodeTimeout", "nodeStartupTimeout")
    )
    given = [one for one in (unhealthy, startup) if one and one.kind != "null"]
    wrong = [one for one in given if duration(one) is None]
    for one in wrong:
        yield one.problem(HEALTH, "is no duration", 'a text such as "45m"')
    if wrong or not pool.gpu:
        return
    if unhealthy and duration(unhealthy):
        yield from _health(unhealthy, startup)
    elif startup and startup in given:
        yield startup.problem(
            KNOWN_LATER,
            "has no effect: without unhealthyNodeTimeout there is no health check",
            severity="notice",
        )


def _health(unhealthy: Value, startup: Value | None) -> Iterator[Problem]:
    """The health check that the two timeouts make."""
    if (duration(unhealthy) or 0) < REBOOT:
        yield unhealthy.problem(
            HEALTH,
            f"{unhealthy.text} is shorter than a reboot with a driver to build: the machine would"
            " be replaced",
            "at least 10m",
            severity="warning",
        )
    limit = duration(startup) if startup and startup.kind != "null" else None
    if limit is None:
        yield unhealthy.problem(
            HEALTH,
            "nodeStartupTimeout is unset, so a node has 10 minutes to join and is replaced then,"
            " again and again",
            "nodeStartupTimeout: 45m beside it",
        )
    elif startup and 0 < limit < BOOTSTRAP:
        yield startup.problem(
            HEALTH,
            f"{startup.text} is shorter than a bootstrap may take: the machine would be replaced,"
            " again and again",
            "at least 30m",
            severity="error" if limit <= STARTUP else "warning",
        )


def duration(value: Value) -> float | None:
    """Seconds of a duration as Go writes it, such as 1h30m; None if it is none."""
    text = value.text or ""
    if value.kind != "text":
        return None
    if text in ("0", "+0", "-0"):
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _drain(pool: Pool) -> Iterator[Problem]:
    drain, limit = (
        pool.value.get(name) for name in ("drainBeforeDelete", "drainBeforeDeleteTimeout")
    )
    if drain and drain.kind not in ("bool", "null"):
        yield drain.problem(DRAIN, f"is {drain.what}", "true or false")
    elif pool.gpu and not (drain and drain.printed == "true"):
        yield (drain or pool.value).problem(
            DRAIN,
            f"{'is' if drain else 'drainBeforeDelete is'} not true: a machine is deleted under its"
            " running jobs",
            "drainBeforeDelete: true",
            severity="warning",
        )
    elif pool.gpu and drain and not (limit and duration(limit)):
        yield (limit or drain).problem(
            DRAIN,
            "the drain has no limit: a pod that cannot be evicted holds it for ever",
            "drainBeforeDeleteTimeout: 1h, if that is not meant",
            severity="notice",
        )


def _unseen_user_data(pool: Pool) -> Iterator[Problem]:
    reference = pool.value.get("machineConfigRef")
    if not pool.gpu or not reference:
        return
    if not pool.config:
        yield reference.problem(
            KNOWN_LATER,
            "its machine config is not in these files, so its user-data was not checked",
            severity="notice",
            hint="give that manifest too, in this file or another one",
        )
    elif (kind := pool.config.get("kind")) and kind.text != VSPHERE:
        yield reference.problem(
            KNOWN_LATER,
            f"its user-data was not checked: only that of a {VSPHERE} is known",
            severity="notice",
        )
