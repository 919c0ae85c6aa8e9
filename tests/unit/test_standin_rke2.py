"""The stand-in `rke2`: reads as RKE2 reads, refuses what RKE2 refuses, joins as RKE2 joins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal import cluster, release
from tests.rehearsal.standins.rke2.agent import (
    containerd,
    document,
    images,
    join,
    labels,
    settings,
    supervisor,
)

VERSION = "v1.35.7+rke2r1"
CONFIG = "etc/rancher/rke2/config.yaml"
EPHEMERAL = dict.fromkeys(cluster.PORTS, 0)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a: yes", "true"),
        ("a: n", "false"),
        ("a: 0123", "83"),
        ("a: 0x1f", "31"),
        ("a: 1_000", "1000"),
        ("a: 1e3", "1000"),
        ("a: 580.10", "580.1"),
        ("a: 1:30", "1:30"),
        ("a: 2026-01-01", "2026-01-01"),
        ("a: v1.35.7+rke2r1", "v1.35.7+rke2r1"),
        ('a: "0123"', "0123"),
        ("a:\n", ""),
        ("a: {nvidia.com/gpu: present}", "map[nvidia.com/gpu:present]"),
        ("a: [x, 010]", ["x", "8"]),
    ],
)
def test_unquoted_scalars_bend_as_yaml_1_1_bends_them(written: str, read: document.Value) -> None:
    assert document.pairs(written) == [("a", read)]


@pytest.mark.parametrize("text", ["a: [", "- a\n", "plain", "a: b: c"])
def test_what_is_no_mapping_is_unreadable(text: str) -> None:
    with pytest.raises(document.Unreadable, match="yaml"):
        document.pairs(text)


def _configured(root: Path, **drop_ins: str) -> settings.Settings:
    folder = root / f"{CONFIG}.d"
    folder.mkdir(parents=True)
    for name, text in drop_ins.items():
        (folder / name.replace("__", ".")).write_text(text)
    return settings.load([], {}, root)


def test_later_files_replace_and_plus_appends(tmp_path: Path) -> None:
    loaded = _configured(
        tmp_path,
        **{
            "50-rancher__yaml": '{"node-label": ["a=1"], "server": "https://old"}',
            "60-gpuboot__yaml": '{"node-label+": ["b=2"], "node-taint+": ["c:NoSchedule"]}',
            "70-last__YML": "server: https://new",
            "80-ignored__yaml__tmp": "server: [",
        },
    )
    assert loaded.list("node-label") == ["a=1", "b=2"]
    assert loaded.list("node-taint") == ["c:NoSchedule"]
    assert loaded.text("server") == "https://new"


def test_the_key_without_plus_wipes_what_was_gathered(tmp_path: Path) -> None:
    loaded = _configured(tmp_path, a__yaml="node-label+: [a=1]", b__yaml="node-label: [b=2]")
    assert loaded.list("node-label") == ["b=2"]


def test_hidden_drop_ins_are_read_and_unknown_keys_only_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = _configured(tmp_path, __x__yaml="etcd-s3: true\nnode-name: GPU-7")
    assert loaded.hostname == "gpu-7"
    assert "Unknown flag --etcd-s3 found in config.yaml, skipping" in capsys.readouterr().err


def test_a_flag_beats_the_files_and_they_beat_the_environment(tmp_path: Path) -> None:
    (tmp_path / CONFIG).parent.mkdir(parents=True)
    (tmp_path / CONFIG).write_text("server: https://file")
    environment = {"RKE2_URL": "https://env", "RKE2_NODE_NAME": "env"}
    loaded = settings.load(["--node-label", "a=1,b=2"], environment, tmp_path)
    assert (loaded.text("server"), loaded.text("node-name")) == ("https://file", "env")
    assert loaded.list("node-label") == ["a=1,b=2"]  # no split at commas
    assert settings.load(["-s=https://flag"], {}, tmp_path).text("server") == "https://flag"


def test_published_arguments_hide_the_token(tmp_path: Path) -> None:
    loaded = _configured(tmp_path, a__yaml='token: "hush"')
    assert loaded.arguments == ["agent", "--token", "********"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{}", "--token is required"),
        ("token:\nserver: https://c:9345", "--token is required"),
        ('token: "x"', "--server is required"),
        ('{token: "x", server: "https://c", profile: cis-1.23}', "invalid value provided for"),
        ('{token: "x", server: "https://c", node-external-ip: 1.2.3.4, cloud-provider-name: x}',
         "can't set node-external-ip"),
    ],
)  # fmt: skip
def test_settings_that_end_the_process(tmp_path: Path, config: str, said: str) -> None:
    loaded = _configured(tmp_path, a__yaml=config)
    with pytest.raises(settings.Refused, match=said):
        join.run(loaded, VERSION, "c0ffee")


def test_taints_twice_are_refused_in_kubernetes_words() -> None:
    with pytest.raises(ValueError, match="duplicated taints with the same key and effect"):
        labels.parse_taints(["a=b:NoSchedule", "a=c:NoSchedule"])
    assert len(labels.parse_taints(["a=b:NoSchedule", "a=b:NoExecute", "c:NoExecute"])) == 3


@pytest.mark.parametrize("taint", ["a=b", "a=b:Never", ":NoSchedule", "a=b c:NoSchedule", ""])
def test_bad_taints_are_refused(taint: str) -> None:
    with pytest.raises(ValueError, match="invalid taint"):
        labels.parse_taints([taint])


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("nvidia.com/gpu", True),
        ("node.kubernetes.io/gpu", True),
        ("topology.kubernetes.io/zone", True),
        ("node-role.kubernetes.io/gpu", False),
        ("node-restriction.kubernetes.io/gpu", False),
        ("k8s.io/x", False),
    ],
)
def test_labels_that_end_a_kubelet(key: str, allowed: bool) -> None:
    assert (labels.kubelet_refusal([(key, "true")]) is None) is allowed


def test_tokens_are_taken_apart() -> None:
    digest = "a" * 64
    token = supervisor.parse_token(f"K10{digest}::server:pass:word")
    assert (token.ca_hash, token.password) == (digest, "pass:word")
    assert supervisor.parse_token("short").password == "short"  # noqa: S105
    assert supervisor.parse_token("abcdef.0123456789abcdef").bootstrap
    for bad in (f"K10{digest}:node:x", "K10abc::node:x"):
        with pytest.raises(supervisor.Unready):
            supervisor.parse_token(bad)


def test_the_runtime_is_found_on_the_path_and_may_be_the_default(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nvidia-container-runtime"
    program.touch(mode=0o755)
    loaded = settings.Settings(tmp_path, {"default-runtime": "nvidia"})
    containerd.configure(loaded, str(tmp_path / "bin"))
    text = (loaded.agent / "etc/containerd/config.toml").read_text()
    section = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia'.options]"
    assert f'{section}\n  BinaryName = "{program}"' in text
    assert 'default_runtime_name = "nvidia"' in text


def test_a_default_runtime_that_is_missing_ends_the_process(tmp_path: Path) -> None:
    loaded = settings.Settings(tmp_path, {"default-runtime": "nvidia"})
    with pytest.raises(settings.Refused, match="default runtime nvidia was not found"):
        containerd.configure(loaded, "")


def test_the_release_has_upstreams_layout_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    digest = release.build(tmp_path, VERSION)
    folder = tmp_path / VERSION
    tarball = folder / "rke2.linux-amd64.tar.gz"
    assert hashlib.sha256(tarball.read_bytes()).hexdigest() == digest
    assert f"{digest}  {tarball.name}" in (folder / "sha256sum-amd64.txt").read_text().splitlines()
    with tarfile.open(tarball) as archive:
        files = {entry.name: entry.mode for entry in archive if entry.isfile()}
    assert files["bin/rke2"] == 0o755
    assert files["lib/systemd/system/rke2-agent.service"] == 0o644
    assert {"bin/rke2-uninstall.sh", "lib/systemd/system/rke2-agent.env"} <= files.keys()
    assert release.build(tmp_path, VERSION) == digest


class Agent:
    """A running program: what it tells systemd and what it logs."""

    def __init__(self, process: subprocess.Popen[str], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self.journal = ""

    def notifies(self) -> bytes:
        """Its next word to systemd."""
        self._channel.settimeout(10)
        return self._channel.recv(64)

    def logs(self, text: str) -> bool:
        """Reads its log until a line holds the text, or it ends."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.journal += line
            if text in line:
                return True
        return False


class Lab:
    """A cluster on loopback, and a node's root with the program."""

    def __init__(self, folder: Path) -> None:
        self.state, self.root = folder / "state", folder / "root"
        for path in (self.state, folder / "files", self.root / CONFIG):
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        self.identity = cluster.prepare(self.state)
        files = folder / "files"
        self.cluster = cluster.Cluster(self.state, "127.0.0.1", files, files, EPHEMERAL)
        self.thread = threading.Thread(target=self.cluster.run)
        self.thread.start()
        self.program = folder / "rke2"
        self.program.write_bytes(release.program(VERSION))
        self.healthz = _free_port()

    def configure(self, **more: object) -> None:
        supervisor = f"https://127.0.0.1:{self.cluster.ports['supervisor']}"
        config = {
            "server": supervisor,
            "token": self.identity.token,
            "node-name": "gpu-1",
            "node-ip": "127.0.0.1",
            "lb-server-port": _free_port(),
            "kubelet-arg": [f"healthz-port={self.healthz}"],
            **more,
        }
        (self.root / CONFIG).write_text(json.dumps(config))

    @contextlib.contextmanager
    def agent(self) -> Iterator[Agent]:
        """The program running, as systemd would run it."""
        name = f"gpuboot-test-{os.getpid()}-{self.healthz}"
        environment = {"RKE2_STANDIN_ROOT": str(self.root), "NOTIFY_SOCKET": f"@{name}"}
        with contextlib.ExitStack() as stack:
            channel = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            channel.bind(f"\0{name}")
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, self.program, "agent"],
                    env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            watchdog = threading.Timer(15, process.kill)
            watchdog.start()
            try:
                yield Agent(process, channel)
            finally:
                watchdog.cancel()
                process.terminate()

    def node(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "nodes.json").read_text())["gpu-1"]
        return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.cluster.stop()
    made.thread.join()


def test_an_agent_joins_and_a_later_start_changes_labels_but_not_taints(lab: Lab) -> None:
    lab.configure(**{"node-label": ["a=1"], "node-taint": ["nvidia.com/gpu=present:NoSchedule"]})
    with lab.agent() as agent:
        assert agent.notifies() == b"READY=1"
        assert agent.logs("rke2 agent is up and running")
    lab.configure(**{"node-label": ["b=2"], "node-taint": ["other:NoExecute"]})
    with lab.agent() as again:
        assert again.notifies() == b"READY=1"
        assert again.logs("rke2 agent is up and running")
    node = lab.node()
    assert {"a": "1", "b": "2"}.items() <= node["metadata"]["labels"].items()
    taints = {taint["key"] for taint in node["spec"]["taints"]}
    assert "nvidia.com/gpu" in taints
    assert "other" not in taints
    password = lab.root / "etc/rancher/node/password"
    assert (password.stat().st_mode & 0o777, len(password.read_text())) == (0o600, 33)
    told = (lab.state / "requests.log").read_text() + agent.journal + again.journal
    assert lab.identity.token.rpartition(":")[2] not in told
    assert password.read_text().strip() not in told


def test_a_label_that_no_node_may_set_kills_only_the_kubelet(lab: Lab) -> None:
    lab.configure(**{"node-label": ["node-role.kubernetes.io/gpu=true"]})
    with lab.agent() as agent:
        assert agent.logs("Kubelet exited: exit status 1")
    log = lab.root / "var/lib/rancher/rke2/agent/logs/kubelet.log"
    assert "unknown 'kubernetes.io' or 'k8s.io' labels specified" in log.read_text()
    assert "unknown" not in agent.journal


def test_a_wrong_token_is_told_and_tried_again(lab: Lab) -> None:
    lab.configure(token=lab.identity.token + "x")
    with lab.agent() as agent:
        assert agent.logs("Waiting to retrieve agent configuration; server is not ready")
    assert "401 Unauthorized" in agent.journal


def test_a_token_of_another_cluster_is_told_and_no_secret_sent(lab: Lab) -> None:
    lab.configure(token=f"K10{'0' * 64}::node:secret")
    with lab.agent() as agent:
        assert agent.logs("token CA hash does not match the Cluster CA certificate hash")
    assert "/v1-rke2" not in (lab.state / "requests.log").read_text()


def test_another_machines_name_is_rejected_by_its_password(lab: Lab) -> None:
    (lab.state / "faults.json").write_text('{"taken": ["gpu-1"]}')
    lab.configure()
    with lab.agent() as agent:
        assert agent.logs("Node password rejected, duplicate hostname or contents of")


def test_duplicated_taints_end_the_process(lab: Lab) -> None:
    lab.configure(**{"node-taint": ["a=b:NoSchedule", "a=c:NoSchedule"]})
    with lab.agent() as agent:
        assert agent.logs("failed to parse node taints: duplicated taints with the same key")
        assert not agent.logs("anything further")


# -- image archives


def _imported(capsys: pytest.CaptureFixture[str], root: Path) -> list[str]:
    images.load(settings.Settings(root))
    return [line for line in capsys.readouterr().err.splitlines() if "mported" in line]


def test_a_release_has_image_archives_that_the_stand_in_imports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release.build(tmp_path / "out", VERSION)
    folder = tmp_path / "root/var/lib/rancher/rke2/agent/images"
    folder.mkdir(parents=True)
    for name in (release.ALL_IMAGES, release.CORE_IMAGES):
        (folder / name).write_bytes((tmp_path / "out" / VERSION / name).read_bytes())
    found = "\n".join(_imported(capsys, tmp_path / "root"))
    assert found.count("Imported images from") == 2
    assert "Imported docker.io/rancher/rke2-cloud-provider:v1.35.7-rke2r1" in found
    assert len(_imported(capsys, tmp_path / "root")) > 2  # all again, at every start


def test_with_a_cache_file_only_what_has_changed_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "var/lib/rancher/rke2/agent/images"
    folder.mkdir(parents=True)
    release.build(tmp_path / "out", VERSION)
    archive = (tmp_path / "out" / VERSION / release.CORE_IMAGES).read_bytes()
    (folder / "a.tar.gz").write_bytes(archive)
    (folder / ".cache.json").touch()
    assert len(_imported(capsys, tmp_path)) == 3
    assert _imported(capsys, tmp_path) == []
    (folder / "b.tar.gz").write_bytes(archive)
    assert any("b.tar.gz" in line for line in _imported(capsys, tmp_path))


def test_an_archive_that_cannot_be_read_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "var/lib/rancher/rke2/agent/images"
    folder.mkdir(parents=True)
    for name in ("a.tar.zst", "b.tar.gz", "c.tar", "readme.txt"):
        (folder / name).write_bytes(b"\x28\xb5\x2f\xfd" + b"no archive at all" * 3)
    images.load(settings.Settings(tmp_path))
    assert capsys.readouterr().err.count("Error encountered while importing") == 3
