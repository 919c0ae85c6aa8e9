"""The command `gpuboot monitor`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

import click

from gpuboot import console
from gpuboot.errors import GpubootError, Stopped

if TYPE_CHECKING:
    from gpuboot.host import Host


@click.command()
@click.option("--once", is_flag=True, help="One look, printed as JSON; nothing is remembered.")
@click.option(
    "--drill", metavar="LINE",
    help="Let the monitor at work read LINE as if the kernel had logged it.",
)  # fmt: skip
@console.told
def monitor(*, once: bool, drill: str | None) -> None:
    """Watch the GPUs of a ready node; gpuboot-monitor.service runs it.

    It looks at NVML, the PCI bus, the kernel's log (Xid errors), the versions of module and
    library, the kernel that boots next, rke2-agent, containerd's runtimes, and the labels and
    taints of the own Node, and says what is wrong in `gpuboot status`, in the journal, in the
    Node's condition GPUHealthy and in the Prometheus textfile that monitor.textfile names. It
    repairs nothing. gpuboot.service starts it once the node is ready, in every boot.

    --drill is a rehearsal of an alarm: node, metrics and status change as if a card had failed,
    and are what they were once it has said nothing of the kind for 40 looks.

    \b
    Examples:
      gpuboot monitor --once
      gpuboot monitor --drill "NVRM: Xid (PCI:0000:03:00): 48, DBE (double bit error)"

    \b
    Exit status: 0 ended by systemd, or shown; 1 it could not begin; 2 usage; 78 configuration
    wrong.
    """
    from gpuboot import config
    from gpuboot import monitor as daemon
    from gpuboot.config import NOT_ROOT

    if once and drill:
        raise click.UsageError("--drill is for the monitor at work; --once looks by itself")
    if os.geteuid() != 0:
        raise GpubootError(NOT_ROOT, "the kernel's log and gpuboot's files are root's")
    host = console.host()
    if drill:
        _pretend(host, drill)
    elif once:
        console.print_json(daemon.Monitor(host, config.load(host)).seen())
    else:
        _serve(host)


@click.command(name="publish-health", hidden=True)
@console.told
def publish() -> None:
    """Tell the cluster what the monitor has to say; gpuboot-condition.service does it."""
    from gpuboot import condition

    if line := condition.publish(console.host()):
        click.echo(line)


def _pretend(host: Host, line: str) -> None:
    from gpuboot import monitor as daemon
    from gpuboot import xids

    event = xids.read(line)
    if event is None:
        raise click.UsageError(
            "the line tells of no error; such as:"
            " NVRM: Xid (PCI:0000:03:00): 79, GPU has fallen off the bus."
        )
    host.write(daemon.DRILL, line + "\n")
    click.echo(f"Xid {event.number} ({event.kind.name}) at {event.pci}; to do: {event.action}")


def _serve(host: Host) -> None:
    from gpuboot import log
    from gpuboot import monitor as daemon

    log.start(host.mask, verbose=False)

    def stop(_: int, __: FrameType | None) -> None:
        host.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        daemon.run(host)
    except Stopped:
        sys.exit(0)
