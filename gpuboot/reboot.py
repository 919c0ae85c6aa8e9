"""Whether a reboot may be asked for, its durable record, and asking for it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from gpuboot import checkpoint as checkpoints
from gpuboot import cloudinit, rancher, rke2
from gpuboot.checkpoint import Checkpoint, Spent
from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuboot.config import Reboot
    from gpuboot.host import Host

log = logging.getLogger(__name__)

DID_NOT_HELP = Code(
    "GB021",
    "the reboot did not help",
    (
        "The same step asks for a reboot for the same reason in the boot after the last one.",
        "The kernel command line or an old initramfs still loads what was to be kept out.",
    ),
    ("journalctl -u gpuboot -b -1 -n 50", "lsmod", "cat /proc/cmdline"),
    evidence="the step's check in this boot, beside the reboot that the checkpoint remembers",
)
BUDGET_SPENT = Code(
    "GB022",
    "no reboots are left",
    ("The node was rebooted as often as reboot.budget allows and is still not ready.",),
    ("gpuboot status", "journalctl -u gpuboot -n 50", "gpuboot config show"),
    evidence="the reboots in the checkpoint, counted against reboot.budget",
)
NOT_ALLOWED = Code(
    "GB023",
    "a reboot is needed and not allowed",
    ("reboot.allow is false: somebody else decides when this machine reboots.",),
    ("systemctl reboot",),
    evidence="the step that asks for the reboot, and its reason",
)
NOT_RECORDED = Code(
    "GB024",
    "the record of a reboot could not be read back",
    (
        "The disk or the file system loses writes.",
        "/var/lib/gpuboot is on a file system in memory: every boot would ask for one more reboot.",
    ),
    ("journalctl -k -p err -n 20", "findmnt --target /var/lib/gpuboot"),
    evidence="the checkpoint, read back right after it was written",
)
NOT_YET = Code(
    "GB026",
    "a reboot is due and has to wait",
    (
        "cloud-init, or a plan of Rancher's, is at work: a reboot would cut it off.",
        "rke2-agent has become active: the node may carry workloads.",
    ),
    ("gpuboot status", "cloud-init status --long", "systemctl status rancher-system-agent"),
    evidence="cloud-init's result and jobs, Rancher's interlock, the state of rke2-agent",
)

POLL = 1.0  # seconds between two looks at what the reboot waits for
IN_MEMORY = ("tmpfs", "ramfs")


def permit(record: Checkpoint, settings: Reboot, step: str, reason: str) -> None:
    """Return if this reboot may happen. Raises GB021, GB022 or GB023 (worth another try)."""
    counted = [] if record.ready_at else record.reboots  # those of an earlier road are over
    asked_now = [spent for spent in counted if spent.boot_id == record.boot_id]
    before = [spent for spent in counted if spent.boot_id != record.boot_id]
    last = before[-1] if before else None
    if last and (last.step, last.reason) == (step, reason) and not last.helped:
        raise GpubootError(DID_NOT_HELP, f"a reboot did not help: {reason}")
    if not settings.allow:
        raise GpubootError(NOT_ALLOWED, f"a reboot is needed: {reason}", retry=True)
    spent = len(counted) + record.surcharge
    if not asked_now and spent >= settings.budget:
        lost = f", {record.surcharge} of them for a lost record" if record.surcharge else ""
        raise GpubootError(
            BUDGET_SPENT, f"{spent} of {settings.budget} reboots are spent{lost}; still: {reason}"
        )


def reboot(
    host: Host,
    record: Checkpoint,
    step: str,
    reason: str,
    watch: Callable[[str], None],
    about: Callable[[], None],
) -> None:
    """Wait for what a reboot would cut off, record durably, and ask systemd for the reboot.

    `watch` is told what is waited for, `about` is called just before the record is written. Raises
    GB024, GB026, GB522, GB012, Stopped.
    """
    if kind := volatile(host, checkpoints.FILE):
        raise GpubootError(
            NOT_RECORDED, f"{checkpoints.FILE} is on {kind}: no record of a reboot would last"
        )
    paused = False
    while not paused:
        _wait(host, reason, watch)
        if rke2.live(host):  # it was not when the walk asked, maybe long ago
            raise GpubootError(
                NOT_YET, f"rke2-agent has become active; a reboot is still needed: {reason}",
                hint="drain the node, then reboot", retry=True,
            )  # fmt: skip
        paused = rancher.pause(host)
    try:
        about()
        spend(host, record, step, reason)
        watch(reason)
        log.info("reboot: %s", reason)
        host.must(["systemctl", "reboot"])
    except GpubootError:
        rancher.resume(host)
        raise


def _wait(host: Host, reason: str, watch: Callable[[str], None]) -> None:
    """Until nothing is at work that a reboot would cut off. Raises GB026, GB522, Stopped."""
    told = None
    while blocker := cloudinit.unfinished(host) or rancher.blocker(host):
        if blocker != told:
            log.info("reboot: %s; waiting for it to end", blocker)
            watch(f"{reason}; the reboot waits: {blocker}")
            told = blocker
        if host.woken:  # the configuration may say something else by now
            raise GpubootError(NOT_YET, f"{reason}; the reboot waits: {blocker}", retry=True)
        host.sleep(POLL)


def volatile(host: Host, name: str) -> str | None:
    """The kind of the file system in memory that holds a file; None if it is on a disk.

    An overlay is what its upper folder is on, where that can be seen from here.
    """
    mounts = host.read("/proc/self/mountinfo") or ""
    kind, options = _mount(mounts, name)
    upper = re.search(r"(?:^|,)upperdir=([^,]+)", options)
    if upper and host.exists(upper[1]):  # a container's is a path of its host
        kind, _ = _mount(mounts, upper[1])
    return kind if kind in IN_MEMORY else None


def _mount(mounts: str, name: str) -> tuple[str, str]:
    """Type and options of the file system that a name is on (proc(5): mountinfo)."""
    point, found = "", ("", "")
    for line in mounts.splitlines():
        words, _, rest = line.partition(" - ")
        here = words.split()[4]
        # The later of two mounts in one place hides the earlier.
        if len(here) >= len(point) and f"{name}/".startswith(f"{here.rstrip('/')}/"):
            kind, *_, options = rest.split()
            point, found = here, (kind, options)
    return found


def spend(host: Host, record: Checkpoint, step: str, reason: str) -> None:
    """Write the record of this boot's reboot and read it back. Raises GB024 or GB012."""
    wanted = Spent(record.boot_id, step, reason)
    if record.ready_at is not None:
        record.depart()
    # A record of this very boot was not followed by a reboot yet: it is not spent twice.
    record.reboots = [spent for spent in record.reboots if spent.boot_id != record.boot_id]
    record.reboots.append(wanted)
    record.save(host)
    found = checkpoints.peek(host)
    if not found or not found["reboots"] or Spent(**found["reboots"][-1]) != wanted:
        raise GpubootError(NOT_RECORDED, f"{checkpoints.FILE} does not hold what was written to it")
