#!/usr/bin/python3
"""Stands in for rancher-system-agent on a node (rancher/system-agent, facts/rke2.md §6).

Real in it: the modes it insists on, the interlock while it applies a plan and what a kill leaves of
it, files written before instructions and not atomically, what the RKE2 installer's run.sh does to
systemd, when a plan is applied once more. Not in it: the watch on the secret (it polls), OCI
images (the installer's files come from Rancher itself), probes and periodic instructions.
Python 3.11 with the standard library and python3-yaml.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

POLL = 1.0  # seconds between two looks at the plan
TARBALL = "rke2.linux-amd64.tar.gz"
UNIT = Path("/usr/local/lib/systemd/system/rke2-agent.service")


def main() -> None:
    # The kernel's own way: whoever kills us at work leaves the interlock behind.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    config = yaml.safe_load(private(Path(os.environ["CATTLE_AGENT_CONFIG"])))
    connection = json.loads(private(Path(config["connectionInfoFile"])))
    say("Rancher System Agent version v0.15.0 (a stand-in) is starting")
    agent = Agent(config, Rancher(connection))
    while True:
        try:
            agent.look()
        except OSError as error:
            say(f"[K8s] could not reach Rancher: {error}", "error")
        time.sleep(POLL)


def private(file: Path) -> str:
    """A file that nobody but root may read; the agent ends at any other."""
    found = file.stat()
    if stat.S_IMODE(found.st_mode) != 0o600 or (found.st_uid, found.st_gid) != (0, 0):
        say(f"file {file} had permissions {found.st_mode:o} which were not expected 600", "fatal")
        sys.exit(1)
    return file.read_text(encoding="utf-8")


def say(message: str, level: str = "info") -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f'time="{now}" level={level} msg={json.dumps(message)}\n')
    sys.stderr.flush()


class Rancher:
    """Rancher's own API server, as far as this machine's plan is kept there."""

    def __init__(self, connection: dict[str, str]) -> None:
        kubeconfig = yaml.safe_load(connection["kubeConfig"])
        cluster = kubeconfig["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._token = kubeconfig["users"][0]["user"]["token"]
        self._base = cluster["server"]
        place = f"namespaces/{connection['namespace']}/secrets/{connection['secretName']}"
        self._secret = f"{self._base}/api/v1/{place}"

    def data(self) -> dict[str, bytes]:
        secret = json.loads(self._call("GET", self._secret))
        return {key: base64.b64decode(text) for key, text in secret["data"].items()}

    def report(self, **data: str) -> None:
        encoded = {
            key.replace("_", "-"): base64.b64encode(text.encode()).decode()
            for key, text in data.items()
        }
        self._call("PATCH", self._secret, json.dumps({"data": encoded}).encode())

    def image(self, name: str, into: Path) -> None:
        """A file of the installer's image."""
        into.write_bytes(self._call("GET", f"{self._base}/images/{name}"))

    def _call(self, method: str, url: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310
            found: bytes = answer.read()
        return found


class Agent:
    """Applies the plan whenever it has to be."""

    def __init__(self, config: dict[str, Any], rancher: Rancher) -> None:
        self._rancher = rancher
        self._applied = Path(config["appliedPlanDirectory"])
        self._work = Path(config["workDirectory"])
        self._interlock = Path(config["interlockDirectory"]) / "applyinator-active"
        self._first = True
        for folder in (self._applied, self._work, self._interlock.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def look(self) -> None:
        data = self._rancher.data()
        if not data.get("plan"):
            return
        first, self._first = self._first, False
        checksum = hashlib.sha256(data["plan"]).hexdigest()
        if data["lab-release"] == b"2.15":
            due = data["plan-state"] in (b"pending", b"in-progress")
        else:
            due = first or data.get("applied-checksum") != checksum.encode()
            if first:
                say("Detected first start, force-applying one-time instruction set")
        if due:
            self._apply(json.loads(data["plan"]), checksum, float(data["lab-takes"]))

    def _apply(self, plan: dict[str, Any], checksum: str, takes: float) -> None:
        say(f"[Applyinator] Applying one-time instructions for plan with checksum {checksum}")
        self._rancher.report(plan_state="in-progress")
        # One that was left behind is not cleared away: the check goes by a wrong path.
        self._interlock.write_text(time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime()))
        try:
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            self._keep(self._applied / f"{stamp}-applied.plan", json.dumps(plan).encode(), 0o600)
            for file in plan["files"]:
                content = base64.b64decode(file["content"])
                self._keep(Path(file["path"]), content, int(file.get("permissions", "600"), 8))
            for number, instruction in enumerate(plan["instructions"]):
                self._instruct(self._work / f"{stamp}/{checksum}_{number}", instruction, takes)
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"error executing instruction: {error}", "error")
            self._rancher.report(plan_state="pending")
            return
        finally:
            self._interlock.unlink(missing_ok=True)
        self._rancher.report(plan_state="succeeded", applied_checksum=checksum)
        say("[K8s] updated plan secret with feedback")

    def _keep(self, path: Path, content: bytes, mode: int) -> None:
        """As the real one: only if it differs, and in place."""
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.touch(mode=mode)
            path.write_bytes(content)
        path.chmod(mode)

    def _instruct(self, folder: Path, instruction: dict[str, Any], takes: float) -> None:
        """Fetch the installer, which takes as long as the scenario wants, and run it."""
        shutil.rmtree(self._work, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        image = instruction["image"].partition("/")[2]
        say(f"Pulling image {instruction['image']}")
        for name in (TARBALL, "sha256sum-amd64.txt"):
            self._rancher.image(f"{image}/{name}", folder / name)
        time.sleep(takes)
        run_sh(folder, dict(text.split("=", 1) for text in instruction["env"]))
        shutil.rmtree(self._work, ignore_errors=True)


def run_sh(folder: Path, env: dict[str, str]) -> None:
    """What the installer's run.sh does: install.sh offline, then systemd."""
    install(folder)
    state = Path(env["DATA_DIR"]) / "system-agent-installer"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = "".join(f"{k}={v}\n" for k, v in env.items() if k.endswith("_PROXY"))
    changed = write(state / "rke2-sa.env", settings)
    line = f"EnvironmentFile=-{state}/rke2-sa.env\n"
    if line not in (text := UNIT.read_text(encoding="utf-8")):
        UNIT.write_text(text + line, encoding="utf-8")
    systemctl("daemon-reload")
    systemctl("enable", "rke2-agent")
    changed |= write(state / "rke2_restart_stamp", env["RESTART_STAMP"] + "\n")
    if changed:
        systemctl("--no-block", "restart", "rke2-agent")


def install(folder: Path) -> None:
    """RKE2's install.sh with INSTALL_RKE2_ARTIFACT_PATH: verify, and unpack below /usr/local."""
    lines = (folder / "sha256sum-amd64.txt").read_text(encoding="ascii").splitlines()
    wanted = next(line.split()[0] for line in lines if line.endswith(f" {TARBALL}"))
    if hashlib.sha256((folder / TARBALL).read_bytes()).hexdigest() != wanted:
        raise OSError(f"download sha256 of {TARBALL} does not match")
    with tarfile.open(folder / TARBALL) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            if content is None:  # a folder
                continue
            target = Path("/usr/local") / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a program that runs cannot be written to
            target.write_bytes(content.read())
            target.chmod(member.mode)


def write(file: Path, text: str) -> bool:
    """Whether the file said anything else before."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
    return True


def systemctl(*words: str) -> None:
    subprocess.run(["/usr/bin/systemctl", *words], check=True)


if __name__ == "__main__":
    main()
