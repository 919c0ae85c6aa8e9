"""The few kubectl verbs that an administrator of the lab's cluster needs, as acts."""

from __future__ import annotations

import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from tests.rehearsal.lab import ADDRESS

VERBS = ("delete", "taint", "label")
MERGE = "application/merge-patch+json"


def run(servers: Path, argv: tuple[str, ...]) -> list[str]:
    """`delete node N`, `taint node N K=V:E [--overwrite]`, `label node N K=V [--overwrite]`.

    What went wrong is returned; `servers` is the folder with the cluster's CA and token.
    """
    verb, _, name, *rest = argv
    url = f"https://{ADDRESS}:6443/api/v1/nodes/{name}"
    try:
        if verb == "delete":
            _ask(servers, url, "DELETE")
        elif verb == "label":
            pairs = [text.partition("=") for text in rest if not text.startswith("--")]
            labels = {key: value for key, _, value in pairs}
            _ask(servers, url, "PATCH", {"metadata": {"labels": labels}})
        else:
            old = _ask(servers, url, "GET")["spec"].get("taints") or []
            new = [_taint(text) for text in rest if not text.startswith("--")]
            places = {(one["key"], one["effect"]) for one in new}
            kept = [one for one in old if (one["key"], one["effect"]) not in places]
            _ask(servers, url, "PATCH", {"spec": {"taints": [*kept, *new]}})
    except OSError as error:
        return [f"kubectl {' '.join(argv)}: expected success / found {error}"]
    return []


def _taint(text: str) -> dict[str, str]:
    head, _, effect = text.rpartition(":")
    key, _, value = head.partition("=")
    return {"key": key, "value": value, "effect": effect}


def _ask(servers: Path, url: str, method: str, body: object = None) -> dict[str, Any]:
    token = (servers / "admin.token").read_text(encoding="ascii").strip()
    request = urllib.request.Request(  # noqa: S310 - always https
        url, method=method, data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {token}", "Content-Type": MERGE},
    )  # fmt: skip
    context = ssl.create_default_context(cafile=servers / "pki/server-ca.crt")
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        found: dict[str, Any] = json.loads(answer.read())
    return found
