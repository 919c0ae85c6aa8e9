"""The commands that look at a machine: facts, plan, preflight, timeline; and explain."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from gpuboot import console

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from gpuboot.facts import Facts


def _codes(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """The codes that begin so, for the shell's completion."""
    from click.shell_completion import CompletionItem

    from gpuboot import explain as explaining

    return [CompletionItem(code.id, help=code.title) for code in explaining.codes().values()
            if code.id.startswith(begun.upper())]  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@console.told
def facts(*, as_json: bool) -> None:
    """Show what was detected: system, kernel, firmware, GPUs.

    \b
    Examples:
      gpuboot facts
      gpuboot facts --json > node.json   what `gpuboot plan --facts node.json` takes

    """
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
    click.echo(show.table(rows, console.width()))


@click.command()
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
    Examples:
      gpuboot plan
      gpuboot plan --offline
      gpuboot plan --json | jq .reboot
      gpuboot plan --facts other-node.json

    \b
    Exit status: 0 the plan is whole, 1 the packages could not be resolved (the rest is shown),
    or the configuration can only be read by root, 2 usage, 78 configuration wrong.
    """
    from gpuboot import findings, planview, preview

    host = console.host()
    if recorded:
        found = preview.elsewhere(host, _recorded(recorded))
    else:
        looking = findings.Looking(root=os.geteuid() == 0, offline=offline)
        found = preview.preview(host, looking)
    if as_json:
        console.print_json(found)
    else:
        click.echo(planview.text(found, console.width()))
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


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--ignore", multiple=True, metavar="CODE", shell_complete=_codes,
    help="Do not fail for this code.",
)  # fmt: skip
@console.told
def preflight(*, as_json: bool, ignore: tuple[str, ...]) -> None:
    """Look for everything that would stop a walk, all at once, each with its remedy.

    \b
    Examples:
      gpuboot preflight
      gpuboot preflight --ignore GB106

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


@click.command()
@click.argument("code", required=False, shell_complete=_codes)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(*, code: str | None, as_json: bool) -> None:
    """Tell what an error CODE means, its usual causes, and what to type next.

    Without a CODE all of them are listed.

    \b
    Examples:
      gpuboot explain GB302
      gpuboot explain gb302 --json

    """
    from gpuboot import explain as explaining

    codes = explaining.codes()
    if code is None:
        chosen = list(codes.values())
    elif code.upper() in codes:
        chosen = [codes[code.upper()]]
    else:
        raise click.UsageError(f"unknown code {code}; all of them: gpuboot explain")
    if as_json:
        told = [explaining.document(one) for one in chosen]
        console.print_json(told if code is None else told[0])
    elif code is None:
        click.echo("\n".join(f"{one.id}  {one.title}" for one in chosen))
    else:
        click.echo(explaining.text(chosen[0]))


@click.command()
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
    Examples:
      gpuboot timeline
      gpuboot timeline --svg timeline.svg
      gpuboot timeline --json | jq .seconds_to_ready

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
