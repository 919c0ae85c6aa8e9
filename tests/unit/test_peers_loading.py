"""What the nearest other installer does wrong where a driver is loaded, and gpuboot does not.

Read in its source: nouveau is not mentioned at all, a failed installation is logged and ends with
status 0, and one from a repository is never verified (facts: peers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpuboot import agent, plan, status
from gpuboot.config import Config
from gpuboot.process import Command, Result
from tests.model.cluster import Cluster
from tests.model.life import CONFIG, RELEASE
from tests.model.machine import Machine
from tests.unit.node import facts


@dataclass
class Broken(Machine):
    """A node on which commands that fit these patterns end otherwise than they should."""

    wrong: dict[str, Result] = field(default_factory=dict)

    def __call__(self, command: Command) -> Result:
        words = " ".join(command.argv)
        for pattern, result in self.wrong.items():
            if re.match(pattern, words):
                self.commands.append(words)
                return result
        return super().__call__(command)


def machine(root: Path, wrong: dict[str, Result], nouveau: str = "absent") -> Broken:
    found = Broken(root, Cluster(RELEASE), nouveau=nouveau, wrong=wrong)
    found.make()
    found.put("/etc/gpuboot/config.yaml", CONFIG)
    found.path("/etc/gpuboot/config.yaml").chmod(0o600)
    found.boot()
    return found


# -- nouveau


def test_nouveau_is_kept_out_before_the_first_package_comes() -> None:
    names = [step.name for step in plan.build(Config(), facts()).prepare]
    assert names.index("nouveau-blocked") < names.index("packages") < names.index("driver-loaded")


def test_a_card_that_nouveau_has_is_taken_from_it_in_the_same_boot(tmp_path: Path) -> None:
    node = machine(tmp_path, {}, nouveau="idle")
    assert agent.walk_once(node.host())[0] == 0
    assert "rmmod nouveau" in node.commands
    assert (node.boots, node.rebooting) == (1, False)
    assert status.look(node.host())["state"] == "ready"


# -- an installation that failed, and one that only looks like a success

NOTHING = Result(0)  # what a program ends with that reports success and has done nothing
SILENT = Result(0, '{"driver": "535.309.01", "gpus": []}')


@pytest.mark.parametrize(
    ("wrong", "step"),
    [
        (
            {
                "apt-get (?!.*(simulate|print-uris)).* install ": Result(
                    100, err="E: Unmet dependencies"
                )
            },
            "packages",
        ),
        ({"dkms": Result(11, err="Error! Bad return status")}, "driver-built"),
        ({"dkms": NOTHING}, "driver-built"),
        ({"modprobe nvidia": Result(1, err="Key was rejected by service")}, "driver-loaded"),
        ({"modprobe nvidia": NOTHING, "nvidia-modprobe": Result(1)}, "driver-loaded"),
        ({"nvidia-modprobe": NOTHING}, "driver-loaded"),
        ({".*gpuboot.nvml nvml": SILENT}, "gpus-answer"),
        ({".*gpuboot.nvml cuda": Result(1, '{"error": "no CUDA-capable device"}')}, "gpus-answer"),
        ({"systemctl restart nvidia": NOTHING, "nvidia-ctk cdi generate": NOTHING}, "cdi"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_installation_that_failed_or_did_nothing_is_no_success(
    tmp_path: Path, wrong: dict[str, Result], step: str
) -> None:
    node = machine(tmp_path, wrong)
    if "dkms" in wrong:
        node.save("packages", {**node.packages, "nvidia-kernel-dkms": "installed"})
    assert agent.walk_once(node.host())[0] in (agent.EXIT_FAILED, agent.EXIT_RETRY)
    found = status.look(node.host())
    assert found["state"] != "ready"
    assert found["step"] == step
    assert found["code"].startswith("GB")
    assert node.cluster.node is None  # and the hold stays
    assert not node.path("/run/gpuboot/ready").exists()
