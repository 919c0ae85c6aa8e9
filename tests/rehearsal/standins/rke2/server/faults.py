"""Faults that a scenario orders in faults.json, read anew for every request.

ready503: true            the supervisor's core is not ready
token401: true            every token is refused
token403: true            every token is one of another role
bootstrap: {TOKEN: s}     bootstrap tokens, and how many seconds each lives from now on
throttle: N               the first N requests for the supervisor's data get 429
certificate: KIND         the cluster's ports show another one: intercepted (by a CA that neither
                          the system nor the token knows), other-cluster (and /cacerts fits it),
                          expired, early (not valid yet)
clock: s                  the servers' Date is so many seconds ahead of the true one
server-version: v1.34.1+rke2r1   of the API server, as /version tells it
no-cni: true              no network plugin's pod is made for a node that asks for its pods
in-flight: N              of these requests N reads at once are served, and half as many others;
                          who comes beside them gets 429 (RKE2's own limits are 20 and 10)
busy: seconds             so long the supervisor is at work on each of them
taken: [NAME]             another machine holds the node password of this name
uninitialized: true       no cloud provider takes the uninitialized taint away
down: ["9345"]            these ports (or names of servers) accept no connection
statuses: {PREFIX: code}  paths with this prefix get this status instead
delays: {PREFIX: seconds} they are answered late
cached: {PREFIX: code}    they get this status, as from a cache before the server, unless the
                          request says that no cache will do
corrupt: [PREFIX]         files under it have a wrong bit
moved: {PREFIX: PREFIX}   what the archive has under one prefix it now serves from the other: with
                          /debian/ from /later/ it has got a newer driver
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving import Response


class Faults:
    """The orders in force at this moment."""

    def __init__(self, file: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._file = file
        self._sleep = sleep
        self._lock = threading.Lock()
        self._in_flight: Counter[bool] = Counter()  # requests being served: reads, others
        self._throttle = (0, 0)  # the number ordered, and how many of them are used up
        self._names: dict[int, tuple[str, ...]] = {}
        self._tokens: dict[str, float] = {}  # bootstrap token to the moment it was first seen

    def name_port(self, port: int, *names: str) -> None:
        """Let `down` speak of a port by these names: its well-known number, its server."""
        self._names[port] = names

    def order(self, key: str) -> bool:
        """Whether a plain yes-or-no fault is in force."""
        return bool(self._read().get(key))

    def text(self, key: str) -> str:
        """What a fault with a word for its value says; empty if it is not in force."""
        return str(self._read().get(key) or "")

    def seconds(self, key: str) -> float:
        """What a fault with a number says; 0 if it is not in force."""
        return float(self._read().get(key) or 0)

    def lives(self, token: str) -> bool:
        """Whether this bootstrap token was made and has not expired."""
        life = self._read().get("bootstrap", {}).get(token)
        with self._lock:
            born = self._tokens.setdefault(token, time.monotonic())
        return life is not None and time.monotonic() - born < float(life)

    def is_down(self, port: int) -> bool:
        down = {str(one) for one in self._read().get("down", ())}
        return not down.isdisjoint((str(port), *self._names.get(port, ())))

    def is_taken(self, name: str) -> bool:
        return name in self._read().get("taken", ())

    def is_corrupt(self, path: str) -> bool:
        return any(path.startswith(prefix) for prefix in self._read().get("corrupt", ()))

    def moved(self, path: str) -> str:
        """Where the archive's file of this name really lies."""
        for prefix, place in self._read().get("moved", {}).items():
            if path.startswith(prefix):
                return f"{place}{path.removeprefix(prefix)}"
        return path

    def throttled(self) -> bool:
        """Whether this request is one of those to turn away; it counts as one."""
        wanted = int(self._read().get("throttle", 0))
        with self._lock:
            ordered, used = self._throttle
            if wanted != ordered:
                ordered, used = wanted, 0
            refuse = used < ordered
            self._throttle = (ordered, used + refuse)
        return refuse

    @contextmanager
    def place(self, *, read: bool) -> Iterator[bool]:
        """Whether one more request may be served; while it is, it takes another one's place."""
        orders = self._read()
        limit = int(orders.get("in-flight", 0))
        with self._lock:
            free = not limit or self._in_flight[read] < (limit if read else max(1, limit // 2))
            self._in_flight[read] += free
        try:
            if free and (seconds := float(orders.get("busy", 0))):
                self._sleep(seconds)
            yield free
        finally:
            with self._lock:
                self._in_flight[read] -= free

    def instead(self, path: str, *, cacheable: bool = True) -> Response | None:
        """The answer ordered for this path, after the delay ordered for it."""
        orders = self._read()
        statuses = {**orders.get("statuses", {}), **(orders.get("cached", {}) if cacheable else {})}
        for prefix, seconds in orders.get("delays", {}).items():
            if path.startswith(prefix):
                self._sleep(float(seconds))
        for prefix, status in statuses.items():
            if path.startswith(prefix):
                from .serving import as_text, reason

                return as_text(int(status), reason(int(status)) + "\n")
        return None

    def _read(self) -> dict[str, Any]:
        try:
            orders = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            # Nothing ordered, or just being written: the next request reads it whole.
            return {}
        return orders if isinstance(orders, dict) else {}
