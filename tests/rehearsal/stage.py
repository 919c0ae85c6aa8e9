"""What stands while nodes are rehearsed: the lab, its servers, and each node ready to be booted."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from tests.rehearsal import acts, cache, hardware, kernels, lab, rancher, template, tree
from tests.rehearsal.node import Node
from tests.rehearsal.report import Watch, say
from tests.rehearsal.scenario import USR_LOCAL, Scenario, fill, fill_text, plain_config

NODE_ADDRESS = "10.88.0.{}"
FIRST_ADDRESS = 11
LAST = cache.CACHE / "last"


@dataclass(frozen=True)
class Stage:
    """Everything that stands while one node is rehearsed."""

    scenario: Scenario
    ground: tree.Ground
    folder: Path  # of this node
    user_data: str
    acted: acts.Stage  # what acts lay hands on, and what came of it
    watch: Watch = field(default_factory=Watch)

    @property
    def node(self) -> Node:
        """The node."""
        return self.acted.node

    @property
    def disk(self) -> Path:
        """What the node has written, as files of this machine."""
        return self.folder / "disk"

    @property
    def servers(self) -> Path:
        """The servers' folder: nodes.json, requests.log."""
        return self.acted.servers

    @property
    def artifacts(self) -> Path:
        """What a person wants to look at afterwards: .cache/last/SCENARIO, or a folder in it."""
        last = LAST / self.scenario.name
        return last / self.node.name if self.scenario.setup.nodes > 1 else last

    def keep(self, name: str, text: str) -> None:
        """Lays a text among the artifacts."""
        self.artifacts.mkdir(parents=True, exist_ok=True)
        (self.artifacts / name).write_text(text, encoding="utf-8")

    def line(self, text: str) -> str:
        """The text with the time, and with the node's name where there are several."""
        who = f"{self.node.name}: " if self.scenario.setup.nodes > 1 else ""
        return f"{self.watch.seconds:6.1f} s  {who}{text}"

    def passes(self, seconds: float) -> None:
        """Lets time pass, and takes down if the node has rebooted meanwhile."""
        if self.node.wait(seconds):
            self.acted.rebooted.append(self.node.boots[-2])
            say(self.line(f"the node has rebooted: boot {len(self.node.boots)}"))


@contextlib.contextmanager
def staged(scenario: Scenario, folder: Path) -> Iterator[list[Stage]]:
    """The lab with servers running and the scenario's nodes ready to be booted."""
    lab.furnish()
    with cache.building():
        ground = tree.prepare(scenario.setup.kind)
    shutil.copytree(ground.identity, folder / "servers")
    faults = json.dumps(dict(scenario.setup.faults))
    (folder / "servers/faults.json").write_text(faults, encoding="utf-8")
    if scenario.setup.rancher is not None:
        rancher.begin(folder / "servers", scenario.setup.rancher, names(scenario))
    lab.sweep_cgroups(folder.parent)
    group = lab.cgroup(folder)
    try:
        with (
            lab.servers(folder / "servers", ground.archive, ground.releases),
            contextlib.ExitStack() as nodes,
        ):
            numbers = range(scenario.setup.nodes)
            yield [nodes.enter_context(_node(scenario, ground, folder, i)) for i in numbers]
    finally:
        lab.end_cgroup(group)


@contextlib.contextmanager
def _node(scenario: Scenario, ground: tree.Ground, run: Path, number: int) -> Iterator[Stage]:
    """The machine with that number, from 0, switched off; it is unplugged at the end."""
    setup = scenario.setup
    name = names(scenario)[number]
    folder = run / name
    folder.mkdir()
    config, user_data = fill(scenario, ground.values())

    def fill_act(text: str) -> str:
        acts_file = scenario.folder / "acts.yaml"
        plain = plain_config(setup).read_text(encoding="utf-8")
        return fill_text(acts_file, text, ground.values(), config=config, plain=plain)

    if setup.rancher is not None:
        user_data = rancher.user_data(run / "servers", user_data, name, ground)
    group = lab.cgroup(run) / name
    group.mkdir()
    with lab.disk(ground.layers, folder, setup.disk) as root:
        kernel = ground.kernels[setup.kernel]
        if setup.kernel != "auto":
            kernels.install(root, ground.archive / "kernels/templates", kernel, template.in_tree)
        machine = _hardware(scenario, kernel.release)
        hardware.configure(root, machine)
        seed = template.Seed(name, NODE_ADDRESS.format(FIRST_ADDRESS + number), user_data)
        template.plant(root, seed, behind_proxy=setup.proxy)
        if setup.release_folder:
            template.lay_release(root, ground.releases, setup.release_folder)
        if setup.cloud_init == "absent":
            template.without_cloud_init(root, config, ground.token)
        mounts = USR_LOCAL[setup.usr_local]
        node = Node(name, root, folder / "console.log", group, mounts=mounts)
        stage = Stage(
            scenario, ground, folder, user_data,
            acts.Stage(node, run / "servers", machine, fill_act),
        )  # fmt: skip
        stage.keep("config.yaml", config.replace(ground.token, "<token>"))
        try:
            yield stage
        finally:
            node.power_cut()


def names(scenario: Scenario) -> list[str]:
    """The host names: gpu-worker-1, gpu-worker-2 … where there are several."""
    setup = scenario.setup
    stem = setup.hostname.removesuffix("-1")
    several = [f"{stem}-{number + 1}" for number in range(setup.nodes)]
    return several if setup.nodes > 1 else [setup.hostname]


def _hardware(scenario: Scenario, kernel: str) -> hardware.Hardware:
    setup = scenario.setup
    return hardware.Hardware(
        kernel=kernel,
        gpus=tuple(map(hardware.gpu, setup.gpus)),
        # The reader has checked that it is one of these words.
        nouveau=cast('Literal["absent", "idle", "busy", "stuck"]', setup.nouveau),
        rival=setup.rival,
        initramfs=setup.initramfs,
        efi=setup.efi,
        secure_boot=setup.secure_boot,
    )
