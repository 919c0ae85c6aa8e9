"""`gpuboot report` on the node as it is by now: written, whole, and without a secret in it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.rehearsal import secrecy
from tests.rehearsal.node import Node

FILE = "/run/report.tar.gz"  # in memory: a scenario's disk may be full
TIME = 180.0  # seconds; a few are usual
NODES_OWN = "etc/rancher/node/password"
REGISTRIES = "etc/rancher/rke2/registries.yaml"
# What a node has that has the trouble: builds fail where there is DKMS, and so with cloud-init.
SUBJECTS = frozenset({"cloud-init", "dkms"})
LEAST = 40  # files that a report of any node has
PROGRAMS = """
for program in $(cat); do command -v "$program" >/dev/null || echo "$program"; done
"""


def findings(node: Node, secrets: Mapping[str, str], artifacts: Path) -> list[str]:
    """What is wrong with the bundle; it is kept among the artifacts."""
    if node.run("sh", "-c", "command -v gpuboot").returncode != 0:
        return []  # the package was removed
    try:
        done = node.run("gpuboot", "report", FILE, "--json", timeout=TIME)
    except subprocess.TimeoutExpired:
        return [f"gpuboot report: expected an end / found none after {TIME:.0f} s"]
    if done.returncode != 0:
        return [f"gpuboot report: expected exit status 0 / found {done.returncode}: {done.stderr}"]
    packed = node.root / FILE.lstrip("/")
    shutil.copyfile(packed, artifacts / "report.tar.gz")
    texts = unpacked(packed.read_bytes())
    packed.unlink()
    return [
        *_whole(texts, json.loads(done.stdout)),
        *(line for name, text in texts.items() for line in leaks(name, text, secrets)),
    ]


def unpacked(data: bytes) -> dict[str, str]:
    """The files of a bundle by their names below its folder."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        opened = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in archive}
        return {name: file.read().decode() for name, file in opened.items() if file is not None}


def _whole(texts: Mapping[str, str], told: Mapping[str, object]) -> Iterator[str]:
    if len(texts) < LEAST:
        yield f"gpuboot report: expected at least {LEAST} files / found {sorted(texts)}"
    rows = told["files"]
    assert isinstance(rows, list)
    listed = {row["name"] for row in rows if row["missing"] is None} | {"index.html"}
    if listed != set(texts):
        yield f"gpuboot report: expected what it tells / found {sorted(listed ^ set(texts))}"
    for row in rows:
        if f"{row['name']}" not in texts.get("index.html", ""):
            yield f"gpuboot report: expected {row['name']} in the index / found it nowhere"
        # Its own faults, and commands that hung.
        if row["missing"] and re.search(r"Error: |took longer than", row["missing"]):
            yield f"gpuboot report: expected {row['name']} / found {row['missing']}"


def leaks(name: str, text: str, secrets: Mapping[str, str]) -> list[str]:
    """Which secrets the text holds, in any spelling."""
    found = []
    for what, secret in secrets.items():
        if any(needle in text for needle in secrecy.needles(secret)):
            found.append(f"secrecy: {name} holds the {what}")
    return found


def secrets(root: Path, token: str, proxy: str, others: Sequence[str]) -> dict[str, str]:
    """Everything on this node that nobody else may read; `needles` wants them as in a token."""
    found = {"token": token}
    found |= {f"token of Rancher's ({n})": other for n, other in enumerate(others, 1)}
    found["proxy's password"] = urllib.parse.urlsplit(proxy).password or ""
    if (root / NODES_OWN).is_file():
        found["node's password"] = (root / NODES_OWN).read_text(encoding="utf-8").strip()
    if (root / REGISTRIES).is_file():
        lines = (root / REGISTRIES).read_text(encoding="utf-8").splitlines()
        words = (line.partition("password:")[2].strip() for line in lines if "password:" in line)
        found["registry's password"] = next(words, "")
    return {what: secret for what, secret in found.items() if secret}


def commands(node: Node) -> list[str]:
    """Programs that `gpuboot explain` tells to type on this node, and that are not there."""
    told = json.loads(node.run("gpuboot", "explain", "--json").stdout)
    wanted = {program for code in told for program in programs(code)} - SUBJECTS
    process = subprocess.run(
        [*node.enter(), "sh", "-c", PROGRAMS], input=" ".join(sorted(wanted)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [f"gpuboot explain: expected {program} on the node / found none"
            for program in process.stdout.split()]  # fmt: skip


def programs(code: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The programs that a code's commands for this node begin with, also behind a pipe."""
    for command in code["commands"]:
        if command not in code["elsewhere"]:
            bare = command.partition(" (")[0]
            yield from (part.split()[0] for part in bare.split(" | "))
