"""The support bundle: complete, bounded, and without a secret, wherever one was planted."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from gpuboot import evidence, page, redaction, report
from gpuboot.checkpoint import Checkpoint
from gpuboot.config import Config
from gpuboot.engine import Outcome
from gpuboot.evidence import Item
from gpuboot.host import Host
from gpuboot.process import Command, Result
from gpuboot.progress import Progress
from gpuboot.report import Bundle, Text
from tests.unit.node import KERNEL, Node

# One each of what a node has, none of which looks like a secret by itself.
TOKEN = "K10" + "ab" * 32 + "::node:umbrella-stand"
SECRETS = {
    "token": TOKEN, "password of the token": "umbrella-stand", "proxy": "walrus tusk/7",
    "registry": "pelican&crossing", "node": "3f9c0d5e71b24a688d1e5f7a9b0c2d4e",
    "rancher": "xq7zzr2k5vtbwhm9", "apt": "gooseberry-fool",
}  # fmt: skip
PROXY = f"http://me:{quote(SECRETS['proxy'], safe='')}@proxy.lab:3128"
CONFIG = f"""\
rke2:
  join: agent
  version: v1.35.7+rke2r1
  config: {{server: "https://supervisor.lab:9345", token: "{TOKEN}"}}
proxy: {{http: "{PROXY}", https: "{PROXY}"}}
"""


def spellings(secret: str) -> set[str]:
    """As it may stand in a text, a URL, JSON or basic authentication."""
    basic = (base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("node", "m", "me"))
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], *basic}


def planted() -> str:
    """Every secret in every spelling, in the middle of what is worth reading."""
    lines = [f"line of {name}: said {one} then" for name, value in SECRETS.items()
             for one in sorted(spellings(value))]  # fmt: skip
    return "NVRM: a line that must stay\n" + "\n".join(lines) + "\n"


@pytest.fixture
def leaky(node: Node) -> Node:
    """A node that has its secrets where they belong, and in every log, file and answer as well."""
    node.put("/etc/gpuboot/config.yaml", CONFIG, mode=0o600)
    node.put(
        "/etc/rancher/rke2/registries.yaml",
        json.dumps(
            {"configs": {"r.lab": {"auth": {"username": "u", "password": SECRETS["registry"]}}}}
        ),
    )
    node.put("/etc/rancher/node/password", SECRETS["node"] + "\n")
    node.put("/usr/local/custom_script/install.sh", f"CATTLE_TOKEN={SECRETS['rancher']}\n")
    node.put("/etc/apt/auth.conf", f"machine a.lab login me password {SECRETS['apt']}\n")
    node.put("/proc/sys/kernel/hostname", "gpu-worker-1\n")
    node.put("/proc/sys/kernel/osrelease", KERNEL)
    for name in (
        "/var/log/apt/history.log", "/var/log/apt/term.log", "/var/log/dpkg.log",
        "/var/log/cloud-init-output.log", "/var/lib/rancher/rke2/agent/logs/kubelet.log",
        "/var/lib/rancher/rke2/agent/containerd/containerd.log",
        "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        "/etc/rancher/rke2/config.yaml", "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml",
        "/etc/default/rke2-agent", "/etc/rancher/rke2/gpuboot-proxy.env",
        "/etc/apt/sources.list", "/etc/apt/sources.list.d/x.sources", "/etc/apt/preferences",
        "/proc/driver/nvidia/version", "/etc/modprobe.d/x.conf", "/var/run/cdi/nvidia.yaml",
        "/var/lib/gpuboot/checkpoint.json", "/run/gpuboot/progress.json", "/etc/hosts",
        "/var/lib/dkms/nvidia-current/535/build/make.log", "/proc/cmdline",
    ):  # fmt: skip
        node.put(name, planted())
    return node


def tells(node: Node) -> Host:
    """A host on which every command says everything."""
    return Host(node.root, runner=lambda _: Result(0, planted(), planted()), clock=node.clock,
                web=node.web, owner=node.host.owner)  # fmt: skip


def unpacked(bundle: Bundle, node: Node) -> dict[str, str]:
    data = io.BytesIO(bundle.packed(node.clock.now()))
    with tarfile.open(fileobj=data) as archive:
        assert {entry.mode for entry in archive} == {0o600}
        found = {}
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            found[entry.name] = content.read().decode()
    return found


def test_no_secret_is_in_the_bundle_wherever_it_was_planted(leaky: Node) -> None:
    bundle = report.collect(tells(leaky), lambda *_: None)
    files = unpacked(bundle, leaky)
    for name, content in files.items():
        for what, secret in SECRETS.items():
            for spelling in spellings(secret):
                assert spelling not in content, f"{name} has the {what} as {spelling}"
    # The control: it was planted nearly everywhere, and what stood around it is still there.
    holding = [name for name, content in files.items() if "a line that must stay" in content]
    assert len(holding) > 50
    assert bundle.masked > 1000


def test_every_planted_file_and_command_is_really_read(leaky: Node) -> None:
    """Without the redaction each of the secrets would be in it: the test above can fail."""
    host = tells(leaky)
    raw = ""
    for item in evidence.ITEMS:
        try:
            raw += item.read(host)
        except Exception:  # noqa: S112 - answers of this kind make no sense to most
            continue
    assert [what for what, secret in SECRETS.items() if secret not in raw] == []


def test_the_bundle_is_one_folder_named_after_node_and_time(leaky: Node) -> None:
    files = unpacked(report.collect(leaky.host, lambda *_: None), leaky)
    folders = {name.partition("/")[0] for name in files}
    assert len(folders) == 1
    assert re.fullmatch(r"gpuboot-report-gpu-worker-1-20260101T0000\d\dZ", folders.pop())


class Links(HTMLParser):
    """The files that a page leads to, and the scripts and pages elsewhere that it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.files += [str(value) for name, value in attrs if name in ("href", "src")]


def test_the_index_leads_to_every_file_and_needs_nothing_else(leaky: Node) -> None:
    bundle = report.collect(leaky.host, lambda *_: None)
    links = Links()
    links.feed(bundle.index)
    there = {text.name for text in bundle.texts if not text.missing}
    assert there
    assert set(links.files) == there
    assert "script" not in links.tags
    for text in bundle.texts:
        assert text.name in bundle.index


def test_the_index_shows_the_status_without_what_the_agent_took_for_no_secret(leaky: Node) -> None:
    """The agent masks what it knows: no registry's password, which a program may have said."""
    leaky.put("/proc/sys/kernel/random/boot_id", "boot-1\n")
    progress = Progress(leaky.host, Checkpoint("m", "i", "u", boot_id="boot-1"), Config(), ())
    said = f"pull failed: {SECRETS['registry']}, and password: not-known-by-its-value"
    progress.end(Outcome("failed", "cdi", said, "GB310", "x", evidence=said), None)
    index = report.collect(leaky.host, lambda *_: None).index
    assert "pull failed: &lt;secret&gt;" in index
    assert SECRETS["registry"] not in index
    assert "not-known-by-its-value" not in index


def test_what_cannot_be_had_is_told_in_its_place(leaky: Node) -> None:
    def refuses(_: Host) -> str:
        raise PermissionError(13, "Permission denied", f"/{SECRETS['node']}")

    def hangs(_: Command) -> Result:
        raise TimeoutError("nvidia-smi")

    leaky.answers["nvidia-smi -q"] = hangs
    items = (
        Item("a/refused.txt", "x", refuses),
        Item("a/hangs.txt", "x", evidence.said("nvidia-smi", "-q")),
        Item("a/absent.txt", "x", evidence.said("no-such-program")),
        Item("a/no-file.txt", "x", evidence.end_of("/no/such/file")),
        Item("a/no-folder.txt", "x", evidence.all_of("/no/folder", "/nor/this")),
    )
    texts = {t.name: t for t in report.collect(leaky.host, lambda *_: None, items).texts}
    assert texts["a/refused.txt"].trouble
    assert SECRETS["node"] not in texts["a/refused.txt"].missing
    assert "took longer than 20 s" in texts["a/hangs.txt"].missing
    assert texts["a/hangs.txt"].trouble
    assert texts["a/absent.txt"].missing == "there is no no-such-program here"
    assert texts["a/no-file.txt"].missing == "there is no /no/such/file"
    assert texts["a/no-folder.txt"].missing == "there is nothing at /no/folder, /nor/this"
    assert not any(texts[f"a/{name}.txt"].trouble for name in ("absent", "no-file", "no-folder"))


def test_a_fault_of_our_own_in_one_text_costs_no_other(leaky: Node) -> None:
    items = (Item("a/fault.txt", "x", lambda _: str(1 // 0)), Item("a/x.txt", "x", lambda _: "y"))
    fault, other = report.collect(leaky.host, lambda *_: None, items).texts
    assert fault.missing == "ZeroDivisionError: integer division or modulo by zero"
    assert other.content == "y"


def test_a_command_that_failed_is_kept_with_its_exit_status(leaky: Node) -> None:
    leaky.answers["nvidia-smi -q"] = Result(9, "NVIDIA-SMI has failed\n", "no driver\n")
    text = evidence.said("nvidia-smi", "-q")(leaky.host)
    assert text == "NVIDIA-SMI has failed\nno driver\n[exit status 9]\n"


def test_long_texts_are_kept_from_their_end_and_the_whole_stays_bounded(node: Node) -> None:
    line = "x" * 99 + "\n"
    items = [Item(f"a/{n}.txt", "x", lambda _: line * 12_000, limit=1 << 20) for n in range(30)]
    bundle = report.collect(node.host, lambda *_: None, items)
    sizes = [text.size for text in bundle.texts]
    assert sum(sizes) <= report.LARGEST
    assert max(sizes) <= 1 << 20
    first, last = bundle.texts[0], bundle.texts[-1]
    assert first.cut
    assert set(first.content.splitlines()) == {"x" * 99}
    assert last.trouble
    assert "24 MiB" in last.missing


def said(content: str, _: Host) -> str:
    return content


def test_a_secret_at_the_seam_of_a_cut_text_is_not_left_half(node: Node) -> None:
    secret = "0123456789abcdef" * 4
    node.put("/etc/rancher/node/password", secret)
    for limit in range(1000, 1100, 7):
        content = "y " * 600 + secret + "\n" + "z" * (limit - 40) + "\n"
        item = Item("a/x.txt", "x", partial(said, content), limit=limit)
        text = report.collect(node.host, lambda *_: None, [item]).texts[0]
        assert not re.search(r"[0-9a-f]{8}", text.content)


def test_a_data_folder_of_rke2s_elsewhere_is_looked_into(node: Node) -> None:
    node.put("/etc/rancher/rke2/config.yaml", "data-dir: /data/rke2\n", mode=0o600)
    node.put("/data/rke2/agent/logs/kubelet.log", "I1201 a line\n")
    items = [item for item in evidence.ITEMS if item.name == "rke2/kubelet.log"]
    (text,) = report.collect(node.host, lambda *_: None, items).texts
    assert text.content == "I1201 a line\n"


def test_json_in_the_bundle_can_be_read_however_long_its_line_was(node: Node) -> None:
    content = {"history": [{"boot_id": str(number)} for number in range(500)]}
    node.put("/var/lib/gpuboot/checkpoint.json", json.dumps(content))
    node.put("/run/gpuboot/progress.json", "{damaged")
    texts = {text.name: text for text in report.collect(node.host, lambda *_: None).texts}
    assert json.loads(texts["gpuboot/checkpoint.json"].content) == content
    assert texts["gpuboot/progress.json"].content == "{damaged"


def test_the_codes_that_the_journal_tells_of_are_explained_on_the_page(node: Node) -> None:
    said = "waiting: no GPU [GB110]; next: x\nwaiting: no GPU [GB110]\n[GB999]\n"
    item = Item("journal/gpuboot.txt", "x", lambda _: said)
    index = report.collect(node.host, lambda *_: None, [item]).index
    assert "GB110: no NVIDIA GPU is on the PCI bus (2 times in the journal)" in index
    assert "GB999" not in index


def test_what_a_name_or_a_reason_holds_is_no_html(node: Node) -> None:
    texts = [Text("a/<b>.txt", "<i>", missing="<script>alert(1)</script>", trouble=True)]
    found: dict[str, object] = {
        "state": "failed", "reason": "<script>", "steps": [], "gpus": [], "driver": None,
        "node": None, "reboots": {"reasons": []}, "code": None,
    }  # fmt: skip
    written = page.html("<name>", found, texts, {})
    assert "<script>" not in written
    assert "&lt;script&gt;alert(1)" in written


def test_half_a_character_in_a_text_is_no_fault(node: Node) -> None:
    node.put("/var/lib/gpuboot/checkpoint.json", '{"host": "\\ud800"}')
    items = [item for item in evidence.ITEMS if item.name == "gpuboot/checkpoint.json"]
    bundle = report.collect(node.host, lambda *_: None, items)
    assert json.loads(bundle.texts[0].content) == {"host": "?"}
    assert bundle.packed(node.clock.now())


def test_each_item_has_a_name_of_its_own_and_a_sentence() -> None:
    names = [item.name for item in evidence.ITEMS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+/[\w.-]+", name) for name in names)
    assert all(item.tells for item in evidence.ITEMS)


def test_every_file_of_settings_that_is_collected_is_looked_through_for_secrets() -> None:
    """What redaction.SETTINGS does not know is only caught by how it looks."""
    assert "/etc/rancher/rke2/registries.yaml" in redaction.SETTINGS
    assert Path("/etc/rancher/node/password") in map(Path, redaction.WHOLE)
