"""Makes the machine ready for a target of the Makefile; needs nothing but Python itself."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".cache/venv"
REQUIREMENTS = ROOT / "tests/requirements.txt"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# The program that must be there, and the Debian package that has it.
LINT = {"shellcheck": "shellcheck", "systemd-analyze": "systemd", "sh": "dash"}
BUILD = {"dh": "debhelper", "dpkg-checkbuilddeps": "dpkg-dev"}
REHEARSAL = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "apt-ftparchive": "apt-utils",
    "gcc": "gcc",
    "gpg": "gpg",
    "gpg-agent": "gpg-agent",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
TEST = {"lintian": "lintian"}
VM = {"qemu-system-x86_64": "qemu-system-x86", "sfdisk": "fdisk", "mkfs.ext4": "e2fsprogs"}
NEEDS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "python": (),
    "lint": (LINT,),
    "deb": (BUILD,),
    "rehearsal": (BUILD, REHEARSAL),
    "vm": (BUILD, REHEARSAL, VM),
    "test": (LINT, BUILD, REHEARSAL, TEST),
}


def main(purpose: str) -> int:
    """Installs what is missing for `purpose`; 0 if all is there afterwards."""
    wanted = {tool: package for table in NEEDS[purpose] for tool, package in table.items()}
    missing = {package for tool, package in wanted.items() if not shutil.which(tool, path=PATH)}
    if "dh" in wanted:
        missing |= _build_dependencies()
    if not VENV.is_dir() and not _can_make_venv():
        missing.add("python3-venv")
    if purpose in ("rehearsal", "vm", "test") and not _fit():
        return 1
    if missing and not _install(sorted(missing)):
        return 1
    return 0 if _venv() else 1


def _fit() -> bool:
    """Whether nodes can be booted here; says what is missing if not."""
    release = Path("/etc/os-release")
    text = release.read_text(encoding="utf-8") if release.is_file() else ""
    if not re.search(r"^ID=debian$", text, re.M) or not re.search(r'^VERSION_ID="12', text, re.M):
        _say("The rehearsal needs Debian 12: it builds its nodes with this machine's own apt.")
        return False
    if os.geteuid() != 0:
        _say("The rehearsal needs root: it makes namespaces, mounts and nodes. Try: sudo make …")
        return False
    return True


def _build_dependencies() -> set[str]:
    """What gpuboot's .deb needs to be built and this machine lacks, as far as that can be asked."""
    control = ROOT / "packaging/deb/control"
    if shutil.which("dpkg-checkbuilddeps", path=PATH):
        done = subprocess.run(
            ["dpkg-checkbuilddeps", str(control)], capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        terms = done.stderr.partition("dependencies: ")[2]
    else:
        text = control.read_text(encoding="utf-8")
        field = re.search(r"^Build-Depends:((?:.*\n)(?:[ \t].*\n)*)", text, re.M)
        terms = "build-essential " + (field[1].replace(",", " ") if field else "")
    names = set(re.sub(r"\([^)]*\)|:native", " ", terms).split())
    # debhelper is itself in the list of tools; the compatibility level is no package.
    return names - {"debhelper-compat"}


def _can_make_venv() -> bool:
    test = [sys.executable, "-c", "import ensurepip, venv"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def _install(packages: Sequence[str]) -> bool:
    """Installs Debian packages with the machine's own apt."""
    names = " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        _say(f"These Debian packages are missing: {names}")
        _say(f"Run this as root, or: sudo apt-get install {names}")
        return False
    _say(f"Installing what is missing on this machine: {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages]
    for command in (["apt-get", "-qq", "update"], install):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            _say(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
            return False
    return True


def _venv() -> bool:
    """The virtual environment of the tests, made anew when its requirements change."""
    stamp = VENV / "requirements"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return True
    _say("Preparing Python for the tests in .cache/venv; this takes about half a minute.")
    pip = [str(VENV / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [*pip, "install", "--requirement", str(REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            _say(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
            return False
    stamp.write_text(wanted, encoding="ascii")
    return True


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
