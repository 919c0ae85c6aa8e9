"""Google's GPU installer does almost gpuboot's job; what it does wrong is a test of ours each.

Read in its source (facts: peers). The defects that no other test had to do with are tested here;
the table says where the others are.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from gpuboot import agent, cli, existing, status
from tests.model.cluster import Cluster
from tests.model.life import CONFIG, RELEASE
from tests.model.machine import KERNEL, Machine

LOADING, APT = "tests.unit.test_peers_loading", "tests.unit.test_peers_apt"
DRIVERS, CLONES = "tests.unit.test_drivers", "tests.model.test_second_boots"
DEFECTS = {
    "mode mismatch is not refused: an assert of a sentence, which is true": (
        __name__, "test_a_driver_of_the_other_way_to_install_is_refused_before_anything_is_done"),
    "the same of a branch, of the packages' own kind": (
        DRIVERS, "test_a_driver_that_contradicts_the_configuration_is_not_adopted"),
    "uninstalling always fails, and names the wrong package": (
        __name__, "test_nothing_uninstalls_and_what_is_in_the_way_is_named_with_its_remover"),
    "a failed installation ends with status 0; one of packages is never verified": (
        LOADING, "test_an_installation_that_failed_or_did_nothing_is_no_success"),
    "the GPU's model is detected and ignored": (
        __name__, "test_the_card_decides"),
    "the open module goes onto P4, V100 and P100 too": (
        DRIVERS, "test_the_open_module_does_not_go_onto_cards_it_does_not_drive"),
    "nouveau is not mentioned: it is not kept out": (
        LOADING, "test_nouveau_is_kept_out_before_the_first_package_comes"),
    "nouveau is not mentioned: it is not taken off the card": (
        LOADING, "test_a_card_that_nouveau_has_is_taken_from_it_in_the_same_boot"),
    "retries that nobody calls": (
        APT, "test_a_retry_is_one_that_is_called"),
    "no waiting for apt's locks": (
        APT, "test_somebody_elses_apt_is_waited_for"),
    "a request without a timeout": (
        APT, "test_a_server_that_never_answers_is_given_up"),
    "commands without a timeout": (
        APT, "test_every_command_has_a_time_or_is_apts_own"),
    "a log that everybody may write": (
        APT, "test_nothing_that_is_written_can_be_written_by_everybody"),
    "a guard against the second run that never fires": (
        __name__, "test_a_second_run_does_nothing"),
    "checkpoints are baked into the image": (
        CLONES, "test_a_clone_of_a_ready_template_walks_anew_and_joins_by_its_own_name"),
    "an unconditional reboot": (
        __name__, "test_no_reboot_where_none_is_needed"),
}  # fmt: skip
ALTERS = re.compile(r"apt-get (?!.*(?:simulate|print-uris)).*install|dpkg .*--configure|dkms |rmmod"
                    r"|modprobe|update-initramfs|systemctl (?:reboot|start)")  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_test(defect: str) -> None:
    module, name = DEFECTS[defect]
    assert callable(getattr(importlib.import_module(module), name))


def machine(root: Path, config: str = CONFIG) -> Machine:
    found = Machine(root, Cluster(RELEASE))
    found.make()
    found.put("/etc/gpuboot/config.yaml", config)
    found.path("/etc/gpuboot/config.yaml").chmod(0o600)
    found.boot()
    return found


def run_installer(node: Machine) -> existing.Driver:
    """What NVIDIA's .run installer leaves: the same files, and no package that they are of."""
    folder = "/usr/lib/x86_64-linux-gnu"
    node.put(f"/lib/modules/{KERNEL}/kernel/drivers/video/nvidia.ko", "built")
    version = existing.look(node.host())
    assert version
    number = version.version
    for name in (f"libnvidia-ml.so.{number}", f"libcuda.so.{number}"):
        node.put(f"{folder}/{name}", "")
        node.path(f"{folder}/{name.partition('.so')[0]}.so.1").symlink_to(name)
    for name in ("nvidia-smi", "nvidia-modprobe"):
        node.put(f"/usr/bin/{name}", "")
    found = existing.look(node.host())
    assert found
    return found


def altering(node: Machine) -> list[str]:
    return [words for words in node.commands if ALTERS.match(words)]


@pytest.mark.parametrize(
    "driver", ["branch: '470'", "kernel-module-type: open", "build: dkms"], ids=lambda text: text
)
def test_a_driver_of_the_other_way_to_install_is_refused_before_anything_is_done(
    tmp_path: Path, driver: str
) -> None:
    source = "driver: {source: distribution}"
    node = machine(tmp_path, CONFIG.replace(source, source.replace("}", f", {driver}}}")))
    there = run_installer(node)
    assert (there.package, there.fault, there.dkms) == ("", "", False)
    node.commands.clear()
    assert agent.walk_once(node.host())[0] == agent.EXIT_FAILED
    found = status.look(node.host())
    assert (found["state"], found["code"]) == ("failed", "GB123")
    assert there.version in found["reason"]
    assert "nvidia-uninstall" in found["hint"]
    assert altering(node) == []


def test_nothing_uninstalls_and_what_is_in_the_way_is_named_with_its_remover(
    tmp_path: Path,
) -> None:
    """A driver is removed by what has brought it; gpuboot has no command that could fail at it."""
    assert not {name for name in cli.main.commands if "install" in name or "remove" in name}
    node = machine(tmp_path, CONFIG.replace("distribution}", "preinstalled, branch: '470'}"))
    run_installer(node)
    node.put("/var/lib/dpkg/info/their-nvidia.list",
             f"/.\n/lib/modules/{KERNEL}/kernel/drivers/video/nvidia.ko\n")  # fmt: skip
    agent.walk_once(node.host())
    assert "apt-get purge their-nvidia" in status.look(node.host())["hint"]


@pytest.mark.parametrize(
    ("device", "kind", "code"),
    [
        ("1eb8", "auto", None),  # T4
        ("1bb3", "auto", None),  # P4
        ("1bb3", "open", "GB120"),
        ("1db4", "open", "GB120"),  # V100
        ("2901", "auto", "GB120"),  # B200: not by a branch that Debian 12 has
        ("ffff", "auto", "GB120"),  # nobody knows it
    ],
)
def test_the_card_decides(tmp_path: Path, device: str, kind: str, code: str | None) -> None:
    chosen = f"distribution, kernel-module-type: {kind}}}"
    node = machine(tmp_path, CONFIG.replace("distribution}", chosen))
    node.card = device
    node.commands.clear()
    result = agent.walk_once(node.host())[0]
    found = status.look(node.host())
    assert found["code"] == code
    assert (result, found["state"]) == ((0, "ready") if code is None else (1, "failed"))
    if code:
        assert altering(node) == []
    else:
        assert "nvidia-kernel-dkms" in node.packages


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    node = machine(tmp_path)
    assert agent.walk_once(node.host())[0] == 0
    before = node.changes
    node.commands.clear()
    assert agent.walk_once(node.host())[0] == 0
    assert altering(node) == []
    assert node.changes == before


def test_no_reboot_where_none_is_needed(tmp_path: Path) -> None:
    node = machine(tmp_path)
    assert agent.walk_once(node.host())[0] == 0
    assert (node.boots, node.rebooting) == (1, False)
    assert not [words for words in node.commands if words.startswith("systemctl reboot")]
