"""Everything that would stop a walk, looked for at once: `gpuboot preflight`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpuboot import config, facts, plan
from gpuboot.config import NOT_ROOT, ConfigError
from gpuboot.errors import Code, GpubootError
from gpuboot.preflight import troubles as system_troubles
from gpuboot.step import Waiting

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.host import Host

LITTLE_MEMORY = Code(
    "GB106",
    "there is little memory",
    ("The module's build needs about 1 GB a core, and a full passthrough reservation is due.",),
    ("free -m", "give the VM more memory"),
)
CLOCK_UNSET = Code(
    "GB107",
    "the clock is not synchronised",
    ("No time server answers, or no time service runs: certificates may seem not valid yet.",),
    ("timedatectl", "systemctl status systemd-timesyncd chrony"),
)
NO_NAME = Code(
    "GB108",
    "a name does not resolve",
    ("The node's name server does not know it, or there is none.",),
    ("getent hosts NAME", "cat /etc/resolv.conf"),
)

MINIMUM_MEMORY = 2 << 20  # KiB
# Steps that only look at what others have to provide; the rest is the walk's own work.
OUTSIDE = ("gpu-present", "supervisor-answers")


@dataclass(frozen=True)
class Trouble:
    """Something that would stop a walk."""

    code: str
    message: str
    hint: str


def survey(host: Host, *, root: bool) -> list[Trouble]:
    """Every trouble there is; only reads. Raises ConfigError."""
    return list(_found(host, root=root))


def _found(host: Host, *, root: bool) -> Iterator[Trouble]:
    if not root:
        yield _trouble(NOT_ROOT, "some things can only be looked at by root")
    try:
        wanted = config.load(host)
    except ConfigError as error:
        for problem in error.problems:
            yield Trouble(error.code.id, str(problem), error.hint)
        return
    host.web.proxy = plan.proxy(wanted)
    machine = facts.gather(host)
    yield from (_of(error) for error in system_troubles(host, machine, wanted))
    yield from _memory(host)
    yield from _clock(host)
    unresolved = list(_names(host, wanted))
    yield from unresolved
    for step in plan.build(wanted, machine).steps:
        if step.name not in OUTSIDE or (unresolved and step.name == "supervisor-answers"):
            continue
        try:
            finding = step.check(host)
        except GpubootError as error:
            yield _of(error)
        else:
            if isinstance(finding, Waiting):
                hint = finding.hint or finding.code.commands[0]
                yield Trouble(finding.code.id, finding.reason, hint)


def _memory(host: Host) -> Iterator[Trouble]:
    match = re.search(r"^MemTotal:\s+(\d+) kB$", host.read("/proc/meminfo") or "", re.MULTILINE)
    total = int(match[1]) if match else MINIMUM_MEMORY
    if total < MINIMUM_MEMORY:
        message = f"{total >> 10} MiB of memory, {MINIMUM_MEMORY >> 10} MiB are needed"
        yield _trouble(LITTLE_MEMORY, message)


def _clock(host: Host) -> Iterator[Trouble]:
    """Only where a time service is asked to: a lone VM's host may keep the clock right."""
    show = host.run(["timedatectl", "show", "--property=NTP,NTPSynchronized"])
    if "NTP=yes" in show.out.split() and "NTPSynchronized=no" in show.out.split():
        yield _trouble(CLOCK_UNSET, "a time service runs and has not set the clock yet")


def _names(host: Host, wanted: Config) -> Iterator[Trouble]:
    """The hosts that have to be reached directly; a proxy resolves the others itself."""
    source = wanted.sources
    urls = [] if wanted.proxy.https else [source.toolkit.url]
    if source.apt.url and not wanted.proxy.http:
        urls.append(source.apt.url)
    if wanted.mode == "agent":
        urls.append(str(wanted.rke2.config.server))
        if not wanted.proxy.https and (wanted.rke2.version or wanted.rke2.channel):
            urls.append(source.rke2.url)
    names = [urlsplit(url).hostname for url in urls if not url.startswith("/")]
    for name in dict.fromkeys(name for name in names if name):
        if host.run(["getent", "hosts", name], timeout=30).code != 0:
            yield _trouble(NO_NAME, f"{name} does not resolve", f"getent hosts {name}")


def _trouble(code: Code, message: str, hint: str | None = None) -> Trouble:
    return Trouble(code.id, message, hint or code.commands[0])


def _of(error: GpubootError) -> Trouble:
    return Trouble(error.code.id, error.message, error.hint)
