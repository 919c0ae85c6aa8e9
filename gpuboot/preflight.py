"""What must be so before anything is changed, and no step of ours can make so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import drivers, rancher, secureboot
from gpuboot.config import ConfigError
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.facts import Facts
    from gpuboot.host import Host

NO_SPACE = Code(
    "GB103",
    "there is too little free space",
    ("Driver, headers, module and RKE2 need about 3 GB below /usr and /var.",),
    ("df -h /usr /var", "apt-get clean"),
    evidence="the free bytes of the file systems that hold /usr and /var",
)
MINIMUM_SPACE = 3 << 30  # bytes: measured on Debian 12, with a margin (facts: nvidia 2.4)


@dataclass(frozen=True)
class Preflight:
    """System, settings, space and firmware allow the walk."""

    name: ClassVar[str] = "preflight"
    disruptive: ClassVar[bool] = False

    facts: Facts
    config: Config

    def check(self, host: Host) -> Finding:
        for trouble in troubles(host, self.facts, self.config):
            raise trouble
        choice = drivers.choose(self.config, self.facts)
        return Ok(f"{drivers.system(self.facts)}, kernel {self.facts.kernel}, {choice.text}")

    def apply(self, host: Host) -> None:
        """Never called: the check answers or raises."""


def troubles(host: Host, facts: Facts, config: Config) -> Iterator[GpubootError]:
    """What of system, settings, firmware and space stands in the way; only reads."""
    yield from refused(facts, config)
    if other := rancher.contradiction(host, config):
        yield ConfigError([other])
    yield from locked(host, facts, config)
    yield from short(host)


def locked(host: Host, facts: Facts, config: Config) -> Iterator[GpubootError]:
    """That the kernel would not take the chosen driver's module."""
    choice = drivers.chosen(config, facts)
    if choice and (found := secureboot.refusal(host, facts, choice)):
        yield found


def refused(facts: Facts, config: Config) -> Iterator[GpubootError]:
    """Why there is no driver for this machine, from its recorded facts alone."""
    try:
        drivers.choose(config, facts)
    except GpubootError as error:
        yield error


def short(host: Host) -> Iterator[GpubootError]:
    """What the disk does not allow."""
    free = {folder: host.free(folder) for folder in ("/usr", "/var")}
    tight = [folder for folder in free if free[folder] < MINIMUM_SPACE]
    if tight and not host.exists("/usr/bin/nvidia-smi"):
        least, places = min(free.values()) >> 20, " and ".join(tight)
        message = f"{least} MiB are free on {places}, {MINIMUM_SPACE >> 20} MiB are needed"
        yield GpubootError(NO_SPACE, message, retry=True)
