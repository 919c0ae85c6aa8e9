"""One program call: in a known environment, with an end that is waited for or brought about."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

# Nothing of the caller's environment reaches a command: what it does must not depend on who
# started us, and its texts must be the ones we know.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


@dataclass(frozen=True)
class Command:
    """One program call. `patient`: never killed, for apt and dpkg, which a kill breaks.

    `stopping` is asked while a patient apt-get runs: when it says yes, it gets a SIGINT, which
    ends it while it waits or downloads, and which it ignores while dpkg runs. dpkg gets none.
    """

    argv: tuple[str, ...]
    timeout: float
    env: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None
    patient: bool = False
    stopping: Callable[[], bool] = field(default=lambda: False, compare=False)

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True)
class Result:
    """How a command ended: exit status, standard output and standard error, kept apart."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def said(self) -> str:
        """What a person would want to read: standard error, or else the output."""
        return (self.err.strip() or self.out.strip())[-2000:]


STOP_POLL = 0.5  # seconds between two looks whether we are to stop
NOT_EXECUTABLE = 126  # and one that is there and cannot be run
NOT_FOUND = 127  # the exit status a shell gives for a program that is not there

Runner = Callable[[Command], Result]


def run_process(command: Command) -> Result:
    """Run it in a process group of its own, so that a timeout ends its children as well.

    Raises TimeoutError after the group was killed. A program that is not there is status 127.
    """
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE if command.input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **command.env},
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        return Result(NOT_FOUND, err=f"{command.argv[0]}: command not found")
    except OSError as error:
        return Result(NOT_EXECUTABLE, err=f"{command.argv[0]}: {error.strerror}")
    if command.patient:
        with process:
            out, err = _wait_patiently(process, command)
        return Result(process.returncode, out, err)
    try:
        out, err = process.communicate(command.input, timeout=command.timeout)
    except subprocess.TimeoutExpired:
        _abandon(process)
        raise TimeoutError(command.argv[0]) from None
    return Result(process.returncode, out, err)


def _abandon(process: subprocess.Popen[str]) -> None:
    """Kill a program and its children; their end is waited for, but not long.

    A child that left the group may hold the pipes, and a driver in trouble may hold the program
    itself, which then does not even die.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=0.2)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _wait_patiently(process: subprocess.Popen[str], command: Command) -> tuple[str, str]:
    """Output and errors of a program that is waited for, however long it takes."""
    told = False
    while True:
        try:
            return process.communicate(timeout=STOP_POLL)
        except subprocess.TimeoutExpired:
            if command.argv[0] == "apt-get" and not told and command.stopping():
                told = True
                process.send_signal(signal.SIGINT)
