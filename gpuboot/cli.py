"""The command line: the only place that prints, exits, or catches a GpubootError."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from gpuboot import __version__
from gpuboot import status as looking
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.facts import Facts
    from gpuboot.host import Host
    from gpuboot.reader import Problem

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CONFIG = 78
READY_WAIT = 20.0  # seconds a walk over a ready node may take before we stop looking on


def _told(command: F) -> F:
    """Print a GpubootError once, as a person reads it, and end with its exit status."""

    @wraps(command)
    def wrapper(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except GpubootError as error:
            _complain(error.message, error.code.id, error.evidence, error.hint)
            sys.exit(EXIT_CONFIG if error.code.id == "GB001" else 1)

    return wrapper  # type: ignore[return-value] # the same signature, which wraps cannot say


def _complain(message: str, code: str, evidence: str, hint: str) -> None:
    click.echo(f"gpuboot: {message} [{code}]", err=True)
    if evidence:
        click.echo(evidence, err=True)
    click.echo(f"next: {hint}", err=True)


def _host() -> Host:
    from gpuboot.host import Host

    return Host()


def _json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpuboot")
def main() -> None:
    """Turn a freshly booted GPU VM into a proven GPU worker of an RKE2 cluster.

    cloud-init says `gpuboot run`; `gpuboot status` tells where the node stands.
    """


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
@_told
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
    host = _host()
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
    from gpuboot import show

    try:
        found = show.follow(look)
    except KeyboardInterrupt:
        click.echo("\nthe work goes on; where it stands: gpuboot status")
        return
    click.echo(show.status(found))
    sys.exit(looking.exit_code(found))


def _text(found: dict[str, Any]) -> str:
    from gpuboot import show

    return show.status(found)


@main.command(name="give-way", hidden=True)
@_told
def give_way() -> None:
    """Take out of gpuboot's drop-in for RKE2 what RKE2's other files say by now.

    rke2-agent's unit has this done before each start: RKE2 dies of a taint that is given twice.
    """
    from gpuboot import rancher

    for text in rancher.give_way(_host()):
        click.echo(f"gpuboot: {text} is left to another of RKE2's files")


# -- looking ------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; keys are only ever added.")
@click.option("--wait", is_flag=True, help="Block until the node is ready or has failed.")
@click.option("--watch", is_flag=True, help="Show the progress as it goes on.")
@TIMEOUT
@_told
def status(*, as_json: bool, wait: bool, watch: bool, timeout: float) -> None:
    """Tell where this node stands, and what to do next.

    \b
    Exit status: 0 ready, 1 failed, 2 usage, 3 in progress, 4 degraded, 5 never enabled.
    """
    host = _host()
    if wait:
        deadline = time.monotonic() + timeout
        while looking.look(host)["state"] not in looking.FINAL and time.monotonic() < deadline:
            time.sleep(0.5)
    if watch:
        _follow(lambda: looking.look(host))
    found = looking.look(host)
    if as_json:
        _json(found)
    else:
        click.echo(_text(found))
    sys.exit(looking.exit_code(found))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_told
def facts(*, as_json: bool) -> None:
    """Show what was detected: system, kernel, firmware, GPUs."""
    from gpuboot import facts as machine
    from gpuboot import show

    found = asdict(machine.gather(_host()))
    if as_json:
        _json(found)
        return
    gpus = found.pop("gpus")
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
@_told
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

    host = _host()
    if recorded:
        found = preview.elsewhere(host, _recorded(recorded))
    else:
        looking = findings.Looking(root=os.geteuid() == 0, offline=offline)
        found = preview.preview(host, looking)
    if as_json:
        _json(found)
    else:
        click.echo(show.plan(found))
    if trouble := found["trouble"]:
        _complain(**trouble)
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
@_told
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
    host = _host()
    troubles = survey.survey(host, root=os.geteuid() == 0)
    warnings = survey.warnings(host)
    told = [{**asdict(trouble), "ignored": trouble.code in ignored} for trouble in troubles]
    stands = any(not one["ignored"] for one in told)
    if as_json:
        _json({"schema": 1, "ok": not stands, "troubles": told, "warnings": warnings})
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
        _json([asdict(one) for one in chosen] if code is None else asdict(chosen[0]))
    elif code is None:
        click.echo("\n".join(f"{one.id}  {one.title}" for one in chosen))
    else:
        click.echo(explaining.text(chosen[0]))


# -- config -------------------------------------------------------------------------------------


@main.group()
def config() -> None:
    """Check, show and describe the configuration."""


@config.command()
@click.argument(
    "files", nargs=-1,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)  # fmt: skip
@click.option(
    "--rancher", is_flag=True,
    help="FILES are Rancher's: cluster manifests, machine configs, health checks.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Take every warning for an error.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; keys are only ever added.")
@_told
def check(*, files: tuple[Path, ...], rancher: bool, strict: bool, as_json: bool) -> None:
    """Check configuration; every problem with file, line, key and what to do.

    Without FILES: this node's own configuration of gpuboot, and the files of RKE2 beside it
    (config.yaml, its drop-ins, Rancher's 50-rancher.yaml). What only root can read is looked at
    only by root.

    With FILES: these together, as one configuration of gpuboot.

    With --rancher: FILES are YAML as it is applied, or as `kubectl get -o yaml` prints it, one or
    more documents each. Checked are labels, taints, timeouts and drain of machine pools, settings
    that get lost on their way to a node, and the user-data of vSphere machine configs. This runs
    anywhere: it needs no root, no GPU and no cluster.

    A file may be - for standard input. An error keeps a node from joining or from what was meant,
    a warning may do so, a notice is good to know.

    \b
    Examples:
      gpuboot config check --rancher pool.yaml cluster.yaml
      kubectl get -A -o yaml clusters.provisioning.cattle.io,vmwarevsphereconfigs |
        gpuboot config check --rancher -

    \b
    Exit status: 0 no errors, 1 only root can read it, 2 usage, 78 errors (with --strict: or
    warnings).
    """
    from dataclasses import replace

    from gpuboot import lint

    if rancher and not files:
        raise click.UsageError("--rancher needs FILES: cluster manifests, or - for standard input")
    contents = [_content(file) for file in files]
    if rancher:
        checked = lint.manifests(contents)
    elif files:
        checked = lint.own(contents)
    else:
        checked = lint.node(_host())
    problems = [
        replace(one, severity="error") if strict and one.severity == "warning" else one
        for one in checked.problems
    ]
    valid = not any(one.severity == "error" for one in problems)
    if as_json:
        _json({"schema": 1, "valid": valid, "files": checked.files,
               "problems": [asdict(problem) for problem in problems]})  # fmt: skip
    else:
        _tell(problems, checked.files, valid=valid)
    sys.exit(0 if valid else EXIT_CONFIG)


def _content(file: Path) -> tuple[str, bytes]:
    if str(file) == "-":
        return "stdin", sys.stdin.buffer.read()
    try:
        return str(file), file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror or error}") from None


def _tell(problems: Sequence[Problem], files: Sequence[str], *, valid: bool) -> None:
    from gpuboot import show

    if not problems:
        click.echo(f"valid: {', '.join(files) or 'no file, so the defaults'}")
        return
    width = min(shutil.get_terminal_size().columns, 100) if sys.stdout.isatty() else None
    click.echo(show.problems(problems, width=width))
    click.echo(f"{'valid' if valid else 'not valid'}: {show.counted(problems)}")


@config.command(name="show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_told
def show_config(*, as_json: bool) -> None:
    """Show the effective configuration, secrets masked."""
    import yaml

    from gpuboot import config as configs

    effective = configs.effective(configs.load(_host()))
    if as_json:
        _json(effective)
    else:
        click.echo(yaml.safe_dump(effective, sort_keys=False), nl=False)


@config.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors and checks."""
    from gpuboot import config as configs
    from gpuboot import reader

    found = reader.schema(configs.Config)
    _json({"$schema": "https://json-schema.org/draft/2020-12/schema", **found})
