"""`python -m tests.rehearsal`: run a scenario, all of them, or a shell in a kept node."""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

from tests.rehearsal import runs, torture
from tests.rehearsal.report import RigError
from tests.rehearsal.table import ScenarioError


def main() -> int:
    """The command line; 0 passed, 1 not, 2 the rehearsal itself could not go on."""
    arguments = _parse()
    if os.geteuid() != 0:
        print("a rehearsal makes namespaces and mounts: run it as root", file=sys.stderr)
        return 2
    try:
        if arguments.command == "inside":
            return runs.inside(arguments.scenario, arguments.folder, keep=arguments.keep)
        if arguments.command == "life":
            kills = tuple(filter(None, arguments.kills.split(",")))
            return torture.inside(Path(arguments.folder), arguments.seed, kills)
        if arguments.command == "torture":
            return torture.torture(_seed(arguments.seed), arguments.kills)
        if arguments.command == "run":
            return runs.outside(arguments.scenario, keep=arguments.keep)
        if arguments.command in ("all", "core"):
            return runs.many(core=arguments.command == "core")
        return runs.shell() if arguments.command == "shell" else runs.stop()
    except (RigError, ScenarioError) as error:
        print(f"the rehearsal cannot go on: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the node and the servers are gone", file=sys.stderr)
        return 130


def _seed(given: int | None) -> int:
    return random.SystemRandom().randrange(1 << 16) if given is None else given


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="rehearse one scenario, by name or by folder")
    run.add_argument("scenario", nargs="?", default="default")
    run.add_argument("--keep", action="store_true", help="leave the node for `make shell`")
    commands.add_parser("all", help="rehearse all scenarios, two at a time")
    commands.add_parser("core", help="rehearse the scenarios that `make test` runs")
    commands.add_parser("shell", help="a shell in the node that was kept")
    commands.add_parser("stop", help="switch off the node that was kept")
    torment = commands.add_parser("torture", help="kill nodes at random instants, and compare")
    torment.add_argument("--seed", type=int, default=None)
    torment.add_argument("--kills", type=int, default=50)
    life = commands.add_parser("life")
    life.add_argument("folder")
    life.add_argument("seed", type=int)
    life.add_argument("kills")
    hidden = commands.add_parser("inside")
    hidden.add_argument("scenario")
    hidden.add_argument("folder")
    hidden.add_argument("--keep", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
