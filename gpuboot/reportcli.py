"""The command `gpuboot report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuboot import console
from gpuboot.errors import GpubootError

if TYPE_CHECKING:
    from gpuboot.report import Bundle, Text

ERASE = "\r\x1b[K"


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Tell as JSON what was put into it.")
@console.told
def report(*, file: Path | None, as_json: bool) -> None:
    """Write a support bundle: what is needed to understand this node from afar.

    FILE is a .tar.gz, or a folder to put it into; without FILE the bundle goes into the current
    folder, and - is standard output. Open its index.html first: it says where the node stands,
    explains the codes that were told, shows the timeline, and what each file tells.

    In it are status, facts, configuration, plan, checkpoint and timeline; the journal of gpuboot,
    RKE2 and Rancher's agent; the kernel's lines about GPUs; lspci and nvidia-smi; the logs of apt,
    dpkg and DKMS; the configuration of RKE2 and containerd. Passwords, tokens and keys are taken
    out, by their values and by how they look; names and addresses of machines are not.

    \b
    Examples:
      gpuboot report
      gpuboot report /tmp
      ssh root@gpu-worker-1 gpuboot report - > report.tar.gz

    \b
    Exit status: 0 written, 1 not written, 2 usage.
    """
    from gpuboot import report as bundles
    from gpuboot.config import NOT_ROOT

    to_output = file is not None and str(file) == "-"
    if to_output and (as_json or sys.stdout.isatty()):
        what = "--json goes there too" if as_json else "it is a terminal"
        raise click.UsageError(f"the bundle cannot go to standard output: {what}")
    if os.geteuid() != 0:
        raise GpubootError(NOT_ROOT, "most of what belongs into a report can only be read by root")
    host = console.host()
    bundle = bundles.collect(host, _tell)
    data = bundle.packed(host.clock.now())
    if to_output:
        sys.stdout.buffer.write(data)
        return
    target = _target(file, bundle.name)
    host.write(str(target), data, mode=0o600)
    if as_json:
        console.print_json(_document(bundle, target, len(data)))
    else:
        click.echo(_said(bundle, target, len(data)))


def _tell(number: int, total: int, name: str) -> None:
    """The progress, on a terminal; the line goes when all is done."""
    if sys.stderr.isatty():
        line = f"{number:>3} of {total}  {name}" if number < total else ""
        sys.stderr.write(f"{ERASE}{line}")
        sys.stderr.flush()


def _target(file: Path | None, name: str) -> Path:
    place = (file or Path()).absolute()
    return place / f"{name}.tar.gz" if place.is_dir() else place


def _document(bundle: Bundle, target: Path, size: int) -> dict[str, object]:
    def told(text: Text) -> dict[str, object]:
        return {"name": text.name, "tells": text.tells, "bytes": text.size, "cut": text.cut,
                "missing": text.missing or None}  # fmt: skip

    return {"schema": 1, "file": str(target), "bytes": size, "masked": bundle.masked,
            "files": [told(text) for text in bundle.texts]}  # fmt: skip


def _said(bundle: Bundle, target: Path, size: int) -> str:
    there = [text for text in bundle.texts if not text.missing]
    taken = f"{bundle.masked} passwords, tokens and keys were taken out"
    lines = [f"{target}  {size / 1024:,.0f} KiB, {len(there)} files; {taken}"]
    lines += [f"  not in it: {t.name}: {t.missing}" for t in bundle.texts if t.trouble]
    lines.append("next: unpack it and open its index.html, or hand it on")
    return "\n".join(lines)
