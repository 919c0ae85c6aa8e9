"""Secrets are known by their values and by how they look; what is none stays readable."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from gpuboot import redaction
from gpuboot.secret import MASK
from tests.unit.node import Node

KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx\nvvvvvvvv==\n-----END RSA PRIVATE KEY-----"
)
REGISTRY = """\
configs:
  r.lab:
    auth:
      username: puller
      password: |-
        two words
"""
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("name", "content", "secret"),
    [
        ("/etc/rancher/rke2/config.yaml", "server: https://s:9345\ntoken: walnut-tower\n",
         "walnut-tower"),
        ("/etc/rancher/rke2/config.yaml.d/50-rancher.yaml",
         json.dumps({"server": "s", "token": "walnut-tower"}), "walnut-tower"),
        ("/etc/rancher/rke2/registries.yaml",
         REGISTRY, "two words"),
        ("/etc/rancher/rke2/registries.yaml", "configs: {r: {auth: {auth: cHVsbGVyOnNlY3JldA==}}}",
         "cHVsbGVyOnNlY3JldA=="),
        ("/etc/rancher/node/password", "0123456789abcdefwalnut\n", "0123456789abcdefwalnut"),
        ("/etc/apt/auth.conf.d/lab.conf", "machine archive.lab login me password walnut-tower\n",
         "walnut-tower"),
        ("/etc/apt/apt.conf.d/proxy", 'Acquire::http::Proxy "http://me:walnut-tower@proxy:3128";',
         "walnut-tower"),
        ("/etc/default/rke2-agent", "RKE2_TOKEN=walnut-tower\n", "walnut-tower"),
        ("/etc/environment", "HTTPS_PROXY='http://me:wal%40nut@proxy:3128'\n", "wal%40nut"),
        ("/usr/local/custom_script/install.sh", "CATTLE_TOKEN=\"walnuttower\"\n", "walnuttower"),
        ("/var/lib/rancher/agent/rancher2_connection_info.json",
         json.dumps({"kubeConfig": "users:\n- user:\n    token: walnut-tower\n"}), "walnut-tower"),
        ("/var/lib/cloud/instance/user-data.txt",
         "#cloud-config\nchpasswd: {expire: false}\npassword: walnut-tower\n", "walnut-tower"),
        ("/etc/gpuboot/config.yaml", "rke2: [broken\ntoken: walnut-tower\n", "walnut-tower"),
    ],
)  # fmt: skip
def test_what_the_machines_files_keep_secret_is_masked_wherever_it_stands(
    node: Node, name: str, content: str, secret: str
) -> None:
    node.put(name, content, mode=0o600)
    redaction.learn(node.host)
    plain = f"E: could not log in with {secret}, again {quote(secret, safe='')}"
    basic = base64.b64encode(f"user:{secret}".encode()).decode()
    text = redaction.clean(node.host, f"{plain}\nsent {basic}\n")
    assert secret not in text
    assert quote(secret, safe="") not in text
    assert basic not in text
    assert text.count(MASK) >= 3
    assert text.startswith("E: could not log in with <secret>")


@pytest.mark.parametrize(
    "line",
    [
        "token: walnut", "  password: 'walnut tower'", '{"password": "wal\\"nut", "user": "me"}',
        "RKE2_TOKEN=walnut", "--token walnut --server s", "--agent-token=walnut",
        "Authorization: Bearer walnutwalnut", "authorization: basic d2FsbnV0OndhbG51dA==",
        f"got {JWT}", "http://me:walnut@proxy:3128/x", "https://host/x?token=walnut&b=1",
        "K10" + "a" * 64 + "::node:walnut", "client-key-data: LS0tLS1CRUdJTiBSU0Ewalnut",
        "login me password walnut", "\\\"secret\\\": \\\"walnut\\\"", "node token+: walnut",
        "bootstrap abc123.walnutwalnut0123", "apiKey: walnut", "access_key=walnut",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked_without_being_known(node: Node, line: str) -> None:
    text = redaction.clean(node.host, f"before\n{line}\nafter\n")
    assert "walnut" not in text
    assert JWT not in text
    assert "d2FsbnV0" not in text
    assert MASK in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


@pytest.mark.parametrize("text", [KEY, f"x\n{KEY}\ny", KEY[:60], KEY.partition("\n")[2]])
def test_a_private_key_is_masked_also_when_half_of_it_was_cut_off(node: Node, text: str) -> None:
    cleaned = redaction.clean(node.host, text)
    assert "vvvv" not in cleaned
    assert "MIIEow" not in cleaned


@pytest.mark.parametrize(
    "line",
    [
        "token-file: /etc/gpuboot/token", 'password: ""', "token: ''",
        "Dec 01 02:37:37 gpu-1 rke2[812]: node gpu-1 is Ready",
        "NVRM: Xid (PCI:0000:03:00): 79, pid=1234, name=python3, GPU has fallen off the bus.",
        "0000:03:00.0 3D controller [0302]: NVIDIA Corporation TU104GL [Tesla T4] [10de:1eb8]",
        "automount-service-account-token: false", "inet6 fe80::1/64 scope link",
        "deb [signed-by=/etc/apt/keyrings/a.gpg] http://archive.lab/debian bookworm main",
        "rke2-agent: token CA hash does not match the Cluster CA certificate hash: a1 != b2",
        "https://supervisor.lab:9345/v1-rke2/readyz: 503", "GPU-eb9f0b0d-cbc5-e0fe-d232-cc2e3e7d",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(node: Node, line: str) -> None:
    assert redaction.clean(node.host, line) == line


def test_the_token_file_that_rke2s_own_configuration_names_is_known(node: Node) -> None:
    node.put("/etc/rancher/rke2/config.yaml", "token-file: /secrets/rke2\n", mode=0o600)
    node.put("/secrets/rke2", "walnut-tower\n", mode=0o600)
    redaction.learn(node.host)
    assert redaction.clean(node.host, "said walnut-tower then") == f"said {MASK} then"


def test_a_long_line_is_cut_and_a_known_secret_at_the_cut_is_not_halved(node: Node) -> None:
    node.put("/etc/rancher/node/password", "walnutwalnutwalnut")
    redaction.learn(node.host)
    text = redaction.clean(node.host, "x" * 1990 + "walnutwalnutwalnut" + "y" * 5000)
    assert "waln" not in text
    assert "more characters" in text
    assert len(text) < 2100


@pytest.mark.parametrize("text", ["a: &a [*a]", "x: &x {y: &y {z: [*x, *y]}}", "[" * 3000, "\0"])
def test_a_file_that_is_made_to_be_hard_to_read_holds_nobody_up(text: str) -> None:
    assert list(redaction.values(text)) == []


def test_aliases_of_aliases_are_gone_through_once() -> None:
    lines = ["a0: &a0 {token: walnut}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert set(redaction.values("\n".join(lines))) == {"walnut"}
