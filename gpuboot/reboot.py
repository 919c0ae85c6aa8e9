"""Whether a reboot may be asked for, its durable record, and asking for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpuboot import checkpoint as checkpoints
from gpuboot import cloudinit
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
)
BUDGET_SPENT = Code(
    "GB022",
    "no reboots are left",
    ("The node was rebooted as often as reboot.budget allows and is still not ready.",),
    ("gpuboot status", "journalctl -u gpuboot -n 50", "gpuboot config show"),
)
NOT_ALLOWED = Code(
    "GB023",
    "a reboot is needed and not allowed",
    ("reboot.allow is false: somebody else decides when this machine reboots.",),
    ("systemctl reboot",),
)
NOT_RECORDED = Code(
    "GB024",
    "the record of a reboot could not be read back",
    ("The disk or the file system loses writes.",),
    ("journalctl -k -p err -n 20", "df -h /var/lib/gpuboot"),
)

POLL = 1.0  # seconds between two looks at cloud-init


def permit(record: Checkpoint, settings: Reboot, step: str, reason: str) -> None:
    """Return if this reboot may happen. Raises GB021, GB022 or GB023 (worth another try)."""
    counted = [] if record.ready_at else record.reboots  # those of an earlier road are over
    asked_now = [spent for spent in counted if spent.boot_id == record.boot_id]
    before = [spent for spent in counted if spent.boot_id != record.boot_id]
    if before and (before[-1].step, before[-1].reason) == (step, reason):
        raise GpubootError(DID_NOT_HELP, f"a reboot did not help: {reason}")
    if not settings.allow:
        raise GpubootError(NOT_ALLOWED, f"a reboot is needed: {reason}", retry=True)
    spent = len(counted) + record.surcharge
    if not asked_now and spent >= settings.budget:
        raise GpubootError(
            BUDGET_SPENT, f"{spent} of {settings.budget} reboots are spent; still: {reason}"
        )


def reboot(
    host: Host, record: Checkpoint, step: str, reason: str, watch: Callable[[str], None]
) -> None:
    """Wait for cloud-init, record durably, and ask systemd for the reboot.

    `watch` is told what is waited for. Raises GB024, GB012, Stopped.
    """
    told = None
    while blocker := cloudinit.unfinished(host):
        if blocker != told:
            log.info("reboot: %s; waiting for it to end", blocker)
            watch(f"{reason}; the reboot waits: {blocker}")
            told = blocker
        host.sleep(POLL)
    spend(host, record, step, reason)
    watch(reason)
    log.info("reboot: %s", reason)
    host.must(["systemctl", "reboot"])


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
