"""cloud-init, as far as a reboot has to wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuboot import systemd

if TYPE_CHECKING:
    from gpuboot.host import Host

RESULT = "/run/cloud-init/result.json"
INSTANCE = "/var/lib/cloud/data/instance-id"
UNITS = (
    "cloud-init-local.service",
    "cloud-init.service",
    "cloud-init-network.service",
    "cloud-init-main.service",
    "cloud-config.service",
    "cloud-final.service",
)


def instance_id(host: Host) -> str:
    """The instance-id that cloud-init found, empty without cloud-init."""
    return (host.read(INSTANCE) or "").strip()


def unfinished(host: Host) -> str | None:
    """Why cloud-init still has work in this boot, or None: it is done, absent or off.

    `cloud-init status` is no proof: it may say error while cloud-final has yet to run.
    """
    if not host.exists("/usr/bin/cloud-init") and not host.exists("/usr/local/bin/cloud-init"):
        return None
    if host.exists("/run/cloud-init/disabled") or host.exists("/etc/cloud/cloud-init.disabled"):
        return None
    final = systemd.unit(host, "cloud-final.service")
    if final.job or final.active == "activating":
        return "cloud-init runs its last stage (cloud-final)"
    # One that failed or is masked writes no result any more, in this boot.
    if host.exists(RESULT) or final.active == "failed" or final.load == "masked":
        return None
    if final.exists and _will_run(host):
        return "cloud-init has not ended yet"
    return None


def _will_run(host: Host) -> bool:
    """Whether cloud-init's generator wanted it in this boot: a datasource was found."""
    return host.exists("/run/cloud-init/enabled")


def inside(host: Host) -> bool:
    """Whether this very process was started by cloud-init, told by its own control group."""
    groups = host.read("/proc/self/cgroup") or ""
    return any(f"/{unit}" in line for line in groups.splitlines() for unit in UNITS)
