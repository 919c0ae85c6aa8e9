"""The API server as a node reaches it: kubeconfig, client certificate, JSON."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from .node import Json
from .supervisor import Unready, send

_SETTING = re.compile(
    r"^\s*(server|certificate-authority|client-certificate|client-key):\s*(\S+)$", re.MULTILINE
)
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Reply:
    """An answer's status and object; `reason` is the object's message if it is a failure."""

    status: int
    body: Json

    @property
    def reason(self) -> str:
        return str(self.body.get("message", self.status))


class Api:
    """An API server and an identity, both from a kubeconfig file."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = dict(_SETTING.findall(kubeconfig.read_text()))
        self._server = settings["server"]
        self._context = ssl.create_default_context(cafile=settings["certificate-authority"])
        self._context.load_cert_chain(settings["client-certificate"], settings["client-key"])

    def call(self, method: str, path: str, body: Json | None = None, kind: str = "") -> Reply:
        """One request. Raises Unready when no answer comes."""
        content = json.dumps(body).encode() if body is not None else b""
        headers = {"Accept": "application/json"}
        if content:
            headers["Content-Type"] = kind or "application/json"
        answer = send(self._server + path, self._context, method, content, headers)
        try:
            return Reply(answer.status, json.loads(answer.body))
        except ValueError:
            raise Unready(f"{path}: {answer.status} {answer.reason}") from None
