"""The command `gpuboot status`, and what `gpuboot run` shares with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from gpuboot import console
from gpuboot import status as looking

WAIT = 1800.0  # seconds that --wait waits if it is not told how long
POLL = 0.5  # seconds between two looks


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float:
    if value is None:  # the reader of durations is dear to import, and mostly not needed
        return WAIT
    from gpuboot.kinds import DURATION, Wrong

    try:
        return DURATION.parse(value)
    except Wrong as wrong:
        raise click.BadParameter(f"{wrong}; expected {DURATION.expected}") from None


TIMEOUT = click.option(
    "--timeout", callback=_seconds, metavar="DURATION",
    help="With --wait: give up after that long, such as 90s or 1h; 30m if it is not said.",
)  # fmt: skip


def wait(
    look: Callable[[], dict[str, Any]], timeout: float, *, poll: float = POLL
) -> dict[str, Any]:
    """Look until the walk is over or the time is up; the last document."""
    deadline = time.monotonic() + timeout
    found = look()
    while found["state"] not in looking.FINAL and time.monotonic() < deadline:
        time.sleep(poll)
        found = look()
    return found


def follow(look: Callable[[], dict[str, Any]]) -> None:
    """Show the walk as it goes on, until it is over or somebody types Ctrl-C; then exit."""
    from gpuboot import screen

    try:
        found = screen.follow(look)
    except KeyboardInterrupt:
        click.echo("\nthe work goes on; where it stands: gpuboot status")
        return
    click.echo(text(found))
    sys.exit(looking.exit_code(found))


def text(found: dict[str, Any]) -> str:
    """The document as a person at this terminal reads it."""
    from datetime import datetime, timezone

    from gpuboot import statusview

    return statusview.text(found, console.width(), datetime.now(timezone.utc))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; keys are only ever added.")
@click.option(
    "--wait", "to_its_end", is_flag=True, help="Block until the node is ready or has failed."
)
@click.option(
    "--watch", is_flag=True,
    help="Draw it again and again, until Ctrl-C; in a pipe, tell each step that holds.",
)  # fmt: skip
@TIMEOUT
@console.told
def status(*, as_json: bool, to_its_end: bool, watch: bool, timeout: float) -> None:
    """Tell where this node stands, and what to do next.

    The first line is the state and why. `running`, `waiting` and `rebooting` go on by themselves;
    `failed` needs somebody; `degraded` is a node that works and is not what was wanted.

    \b
    Examples:
      gpuboot status
      gpuboot status --watch
      gpuboot status --wait --timeout 20m && echo ready
      gpuboot status --json | jq -r .reason

    \b
    Exit status: 0 ready, 1 failed, 2 usage, 3 in progress, 4 degraded, 5 never enabled.
    """
    host = console.host()

    def look() -> dict[str, Any]:
        return looking.look(host)

    if watch and not sys.stdout.isatty():
        follow(look)
        return
    found = wait(look, timeout if to_its_end else 0.0)
    if watch:
        from gpuboot import screen

        found = screen.watch(look)
    if as_json:
        console.print_json(found)
    else:
        click.echo(text(found))
    sys.exit(looking.exit_code(found))


@click.command(hidden=True)
def motd() -> None:
    """Say where a node stands that is not ready, in one line; /etc/update-motd.d calls it."""
    from gpuboot import statusview

    if line := statusview.motd(looking.look(console.host())):
        click.echo(line)
