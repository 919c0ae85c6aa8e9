"""The command line. With configcli and console the only place that prints, or exits."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from gpuboot import __version__, configcli, console
from gpuboot import status as looking
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host

READY_WAIT = 20.0  # seconds a walk over a ready node may take before we stop looking on


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpuboot")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a freshly booted GPU VM into a proven GPU worker of an RKE2 cluster.

    cloud-init says `gpuboot run`; `gpuboot status` tells where the node stands.
    """
    if os.environ.get("NO_COLOR"):  # no-color.org; click itself asks only for a terminal
        context.color = False


# -- run ----------------------------------------------------------------------------------------


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    from gpuboot.kinds import DURATION, Wrong

    try:
        return DURATION.parse(value)
    except Wrong as wrong:
        raise click.BadParameter(f"{wrong}; expected {DURATION.expected}") from None


TIMEOUT = click.option(
    "--timeout", default="30m", show_default=True, callback=_seconds, metavar="DURATION",
    help="With --wait: give up after that long.",
)  # fmt: skip


@main.command()
@click.option("--wait", is_flag=True, help="Block until the node is ready or has failed.")
@TIMEOUT
@click.option("--foreground", is_flag=True, help="Do the work in this process (the unit does).")
@click.option("--once", is_flag=True, help="With --foreground: one walk, no waiting.")
@click.option("--verbose", is_flag=True, help="With --foreground: log every command.")
@console.told
def run(*, wait: bool, timeout: float, foreground: bool, once: bool, verbose: bool) -> None:
    """Start the walk that makes this machine a GPU worker, from now on at every boot.

    Enables gpuboot.service, checks the configuration, and starts the service without waiting
    for it. On a terminal it then shows the progress; Ctrl-C leaves the work running.

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
        sys.exit(looking.exit_code(_wait(looking.anew(host, before), timeout)))
    if before["state"] == "ready":
        _confirm(looking.anew(host, before), before)
    elif sys.stdout.isatty():
        _follow(looking.anew(host, before))
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

    log.start(host.mask, verbose=verbose)

    def stop(_: int, __: FrameType | None) -> None:
        host.stop()

    def wake(_: int, __: FrameType | None) -> None:
        host.wake()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, wake)
    return agent.foreground(host, once=once)


def _wait(look: Callable[[], dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Look until the walk is over or the time is up; says so only in its exit status."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found["state"] in looking.FINAL or time.monotonic() > deadline:
            click.echo(_text(found))
            return found
        time.sleep(0.5)


def _confirm(look: Callable[[], dict[str, Any]], before: dict[str, Any]) -> None:
    """A ready node: look on while the walk passes over it, and say whether it had to act."""
    deadline = time.monotonic() + READY_WAIT
    found = look()
    while found["state"] not in looking.FINAL and time.monotonic() < deadline:
        time.sleep(0.1)
        found = look()
    efforts = [
        {step["name"]: step["attempts"] for step in document["steps"]}
        for document in (before, found)
    ]
    if found["state"] == "ready" and efforts[0] == efforts[1]:
        click.echo("ready: every step holds, nothing was changed")
    else:
        click.echo(f"{found['state']}: {found['reason']}; more: gpuboot status")


def _follow(look: Callable[[], dict[str, Any]]) -> None:
    from gpuboot import screen, show

    try:
        found = screen.follow(look)
    except KeyboardInterrupt:
        click.echo("\nthe work goes on; where it stands: gpuboot status")
        return
    click.echo(show.status(found))
    sys.exit(looking.exit_code(found))


def _text(found: dict[str, Any]) -> str:
    from gpuboot import show

    return show.status(found)


@main.command(name="give-way", hidden=True)
@console.told
def give_way() -> None:
    """Take out of gpuboot's drop-in for RKE2 what RKE2's other files say by now.

    rke2-agent's unit has this done before each start: RKE2 dies of a taint that is given twice.
    """
    from gpuboot import rancher

    for text in rancher.give_way(console.host()):
        click.echo(f"gpuboot: {text} is left to another of RKE2's files")


# -- looking ------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; keys are only ever added.")
@click.option("--wait", is_flag=True, help="Block until the node is ready or has failed.")
@click.option(
    "--watch", is_flag=True,
    help="Draw it again and again, until Ctrl-C; in a pipe, tell each step that holds.",
)  # fmt: skip
@TIMEOUT
@console.told
def status(*, as_json: bool, wait: bool, watch: bool, timeout: float) -> None:
    """Tell where this node stands, and what to do next.

    \b
    Exit status: 0 ready, 1 failed, 2 usage, 3 in progress, 4 degraded, 5 never enabled.
    """
    host = console.host()
    if wait:
        deadline = time.monotonic() + timeout
        while looking.look(host)["state"] not in looking.FINAL and time.monotonic() < deadline:
            time.sleep(0.5)
    if watch and sys.stdout.isatty():
        from gpuboot import screen

        found = screen.watch(lambda: looking.look(host))
    elif watch:
        _follow(lambda: looking.look(host))
        return
    else:
        found = looking.look(host)
    if as_json:
        console.print_json(found)
    else:
        click.echo(_text(found))
    sys.exit(looking.exit_code(found))


@main.command(hidden=True)
def motd() -> None:
    """Say where a node stands that is not ready, in one line; /etc/update-motd.d calls it."""
    from gpuboot import show

    if line := show.motd(looking.look(console.host())):
        click.echo(line)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@console.told
def facts(*, as_json: bool) -> None:
    """Show what was detected: system, kernel, firmware, GPUs."""
    from gpuboot import facts as machine
    from gpuboot import show

    gathered = machine.gather(console.host())
    found = asdict(gathered)
    if as_json:
        console.print_json(found)
        return
    gpus = found.pop("gpus")
    there = gathered.driver
    found["driver"] = f"{there.version} of {there.origin}" if there else "none"
    rows = [(name.replace("_", " "), "unknown" if value in (None, "") else str(value))
            for name, value in found.items()]  # fmt: skip
    rows += [
        (f"gpu {gpu['slot']}", f"10de:{gpu['device']}, driver {gpu['driver'] or 'none'}")
        for gpu in gpus
    ]
    click.echo(show.table(rows))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--offline", is_flag=True,
    help="Ask nobody: package names without versions, nothing about the cluster.",
)  # fmt: skip
@click.option(
    "--facts", "recorded", type=click.File(encoding="utf-8"), metavar="FILE",
    help="Plan for another machine, from what `gpuboot facts --json` said there.",
)  # fmt: skip
@console.told
def plan(*, as_json: bool, offline: bool, recorded: TextIO | None) -> None:
    """Show the ordered steps, what each would find now, and what a walk would do.

    Packages with versions and sizes are resolved in a private apt state; nothing on this
    machine is changed. A preview: those steps after a pending one can only tell what is
    missing yet. Without root, what only root can read is left out.

    \b
    Exit status: 0 the plan is whole, 1 the packages could not be resolved (the rest is shown),
    or the configuration can only be read by root, 2 usage, 78 configuration wrong.
    """
    from gpuboot import findings, preview, show

    host = console.host()
    if recorded:
        found = preview.elsewhere(host, _recorded(recorded))
    else:
        looking = findings.Looking(root=os.geteuid() == 0, offline=offline)
        found = preview.preview(host, looking)
    if as_json:
        console.print_json(found)
    else:
        click.echo(show.plan(found))
    if trouble := found["trouble"]:
        console.complain(**trouble)
        sys.exit(1)


def _recorded(file: TextIO) -> Facts:
    from gpuboot import facts as machine

    try:
        return machine.parse(json.load(file))
    except (ValueError, TypeError, KeyError) as error:
        raise click.UsageError(
            f"{file.name} does not hold what `gpuboot facts --json` prints: {error}"
        ) from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Do not fail for this code.")
@console.told
def preflight(*, as_json: bool, ignore: tuple[str, ...]) -> None:
    """Look for everything that would stop a walk, all at once, each with its remedy.

    \b
    Exit status: 0 nothing stands in the way, 1 something does, 2 usage.
    """
    from gpuboot import explain as explaining
    from gpuboot import survey

    ignored = {code.upper() for code in ignore}
    if unknown := sorted(ignored - set(explaining.codes())):
        raise click.UsageError(f"unknown code {', '.join(unknown)}; all of them: gpuboot explain")
    if "GB001" in ignored:
        raise click.UsageError("no walk begins with a wrong configuration: GB001 cannot be ignored")
    host = console.host()
    troubles = survey.survey(host, root=os.geteuid() == 0)
    warnings = survey.warnings(host)
    told = [{**asdict(trouble), "ignored": trouble.code in ignored} for trouble in troubles]
    stands = any(not one["ignored"] for one in told)
    if as_json:
        console.print_json({"schema": 1, "ok": not stands, "troubles": told, "warnings": warnings})
        sys.exit(1 if stands else 0)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    for one in told:
        mark = "ignored " if one["ignored"] else ""
        click.echo(f"{mark}{one['code']}  {one['message']}\n        next: {one['hint']}")
    if not stands:
        click.echo(f"nothing{' else' if told else ''} stands in the way of a walk")
    sys.exit(1 if stands else 0)


@main.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(*, code: str | None, as_json: bool) -> None:
    """Tell what an error CODE means, its usual causes, and what to type next."""
    from gpuboot import explain as explaining

    codes = explaining.codes()
    if code is None:
        chosen = list(codes.values())
    elif code.upper() in codes:
        chosen = [codes[code.upper()]]
    else:
        raise click.UsageError(f"unknown code {code}; all of them: gpuboot explain")
    if as_json:
        console.print_json([asdict(one) for one in chosen] if code is None else asdict(chosen[0]))
    elif code is None:
        click.echo("\n".join(f"{one.id}  {one.title}" for one in chosen))
    else:
        click.echo(explaining.text(chosen[0]))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are in seconds.")
@click.option(
    "--svg", type=click.File("w", encoding="utf-8", lazy=True), metavar="FILE",
    help="Write the picture as SVG, for a report; - is standard output.",
)  # fmt: skip
@console.told
def timeline(*, as_json: bool, svg: TextIO | None) -> None:
    """Show where the time went: every step of every boot, to scale.

    Around the steps stand firmware, kernel, initramfs and cloud-init, by systemd's own clocks. A
    star marks the critical path: had that been shorter, the boot would have ended sooner.

    \b
    Exit status: 0 shown, 1 gpuboot has not walked here yet, 2 usage.
    """
    import shutil

    from gpuboot import chart, picture
    from gpuboot import timeline as times

    found = times.read(console.host())
    if svg:
        svg.write(picture.svg(found))
    if as_json:
        console.print_json(found.document())
    elif not svg:
        click.echo(chart.text(found, shutil.get_terminal_size().columns))


main.add_command(configcli.config)
