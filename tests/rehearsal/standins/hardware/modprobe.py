#!/usr/bin/python3
"""modprobe of the pretended kernel.

Stands in for kmod's modprobe, which is kept at /usr/lib/lab/real and still answers everything
that is a matter of files: aliases, blacklists, install and remove lines, options, and whether a
module for this kernel exists at all. Only what the kernel would do is done by lab_kernel, because
a container cannot load modules and runs the host's kernel (facts/rig.md). The errors are worded
as kmod 30 words them, Debian's `install nvidia modprobe -i nvidia-current` included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel

REAL = "/usr/lib/lab/real/modprobe"
MODINFO = "/sbin/modinfo"
QUESTIONS = ("-R", "--resolve-alias", "-c", "--showconfig", "-D", "--show-depends", "-n",
             "--dry-run", "--show", "-V", "--version", "-h", "--help", "--dump-modversions",
             "--show-modversions", "--show-exports")  # fmt: skip

FLAGS = (("-r", "--remove"), ("-a", "--all"), ("-b", "--use-blacklist"), ("-q", "--quiet"),
         ("-i", "--ignore-install", "--ignore-remove"), ("-v", "--verbose"), ("-s", "--syslog"),
         ("-f", "--force"), ("--first-time",))  # fmt: skip


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="modprobe", add_help=False)
    for names in FLAGS:
        parser.add_argument(*names, action="store_true")
    parser.add_argument("-S", "--set-version")
    parser.add_argument("words", nargs="*")
    return parser.parse_intermixed_args(argv)


def real(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REAL, "-S", kernel.release(), *words], capture_output=True, text=True, check=False
    )


def commands(kind: str) -> dict[str, str]:
    """The `install` or `remove` lines of modprobe.d, by module."""
    found = {}
    for line in real("--showconfig").stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == kind:
            name, _, command = rest.partition(" ")
            found[kernel.canonical(name)] = command
    return found


def complain(text: str, quiet: bool) -> int:
    if not quiet:
        sys.stderr.write(f"modprobe: {text}\n")
    return 1


# -- inserting --------------------------------------------------------------------------------


def describe(path: str, options: str) -> kernel.Module:
    said = subprocess.run([MODINFO, "-0", path], capture_output=True, text=True, check=True)
    fields: dict[str, str] = {}
    for line in said.stdout.split("\0"):
        key, _, value = line.partition("=")
        fields.setdefault(key.strip(), value.strip())
    given = dict(word.partition("=")[::2] for word in options.split())
    needs = tuple(
        "nvidia" + n.replace("-", "_").removeprefix("nvidia_current").removeprefix("nvidia")
        for n in fields.get("depends", "").split(",")
        if n.startswith("nvidia")
    )
    return kernel.Module(
        fields.get("name", Path(path).stem), fields.get("version", ""),
        fields.get("vermagic", ""), given, needs, fields.get("signer", ""),
        fields.get("license", ""),
    )  # fmt: skip


def insert(name: str, options: list[str], asked: argparse.Namespace) -> int:
    plain = kernel.canonical(name)
    if plain == kernel.rival():
        return insert_rival(asked)
    if kernel.included(plain):
        return 0
    flags = ["-b"] * asked.use_blacklist + ["-i"] * asked.ignore_install
    answer = real("--show-depends", *flags, name, *options)
    if answer.returncode != 0:
        return complain(answer.stderr.strip().removeprefix("modprobe: "), asked.quiet)
    for line in answer.stdout.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "install":
            failed = run_install(plain, rest, asked)
        elif kind == "insmod":
            failed = insmod(rest, asked)
        else:
            failed = 0
        if failed:
            return failed
    return 0


def insert_rival(asked: argparse.Namespace) -> int:
    name = kernel.rival()
    if kernel.settings()["nouveau"] == "absent":
        folder = f"/lib/modules/{kernel.release()}"
        return complain(f"FATAL: Module {name} not found in directory {folder}", asked.quiet)
    if asked.use_blacklist and blacklisted(name):
        return 0
    with kernel.locked():
        kernel.insert_rival()
    return 0


def blacklisted(name: str) -> bool:
    return f"blacklist {name}" in real("--showconfig").stdout.splitlines()


def run_install(name: str, rest: str, asked: argparse.Namespace) -> int:
    """An install line is a shell command; kmod puts the options into $CMDLINE_OPTS."""
    if kernel.loaded(name):
        return 0
    command = next((c for c in commands("install").values() if rest.startswith(c)), rest)
    options = rest[len(command) :].strip()
    environment = {**os.environ, "CMDLINE_OPTS": options, "MODPROBE_MODULE": name}
    code = subprocess.run(["/bin/sh", "-c", command], env=environment, check=False).returncode
    if code == 0:
        return 0
    shown = command.replace("$CMDLINE_OPTS", options)
    complain(
        "ERROR: ../libkmod/libkmod-module.c:1047 command_do() Error running install command "
        f"'{shown}' for module {name}: retcode {code}",
        asked.quiet,
    )
    return complain(f"ERROR: could not insert '{name}': Invalid argument", asked.quiet)


def insmod(rest: str, asked: argparse.Namespace) -> int:
    path, _, options = rest.strip().partition(" ")
    module = describe(path, options)
    file_name = kernel.canonical(Path(path).name.split(".ko")[0])
    if asked.verbose:
        sys.stdout.write(f"insmod {rest.strip()}\n")
    try:
        with kernel.locked():
            kernel.insert(module)
    except kernel.Refused as reason:
        return complain(f"ERROR: could not insert '{file_name}': {reason}", asked.quiet)
    return 0


# -- removing ---------------------------------------------------------------------------------


def remove(name: str, asked: argparse.Namespace) -> int:
    plain = kernel.canonical(name)
    command = None if asked.ignore_install else commands("remove").get(plain)
    if command is not None:
        return subprocess.run(["/bin/sh", "-c", command], check=False).returncode
    if not kernel.loaded(plain):
        known = plain == kernel.rival() and kernel.settings()["nouveau"] != "absent"
        if known or kernel.included(plain) or real("--show-depends", name).returncode == 0:
            return 0
        return complain(f"FATAL: Module {name} not found.", asked.quiet)
    try:
        with kernel.locked():
            kernel.remove(plain)
    except kernel.Refused as reason:
        return complain(f"FATAL: {reason}", asked.quiet)
    return 0


def main(argv: Sequence[str]) -> int:
    if any(word in QUESTIONS for word in argv) or not argv:
        version = () if {"-S", "--set-version"} & set(argv) else ("-S", kernel.release())
        os.execv(REAL, ["modprobe", *version, *argv])  # noqa: S606 - kmod itself answers
    asked = arguments(argv)
    if asked.remove:
        return max([remove(name, asked) for name in asked.words], default=0)
    if asked.all:
        return max([insert(name, [], asked) for name in asked.words], default=0)
    return insert(asked.words[0], asked.words[1:], asked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
