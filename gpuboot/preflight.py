"""What must be so before anything is changed, and no step of ours can make so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gpuboot import rancher
from gpuboot.config import ConfigError
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.facts import Facts
    from gpuboot.host import Host

UNSUPPORTED = Code(
    "GB101",
    "this machine is not one that gpuboot can set up",
    ("This version knows Debian 12 and 13 on amd64.",),
    ("gpuboot facts", "cat /etc/os-release"),
)
UNSUPPORTED_SETTING = Code(
    "GB102",
    "the configuration asks for what this version cannot do",
    ("The key is part of the configuration, and its value is not carried out yet.",),
    ("gpuboot config show", "gpuboot config schema"),
)
NO_SPACE = Code(
    "GB103",
    "there is too little free space",
    ("Driver, headers, module and RKE2 need about 3 GB below /usr and /var.",),
    ("df -h /usr /var", "apt-get clean"),
)
SECURE_BOOT = Code(
    "GB104",
    "Secure Boot keeps modules built here from loading",
    ("DKMS signs with a key the firmware does not know; enrolling one needs a console.",),
    ("mokutil --sb-state", "switch Secure Boot off in the VM's boot options"),
)

MINIMUM_SPACE = 3 << 30  # bytes: measured on Debian 12, with a margin (facts: nvidia 2.4)
BRANCHES = {"12": "535", "13": "550"}  # of Debian's own driver
SUPPORTED = {("debian", "12"): "amd64", ("debian", "13"): "amd64"}


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
        return Ok(f"{_system(self.facts)}, kernel {self.facts.kernel}")

    def apply(self, host: Host) -> None:
        """Never called: the check answers or raises."""


def _system(facts: Facts) -> str:
    return f"{facts.os_id or 'unknown system'} {facts.os_version} on {facts.architecture}"


def troubles(host: Host, facts: Facts, config: Config) -> Iterator[GpubootError]:
    """What of system, settings, firmware and space stands in the way; only reads."""
    yield from unfit(facts)
    if problem := unsupported(config, facts):
        yield GpubootError(UNSUPPORTED_SETTING, problem)
    if other := rancher.contradiction(host, config):
        yield ConfigError([other])
    yield from short(host, facts)


def unfit(facts: Facts) -> Iterator[GpubootError]:
    """What the machine's recorded facts alone say."""
    if SUPPORTED.get((facts.os_id, facts.os_version)) != facts.architecture:
        yield GpubootError(
            UNSUPPORTED, f"{_system(facts)} is not supported; Debian 12 and 13 on amd64 are"
        )


def short(host: Host, facts: Facts) -> Iterator[GpubootError]:
    """What firmware and disk do not allow."""
    if facts.secure_boot and not host.exists("/sys/module/nvidia"):
        yield GpubootError(SECURE_BOOT, "Secure Boot is on, and DKMS cannot sign for it")
    free = {folder: host.free(folder) for folder in ("/usr", "/var")}
    tight = [folder for folder in free if free[folder] < MINIMUM_SPACE]
    if tight and not host.exists("/usr/bin/nvidia-smi"):
        least, places = min(free.values()) >> 20, " and ".join(tight)
        message = f"{least} MiB are free on {places}, {MINIMUM_SPACE >> 20} MiB are needed"
        yield GpubootError(NO_SPACE, message, retry=True)


def unsupported(config: Config, facts: Facts) -> str | None:
    """The first setting that this version accepts and does not carry out yet."""
    branch = BRANCHES.get(facts.os_version, config.driver.branch)
    rules = (
        (
            config.driver.source != "distribution",
            f"driver.source is {config.driver.source}: set driver.source: distribution",
        ),
        (
            config.driver.build == "precompiled",
            "driver.build is precompiled: Debian has none, set dkms or auto",
        ),
        (
            config.driver.kernel_module_type == "open" and facts.os_version == "12",
            "driver.kernel-module-type is open: Debian 12's does not go with its security updates",
        ),
        (
            config.driver.branch not in (None, branch),
            f"driver.branch is {config.driver.branch}: Debian {facts.os_version} has {branch}",
        ),
    )
    return next((text for wrong, text in rules if wrong), None)
