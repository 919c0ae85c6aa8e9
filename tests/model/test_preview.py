"""`gpuboot plan` and `gpuboot preflight` only look, and the walk stays within what was said."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuboot import facts, preview, survey
from gpuboot.host import Result
from tests.model.cluster import TOKEN
from tests.model.life import CONFIG, busy, fresh, live, prepare
from tests.model.machine import Machine

URIS = """\
Reading package lists...
'http://archive/pool/n/nvidia-smi_535.309.01-0%2bdeb12u1_amd64.deb' \
nvidia-smi_535.309.01-0+deb12u1_amd64.deb 3145728 SHA256:00
'http://archive/pool/d/dkms_1%3a3.0_all.deb' dkms_1%3a3.0_all.deb 49152 SHA256:01
"""


class Archive(Machine):
    """A machine whose apt tells what it would fetch."""

    def _apt_get(self, argv: list[str]) -> Result:
        return Result(0, URIS) if "--print-uris" in argv else Result(0)


def node(folder: Path) -> Machine:
    machine = prepare(folder / "node", busy)
    machine.boot()
    machine.__class__ = Archive
    return machine


def planned(machine: Machine, *, offline: bool = False) -> dict[str, Any]:
    return preview.preview(machine.host(), offline=offline)


def test_a_plan_changes_nothing(folder: Path) -> None:
    machine = node(folder)
    before = machine.persistent()
    planned(machine)
    assert machine.persistent() == before
    assert not machine.path("/run/gpuboot").exists()


def test_a_plan_tells_steps_packages_files_and_the_reboot(folder: Path) -> None:
    found = planned(node(folder))
    states = {step["name"]: step["state"] for step in found["steps"]}
    assert (states["gpu-present"], states["packages"], states["node-joined"]) == (
        "ok", "pending", "pending",
    )  # fmt: skip
    assert "failed" not in states.values()
    assert found["packages"] == [
        {"name": "nvidia-smi", "version": "535.309.01-0+deb12u1", "bytes": 3145728},
        {"name": "dkms", "version": "1:3.0", "bytes": 49152},
    ]
    assert found["download_bytes"] == 3194880
    assert {"+blacklist nouveau"} <= set(found["files"][0]["diff"].splitlines())
    assert found["reboot"]["answer"] == "maybe"
    assert json.dumps(found).count("correct-horse") == 0


def test_the_walk_stays_within_the_plan(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.boot()
    found = preview.preview(machine.host(), offline=True)
    names = {file["name"] for file in found["files"]}
    before = set(machine.persistent())
    assert live(machine) == 0
    written = {f"/{name}" for name in set(machine.persistent()) - before if name.startswith("etc/")}
    links = {name for name in written if machine.path(name).is_symlink()}
    assert written - links == names
    packages = {package["name"] for package in found["packages"]}
    assert packages == set(machine.packages) - {"gpg", "pciutils", "kmod"}


def test_a_plan_for_a_ready_node_is_empty(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    assert live(machine) == 0
    found = preview.preview(machine.host(), offline=True)
    assert {step["state"] for step in found["steps"]} == {"ok"}
    assert (found["packages"], found["reboot"]["answer"]) == ([], "no")


def test_recorded_facts_plan_for_another_machine(folder: Path) -> None:
    machine = node(folder)
    recorded = json.loads(json.dumps(asdict(facts.gather(machine.host()))))
    recorded["kernel"] = recorded["next_kernel"] = "6.1.0-99-cloud-amd64"
    found = preview.elsewhere(machine.host(), facts.parse(recorded))
    names = [package["name"] for package in found["packages"]]
    assert names[:2] == ["linux-headers-6.1.0-99-cloud-amd64", "linux-headers-cloud-amd64"]
    assert found["reboot"]["answer"] == "maybe"


class Names(Machine):
    """A machine that resolves no name, with little memory and a clock that is not set."""

    def _getent(self, _: list[str]) -> Result:
        return Result(2)

    def _timedatectl(self, _: list[str]) -> Result:
        return Result(0, "NTP=yes\nNTPSynchronized=no\n")


def codes(machine: Machine) -> list[str]:
    return [trouble.code for trouble in survey.survey(machine.host(), root=True)]


def test_every_trouble_is_found_at_once(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.boot()
    machine.__class__ = Names
    machine.gpu = False
    machine.put("/etc/os-release", "ID=fedora\nVERSION_ID=42\n")
    machine.put("/proc/meminfo", "MemTotal:        1000000 kB\n")
    found = codes(machine)
    assert found[:3] == ["GB101", "GB106", "GB107"]
    assert set(found[3:]) == {"GB108", "GB110"}


def test_a_wrong_configuration_is_a_trouble_for_each_problem(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.put("/etc/gpuboot/config.yaml", f"gpu: {{cuont: 1}}\ndriver: {{source: {TOKEN}}}\n")
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    found = survey.survey(machine.host(), root=False)
    assert [trouble.code for trouble in found] == ["GB105", "GB001", "GB001"]
    assert "correct-horse" not in str(found)


def test_a_good_machine_has_no_trouble(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.put("/etc/gpuboot/config.yaml", CONFIG)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    machine.boot()

    class Good(Machine):
        def _getent(self, _: list[str]) -> Result:
            return Result(0)

        def _timedatectl(self, _: list[str]) -> Result:
            return Result(0, "NTP=yes\nNTPSynchronized=yes\n")

    machine.__class__ = Good
    assert survey.survey(machine.host(), root=True) == []
