"""Who this node is in the cluster: the password by which the servers know it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import dropin, kinds
from gpuboot.errors import Code
from gpuboot.secret import Secret
from gpuboot.step import Finding, Ok, Pending, Waiting

if TYPE_CHECKING:
    from gpuboot.host import Host

FILE = "/etc/rancher/node/password"

NO_PASSWORD = Code(
    "GB509",
    "the node's password is not there or not usable",
    (
        "The file under rke2.node-password-file is missing, empty, or holds more than a password.",
        "Whatever delivers it, such as cloud-init or a secrets service, has not run yet.",
    ),
    ("ls -l NODE-PASSWORD-FILE", "gpuboot config check", "gpuboot run"),
    evidence="the file's content, which is never shown",
)


@dataclass(frozen=True)
class NodePassword:
    """RKE2 finds the operator's password for this node, and so makes none of its own.

    A rebuilt machine with the name and the password of the one before is the same node to the
    servers (facts: rke2 §2). What a registered node has is never touched: it would be a stranger.
    """

    name: ClassVar[str] = "node-password"
    disruptive: ClassVar[bool] = False

    password: Secret | None
    file: str | None
    data_dir: str | None

    def check(self, host: Host) -> Finding:
        there = self._there(host)
        registered = dropin.registered(host, dropin.data_dir(host, self.data_dir))
        wanted = self._wanted(host)
        if registered:
            differs = isinstance(wanted, Secret) and there != wanted
            drift = f"{FILE} is not the configured one; the servers know this node by it"
            return Ok("this node is registered with its password", (drift,) if differs else ())
        if not isinstance(wanted, Secret):
            return Waiting(wanted, NO_PASSWORD)
        if there is None:
            return Pending(f"{FILE} is not written")
        if there != wanted:
            return Pending(f"{FILE} is another one, and this node was never registered")
        if host.mode(FILE) != 0o600:
            return Pending(f"{FILE} can be read by others")
        return Ok(f"{FILE} is the configured one")

    def apply(self, host: Host) -> None:
        for text in self.writes(host).values():
            host.write(FILE, text, mode=0o600)

    def writes(self, host: Host) -> Mapping[str, str]:
        wanted = self._wanted(host)
        self._there(host)  # masked, or the difference would show it
        return {FILE: wanted.reveal() + "\n"} if isinstance(wanted, Secret) else {}

    def _there(self, host: Host) -> Secret | None:
        """The password on this node, masked from now on."""
        text = host.read(FILE)
        if text is None:
            return None
        secret = Secret(text.strip())
        host.mask.add(secret)
        return secret

    def _wanted(self, host: Host) -> Secret | str:
        """The operator's password, masked from now on; or why there is none."""
        if self.password:
            return self.password
        text = host.read(self.file or "")
        if text is None:
            return f"{self.file}: there is no such file, or it cannot be read"
        try:
            secret = kinds.NODE_PASSWORD.parse(text)
        except kinds.Wrong as wrong:
            return f"{self.file}: {wrong}"
        host.mask.add(secret)
        return secret
