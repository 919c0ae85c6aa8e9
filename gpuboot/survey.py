"""Everything that would stop a walk, looked for at once: `gpuboot preflight`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpuboot import (
    apt,
    aptfailure,
    aptsources,
    config,
    drivers,
    facts,
    kernel,
    passthrough,
    plan,
    preflight,
    rancher,
    release,
    rke2,
    sources,
)
from gpuboot.config import NOT_ROOT, Config, ConfigError
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.findings import ROOT_ONLY
from gpuboot.images import ImagesPlaced
from gpuboot.nvidia import GpusAnswer
from gpuboot.packages import Packages
from gpuboot.rke2 import Rke2Installed
from gpuboot.sources import PackageSources
from gpuboot.step import Ok, Pending, Waiting
from gpuboot.supervisor import CLOCK_UNSET, SupervisorAnswers
from gpuboot.web import BAD_ANSWER, NO_NAME

if TYPE_CHECKING:
    from gpuboot.host import Host
    from gpuboot.step import Step
    from gpuboot.web import Answer

LITTLE_MEMORY = Code(
    "GB106",
    "there is little memory",
    ("The module's build needs about 1 GB a core, and a full passthrough reservation is due.",),
    ("free -m", Elsewhere("give the VM more memory")),
    evidence="MemTotal in /proc/meminfo, and the number of processors",
)

MINIMUM_MEMORY = 2 << 20  # KiB
SLOW = 300  # seconds behind a server: what was signed a moment ago is not valid yet
TIME_SERVICES = "/usr/lib/systemd/ntp-units.d"  # each package of one names its unit here
# Steps that look at what others have to provide; the rest is the walk's own work.
OUTSIDE = ("rke2-hold", "gpu-present", "package-sources", "rke2-installed", "rancher-plan",
           "rke2-config", "node-password", "supervisor-answers")  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """Something that would stop a walk."""

    code: str
    message: str
    hint: str


def survey(host: Host, *, root: bool) -> list[Trouble]:
    """Every trouble there is; only reads. With a wrong configuration, what needs none."""
    told = (
        replace(one, message=host.mask(one.message), hint=host.mask(one.hint))
        for one in _found(host, root=root)
    )
    return list(dict.fromkeys(told))


def warnings(host: Host) -> list[str]:
    """What would stop no walk and is unwise all the same; none of a wrong configuration."""
    wrong = aptsources.unreadable(host)
    found = [f"apt cannot read the node's sources: {wrong}"] if wrong else []
    try:
        wanted = config.load(host)
    except GpubootError:
        return found  # told as a trouble
    machine = facts.gather(host)
    if machine.firmware == "efi" and machine.secure_boot is None:
        found.append("whether Secure Boot is on cannot be read; under it only signed modules load")
    choice = drivers.chosen(wanted, machine)
    return [*found, *config.unwise(wanted), *(choice.warnings if choice else ())]


def _found(host: Host, *, root: bool) -> Iterator[Trouble]:
    wanted: Config | None = None
    try:
        wanted = config.load(host)
    except ConfigError as error:
        for problem in error.problems:
            yield Trouble(error.code.id, str(problem), error.hint)
    except GpubootError as error:
        yield _of(error)
    else:
        if not root:
            yield _trouble(NOT_ROOT, "some things can only be looked at by root")
    machine = facts.gather(host)
    if unfit := drivers.unfit(machine):
        yield _of(unfit)
    yield from map(_of, preflight.short(host))
    if (complaint := passthrough.diagnose(host, machine.gpus)) and not _answering(host):
        yield _of(complaint)
    yield from _memory(host)
    yield from _clock(host)
    road = plan.build(wanted or Config(), machine)
    if wanted is None:
        yield from _looked_at(host, road.steps, ("rke2-hold", "gpu-present"))
        return
    yield from map(_of, preflight.refused(machine, wanted))
    yield from map(_of, preflight.locked(host, machine, wanted))
    if other := _contradiction(host, wanted):
        yield other
    host.web.proxy = plan.proxy(wanted)
    servers = Servers(host)
    names = [name for name in OUTSIDE if root or name not in ROOT_ONLY]
    for step in road.steps:
        unknown = servers.unresolved(step.server) if isinstance(step, SupervisorAnswers) else None
        if unknown:
            yield unknown
        else:
            yield from _looked_at(host, [step], names)
    yield from servers.sources(road.steps)
    yield from servers.release(road.steps)


def _answering(host: Host) -> bool:
    """Whether the cards answer now, whatever the kernel has said of them in this boot."""
    try:
        return kernel.loaded(host, "nvidia") and isinstance(GpusAnswer().check(host), Ok)
    except GpubootError:
        return False


def _contradiction(host: Host, wanted: Config) -> Trouble | None:
    try:
        problem = rancher.contradiction(host, wanted)
    except GpubootError as error:
        return _of(error)
    return _of(ConfigError([problem])) if problem else None


def _looked_at(host: Host, steps: Sequence[Step], names: Sequence[str]) -> Iterator[Trouble]:
    """What these steps say stands in their way."""
    for step in steps:
        if step.name not in names:
            continue
        try:
            finding = step.check(host)
        except GpubootError as error:
            yield _of(error)
        else:
            if isinstance(finding, Waiting):
                yield _trouble(finding.code, finding.reason, finding.hint)


def _memory(host: Host) -> Iterator[Trouble]:
    match = re.search(r"^MemTotal:\s+(\d+) kB$", host.read("/proc/meminfo") or "", re.MULTILINE)
    total = int(match[1]) if match else MINIMUM_MEMORY
    if total < MINIMUM_MEMORY:
        message = f"{total >> 10} MiB of memory, {MINIMUM_MEMORY >> 10} MiB are needed"
        yield _trouble(LITTLE_MEMORY, message)


def _clock(host: Host) -> Iterator[Trouble]:
    """Only where a time service runs: a lone VM's host may keep the clock right."""
    lists = [host.read(f"{TIME_SERVICES}/{name}") or "" for name in host.names(TIME_SERVICES)]
    services = [word for text in lists for word in text.split() if word.endswith(".service")]
    if not services or host.clock.synchronised():
        return
    if "active" in host.run(["systemctl", "is-active", *services]).out.split():
        yield _trouble(CLOCK_UNSET, "a time service runs and has not set the clock yet")


class Servers:
    """Whether what a walk would fetch can be had; a server that is away is told once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._away: set[str] = set()

    def sources(self, steps: Sequence[Step]) -> Iterator[Trouble]:
        """The package sources, if packages are missing."""
        packages = next(step for step in steps if isinstance(step, Packages))
        source = next(step for step in steps if isinstance(step, PackageSources))
        if not _pending(self._host, packages):
            return
        try:
            addresses = sources.addresses(self._host, source.sources)
        except GpubootError:
            return  # told by the step itself
        proxied = apt.proxied(self._host)
        for address in addresses:
            if address.startswith("/"):
                yield from self._local(address)
            elif address.startswith(("http:", "https:")) and not proxied:
                yield from self._remote(address)

    def release(self, steps: Sequence[Step]) -> Iterator[Trouble]:
        """RKE2's release and its image archives, as far as they are not in place."""
        lacking = [step for step in steps if isinstance(step, Rke2Installed | ImagesPlaced)
                   and _pending(self._host, step)]  # fmt: skip
        if not lacking:
            return
        want = lacking[0].want
        version = want.version or rke2.installed_version(self._host)
        address = want.url if version else want.channels
        if urlsplit(address).hostname in self._away:
            return
        if unknown := self.unresolved(address):
            yield unknown
            return
        names = [name for step in lacking for name in step.files]
        try:
            version = version or release.lookup(self._host, want)
            release.available(self._host, want, version, names)
        except GpubootError as error:
            yield Trouble(error.code.id, _with_evidence(error), error.hint)

    def unresolved(self, address: str) -> Trouble | None:
        """That the name in an address does not resolve; a proxy resolves the others itself."""
        name = urlsplit(address).hostname
        if not name or self._host.web.proxy.covers(address):
            return None
        try:
            if self._host.run(["getent", "ahosts", name], timeout=30).code == 0:
                return None
        except GpubootError:
            pass  # no answer in time is as good as none
        self._away.add(name)
        return _trouble(NO_NAME, f"{name} does not resolve", f"getent ahosts {name}")

    def _local(self, address: str) -> Iterator[Trouble]:
        if not any(self._host.exists(name) for name in _either(address)):
            yield _trouble(aptfailure.SOURCE_FAILED, f"there is no {address}", f"ls {address}")

    def _remote(self, address: str) -> Iterator[Trouble]:
        name = urlsplit(address).hostname or ""
        if name in self._away:
            return
        if unknown := self.unresolved(address):
            yield unknown
            return
        try:
            answers = [self._host.web.get(address)]
            if answers[0].status == 404:
                answers += [self._host.web.get(other) for other in _either(address)[1:]]
        except GpubootError as error:
            self._away.add(name)
            yield Trouble(error.code.id, _with_evidence(error), f"curl -v {address}")
            return
        if all(answer.status >= 400 for answer in answers):
            message = f"{address} answered {answers[0].status}"
            yield _trouble(BAD_ANSWER, message, f"curl -I {address}")
        yield from self._behind(name, answers[0])

    def _behind(self, name: str, answer: Answer) -> Iterator[Trouble]:
        """A clock that is slow: a server's date may be an old copy's, and never a future one's."""
        try:
            theirs = parsedate_to_datetime(answer.headers.get("date", ""))
            seconds = (theirs - self._host.clock.now()).total_seconds()
        except (ValueError, TypeError):  # none, or none of ours
            return
        if seconds > SLOW:
            yield _trouble(CLOCK_UNSET, f"the clock is {seconds:.0f} s behind {name}'s")


def _either(address: str) -> list[str]:
    """A source may have its signature in the file or beside it."""
    plain = address.removesuffix("InRelease")
    return [address] if plain == address else [address, f"{plain}Release"]


def _pending(host: Host, step: Step) -> bool:
    try:
        return isinstance(step.check(host), Pending)
    except GpubootError:
        return False


def _trouble(code: Code, message: str, hint: str | None = None) -> Trouble:
    return Trouble(code.id, message, hint or code.commands[0])


def _with_evidence(error: GpubootError) -> str:
    return f"{error.message} ({error.evidence})" if error.evidence else error.message


def _of(error: GpubootError) -> Trouble:
    return Trouble(error.code.id, error.message, error.hint)
