"""Image archives for a node without a registry: RKE2 imports them before its kubelet starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gpuboot import dropin, release, rke2, web
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

RECORD = "/var/lib/gpuboot/images.json"
CACHE = ".cache.json"  # in the folder of the archives; RKE2 imports only what is new if it is there


@dataclass(frozen=True)
class ImagesPlaced:
    """The wanted archives of the installed release are in RKE2's folder, as the release has them.

    They stay packed as they came, unlike install.sh's, which unpacks a .tar.gz: RKE2 reads both,
    and what lies there is byte for byte what the checksum stands for, so that it can be verified
    again without the network. What was verified is known again by its size and time.
    """

    name: ClassVar[str] = "rke2-images"
    disruptive: ClassVar[bool] = True  # a containerd that runs would import them at once

    want: release.Release
    files: tuple[str, ...]  # by the release's own names
    data_dir: str | None

    def check(self, host: Host) -> Finding:
        version = self.version(host)
        if version is None:
            return Pending("can only be told after rke2-installed")
        known = _record(host)
        for name in self.files:
            state = _state(host, f"{self.folder(host)}/{name}", version)
            if state is None:
                return Pending(f"{name} is not there")
            if not state.items() <= known.get(name, {}).items():
                return Pending(f"{name} is not known to be of {version}")
        if not host.exists(f"{self.folder(host)}/{CACHE}"):
            return Pending("RKE2 would import every archive at every start")
        return Ok(f"{len(self.files)} image archives of {version} are in place")

    def apply(self, host: Host) -> None:
        version = self.version(host)
        if version is None:  # rke2-installed comes first, and it holds
            return
        known = _record(host)
        for name in self.files:
            place = f"{self.folder(host)}/{name}"
            digest = _again(host, place, known.get(name, {}), version)
            digest = digest or self._fetch(host, place, name, version)
            known[name] = {**(_state(host, place, version) or {}), "sha256": digest}
            host.write(RECORD, json.dumps({"schema": 1, "archives": known}, indent=2) + "\n")
        if not host.exists(f"{self.folder(host)}/{CACHE}"):
            host.write(f"{self.folder(host)}/{CACHE}", "")

    def _fetch(self, host: Host, place: str, name: str, version: str) -> str:
        """Have the archive in its place, verified; its SHA-256. Raises GB504, GB505, GB4xx."""
        with host.fetching():
            published = release.checksums(host, self.want, version)
            digest = release.checksum(published, name, version)
            if not host.exists(place) or release.sha256(host, place) != digest:
                pieces = release.pieces(host, self.want, version, name)
                host.write_stream(place, web.checked(pieces, digest, name))
        return digest

    def fetch(self, host: Host) -> None:
        """Have those archives in their places whose release is known; no record is made of them.

        Raises GB504, GB505, GB4xx, Stopped.
        """
        for name in self.files if self.want.version else ():
            self._fetch(host, f"{self.folder(host)}/{name}", name, self.want.version or "")

    def writes(self, host: Host) -> Mapping[str, str | None]:
        folder = self.folder(host)
        return {
            f"{folder}/{name}": None for name in self.files if not host.exists(f"{folder}/{name}")
        }

    def folder(self, host: Host) -> str:
        """Where RKE2 looks for archives."""
        return f"{dropin.data_dir(host, self.data_dir)}/agent/images"

    def version(self, host: Host) -> str | None:
        """The release whose archives are wanted."""
        return self.want.version or rke2.installed_version(host)


def _state(host: Host, name: str, version: str) -> dict[str, Any] | None:
    """What a verified archive is known by; None if it is not there."""
    try:
        found = host.path(name).stat()
    except OSError:
        return None
    return {"release": version, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _again(host: Host, place: str, known: Mapping[str, Any], version: str) -> str | None:
    """The SHA-256 of an archive that has it still, whatever its time says; no network needed."""
    digest = known.get("sha256")
    if known.get("release") != version or not host.exists(place):
        return None
    return digest if release.sha256(host, place) == digest else None


def _record(host: Host) -> dict[str, dict[str, Any]]:
    """The archives that were verified; a record that cannot be read is as good as none."""
    try:
        archives = json.loads(host.read(RECORD) or "")["archives"]
        return {name: dict(entry) for name, entry in archives.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
