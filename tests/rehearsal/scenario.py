"""A scenario: one folder that says which node boots, what it is told, and how it must end.

node.yaml (all keys but description are optional):
    description: what this scenario shows, one sentence
    core: true                    # `make test` runs it
    release: bookworm             # the node's Debian; or trixie
    system: debian                # or ubuntu-22.04, -24.04, -26.04: what it says it is (ubuntu.py)
    driver: stand-in              # real: Debian's own packages, built by DKMS; takes minutes
    kernel: auto                  # the only one the node has: the archive's newest, older (the one
                                  # before it), cloud (no DRM), gone (no headers in the archive);
                                  # Ubuntu's older and custom have no modules in the archive
    hostname: gpu-worker-1        # cloud-init's, and the API server's Node of a plain config
    nodes: 1                      # so many machines side by side: gpu-worker-1, gpu-worker-2 …
    cloud-init: present           # absent: it is not installed, and the rig writes config and token
    disk: 4G                      # the node's disk is no larger; M or G
    rancher: {}                   # the node is Rancher's; its keys with their defaults:
        cluster: pool             # rancher-machine made it; custom: user-data registers it
        release: "2.15"           # or 2.14: no short life of tokens, plans applied at each start
        token-lives: 30m          # from the machine's creation
        plan-after: 0s            # until Rancher has a plan, from the registration on
        plan-takes: 2s            # the plan's instruction, once Rancher's file is written
        labels, taints: []        # of the pool
        data-dir: ""              # RKE2's
        server: @server@          # the supervisor
    proxy: false                  # archive and releases can only be reached through @proxy@
    release-folder: /srv/rke2     # RKE2's release and its images lie there on the node, flat
    usr-local: writable           # or read-only, or mount (writable, a mount point of its own)
    gpus: [{slot: "0000:03:00.0", device: 1eb8}]   # fields of hardware.Gpu; [] for none
    nouveau: absent               # absent | idle (can be unloaded) | busy (cannot)
                                  # | stuck (cannot, and no blacklist keeps it out)
    rival: nouveau                # or nova_core: what that driver is
    initramfs: true               # nouveau is in the initramfs, as on real machines
    efi: false                    # the machine has EFI variables
    secure-boot: false            # and Secure Boot is on
    deadline: 10m                 # the rehearsal gives up after that long
    faults: {}                    # handed to the servers as faults.json

config.yaml: /etc/gpuboot/config.yaml, user-data.yaml: cloud-init's. Where one is missing,
plain.yaml or plain-user-data.yaml beside the scenarios' folders takes its place, or for Rancher's
nodes rancher.yaml or rancher-user-data.yaml. In both, @token@ @ca_hash@ @server@ @rke2_version@
@rke2_sha256@ @archive_key@ @toolkit_key@ @nvidia_key@ @nvidia_new_key@ (cuda.py) @proxy@ @kernel@
@older_kernel@ (releases) and @rancher_command@, a custom cluster's, are filled in. A line that
holds nothing but @plain@ in config.yaml, or @config@ in user-data.yaml, becomes the plain
configuration, or the scenario's, as far indented as that line.

expect.yaml (only what is given is compared; see verdict.py):
    state: ready                  # of `gpuboot status --json`; the only key that must be there
    exit: 0                       # of `gpuboot status`
    step, code: …                 # as in status
    boots: 2                      # different boot ids
    reboots: {spent: 1, reasons: [REGEX, …]}
    steps: {driver-loaded: ok}
    gpus: 1
    node: {name: …, ready: true, labels: {k: v}, without-labels: [k], taints: ["k=v:Effect"]}
                                  # {absent: true}: the API server has no Node of that name
    files: {/path: {mode: "0600", contains: [REGEX], lacks: [REGEX], absent: true}}
    cloud-init: done              # the default; or another word of `cloud-init status`
    journal: [REGEX, …]           # each is found in the journal of all boots
    journal-lacks: [REGEX, …]     # none is
    requests: [REGEX, …]          # each is found in the servers' log
    requests-lacks: [REGEX, …]    # none is
    says: [REGEX, …]              # each is found in `gpuboot status`, or in `gpuboot explain` of
                                  # its code
    starts-within: 20s            # from cloud-final's start to gpuboot.service's, in the first boot

acts.yaml (may be missing): what happens to the node once it is as expect.yaml wants it, a list of
    run: [PROGRAM, …]             # in the node, as root; ends with 0, or with `exit: N` beside it;
                                  # placeholders are filled in
    write: {path: /…, content: …, mode: "0600"}   # placeholders are filled in
    remove: /…
    reboot: true                  # systemctl reboot, until the next boot
    power-cut: true               # the plug is pulled; then it boots again
    power-cycle: true             # switched off in order; then it boots again
    gpus: [{slot: …}]             # the cards that are there from the next boot on
    faults: {}                    # the servers' faults.json from now on
    rancher: {}                   # keys of node.yaml's rancher that are other ones from now on
    network: cut                  # the node's cable, over reboots too; `whole` puts it in again
    kill: gpuboot                 # SIGKILL for the unit's main process; apt: for dpkg's parent
    kubectl: [delete, node, NAME] # as the cluster's administrator; also [taint, node, NAME, K=V:E]
                                  # and [label, node, NAME, K=V]
    wait: 5s
each with, if wanted, `why: one sentence` and `expect: {…}`: the keys of expect.yaml, none needed,
and `deadline: 2m`. That is compared once the node has settled again. Of the journal and the
requests only what came since the last comparison counts; boots and reboots are those of all time.
An act with `during: STEP` comes before expect.yaml, while that step runs; these acts stand first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import acts, archive, kernels, rancher, tree, ubuntu
from tests.rehearsal.acts import Act
from tests.rehearsal.expect import Expectation, expectation
from tests.rehearsal.table import ScenarioError, Table, read

FOLDER = Path(__file__).parent / "scenarios"
PLAIN = FOLDER / "plain.yaml"
PLAIN_USER_DATA = FOLDER / "plain-user-data.yaml"
RANCHER = FOLDER / "rancher.yaml"
RANCHER_USER_DATA = FOLDER / "rancher-user-data.yaml"
NOUVEAU = ("absent", "idle", "busy", "stuck")
# systemd-nspawn's options that make /usr/local of a node what it is to be.
USR_LOCAL = {
    "writable": (),
    "read-only": ("--bind-ro=+/usr/local:/usr/local",),
    "mount": ("--bind=+/usr/local:/usr/local",),
}
SIZE = re.compile(r"[1-9]\d*[MG]")
T4 = {"slot": "0000:03:00.0", "device": "1eb8", "subsystem": "12a2"}
PLACEHOLDER = re.compile(r"@([a-z0-9_]+)@")


@dataclass(frozen=True)
class Setup:
    """node.yaml: the machine, and what befalls it."""

    description: str
    core: bool
    release: str
    system: str
    driver: str
    kernel: str
    hostname: str
    nodes: int
    cloud_init: str
    rancher: Mapping[str, object] | None
    disk: str | None
    proxy: bool
    release_folder: str | None
    usr_local: str
    gpus: tuple[Mapping[str, str], ...]
    nouveau: str
    rival: str
    initramfs: bool
    efi: bool
    secure_boot: bool
    deadline: float
    faults: Mapping[str, object]

    @property
    def kind(self) -> tree.Kind:
        """The layers and the archive it needs."""
        system = "" if self.system == "debian" else self.system
        return tree.Kind(self.release, real=self.driver == "real", ubuntu=system)


@dataclass(frozen=True)
class Scenario:
    """One folder, read."""

    name: str
    folder: Path
    setup: Setup
    expect: Expectation
    config: str
    user_data: str
    acts: tuple[Act, ...] = ()


def find(name: str) -> Path:
    """The folder of a scenario given by name or by path."""
    folder = Path(name) if "/" in name else FOLDER / name
    if not (folder / "node.yaml").is_file():
        known = ", ".join(path.name for path in folders())
        raise ScenarioError(
            f"{name} is no scenario: {folder}/node.yaml does not exist (scenarios: {known})"
        )
    return folder.resolve()


def folders() -> list[Path]:
    """The folders of all scenarios that ship with gpuboot."""
    return sorted(path.parent for path in FOLDER.glob("*/node.yaml"))


def load(folder: Path) -> Scenario:
    """The scenario in `folder`; raises ScenarioError with file and key."""
    expect = read(folder / "expect.yaml")
    setup = _setup(read(folder / "node.yaml"))
    return Scenario(
        name=folder.name,
        folder=folder,
        setup=setup,
        expect=expectation(expect, state=expect.text("state")),
        config=_text(_config(folder, setup)),
        user_data=_text(_user_data(folder, setup)),
        acts=acts.load(folder / "acts.yaml"),
    )


def fill(scenario: Scenario, values: Mapping[str, str]) -> tuple[str, str]:
    """config.yaml and user-data.yaml with the placeholders filled in."""
    setup, folder = scenario.setup, scenario.folder
    plain = _text(plain_config(setup))
    config = fill_text(_config(folder, setup), scenario.config, values, plain=plain)
    user_data = _user_data(folder, setup)
    return config, fill_text(user_data, scenario.user_data, values, config=config)


def plain_config(setup: Setup) -> Path:
    """The configuration of nodes that need no other."""
    return PLAIN if setup.rancher is None else RANCHER


def _config(folder: Path, setup: Setup) -> Path:
    file = folder / "config.yaml"
    return file if file.is_file() else plain_config(setup)


def _user_data(folder: Path, setup: Setup) -> Path:
    file = folder / "user-data.yaml"
    plain = PLAIN_USER_DATA if setup.rancher is None else RANCHER_USER_DATA
    return file if file.is_file() else plain


def fill_text(file: Path, text: str, values: Mapping[str, str], **blocks: str) -> str:
    """A text of the scenario with the placeholders filled in; `blocks` are those of whole lines."""
    lines: list[str] = []
    for line in text.splitlines():
        name = line.strip().strip("@")
        if line.strip() == f"@{name}@" and name in blocks:
            indent = line[: line.index("@")]
            block = fill_text(file, blocks[name], values)
            lines += [indent + row if row else "" for row in block.splitlines()]
        else:
            lines.append(_fill(file, line, values))
    return "\n".join(lines) + "\n"


def _fill(file: Path, text: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = " ".join(f"@{name}@" for name in sorted(values))
            raise ScenarioError(f"{file}: unknown placeholder {match[0]} (known: {known})")
        return values[match[1]]

    return PLACEHOLDER.sub(value, text)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScenarioError(f"{file}: does not exist") from None


def _size(table: Table, key: str) -> str | None:
    size = table.optional_text(key)
    if size is not None and not SIZE.fullmatch(size):
        raise ScenarioError(f"{table.place(key)}: expected a size such as 900M or 4G, found {size}")
    return size


def _kernels(system: str) -> tuple[str, ...]:
    return tuple(ubuntu.SYSTEMS[system].kernels) if system in ubuntu.SYSTEMS else kernels.WORDS


def _setup(table: Table) -> Setup:
    managed = table.table("rancher")
    system = table.choice("system", ("debian", *ubuntu.SYSTEMS), "debian")
    setup = Setup(
        description=table.text("description"),
        core=table.flag("core", default=False),
        release=table.choice("release", tuple(archive.WORDS), "bookworm"),
        system=system,
        driver=table.choice("driver", ("stand-in", "real"), "stand-in"),
        kernel=table.choice("kernel", _kernels(system), "auto"),
        hostname=table.text("hostname", "gpu-worker-1"),
        nodes=table.number("nodes") or 1,
        cloud_init=table.choice("cloud-init", ("present", "absent"), "present"),
        rancher=rancher.settings(managed) if managed else None,
        disk=_size(table, "disk"),
        proxy=table.flag("proxy", default=False),
        release_folder=table.optional_text("release-folder"),
        usr_local=table.choice("usr-local", tuple(USR_LOCAL), "writable"),
        gpus=tuple(map(acts.gpu, table.rows("gpus"))) if "gpus" in table else (T4,),
        nouveau=table.choice("nouveau", NOUVEAU, "absent"),
        rival=table.choice("rival", ("nouveau", "nova_core"), "nouveau"),
        initramfs=table.flag("initramfs", default=True),
        efi=table.flag("efi", default=False),
        secure_boot=table.flag("secure-boot", default=False),
        deadline=table.seconds("deadline", 600.0),
        faults=table.mapping("faults"),
    )
    table.end()
    return setup
