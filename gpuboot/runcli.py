"""The command `gpuboot run`: what cloud-init calls, and what the unit executes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from gpuboot import console, statuscli
from gpuboot import status as looking
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

READY_WAIT = 20.0  # seconds a walk over a ready node may take before we stop looking on


@click.command()
@click.option("--wait", is_flag=True, help="Block until the node is ready or has failed.")
@statuscli.TIMEOUT
@click.option("--foreground", is_flag=True, help="Do the work in this process (the unit does).")
@click.option("--once", is_flag=True, help="With --foreground: one walk, no waiting.")
@click.option("--verbose", is_flag=True, help="With --foreground: log every command.")
@console.told
def run(*, wait: bool, timeout: float, foreground: bool, once: bool, verbose: bool) -> None:
    """Start the walk that makes this machine a GPU worker, from now on at every boot.

    Enables gpuboot.service, checks the configuration, and starts the service without waiting
    for it. On a terminal it then shows the progress; Ctrl-C leaves the work running.

    \b
    Examples:
      gpuboot run                       in cloud-init's runcmd, or by hand
      gpuboot run --wait --timeout 30m  block until the node is ready, or is not
      gpuboot run --foreground --once --verbose

    \b
    Exit status: 0 started (with --wait: ready), 1 failed, 2 usage, 3 not ready in time,
    4 degraded, 78 configuration wrong. With --foreground also 69 another gpuboot is at work or
    its lock cannot be had, 70 a fault of gpuboot itself; with --once 75 worth another try.
    """
    if (once or verbose) and not foreground:
        raise click.UsageError("--once and --verbose go with --foreground")
    if foreground and wait:
        raise click.UsageError("--foreground does the work itself; --wait does not go with it")
    if os.geteuid() != 0:
        raise click.UsageError("gpuboot run changes the machine: run it as root")
    host = console.host()
    if foreground:
        sys.exit(_foreground(host, once=once, verbose=verbose))
    from gpuboot import cloudinit

    if wait and cloudinit.inside(host):
        raise click.UsageError(
            "--wait inside cloud-init would never end: a reboot waits until cloud-init is done."
            " In runcmd, say: gpuboot run"
        )
    before = looking.look(host)
    _start(host)
    if wait:
        found = statuscli.wait(looking.anew(host, before), timeout)
        click.echo(statuscli.text(found))
        sys.exit(looking.exit_code(found))
    if before["state"] == "ready":
        _confirm(looking.anew(host, before), before)
    elif sys.stdout.isatty():
        statuscli.follow(looking.anew(host, before))
    else:
        click.echo("gpuboot is at work; where it stands: gpuboot status")


def _start(host: Host) -> None:
    """Enable first: that is the hold. Raises ConfigError; nothing is touched but the hold then."""
    from gpuboot import config, rke2, systemd

    if not host.exists(rke2.ENABLED):
        systemd.enable(host, rke2.GPUBOOT)
    try:
        wanted = config.load(host)
    except config.ConfigError:
        _begin(host)  # the service refuses it as well, and `gpuboot status` tells of it
        raise
    for warning in config.warnings(host, wanted):
        click.echo(f"warning: {warning}", err=True)
    _begin(host)


def _begin(host: Host) -> None:
    """Start the service, or make the one at work look again. Raises GB025."""
    from gpuboot import agent, rke2, systemd

    if not looking.locked(host):
        systemd.start(host, rke2.GPUBOOT)
    elif systemd.unit(host, rke2.GPUBOOT).live:
        # It sleeps or walks: it looks again at once, with the configuration read anew. Has it
        # ended by now, it is started.
        host.must(["systemctl", "reload-or-restart", "--no-block", rke2.GPUBOOT])
    else:
        raise GpubootError(agent.BUSY, "another gpuboot, started by hand, is at work here")


def _foreground(host: Host, *, once: bool, verbose: bool) -> int:
    from gpuboot import agent, log

    host.trace = log.start(host.mask, verbose=verbose).debug

    def stop(_: int, __: FrameType | None) -> None:
        host.stop()

    def wake(_: int, __: FrameType | None) -> None:
        host.wake()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, wake)
    return agent.foreground(host, once=once)


def _confirm(look: Callable[[], dict[str, Any]], before: dict[str, Any]) -> None:
    """A ready node: look on while the walk passes over it, and say whether it had to act."""
    found = statuscli.wait(look, READY_WAIT, poll=0.1)
    efforts = [
        {step["name"]: step["attempts"] for step in document["steps"]}
        for document in (before, found)
    ]
    if found["state"] == "ready" and efforts[0] == efforts[1]:
        click.echo("ready: every step holds, nothing was changed")
    else:
        click.echo(f"{found['state']}: {found['reason']}; more: gpuboot status")


@click.command(name="give-way", hidden=True)
@console.told
def give_way() -> None:
    """Take out of gpuboot's drop-in for RKE2 what RKE2's other files say by now.

    rke2-agent's unit has this done before each start: RKE2 dies of a taint that is given twice.
    """
    from gpuboot import rancher

    for text in rancher.give_way(console.host()):
        click.echo(f"gpuboot: {text} is left to another of RKE2's files")
