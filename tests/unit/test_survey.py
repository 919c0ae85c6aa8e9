"""What preflight warns of on the node itself."""

from __future__ import annotations

from gpuboot import survey
from gpuboot.process import Result
from tests.unit.node import Node


def test_a_source_that_apt_cannot_read_is_a_warning_that_names_it(node: Node) -> None:
    said = "Malformed entry 1 in list file /etc/apt/sources.list.d/x.list (Suite)"
    node.answers["apt-get indextargets"] = Result(
        100, err=f"E: {said}\nE: The list of sources could not be read.\n"
    )
    assert survey.warnings(node.host) == [f"apt cannot read the node's sources: {said}"]
    node.answers["apt-get indextargets"] = ""
    assert survey.warnings(node.host) == []
