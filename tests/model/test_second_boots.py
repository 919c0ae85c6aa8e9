"""What a later boot finds: a card that came or went, a record that was lost, another machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpuboot import agent, status
from gpuboot.process import Command, Result
from gpuboot.web import Answer
from tests.model.cluster import Cluster
from tests.model.disk import ModelHost
from tests.model.life import CONFIG, RELEASE, busy, fresh, prepare, uncut
from tests.model.machine import DISRUPTIVE, Machine

RECORD = "/var/lib/gpuboot/checkpoint.json"
GATE = "/run/gpuboot/ready"
TEXTFILE = "/var/lib/node_exporter/gpuboot.prom"


def walk(host: ModelHost) -> tuple[int, dict[str, Any]]:
    """One walk: its exit status, and what the status is while the agent is at work."""
    with agent.take_lock(host):
        result, _ = agent.walk_once(host)
        return result, status.look(host)


def stuck(root: Path, config: str = CONFIG) -> Machine:
    """nouveau holds the card, whatever is blacklisted."""
    machine = prepare(root, fresh)
    configure(machine, config)
    machine.nouveau = "stuck"
    return machine


def configure(machine: Machine, config: str) -> None:
    machine.put("/etc/gpuboot/config.yaml", config)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)


def reboots(machine: Machine, before: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Boot as long as the agent asks for it; the last status. `before` each boot, from 1 on."""
    for boot in range(1, 12):
        before(boot)
        machine.boot()
        agent.live_forever(machine.host())
        if not machine.rebooting:
            return status.look(machine.host())
    raise AssertionError("it reboots for ever")


def record(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.text(RECORD))
    return found


# -- the card


def test_a_card_that_is_attached_for_the_second_boot_makes_a_node(folder: Path) -> None:
    machine = prepare(folder, fresh)
    machine.gpu = False
    machine.boot()
    result, found = walk(machine.host())
    assert (result, found["state"], found["code"]) == (agent.EXIT_RETRY, "waiting", "GB110")
    machine.gpu = True
    machine.boot()
    result, found = walk(machine.host())
    assert (result, found["state"], found["boots"]) == (0, "ready", 2)


def test_a_ready_node_that_loses_its_card_stays_out_until_it_is_back(folder: Path) -> None:
    machine = uncut(folder, fresh)
    machine.gpu = False
    machine.boot()
    for _ in range(3):
        machine.clock.seconds += 100_000
        result, found = walk(machine.host())
        assert (result, found["state"], found["code"]) == (agent.EXIT_RETRY, "waiting", "GB110")
        assert not machine.path(GATE).exists()
        assert "rke2-agent.service" not in machine.active
    machine.gpu = True
    result, found = walk(machine.host())
    assert (result, found["state"]) == (0, "ready")


# -- the monitor


def test_a_monitor_that_is_masked_keeps_no_node_from_being_ready(folder: Path) -> None:
    machine = prepare(folder, fresh)
    machine.masked = agent.MONITOR
    machine.boot()
    result, found = walk(machine.host())
    assert (result, found["state"]) == (0, "ready")
    assert agent.MONITOR not in machine.active


def test_the_monitor_is_started_in_every_boot_and_only_when_the_node_is_ready(folder: Path) -> None:
    machine = uncut(folder, fresh)
    assert agent.MONITOR in machine.active
    machine.boot()
    assert agent.MONITOR not in machine.active
    machine.gpu = False
    walk(machine.host())
    assert agent.MONITOR not in machine.active
    machine.gpu = True
    walk(machine.host())
    assert agent.MONITOR in machine.active


def test_a_walk_that_waits_is_seen_in_the_metrics_before_there_is_a_monitor(folder: Path) -> None:
    machine = prepare(folder, fresh)
    configure(machine, CONFIG + f"monitor: {{textfile: {TEXTFILE}}}\n")
    machine.gpu = False
    machine.boot()
    walk(machine.host())
    assert not machine.path(TEXTFILE).exists()  # nor is a folder made for it
    machine.path(TEXTFILE).parent.mkdir(parents=True)
    walk(machine.host())
    assert 'gpuboot_state{state="waiting"} 1' in machine.text(TEXTFILE)
    machine.gpu = True
    walk(machine.host())
    assert 'gpuboot_state{state="ready"} 1' in machine.text(TEXTFILE)
    assert "gpuboot_step_duration_seconds" in machine.text(TEXTFILE)


# -- a live node


@pytest.mark.parametrize(
    ("old", "new", "drift"),
    [
        ("v1.35.7+rke2r1", "v1.36.1+rke2r1", "rke2-installed: RKE2 v1.35.7+rke2r1 is installed"),
        ("config: {", "config: {node-label: [example.com/pool=t4], ", "label example.com/pool=t4"),
    ],
)
def test_a_configuration_changed_on_a_live_node_is_drift(
    folder: Path, old: str, new: str, drift: str
) -> None:
    machine = uncut(folder, fresh)
    before = machine.persistent()
    configure(machine, CONFIG.replace(old, new))
    machine.commands.clear()
    result, found = walk(machine.host())
    assert (result, found["state"]) == (0, "degraded")
    assert found["drift"][0].startswith(drift)
    assert not [line for line in machine.commands if DISRUPTIVE.match(line)]
    assert "rke2-agent.service" in machine.active
    assert agent.MONITOR in machine.active
    changed = {name for name, content in machine.persistent().items() if before[name] != content}
    # What rke2-agent will read at its next start is no harm to the one that runs.
    assert changed <= {"etc/gpuboot/config.yaml", "etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml"}


# -- reboots that do not help


def test_a_reboot_that_did_not_help_is_not_asked_for_again(folder: Path) -> None:
    machine = stuck(folder)
    found = reboots(machine)
    assert (found["state"], found["code"], machine.boots) == ("failed", "GB021", 2)
    assert not machine.path(GATE).exists()


@pytest.mark.parametrize("text", ["", '{"schema": 1, "rebo', "\0" * 100])
@pytest.mark.parametrize("budget", [1, 3])
def test_a_record_that_is_damaged_in_every_boot_ends_the_reboots(
    folder: Path, text: str, budget: int
) -> None:
    machine = stuck(folder, CONFIG + f"reboot: {{budget: {budget}}}\n")

    def damage(boot: int) -> None:
        if boot > 1:
            machine.put(RECORD, text)

    found = reboots(machine, damage)
    assert (found["state"], found["code"]) == ("failed", "GB022")
    assert machine.boots == 3  # one reboot before the damage, one after it
    assert "for a lost record" in found["reason"]
    assert not machine.path(GATE).exists()


def test_an_instance_id_that_changes_in_every_boot_ends_the_reboots_too(folder: Path) -> None:
    machine = stuck(folder)

    def name(boot: int) -> None:
        machine.put("/var/lib/cloud/data/instance-id", f"i-{boot}\n")

    found = reboots(machine, name)
    assert (found["state"], found["code"], machine.boots) == ("failed", "GB021", 2)


def test_where_the_record_cannot_last_no_reboot_is_asked_for(folder: Path) -> None:
    machine = stuck(folder)
    machine.boot()
    machine.put("/proc/self/mountinfo", "22 1 0:9 / /var rw - tmpfs tmpfs rw\n")
    assert agent.live_forever(machine.host()) == agent.EXIT_FAILED
    assert status.look(machine.host())["code"] == "GB024"
    assert not machine.rebooting


def test_a_budget_that_was_lowered_below_what_is_spent_is_spent(folder: Path) -> None:
    machine = stuck(folder)
    machine.boot()
    assert agent.live_forever(machine.host()) == 0
    content = record(machine)
    content["reboots"] = [{**content["reboots"][0], "reason": f"{n}"} for n in range(2)]
    machine.put(RECORD, json.dumps(content))
    configure(machine, CONFIG + "reboot: {budget: 1}\n")
    found = reboots(machine)
    assert (found["state"], found["code"]) == ("failed", "GB022")
    assert found["reason"].startswith("2 of 1 reboots are spent")


# -- reboots that help, and who makes them


def test_a_reboot_that_helped_once_may_be_needed_again(folder: Path) -> None:
    machine = prepare(folder, busy)
    away = Cluster(b"no release at all")
    good, machine.cluster = machine.cluster, away
    machine.boot()
    assert agent.live_forever(machine.host()) == 0
    machine.boot()
    assert walk(machine.host())[0] != 0  # nouveau is gone, RKE2's release cannot be had
    assert [spent["helped"] for spent in record(machine)["reboots"]] == [True]
    machine.save("initramfs", [])  # something brings nouveau back
    machine.cluster = good
    machine.boot()
    assert agent.live_forever(machine.host()) == 0
    assert machine.rebooting
    machine.boot()
    assert walk(machine.host())[1]["state"] == "ready"


def test_where_no_reboot_is_allowed_a_persons_own_does_it_and_is_not_spent(folder: Path) -> None:
    machine = prepare(folder, busy)
    configure(machine, CONFIG + "reboot: {allow: false}\n")
    machine.boot()
    for _ in range(2):
        result, found = walk(machine.host())
        assert (result, found["state"], found["code"]) == (agent.EXIT_RETRY, "waiting", "GB023")
        assert found["hint"] == "systemctl reboot"
    assert not machine.rebooting
    machine.boot()
    result, found = walk(machine.host())
    assert (result, found["state"], found["reboots"]["spent"]) == (0, "ready", 0)


@dataclass
class Refusing(Machine):
    """systemd takes no order to reboot."""

    refusing: bool = True

    def __call__(self, command: Command) -> Result:
        if self.refusing and command.argv == ("systemctl", "reboot"):
            return Result(1, err="Operation inhibited")
        return super().__call__(command)


def test_a_reboot_that_systemd_refuses_is_asked_for_again_and_spent_once(folder: Path) -> None:
    prepare(folder, busy)
    machine = Refusing(folder, Cluster(RELEASE), "busy")
    configure(machine, CONFIG + "reboot: {budget: 1}\n")
    machine.boot()
    for _ in range(3):
        result, found = walk(machine.host())
        assert (result, found["state"], found["code"]) == (agent.EXIT_RETRY, "waiting", "GB010")
    machine.refusing = False
    assert agent.live_forever(machine.host()) == 0
    assert machine.rebooting
    machine.boot()
    assert agent.live_forever(machine.host()) == 0
    assert status.look(machine.host())["reboots"]["spent"] == 1


# -- another machine


class Named(Cluster):
    """The same cluster, asked for a Node of another name."""

    def _local(self, url: str) -> Answer:
        if "/nodes/" in url:
            assert url.endswith("/nodes/gpu-2"), url
            url = url.replace("gpu-2", "gpu-1")
        answer = super()._local(url)
        return Answer(answer.status, answer.body.replace(b'"gpu-1"', b'"gpu-2"'))


@pytest.mark.parametrize("theirs", ["a" * 32, "", "uninitialized\n"], ids=["reset", "empty", "un"])
def test_a_clone_of_a_ready_template_walks_anew_and_joins_by_its_own_name(
    folder: Path, theirs: str
) -> None:
    template = prepare(folder / "template", busy)
    template.put("/etc/machine-id", theirs)
    configure(template, CONFIG.replace("rke2:", "rke2:\n  join: none"))
    reboots(template)
    template.clock.seconds += 100_000
    before = template.text(RECORD)
    shutil.copytree(template.root, folder / "clone", symlinks=True)
    clone = Machine(folder / "clone", Named(RELEASE), uuid="another", boots=40)
    configure(clone, CONFIG)
    clone.put("/etc/machine-id", "b" * 32)
    clone.boot()
    clone.put("/proc/sys/kernel/hostname", "gpu-2\n")
    result, found = walk(clone.host())
    assert (result, found["state"], found["node"]["name"]) == (0, "ready", "gpu-2")
    assert (found["boots"], found["reboots"]["spent"]) == (1, 0)
    assert found["seconds_to_ready"] < 60
    assert clone.text("/var/lib/gpuboot/checkpoint.foreign.json") == before
