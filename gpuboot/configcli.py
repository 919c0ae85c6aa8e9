"""The commands below `gpuboot config`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuboot import console

if TYPE_CHECKING:
    from gpuboot.reader import Problem


@click.group()
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
@console.told
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
        checked = lint.node(console.host())
    problems = [
        replace(one, severity="error") if strict and one.severity == "warning" else one
        for one in checked.problems
    ]
    valid = not any(one.severity == "error" for one in problems)
    if as_json:
        console.print_json({"schema": 1, "valid": valid, "files": checked.files,
               "problems": [asdict(problem) for problem in problems]})  # fmt: skip
    else:
        _tell(problems, checked.files, valid=valid)
    sys.exit(0 if valid else console.EXIT_CONFIG)


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
    click.echo(show.problems(problems, width=console.width()))
    click.echo(f"{'valid' if valid else 'not valid'}: {show.counted(problems)}")


@config.command(name="show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@console.told
def show_config(*, as_json: bool) -> None:
    """Show the effective configuration, secrets masked."""
    import yaml

    from gpuboot import config as configs

    effective = configs.effective(configs.load(console.host()))
    if as_json:
        console.print_json(effective)
    else:
        click.echo(yaml.safe_dump(effective, sort_keys=False), nl=False)


@config.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors and checks."""
    from gpuboot import config as configs
    from gpuboot import reader

    found = reader.schema(configs.Config)
    console.print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **found})
