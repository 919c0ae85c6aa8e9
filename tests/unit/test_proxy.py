"""The proxy for rke2-agent: a file for root alone, a drop-in that names it, nothing of others'."""

from __future__ import annotations

import subprocess

import pytest

from gpuboot.proxy import DROP_IN, FILE, AgentProxy
from gpuboot.rke2 import ENVIRONMENT
from gpuboot.secret import Secret
from gpuboot.step import Ok, Pending
from tests.unit.node import Node, reason, settled

PROXY = "http://me:battery-staple@proxy.example.com:3128"
ROUTE = "ip -json route get 192.0.2.1"


def step(proxy: str | None = PROXY, **changes: object) -> AgentProxy:
    usual: dict[str, object] = {
        "http": None, "https": Secret(proxy) if proxy else None,
        "no_proxy": ("mirror.lan", ".svc"), "server": "https://cluster.lan:9345", "node_ip": (),
    }  # fmt: skip
    return AgentProxy(**{**usual, **changes})  # type: ignore[arg-type] # of each field's own type


@pytest.fixture(autouse=True)
def network(node: Node) -> None:
    node.answers[ROUTE] = '[{"dst":"192.0.2.1","dev":"eth0","prefsrc":"10.0.0.5","uid":0}]'
    node.answers["systemctl daemon-reload"] = ""


def variables(node: Node) -> dict[str, str]:
    """What the file sets, read by a shell: within double quotes systemd's rules are the same."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    script = "; ".join([f". {node.host.path(FILE)}", *(f'printf "%s\\0" "${n}"' for n in names)])
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    return {name: value for name, value in zip(names, said.split("\0"), strict=False) if value}


def test_a_proxy_reaches_the_agent_by_a_root_only_file_and_a_drop_in(node: Node) -> None:
    assert reason(step().check(node.host), Pending) == f"{FILE} is not written"
    assert reason(settled(node, step()), Ok) == "rke2-agent has its proxy"
    assert node.host.mode(FILE) == 0o600
    assert f"EnvironmentFile=-{FILE}" in (node.text(DROP_IN) or "")
    assert "battery" not in (node.text(DROP_IN) or "")
    assert variables(node) == {
        "HTTPS_PROXY": PROXY,
        "NO_PROXY": "mirror.lan,.svc,127.0.0.0/8,10.42.0.0/16,10.43.0.0/16,.cluster.local,"
        "cluster.lan,10.0.0.5",
    }
    assert "systemctl daemon-reload" in node.ran


@pytest.mark.parametrize(
    "proxy",
    ["http://a:%24x@p:1", "http://a:$HOME`id`@p:1", "http://a:b\"c\\d'e@p:1", "socks5://p:1"],
)
def test_no_character_of_a_proxy_is_bent(node: Node, proxy: str) -> None:
    settled(node, step(proxy))
    assert variables(node)["HTTPS_PROXY"] == proxy
    assert node.host.mask(node.text(FILE) or "").count("<secret>") == 1


def test_without_a_proxy_nothing_is_there_and_what_was_there_goes(node: Node) -> None:
    assert reason(step(None).check(node.host), Ok) == "rke2-agent needs no proxy"
    before = node.files()
    settled(node, step())
    assert "not wanted any more" in reason(step(None).check(node.host), Pending)
    assert reason(settled(node, step(None)), Ok)
    assert node.files() == before


@pytest.mark.parametrize("file", ENVIRONMENT)
def test_what_the_operators_own_file_sets_is_left_to_it(node: Node, file: str) -> None:
    node.put(file, "HOME=/root\nno_proxy=.example.com\n # HTTPS_PROXY=x\n")
    settled(node, step())
    assert variables(node) == {"HTTPS_PROXY": PROXY}
    assert node.text(file) == "HOME=/root\nno_proxy=.example.com\n # HTTPS_PROXY=x\n"


def test_the_configured_addresses_of_the_node_need_no_look(node: Node) -> None:
    settled(node, step(node_ip=("192.168.7.5", "fd00::5")))
    assert variables(node)["NO_PROXY"].endswith(",cluster.lan,192.168.7.5,fd00::5")
    assert ROUTE not in node.ran


@pytest.mark.parametrize("said", ["", "[]", "[{}]", "{}", "null", "RTNETLINK"])
def test_a_node_whose_cable_is_out_keeps_what_it_found_before(node: Node, said: str) -> None:
    settled(node, step())
    node.answers[ROUTE] = said
    assert reason(step().check(node.host), Ok)


def test_a_new_address_is_put_right_before_the_next_start(node: Node) -> None:
    settled(node, step())
    node.answers[ROUTE] = '[{"prefsrc":"10.0.0.6"}]'
    assert reason(step().check(node.host), Pending) == f"{FILE} differs"
    assert reason(settled(node, step()), Ok)
    assert variables(node)["NO_PROXY"].endswith(",10.0.0.6")


def test_a_file_that_others_can_read_is_put_right(node: Node) -> None:
    settled(node, step())
    node.host.path(FILE).chmod(0o644)
    assert reason(step().check(node.host), Pending) == f"{FILE} can be read by others"
    assert reason(settled(node, step()), Ok)
