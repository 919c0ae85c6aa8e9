"""The node's password: the operator's before the first join, untouched ever after."""

from __future__ import annotations

import pytest

from gpuboot.identity import FILE, NodePassword
from gpuboot.secret import Secret
from gpuboot.step import Ok, Pending
from tests.unit.node import Node, code, reason, settled

PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's
OTHER = "0123456789abcdef0123456789abcdef"
SOURCE = "/etc/gpuboot/node-password"
INLINE = NodePassword(Secret(PASSWORD), None, None)
FROM_FILE = NodePassword(None, SOURCE, None)


def register(node: Node, data: str = "/var/lib/rancher/rke2") -> None:
    node.put(f"{data}/agent/client-kubelet.crt", "certificate")


@pytest.mark.parametrize("step", [INLINE, FROM_FILE])
def test_it_is_written_for_root_alone_before_the_first_start(
    node: Node, step: NodePassword
) -> None:
    node.put(SOURCE, f"{PASSWORD}\n", mode=0o600)
    assert reason(step.check(node.host), Pending) == f"{FILE} is not written"
    assert reason(settled(node, step), Ok) == f"{FILE} is the configured one"
    assert (node.text(FILE), node.host.mode(FILE)) == (f"{PASSWORD}\n", 0o600)


def test_another_one_is_replaced_as_long_as_nobody_knows_this_node(node: Node) -> None:
    node.put(FILE, f"{OTHER}\n", mode=0o600)
    assert "was never registered" in reason(INLINE.check(node.host), Pending)
    assert reason(settled(node, INLINE), Ok)
    assert node.text(FILE) == f"{PASSWORD}\n"


def test_one_that_others_can_read_is_put_right(node: Node) -> None:
    node.put(FILE, PASSWORD, mode=0o644)
    assert reason(INLINE.check(node.host), Pending) == f"{FILE} can be read by others"
    assert reason(settled(node, INLINE), Ok)


@pytest.mark.parametrize(
    ("there", "drifts"), [(f"{OTHER}\n", True), (f"{PASSWORD}\n", False), (None, True)]
)
@pytest.mark.parametrize("data", [None, "/data"])
def test_a_registered_node_is_a_stranger_with_any_other_so_it_is_drift(
    node: Node, there: str | None, data: str | None, *, drifts: bool
) -> None:
    if there:
        node.put(FILE, there, mode=0o600)
    register(node, data or "/var/lib/rancher/rke2")
    found = NodePassword(Secret(PASSWORD), None, data).check(node.host)
    assert isinstance(found, Ok)
    assert [FILE in text for text in found.drift] == [True] * drifts
    assert node.text(FILE) == there


def test_a_registered_node_needs_no_password_file_any_more(node: Node) -> None:
    node.put(FILE, OTHER, mode=0o600)
    register(node)
    found = FROM_FILE.check(node.host)
    assert isinstance(found, Ok)
    assert found.drift == ()


@pytest.mark.parametrize("text", [None, "", "\n", "short", f"{PASSWORD} {PASSWORD}", "é" * 20,
                                  f"{PASSWORD}\n{PASSWORD}", "a" * 129])  # fmt: skip
def test_a_file_without_a_usable_password_is_waited_for(node: Node, text: str | None) -> None:
    if text is not None:
        node.put(SOURCE, text, mode=0o600)
    found = FROM_FILE.check(node.host)
    assert code(found).id == "GB509"
    assert PASSWORD not in str(found)
    assert FROM_FILE.writes(node.host) == {}


def test_neither_the_new_one_nor_the_old_one_is_ever_shown(node: Node) -> None:
    node.put(FILE, f"{OTHER}\n", mode=0o600)
    node.put(SOURCE, f"{PASSWORD}\n", mode=0o600)
    text = "".join(FROM_FILE.writes(node.host).values()) + (node.text(FILE) or "")
    assert node.host.mask(text) == "<secret>\n<secret>\n"
    assert PASSWORD not in repr(INLINE)
