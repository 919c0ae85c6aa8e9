"""Rancher's part in a scenario: what node.yaml says of the pool, and the machines it makes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rehearsal import cluster, tree
from tests.rehearsal.standins.rancher import machine
from tests.rehearsal.table import Table

RELEASES = ("2.15", "2.14")
FILE = "rancher.json"  # of the servers' folder; standins/rancher/server.py says what is in it
DEFAULTS: Mapping[str, object] = {
    "cluster": "pool", "release": "2.15", "token-lives": 1800.0, "plan-after": 0.0,
    "plan-takes": 2.0, "labels": [], "taints": [], "data-dir": "", "server": cluster.SUPERVISOR,
}  # fmt: skip


def settings(table: Table) -> dict[str, object]:
    """What a scenario says of Rancher; only the keys that are there."""
    found: dict[str, object] = {}
    for key, choices in (("cluster", ("pool", "custom")), ("release", RELEASES)):
        if key in table:
            found[key] = table.choice(key, choices, choices[0])
    for key in ("token-lives", "plan-after", "plan-takes"):
        if key in table:
            found[key] = table.seconds(key, 0.0)
    for key in ("labels", "taints"):
        if key in table:
            found[key] = list(table.texts(key) or ())
    for key in ("data-dir", "server"):
        if key in table:
            found[key] = table.text(key)
    table.end()
    return found


def begin(folder: Path, wanted: Mapping[str, object], names: Sequence[str]) -> None:
    """Rancher makes the machines of its pool, each with a token of its own."""
    now = time.time()
    machines = {name: {"token": secrets.token_hex(27), "created": now} for name in names}
    _write(folder, {**DEFAULTS, **wanted, "machines": machines})


def change(folder: Path, wanted: Mapping[str, object]) -> None:
    """Somebody edits the pool, or Rancher behaves otherwise from now on."""
    _write(folder, {**_read(folder), **wanted})


def user_data(folder: Path, text: str, name: str, ground: tree.Ground) -> str:
    """What the machine's cloud-init is told, given what the pool's operator has written."""
    found = _read(folder)
    if found["cluster"] == "custom":
        return text
    machines = found["machines"]
    assert isinstance(machines, dict)
    token = str(machines[name]["token"])
    script = machine.script(cluster.RANCHER, ground.rancher_checksum, token)
    return machine.user_data(text, name, script)


def tokens(folder: Path, ground: tree.Ground) -> list[str]:
    """The secrets that open a registration; none without Rancher."""
    if not (folder / FILE).is_file():
        return []
    machines = _read(folder)["machines"]
    assert isinstance(machines, dict)
    return [ground.rancher_token, *(made["token"] for made in machines.values())]


def _read(folder: Path) -> dict[str, object]:
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _write(folder: Path, content: Mapping[str, object]) -> None:
    new = folder / f"{FILE}.new"
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(folder / FILE)  # it is read at every request
