"""The agent's whole life: walk, wait by the ladder, walk again, until converged or failed."""

from __future__ import annotations

import fcntl
import logging
import os
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import IO, TYPE_CHECKING

from gpuboot import (
    aptlock,
    boots,
    checkpoint,
    config,
    facts,
    plan,
    prefetch,
    rancher,
    reboot,
    rke2,
    systemd,
)
from gpuboot.checkpoint import Checkpoint
from gpuboot.clock import stamp
from gpuboot.config import Config, ConfigError
from gpuboot.engine import Outcome, Walk
from gpuboot.errors import Code, GpubootError, Stopped
from gpuboot.host import write_failed
from gpuboot.kubernetes import NodeJoined
from gpuboot.nvidia import NO_GPU, OTHER_GPU, GpusAnswer
from gpuboot.packages import Packages
from gpuboot.progress import Progress, tell

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host
    from gpuboot.plan import Plan
    from gpuboot.step import Step

log = logging.getLogger(__name__)

BUSY = Code(
    "GB025",
    "another gpuboot is at work on this machine",
    (
        "gpuboot.service is at work, and `gpuboot run --foreground` was started beside it.",
        "`gpuboot run --foreground` was started by hand and has not ended.",
    ),
    ("gpuboot status", "systemctl stop gpuboot", "lslocks -o COMMAND,PID,PATH"),
    evidence="the lock on /run/gpuboot/lock",
)

LOCK = "/run/gpuboot/lock"
MONITOR = "gpuboot-monitor.service"
LOCK_TRIES = 10  # `gpuboot status` by root asks for the lock too, and has it for an instant

# Seconds until the next try, the last one for ever. Where it heals within a minute we notice at
# once; a card that is attached tomorrow costs twelve looks an hour.
LADDER = (5, 10, 30, 60, 120, 300)
NEAR = 3  # the last rung where rke2-agent tries by itself: a look then asks only this node
# A pool's nodes must not ask the server in step: 200 that were turned away in one instant come
# again over five seconds, which is what `make herd` measures.
JITTER = 0.5

EXIT_OK, EXIT_FAILED, EXIT_RETRY, EXIT_CONFIG = 0, 1, 75, 78
# These two systemd answers with another start: 1 would be the end of it (Restart=on-failure).
EXIT_BUSY, EXIT_FAULT = 69, 70  # of sysexits(3): unavailable, and an error of the program's own


def take_lock(host: Host) -> IO[str]:
    """The lock on the walk, held while the file is open. GB025: another one has it; GB012."""
    path = host.path(LOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # For root only: whoever can open it could hold the lock against us.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")
    except OSError as error:
        raise write_failed(LOCK, error) from error
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.sleep(0.05)
        else:
            return file
    file.close()
    raise GpubootError(BUSY, "another gpuboot is at work on this machine")


def live_forever(host: Host) -> int:
    """Walk until converged, rebooting or failed for good; the process's exit status.

    Raises Stopped when we were asked to stop.
    """
    while True:
        status, delay = walk_once(host)
        if status != EXIT_RETRY:
            return status
        log.info("next try in %.0f s", delay)
        rancher.rest(host, delay)


def walk_once(host: Host) -> tuple[int, float]:
    """One walk from the top: exit status, and the seconds until the next try.

    0 converged or rebooting, 1 failed, 75 try again, 78 configuration. Raises Stopped.
    """
    try:
        return _walk_from_top(host)
    except (GpubootError, OSError) as caught:
        trouble = caught if isinstance(caught, GpubootError) else _of_the_disk(caught)
        _tell_of(trouble)
        delay = _jittered(LADDER[-1])
        # systemd has it even where /run takes no file, and `gpuboot status` asks it then.
        systemd.notify(f"STATUS=waiting: {host.mask(trouble.message)[:380]} [{trouble.code.id}]")
        tell(host, trouble, _after(host, delay))
        return EXIT_RETRY, delay


def _tell_of(error: GpubootError) -> None:
    why = (error.message, error.code.id, error.hint)
    log.error("%s [%s]; next: %s", *why, extra={"code": error.code.id})


def _of_the_disk(error: OSError) -> GpubootError:
    """Trouble outside any step, such as a disk that cannot even be read any more."""
    return write_failed(str(error.filename or "a file"), error)


def _walk_from_top(host: Host) -> tuple[int, float]:
    machine = facts.gather(host)
    try:
        wanted = config.load(host)
    except ConfigError as error:
        return _refuse(host, machine, error)
    host.web.proxy = plan.proxy(wanted)
    record = checkpoint.load(host, machine, budget=wanted.reboot.budget)
    road = plan.build(wanted, machine)
    if rke2.live(host):  # woken by a kernel's installation, whose headers may come after it
        with suppress(GpubootError):  # whoever is still at it then: we look at what there is
            aptlock.wait(host)
    progress = Progress(host, record, wanted, road.steps)
    progress.begin()
    outcome = _walk(host, record, wanted, road, progress)
    if outcome.state == "rebooting":
        outcome = _reboot(host, record, wanted, outcome, progress)
    return _conclude(host, record, outcome, progress)


def _walk(
    host: Host, record: Checkpoint, wanted: Config, road: Plan, progress: Progress
) -> Outcome:
    recorder = boots.Recorder(record.history[-1], host.clock.boottime())
    recorder.resume(host.clock.boottime())

    def watch(step: Step, state: str, reason: str) -> None:
        recorder.hear(host.clock.boottime(), step.name, state, host.mask(reason))
        systemd.notify(f"STATUS={step.name}: {host.mask(reason)}"[:400])
        progress.watch(step, state, reason)
        if isinstance(step, Packages) and state == "running":  # the longest one, on a new node
            prefetch.begin(host, road.join)

    walk = Walk(host, record, lambda: rke2.live(host), watch)
    if wanted.on_gpu_failure == "hold":
        return walk.run(road.prepare, road.join)
    prepared = walk.run(road.prepare, ())
    if GpusAnswer.name in walk.held and prepared.state in ("ready", "degraded"):
        return walk.run((), road.join)
    if prepared.code not in (NO_GPU.id, OTHER_GPU.id):
        record.missing = None
    elif record.missing is None:
        record.missing = record.seconds(host)
    if not _given_up(host, record, wanted, prepared):
        return prepared
    log.warning("joining without the GPU: %s", prepared.reason)
    joined = walk.run((), plan.bare(wanted))
    if joined.state not in ("ready", "degraded"):
        return joined
    trouble = f"{prepared.step or 'GPU'}: {prepared.reason}"
    return replace(
        joined,
        state="degraded",
        reason=f"joined without its GPU: {prepared.reason}",
        code=prepared.code,
        hint=prepared.hint,
        whole=False,
        drift=tuple(dict.fromkeys((trouble, *joined.drift))),
    )


def _given_up(host: Host, record: Checkpoint, wanted: Config, prepared: Outcome) -> bool:
    """Whether the GPU has had its time, so that the node may join without it."""
    if prepared.state != "waiting":
        return prepared.state != "rebooting"
    if record.missing is not None:
        return record.seconds(host) - record.missing > wanted.gpu.wait
    # A node that was ready before has a new trouble, which began in this boot.
    begun = host.clock.boottime() - record.since if record.ready_at else record.seconds(host)
    return begun > wanted.deadline


def _reboot(
    host: Host, record: Checkpoint, wanted: Config, outcome: Outcome, progress: Progress
) -> Outcome:
    """Ask for the reboot if it may be; else what the walk ends with instead."""
    step, reason = str(outcome.step), outcome.reason
    try:
        reboot.permit(record, wanted.reboot, step, reason)
        asked = host.clock.boottime()

        def about() -> None:
            boots.waited(record.history[-1], "until the reboot", asked, host.clock.boottime())
            _note(host, record, f"reboot: {host.mask(reason)}")

        reboot.reboot(host, record, step, reason, progress.rebooting, about)
    except GpubootError as error:
        state = "waiting" if error.retry else "failed"
        return replace(
            outcome, state=state, reason=error.message, code=error.code.id, hint=error.hint
        )
    return outcome


def _conclude(
    host: Host, record: Checkpoint, outcome: Outcome, progress: Progress
) -> tuple[int, float]:
    """Record how the walk ended, and turn it into an exit status and the next try's delay."""
    if outcome.state in ("ready", "degraded"):
        noted = _note(host, record, outcome.state)
        if outcome.whole:  # a node that joined without its GPU is not what was wanted
            record.arrive(host, noted=noted)
        elif noted:
            record.save(host)
        log.info("%s: %s", outcome.state, outcome.reason)
        progress.end(outcome, None)
        if outcome.whole:
            _watch_on(host)
        return _ended(host, EXIT_OK)
    if outcome.state == "rebooting":
        progress.end(outcome, None)
        return EXIT_OK, 0
    if outcome.state == "waiting":
        record.meet(f"{outcome.step} {outcome.code}")
        rung = min(record.rung, NEAR if outcome.step == NodeJoined.name else len(LADDER) - 1)
        record.rung = rung + 1
        _note(host, record, outcome.state)
        record.save(host)
        delay = _pause(LADDER[rung], outcome.not_before)
        progress.end(outcome, _after(host, delay))
        log.info("waiting: %s [%s]", outcome.reason, outcome.code, extra={"code": outcome.code})
        return EXIT_RETRY, delay
    if _note(host, record, outcome.state):
        with suppress(GpubootError):  # a disk that takes no record changes nothing of the failure
            record.save(host)
    progress.end(outcome, None)
    why = (outcome.reason, outcome.code, outcome.hint)
    log.error("failed: %s [%s]; next: %s", *why, extra={"code": outcome.code})
    wrong = outcome.code == config.CONFIG_WRONG.id
    return _ended(host, EXIT_CONFIG if wrong else EXIT_FAILED)


def _watch_on(host: Host) -> None:
    """Start the monitor, which finds its proven GPUs in what was just told; masked, it is not."""
    try:
        if not systemd.unit(host, MONITOR).live:
            systemd.start(host, MONITOR)
    except GpubootError as error:
        log.info("%s is not started: %s", MONITOR, error.message)


def _note(host: Host, record: Checkpoint, ended: str) -> bool:
    """How this boot's walk ended, for the timeline; whether that is news, and must be saved.

    What it ended with stays: a look at a ready node is no news.
    """
    this = record.history[-1]
    if this.ended == ended:
        return False
    this.ended, this.over = ended, host.clock.boottime()
    this.phases = boots.phases(host) or this.phases
    return True


def _ended(host: Host, status: int) -> tuple[int, float]:
    """The end of a walk; another try at once where `gpuboot run` has asked for it meanwhile."""
    return (EXIT_RETRY, 0) if host.woken else (status, 0)


def _pause(rung: float, not_before: float) -> float:
    """Seconds until the next try: around the rung, or anywhere in a rung after `not_before`.

    A server that says "later" has many at its door: they must not all come back in step.
    """
    if not not_before:
        return _jittered(rung)
    return min(not_before, LADDER[-1]) + random.uniform(0, rung)  # noqa: S311 - no secret


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


def _after(host: Host, seconds: float) -> str:
    return stamp(host.clock.now() + timedelta(seconds=seconds))


def _refuse(host: Host, machine: Facts, error: ConfigError) -> tuple[int, float]:
    """A wrong configuration: nothing of the walk is done, and the hold stays."""
    record = checkpoint.load(host, machine, budget=Config().reboot.budget)
    progress = Progress(host, record, None, ())
    outcome = Outcome("failed", None, error.message, error.code.id, error.hint)
    return _conclude(host, record, outcome, progress)


def foreground(host: Host, *, once: bool) -> int:
    """What the unit runs: the lock, READY so that nobody waits for the walk, the agent's life."""
    try:
        with take_lock(host):
            systemd.notify("READY=1")
            return walk_once(host)[0] if once else live_forever(host)
    except Stopped:
        log.info("stopped; the next start goes on from what the machine is then")
        return EXIT_OK
    except GpubootError as error:
        _tell_of(error)
        return EXIT_BUSY
    except Exception:
        # Ours, or an upgrade has replaced modules under a running process: a new one may do
        # better. The walk is repeatable, so dying is as good an answer as a power cut.
        log.exception("gpuboot has a fault of its own")
        return EXIT_FAULT
