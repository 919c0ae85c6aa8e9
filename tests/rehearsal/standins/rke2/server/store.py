"""What the cluster remembers: Nodes, node passwords, events; on disk after every change."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_SCRYPT_COST = 1 << 10  # the stand-in's passwords need not outlast an attack


class Store:
    """Nodes by name, behind one lock; `nodes.json` is always the current state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._nodes: dict[str, Json] = _load(folder / "nodes.json")
        self._passwords: dict[str, Json] = _load(folder / "node-passwords.json")
        self._heartbeats: dict[str, float] = {}
        self._version = max(
            (int(node["metadata"]["resourceVersion"]) for node in self._nodes.values()), default=0
        )
        self._save()

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._nodes)

    def node(self, name: str) -> Json | None:
        """A copy of the Node, or None."""
        with self._lock:
            found = self._nodes.get(name)
            return _copy(found) if found else None

    def create(self, node: Json) -> Json | None:
        """Add the Node with the metadata a server gives it; None if the name is taken."""
        with self._lock:
            name = node["metadata"]["name"]
            if name in self._nodes:
                return None
            created = _copy(node)
            created["metadata"].update(uid=str(uuid.uuid4()), creationTimestamp=now())
            created.setdefault("spec", {})
            created.setdefault("status", {})
            self._put(name, created)
            return _copy(created)

    def change(self, name: str, edit: Callable[[Json], Json]) -> Json | None:
        """Replace the Node by what `edit` makes of a copy; None if there is none.

        What `edit` raises leaves everything as it was.
        """
        with self._lock:
            if name not in self._nodes:
                return None
            old = self._nodes[name]
            new = edit(_copy(old))
            if new != old:
                self._put(name, new)
            return _copy(self._nodes[name])

    def delete(self, name: str) -> Json | None:
        """Remove the Node, and with it the node password, as RKE2's controller does."""
        with self._lock:
            node = self._nodes.pop(name, None)
            if node:
                self._passwords.pop(name, None)
                self._heartbeats.pop(name, None)
                self._save()
            return node

    def beat(self, name: str) -> None:
        """The node is alive."""
        with self._lock:
            self._heartbeats[name] = time.monotonic()

    def silence(self, name: str) -> float:
        """Seconds since the node's last sign of life that this process has seen."""
        with self._lock:
            return time.monotonic() - self._heartbeats.setdefault(name, time.monotonic())

    def password_fits(self, name: str, password: str) -> bool:
        """Whether it is this node's password; the first one that comes becomes it."""
        with self._lock:
            known = self._passwords.get(name)
            if known is None:
                salt = secrets.token_hex(8)
                hashed = _hash(password, salt)
                self._passwords[name] = {"salt": salt, "hash": hashed, "made": time.time()}
                self._save()
                return True
            return hmac.compare_digest(known["hash"], _hash(password, known["salt"]))

    def sweep_passwords(self, age: float) -> None:
        """Forget passwords that have had no Node for longer than `age` seconds."""
        with self._lock:
            limit = time.time() - age
            orphans = [
                name
                for name, known in self._passwords.items()
                if name not in self._nodes and known["made"] < limit
            ]
            for name in orphans:
                del self._passwords[name]
            if orphans:
                self._save()

    def add_event(self, event: Json) -> None:
        with self._lock, (self._folder / "events.log").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def _put(self, name: str, node: Json) -> None:
        self._version += 1
        node["metadata"]["resourceVersion"] = str(self._version)
        self._nodes[name] = node
        self._save()

    def _save(self) -> None:
        _write(self._folder / "nodes.json", self._nodes)
        _write(self._folder / "node-passwords.json", self._passwords)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _copy(value: Json) -> Json:
    copied: Json = json.loads(json.dumps(value))
    return copied


def _load(file: Path) -> dict[str, Json]:
    try:
        loaded: dict[str, Json] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return loaded


def _write(file: Path, value: object) -> None:
    """Replaced in one step, so that a reader never sees half of it."""
    temporary = file.with_name(file.name + ".new")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, file)  # noqa: PTH105


def _hash(password: str, salt: str) -> str:
    digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=_SCRYPT_COST, r=8, p=1)
    return digest.hex()
