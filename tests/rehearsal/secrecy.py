"""Where the join token got to: the node's files, its journal, and its processes while it ran."""

from __future__ import annotations

import base64
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

# Whose token it is anyway; none of these may be readable by others. cloud-init keeps its
# own copies of user-data, RKE2 keeps what it was told and signed, and Rancher its plans.
OTHERS = ("/etc/cloud/cloud.cfg.d/90-lab.cfg", "/var/lib/cloud/", "/run/cloud-init/",
          "/var/lib/rancher/", "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml")  # fmt: skip
DROP_IN = "/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml"
SAMPLE = 0.1  # seconds between two looks at the process list


def needles(token: str) -> list[str]:
    """What every spelling of the token holds: its password, plain, URL-encoded or in base64."""
    password = token.rpartition(":")[2]
    found = {password, urllib.parse.quote(password, safe="")}
    for offset in range(3):
        # Where it stands in a longer text decides which of three spellings base64 gives it;
        # the characters that also encode a neighbour are cut off.
        padded = b"\0" * offset + password.encode()
        core = base64.b64encode(padded)[(0, 2, 3)[offset] : len(padded) // 3 * 4].decode()
        found |= {core, core.replace("+", "-").replace("/", "_")}
    return sorted(found)


def told_to_write(user_data: str, token: str) -> set[str]:
    """The files that user-data itself puts the token into, such as the token file."""
    data = yaml.safe_load(user_data) if user_data.startswith("#cloud-config") else {}
    rows = data.get("write_files", []) if isinstance(data, dict) else []
    return {row["path"] for row in rows if token in str(row.get("content", ""))}


def in_files(prefix: Path, folders: Sequence[Path], token: str, allowed: set[str]) -> list[str]:
    """Findings in files below `folders`; a node's file is named by its path below `prefix`."""
    findings = []
    for file in _search(folders, token):
        name = "/" + str(file.relative_to(prefix))
        mode = file.stat().st_mode & 0o777
        own = name in allowed or name == DROP_IN or name.startswith(OTHERS)
        if not own:
            findings.append(f"token secrecy: {name} holds the token")
        elif mode & 0o077:
            findings.append(f"token secrecy: {name} holds the token and has mode {mode:04o}")
    return findings


def _search(folders: Sequence[Path], token: str) -> list[Path]:
    grep = [
        "grep", "--recursive", "--files-with-matches", "--null", "--text", "--fixed-strings",
        "--devices=skip", "--no-messages", "--file=-",
    ]  # fmt: skip
    there = [str(folder) for folder in folders if folder.is_dir()]
    if not there:  # the node is off; grep would search where we stand
        return []
    done = subprocess.run(
        [*grep, *there],
        input="\n".join(needles(token)), capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )  # fmt: skip
    return [Path(name) for name in done.stdout.split("\0") if name]


def said_by_gpuboot(root: Path, journal: str, secrets: Sequence[str]) -> list[str]:
    """Findings for Rancher's tokens in what gpuboot has written; elsewhere they are Rancher's."""
    texts = {"gpuboot's journal": journal}
    for folder in ("run/gpuboot", "var/lib/gpuboot"):
        for file in (root / folder).glob("*.json"):
            texts[f"/{file.relative_to(root)}"] = file.read_text(errors="replace")
    return [
        f"token secrecy: {place} holds a token of Rancher's"
        for place, text in texts.items()
        if any(secret in text for secret in secrets)
    ]


def in_text(place: str, text: str, token: str) -> list[str]:
    """A finding if the text holds the token."""
    return [f"token secrecy: {place} holds the token"] * any(n in text for n in needles(token))


class ProcessWatch(threading.Thread):
    """Looks at the arguments and the environment of all processes of the lab, again and again."""

    def __init__(self, token: str) -> None:
        super().__init__(daemon=True)
        self._needles = [needle.encode() for needle in needles(token)]
        self._over = threading.Event()
        self._findings: set[str] = set()

    def run(self) -> None:
        """Samples until told to stop."""
        while not self._over.wait(SAMPLE):
            for process in _processes():
                self._look(process)

    def findings(self) -> list[str]:
        """Stops sampling and says what was seen."""
        self._over.set()
        self.join()
        return sorted(self._findings)

    def _look(self, process: Path) -> None:
        for name in ("cmdline", "environ"):
            try:
                data = (process / name).read_bytes()
                if any(needle in data for needle in self._needles):
                    program = (process / "comm").read_text(errors="replace").strip()
                    self._findings.add(f"token secrecy: {name} of {program} holds the token")
            except OSError:  # it has ended meanwhile
                continue


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())
