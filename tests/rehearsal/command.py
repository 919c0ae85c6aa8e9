"""Running a command of the machine and keeping what it said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.rehearsal.report import RigError

# The machine's own programs, never a developer's: what is built here must be Debian's.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def environment() -> dict[str, str]:
    """The machine's environment, with Debian's programs and plain English."""
    return {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def run(*argv: str, stdin: str = "", cwd: Path | None = None, timeout: float = 900.0) -> str:
    """The command's standard output; raises RigError with the end of what it said."""
    try:
        done = subprocess.run(
            argv, input=stdin, cwd=cwd, env=environment(), timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise RigError(f"{argv[0]} is not installed", hint="make set-up installs it") from None
    except subprocess.TimeoutExpired:
        raise RigError(f"{argv[0]} took longer than {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-3000:]
        raise RigError(f"{' '.join(argv)[:300]}: exit status {done.returncode}\n{said}")
    return done.stdout
