"""`gpuboot plan` only looks, and the walk stays within what it said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from gpuboot import boots, checkpoint, facts, findings, planview, preview
from gpuboot.checkpoint import Checkpoint
from gpuboot.config import ConfigError
from gpuboot.errors import GpubootError
from gpuboot.process import Result
from gpuboot.proxy import DROP_IN as PROXY_DROP_IN
from gpuboot.proxy import FILE as PROXY_FILE
from tests.model.cluster import TOKEN
from tests.model.life import CONFIG, busy, fresh, live, prepare
from tests.model.machine import DRIVER, KERNEL, Machine
from tests.unit.node import as_nobody

SIMULATED = """\
Reading package lists...
Remv old-runtime [1.0]
Inst nvidia-smi (535.309.01-0+deb12u1 Debian:12 [amd64])
Inst dkms [1:2.8] (1:3.0 Debian:12 [all]) []
Inst libc6:i386 [2.37] (2.36 Debian:12 [i386])
Conf dkms (1:3.0 Debian:12 [all])
"""
URIS = """\
Reading package lists...
'http://archive/pool/n/nvidia-smi_535.309.01-0%2bdeb12u1_amd64.deb' \
nvidia-smi_535.309.01-0+deb12u1_amd64.deb 3145728 SHA256:00
'http://archive/pool/d/dkms_1%3a3.0_all.deb' dkms_1%3a3.0_all.deb 49152 SHA256:01
"""


class Archive(Machine):
    """A machine whose apt tells what it would do, and has a program that waits for updates."""

    def _apt_get(self, argv: list[str]) -> Result:
        settings = Path(argv[argv.index("-c") + 1]).read_text(encoding="utf-8")
        if argv[-1] == "update" and "#clear APT::Update;" not in settings:
            self.put("/var/lib/apt/periodic/update-success-stamp", "")
        if "--simulate" in argv:
            if "#clear AptCli::Hooks;" not in settings or "Dir::Log " not in settings:
                self.put("/var/log/apt/eipp.log.xz", "")
            return Result(0, SIMULATED)
        return Result(0, URIS if "--print-uris" in argv else "")

    def _dpkg(self, argv: list[str]) -> Result:
        if argv[0] == "--compare-versions":
            return Result(0 if argv[1:] == ["2.36", "lt", "2.37"] else 1)
        return super()._dpkg(argv)


class Away(Archive):
    """Its archive does not answer."""

    def _apt_get(self, argv: list[str]) -> Result:
        return Result(100, err="E: Failed to fetch http://archive/  Could not resolve 'archive'")


def node(
    folder: Path, kind: type[Machine] = Archive, start: Callable[[Machine], None] = busy
) -> Machine:
    machine = prepare(folder / "node", start)
    machine.boot()
    machine.__class__ = kind
    return machine


def planned(machine: Machine, *, root: bool = True, offline: bool = False) -> dict[str, Any]:
    return preview.preview(machine.host(), findings.Looking(root=root, offline=offline))


def states(found: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in found["steps"]}


def names(found: dict[str, Any]) -> set[str]:
    return {file["name"] for file in found["files"]}


def configure(machine: Machine, text: str) -> None:
    machine.put("/etc/gpuboot/config.yaml", text)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)


# -- it only looks


def test_a_plan_changes_nothing_and_asks_no_program_that_does(folder: Path) -> None:
    machine = node(folder)
    before = machine.persistent()
    planned(machine)
    assert machine.persistent() == before
    assert not machine.path("/run/gpuboot").exists()


def test_nvml_is_not_asked_before_the_driver_is_loaded_as_it_would_load_it(folder: Path) -> None:
    machine = node(folder)
    found = planned(machine)
    assert not [line for line in machine.commands if "gpuboot.nvml" in line]
    answers = next(step for step in found["steps"] if step["name"] == "gpus-answer")
    assert answers["reason"] == "can only be told after driver-loaded"


# -- what it tells


def test_a_plan_tells_steps_packages_files_units_and_the_reboot(folder: Path) -> None:
    found = planned(node(folder))
    assert states(found)["gpu-present"] == "ok"
    assert states(found)["packages"] == states(found)["node-joined"] == "pending"
    assert "failed" not in states(found).values()
    assert found["download_bytes"] == 3194880
    assert {"+blacklist nouveau"} <= set(found["files"][0]["diff"].splitlines())
    assert found["units"] == ["gpuboot.service", "rke2-agent.service"]
    assert {"nvidia-smi", "nvidia-container-toolkit"} <= set(found["held"])
    assert found["reboot"]["answer"] == "maybe"
    assert found["trouble"] is None


def test_packages_are_installed_upgraded_downgraded_or_removed(folder: Path) -> None:
    found = planned(node(folder))
    assert [tuple(package.values()) for package in found["packages"]] == [
        ("old-runtime", "remove", None, "1.0", 0),
        ("nvidia-smi", "install", "535.309.01-0+deb12u1", None, 3145728),
        ("dkms", "upgrade", "1:3.0", "1:2.8", 49152),
        ("libc6", "downgrade", "2.36", "2.37", 0),
    ]
    text = click.unstyle(planview.text(found))
    assert "4 packages (3 MB to fetch)" in text
    assert "1.0 is removed" in text
    assert "upgraded from 1:2.8" in text
    assert "downgraded from 2.37" in text


def test_no_token_is_shown_neither_the_new_one_nor_the_old(folder: Path) -> None:
    machine = node(folder)
    old = {"server": "https://old:9345", "token": "K10::node:battery-staple"}
    machine.put("/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml", json.dumps(old, indent=2))
    found = planned(machine)
    difference = next(file["diff"] for file in found["files"] if "rancher" in file["name"])
    assert '-  "token": <secret>' in difference
    assert '+  "token": <secret>' in difference
    assert '-  "server": "https://old:9345"' in difference
    for secret in ("correct-horse", "battery-staple"):
        assert secret not in json.dumps(found) + planview.text(found)


def test_a_pinned_key_that_is_not_there_is_told_as_a_download(folder: Path) -> None:
    machine = node(folder, Away)
    key = "key: " + "A" * 40
    configure(machine, CONFIG.replace("toolkit, key: /keys/archive.gpg", f"toolkit, {key}"))
    found = planned(machine)
    assert {"name": "/etc/apt/keyrings/gpuboot-toolkit.asc", "diff": None} in found["files"]
    shown = click.unstyle(planview.text(found))
    assert "/etc/apt/keyrings/gpuboot-toolkit.asc  downloaded, and verified" in shown


def test_an_archive_that_is_away_leaves_the_rest_of_the_plan(folder: Path) -> None:
    found = planned(node(folder, Away))
    assert found["trouble"]["code"] == "GB202"
    assert "gpuboot plan --offline" in found["trouble"]["hint"]
    assert {package["version"] for package in found["packages"]} == {None}
    assert found["download_bytes"] is None
    assert "/etc/modprobe.d/gpuboot.conf" in names(found)


def test_offline_asks_nobody(folder: Path) -> None:
    machine = node(folder, Away)
    found = planned(machine, offline=True)
    assert found["trouble"] is None
    assert "linux-headers-amd64" in {package["name"] for package in found["packages"]}
    assert [step["name"] for step in found["steps"] if step["state"] is None] == [
        "supervisor-answers", "node-joined",
    ]  # fmt: skip
    assert not [line for line in machine.commands if line.startswith("apt-get")]
    assert "not asked: --offline" in planview.text(found)


def test_what_only_root_can_read_is_left_out_for_others(folder: Path) -> None:
    found = planned(node(folder), root=False)
    unseen = {step["name"] for step in found["steps"] if step["state"] is None}
    assert unseen == {"rke2-config", "rke2-proxy", "supervisor-answers", "node-joined"}
    assert not any("rancher" in name for name in names(found))


def test_a_configuration_for_root_alone_is_not_called_wrong(folder: Path) -> None:
    machine = node(folder)
    machine.path("/etc/gpuboot/config.yaml").chmod(0)
    with as_nobody(), pytest.raises(GpubootError) as caught:
        planned(machine, root=False)
    assert (caught.value.code.id, caught.value.hint) == (
        "GB105", "the same command as root, with sudo",
    )  # fmt: skip


def test_a_wrong_configuration_plans_nothing(folder: Path) -> None:
    machine = node(folder)
    configure(machine, "gpus: {}\n")
    with pytest.raises(ConfigError):
        planned(machine)


def test_trouble_that_no_step_can_mend_is_told_with_code_and_next_command(folder: Path) -> None:
    machine = node(folder)
    machine.path("/keys/archive.gpg").unlink()
    machine.put("/etc/rancher/rke2/config.yaml", 'node-label: ["nvidia.com/gpu=no"]\n')
    found = planned(machine)
    assert states(found)["package-sources"] == states(found)["rke2-config"] == "failed"
    shown = click.unstyle(planview.text(found))
    assert "contradicts nvidia.com/gpu=present in /etc/gpuboot/config.yaml [GB510]" in shown
    assert "next: make both say the same, then: gpuboot run" in shown


AGENT_WITH_PROXY = CONFIG + "proxy: {https: 'http://me:battery-staple@proxy:3128'}\n"


def test_a_proxy_is_told_with_its_files_and_without_its_password(folder: Path) -> None:
    machine = node(folder)
    machine.put(PROXY_FILE, 'HTTPS_PROXY="http://me:old-paperclip@proxy:3128"\n')
    configure(machine, AGENT_WITH_PROXY)
    found = planned(machine)
    assert states(found)["rke2-proxy"] == "pending"
    assert {PROXY_FILE, PROXY_DROP_IN} <= names(found)
    shown = click.unstyle(planview.text(found))
    assert f"+EnvironmentFile=-{PROXY_FILE}" in shown
    assert "+HTTPS_PROXY= <secret>" in shown
    for secret in ("battery-staple", "old-paperclip"):
        assert secret not in json.dumps(found) + shown


def test_a_channel_alone_is_warned_of_and_images_are_told_with_what_vouches(folder: Path) -> None:
    machine = node(folder)
    wanted = "channel: stable\n  images: [rke2-images.linux-amd64.tar.zst]"
    configure(machine, CONFIG.replace("version: v1.35.7+rke2r1", wanted))
    found = planned(machine)
    shown = click.unstyle(planview.text(found))
    assert "warning: rke2.channel: stable may stand for an agent that is newer" in shown
    assert "trusted: image archives of RKE2 by TLS (its checksum file)" in shown
    assert "/agent/images/rke2-images.linux-amd64.tar.zst  downloaded, and verified" in shown


# -- the walk stays within it


def test_the_walk_stays_within_the_plan(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    machine.boot()
    found = planned(machine, offline=True)
    before = set(machine.persistent())
    assert live(machine) == 0
    written = {f"/{name}" for name in set(machine.persistent()) - before if name.startswith("etc/")}
    links = {name for name in written if machine.path(name).is_symlink()}
    assert written - links == names(found)
    assert {Path(link).name for link in links} == set(found["units"])
    assert set(machine.load("holds")) == set(found["held"])
    packages = {package["name"] for package in found["packages"]}
    assert packages == set(machine.packages) - {"gpg", "pciutils", "kmod"}


def test_a_plan_for_a_ready_node_is_empty(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    assert live(machine) == 0
    found = planned(machine)
    assert set(states(found).values()) == {"ok"}
    empty = ("packages", "held", "files", "units", "trusted")
    assert [found[key] for key in empty] == [[], [], [], [], []]
    assert found["live"]
    assert found["reboot"]["answer"] == "no"


def test_what_nothing_vouches_for_is_said(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    text = CONFIG.replace("https://releases", "http://releases")
    machine.put("/etc/gpuboot/config.yaml", text)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    found = planned(machine, offline=True)["trusted"]
    by = {one["what"]: one["by"] for one in found}
    assert "refused (GB505)" in by["RKE2 v1.35.7+rke2r1"]


def test_on_a_live_node_what_is_disruptive_is_drift_and_not_planned(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    assert live(machine) == 0
    for name in ("/etc/modprobe.d/gpuboot.conf", "/etc/apt/sources.list.d/gpuboot.sources"):
        machine.path(name).unlink()
    machine.save("holds", [])
    found = planned(machine)
    assert states(found)["nouveau-blocked"] == states(found)["packages"] == "drift"
    assert states(found)["package-sources"] == "pending"
    assert names(found) == {"/etc/apt/sources.list.d/gpuboot.sources"}
    assert (found["packages"], found["held"]) == ([], [])
    assert "next: drain the node, then reboot" in click.unstyle(planview.text(found))


def test_packages_that_are_only_not_held_are_not_upgraded(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    configure(machine, CONFIG + "toolkit: {version: 1.20.0}\n")
    assert live(machine) == 0
    machine.boot()
    machine.active.clear()
    machine.save("holds", [])
    machine.__class__ = Away
    found = planned(machine)
    assert (found["packages"], found["trouble"]) == ([], None)
    assert "nvidia-smi" in found["held"]


# -- the reboot


def driver(machine: Machine, *, loaded: str | None, built: bool) -> None:
    if loaded:
        machine.put("/sys/module/nvidia/version", loaded + "\n")
    if built:
        machine.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko", "built")


@pytest.mark.parametrize(
    ("loaded", "built", "answer"),
    [(None, False, "no"), (None, True, "no"), (DRIVER, True, "no"), ("525.1", True, "maybe"),
     ("525.1", False, "no")],
)  # fmt: skip
def test_a_loaded_driver_of_another_version_may_need_a_reboot(
    folder: Path, loaded: str | None, answer: str, *, built: bool
) -> None:
    machine = node(folder, start=fresh)
    driver(machine, loaded=loaded, built=built)
    found = planned(machine)["reboot"]
    assert found["answer"] == answer
    assert ("525.1 is loaded" in found["reason"]) == (answer == "maybe")


def test_a_driver_that_is_to_be_installed_counts_before_the_one_that_is_built(folder: Path) -> None:
    class Newer(Archive):
        def _apt_get(self, argv: list[str]) -> Result:
            found = super()._apt_get(argv)
            return Result(0, found.out.replace("nvidia-smi (", "nvidia-kernel-dkms ("))

    machine = node(folder, Newer, start=fresh)
    driver(machine, loaded="525.1", built=False)
    assert planned(machine)["reboot"]["answer"] == "maybe"
    driver(machine, loaded=DRIVER, built=False)
    assert planned(machine)["reboot"]["answer"] == "no"


def test_a_reboot_that_is_not_allowed_is_told_as_waiting_for_somebody(folder: Path) -> None:
    machine = node(folder)
    configure(machine, CONFIG + "reboot: {allow: false}\n")
    found = planned(machine)["reboot"]
    assert found["answer"] == "maybe"
    assert found["reason"].endswith("reboot.allow is false, so it would wait for you")


def test_another_kernel_that_boots_next_is_told_and_needs_no_reboot(folder: Path) -> None:
    machine = node(folder, start=fresh)
    machine.put("/boot/vmlinuz-6.1.0-99-amd64", "")
    found = planned(machine)["reboot"]
    assert found["answer"] == "no"
    assert "kernel 6.1.0-99-amd64, which boots next, gets its module too" in found["reason"]


# -- another machine


def test_recorded_facts_plan_for_another_machine(folder: Path) -> None:
    machine = node(folder)
    recorded = json.loads(json.dumps(asdict(facts.gather(machine.host()))))
    recorded["kernel"] = recorded["next_kernel"] = "6.1.0-99-cloud-amd64"
    found = preview.elsewhere(machine.host(), facts.parse(recorded))
    packages = [package["name"] for package in found["packages"]]
    assert packages[:2] == ["linux-headers-6.1.0-99-cloud-amd64", "linux-headers-cloud-amd64"]
    assert found["reboot"]["answer"] == "maybe"
    assert "not looked at" in planview.text(found)
    assert TOKEN not in json.dumps(found)


def test_recorded_facts_of_a_machine_that_is_not_supported_say_so(folder: Path) -> None:
    machine = node(folder)
    recorded = json.loads(json.dumps(asdict(facts.gather(machine.host()))))
    found = preview.elsewhere(machine.host(), facts.parse({**recorded, "os_id": "fedora"}))
    assert states(found)["preflight"] == "failed"


# -- how long


def test_a_fresh_node_is_told_the_usual_times(folder: Path) -> None:
    expected = planned(node(folder))["expected"]
    assert expected["own"] == []
    assert expected["steps"]["packages"] == boots.TYPICAL["packages"]
    assert expected["seconds"] > sum(boots.TYPICAL.values())
    assert expected["reboot_seconds"] == boots.REBOOT


def test_a_node_that_has_walked_before_is_told_its_own_times(folder: Path) -> None:
    machine = node(folder)
    packages = boots.Span("packages", "ok", 20.0, 27.5)
    phases = [boots.Phase("firmware", -12.0, -2.0)]
    record = Checkpoint("m", "i", "u", history=[boots.Boot("b", "6.1", "", phases, [packages])])
    machine.put(checkpoint.FILE, json.dumps(asdict(record) | {"schema": checkpoint.SCHEMA}))
    expected = planned(machine)["expected"]
    assert expected["own"] == ["packages"]
    assert expected["steps"]["packages"] == 8
    assert expected["reboot_seconds"] == 32
