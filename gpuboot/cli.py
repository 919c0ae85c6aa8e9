"""The command line: `gpuboot` and its commands, which stand in the modules named *cli.

These and console are the only places that print, or exit.
"""

from __future__ import annotations

import os

import click

from gpuboot import __version__, configcli, lookcli, monitorcli, reportcli, runcli, statuscli


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpuboot")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a freshly booted GPU VM into a proven GPU worker of an RKE2 cluster.

    cloud-init says `gpuboot run`; `gpuboot status` tells where the node stands.

    \b
    Examples:
      gpuboot preflight      what would stand in the way, before anything is done
      gpuboot plan           what a walk would do here
      gpuboot run            do it, now and at every boot
      gpuboot status         where the node stands, and what to type next
      gpuboot explain GB302  what an error code means
      gpuboot timeline       where the time went
      gpuboot report         all that is needed to understand this node from afar
    """
    if os.environ.get("NO_COLOR"):  # no-color.org; click itself asks only for a terminal
        context.color = False


for _command in (
    runcli.run, runcli.give_way, statuscli.status, statuscli.motd, lookcli.facts, lookcli.plan,
    lookcli.preflight, lookcli.explain, lookcli.timeline, configcli.config, reportcli.report,
    monitorcli.monitor, monitorcli.publish,
):  # fmt: skip
    main.add_command(_command)
