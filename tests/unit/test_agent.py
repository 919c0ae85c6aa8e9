"""The agent's life between its walks."""

from __future__ import annotations

from gpuboot import agent
from tests.unit.node import Node


def test_a_walk_that_was_asked_for_meanwhile_follows_the_one_that_failed_for_good(
    node: Node,
) -> None:
    """The configuration was corrected while the walk was still on the old one."""
    node.put("/etc/gpuboot/config.yaml", "no-such-key: 1\n")
    assert agent.walk_once(node.host) == (agent.EXIT_CONFIG, 0)
    node.host.wake()
    assert agent.walk_once(node.host) == (agent.EXIT_RETRY, 0)
    node.host.rest(300)
    assert agent.walk_once(node.host) == (agent.EXIT_CONFIG, 0)
