"""cloud-init, as far as a reboot has to wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuboot import systemd

if TYPE_CHECKING:
    from gpuboot.host import Host

RESULT = "/run/cloud-init/result.json"
OUTPUT = "/var/log/cloud-init-output.log"
INSTANCE = "/var/lib/cloud/data/instance-id"
FINAL = "cloud-final.service"
MAIN = "cloud-init-main.service"  # the one process of 24.3 and later
UNITS = (
    "cloud-init-local.service",
    "cloud-init.service",
    "cloud-init-network.service",
    MAIN,
    "cloud-config.service",
    FINAL,
)


def instance_id(host: Host) -> str:
    """The instance-id that cloud-init found, empty without cloud-init."""
    return (host.read(INSTANCE) or "").strip()


def said(host: Host) -> str:
    """What the programs that cloud-init has called have printed; empty if nothing was kept."""
    return host.read(OUTPUT) or systemd.journal(host, FINAL, lines=500)


def unfinished(host: Host) -> str | None:
    """Why cloud-init still has work in this boot, or None: it is done, absent or off.

    `cloud-init status` is no proof: it may say error while cloud-final has yet to run.
    """
    if not host.exists("/usr/bin/cloud-init") and not host.exists("/usr/local/bin/cloud-init"):
        return None
    if host.exists("/run/cloud-init/disabled") or host.exists("/etc/cloud/cloud-init.disabled"):
        return None
    units = {name: systemd.unit(host, name) for name in (FINAL, MAIN)}
    if _killed(host, FINAL, units[FINAL]) and not _processes(host, MAIN):
        return None
    if _killed(host, MAIN, units[MAIN]):
        return None
    final = units[FINAL]
    if final.job or final.active == "activating":
        return "cloud-init runs its last stage (cloud-final)"
    # A masked one writes no result in this boot.
    if host.exists(RESULT) or final.load == "masked":
        return None
    if final.exists and _will_run(host):
        return "cloud-init has not ended yet"
    return None


def _killed(host: Host, name: str, unit: systemd.Unit) -> bool:
    """Whether cloud-init was killed, and all that this unit had started has ended.

    result.json never comes then. Where cloud-init is one process (24.3 and later), runcmd is that
    process' child, and cloud-final waits for ever for it to answer.
    """
    return unit.active == "failed" and not _processes(host, name)


def _processes(host: Host, name: str) -> str | None:
    return host.read(f"/sys/fs/cgroup/system.slice/{name}/cgroup.procs")


def _will_run(host: Host) -> bool:
    """Whether cloud-init's generator wanted it in this boot: a datasource was found."""
    return host.exists("/run/cloud-init/enabled")


def inside(host: Host) -> bool:
    """Whether this very process was started by cloud-init, told by its own control group."""
    groups = host.read("/proc/self/cgroup") or ""
    return any(f"/{unit}" in line for line in groups.splitlines() for unit in UNITS)
