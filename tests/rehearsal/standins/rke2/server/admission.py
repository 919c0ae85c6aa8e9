"""What the API server lets through: validation, NodeRestriction, patches (facts/rke2.md §4)."""

from __future__ import annotations

from collections.abc import Mapping

from tests.rehearsal.standins.rke2.agent import labels

from .store import Json

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

NOT_READY = "node.kubernetes.io/not-ready"
_STATUS_KEYS = {"conditions": "type", "addresses": "type"}  # lists that are merged by a key


class Refused(Exception):
    """A request that is turned away: HTTP status, Kubernetes' reason, its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def created(node: Json, own: str | None) -> Json:
    """A Node on its way in; `own` is the node that asks, None an administrator."""
    name = node.get("metadata", {}).get("name", "")
    if own is not None and name != own:
        raise forbidden(name, f'node "{own}" is not allowed to modify node "{name}"')
    _restrict(name, own, {}, _labels(node))
    _validate(node)
    # TaintNodesByCondition: whoever is new is not ready.
    fresh = {"key": NOT_READY, "effect": "NoSchedule"}
    spec = node.setdefault("spec", {})
    spec["taints"] = [*(spec.get("taints") or []), fresh]
    return node


def changed(old: Json, new: Json, own: str | None, *, status: bool) -> Json:
    """A changed Node: `status` decides which half may differ, NodeRestriction what else."""
    name = old["metadata"]["name"]
    asked = new["metadata"].get("resourceVersion", old["metadata"]["resourceVersion"])
    if asked != old["metadata"]["resourceVersion"]:
        raise Refused(409, "Conflict", f'nodes "{name}": the object has been modified')
    for key in ("name", "uid", "creationTimestamp", "resourceVersion"):
        new["metadata"][key] = old["metadata"][key]
    kept = "spec" if status else "status"
    new[kept] = old.get(kept, {})
    if own is not None and _taints(old) != _taints(new):
        raise forbidden(name, f'node "{own}" is not allowed to modify taints')
    if own is not None and old["metadata"].get("ownerReferences") != new["metadata"].get(
        "ownerReferences"
    ):
        raise forbidden(name, f'node "{own}" is not allowed to modify ownerReferences')
    _restrict(name, own, _labels(old), _labels(new))
    _validate(new)
    _date_conditions(old, new)
    return new


def patched(target: Json, patch: Json, kind: str) -> Json:
    """A JSON merge patch, or the strategic kind, which merges conditions by their type."""
    result = dict(target)
    for name, value in patch.items():
        old = result.get(name)
        if value is None:
            result.pop(name, None)
        elif name.startswith("$"):
            continue  # directives of lists: they order nothing that matters here
        elif isinstance(value, dict):
            result[name] = patched(old if isinstance(old, dict) else {}, value, kind)
        elif isinstance(value, list) and kind == STRATEGIC and name in _STATUS_KEYS:
            result[name] = _merged_list(old or [], value, _STATUS_KEYS[name], kind)
        else:
            result[name] = value
    return result


def forbidden(name: str, why: str) -> Refused:
    return Refused(403, "Forbidden", f'nodes "{name}" is forbidden: {why}')


def _merged_list(old: list[Json], patch: list[Json], key: str, kind: str) -> list[Json]:
    result = {item[key]: item for item in old}
    for item in patch:
        if item.get("$patch") == "delete":
            result.pop(item[key], None)
        else:
            result[item[key]] = patched(result.get(item[key], {}), item, kind)
    return list(result.values())


def _restrict(name: str, own: str | None, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    if own is None:
        return
    touched = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if bad := [key for key in touched if not labels.node_may_change(key)]:
        raise forbidden(name, f"is not allowed to modify labels: {', '.join(bad)}")


def _validate(node: Json) -> None:
    name = node.get("metadata", {}).get("name", "")
    for key, value in _labels(node).items():
        if not labels.valid_key(key):
            raise _invalid(name, f'metadata.labels: Invalid value: "{key}"')
        if not labels.valid_value(str(value)):
            raise _invalid(name, f'metadata.labels: Invalid value: "{value}"')
    pairs = [(taint.get("key"), taint.get("effect")) for taint in _taints(node)]
    if len(set(pairs)) != len(pairs):
        raise _invalid(name, "metadata.taints: taints must be unique by key and effect pair")


def _date_conditions(old: Json, new: Json) -> None:
    """A condition keeps the time of its last transition for as long as its status stays."""
    before = {one["type"]: one for one in old.get("status", {}).get("conditions", [])}
    for one in new.get("status", {}).get("conditions", []):
        known = before.get(one["type"])
        if known and known["status"] == one["status"] and "lastTransitionTime" in known:
            one["lastTransitionTime"] = known["lastTransitionTime"]


def _invalid(name: str, why: str) -> Refused:
    return Refused(422, "Invalid", f'Node "{name}" is invalid: {why}')


def _labels(node: Json) -> Mapping[str, str]:
    found: Mapping[str, str] = node.get("metadata", {}).get("labels") or {}
    return found


def _taints(node: Json) -> list[Json]:
    found: list[Json] = node.get("spec", {}).get("taints") or []
    return found
