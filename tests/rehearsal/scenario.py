"""A scenario: one folder that says which node boots, what it is told, and how it must end.

node.yaml (all keys but description are optional):
    description: what this scenario shows, one sentence
    core: true                    # `make test` runs it
    release: bookworm             # the node's Debian
    kernel: auto                  # the kernel release the node believes it runs
    hostname: gpu-worker-1
    gpus: [{slot: "0000:03:00.0", device: 1eb8}]   # fields of hardware.Gpu; [] for none
    nouveau: absent               # absent | idle (can be unloaded) | busy (cannot)
    initramfs: true               # nouveau is in the initramfs, as on real machines
    efi: false                    # the machine has EFI variables
    secure-boot: false            # and Secure Boot is on
    deadline: 10m                 # the rehearsal gives up after that long
    power-cuts: [packages]        # the plug is pulled once while each of these steps runs
    faults: {}                    # handed to the servers as faults.json

config.yaml: /etc/gpuboot/config.yaml, user-data.yaml: cloud-init's. In both, @token@ @server@
@rke2_version@ @rke2_sha256@ @archive_key@ @toolkit_key@ are filled in; a line of user-data.yaml
that holds nothing but @config@ becomes the config, as far indented as that line.

expect.yaml (only what is given is compared; see verdict.py):
    state: ready                  # of `gpuboot status --json`; the only key that must be there
    exit: 0                       # of `gpuboot status`
    step, code: …                 # as in status
    boots: 2                      # different boot ids
    reboots: {spent: 1, reasons: [REGEX, …]}
    steps: {driver-loaded: ok}
    gpus: 1
    node: {name: …, ready: true, labels: {k: v}, without-labels: [k], taints: ["k=v:Effect"]}
    files: {/path: {mode: "0600", contains: [REGEX], lacks: [REGEX], absent: true}}
    cloud-init: done              # the default; or another word of `cloud-init status`
    journal: [REGEX, …]           # each is found in the journal of all boots
    journal-lacks: [REGEX, …]     # none is
    requests: [REGEX, …]          # each is found in the servers' log
    requests-lacks: [REGEX, …]    # none is
    starts-within: 20s            # from cloud-final's start to gpuboot.service's, in the first boot

acts.yaml (may be missing): what happens to the node once it is as expect.yaml wants it, a list of
    run: [PROGRAM, …]             # in the node, as root; ends with 0, or with `exit: N` beside it
    write: {path: /…, content: …, mode: "0600"}   # placeholders are filled in
    remove: /…
    reboot: true                  # systemctl reboot, until the next boot
    power-cut: true               # the plug is pulled; then it boots again
    power-cycle: true             # switched off in order; then it boots again
    gpus: [{slot: …}]             # the cards that are there from the next boot on
    faults: {}                    # the servers' faults.json from now on
    network: cut                  # the node's cable, over reboots too; `whole` puts it in again
    kill: gpuboot                 # SIGKILL for the unit's main process
    wait: 5s
each with, if wanted, `why: one sentence` and `expect: {…}`: the keys of expect.yaml, none needed,
and `deadline: 2m`. That is compared once the node has settled again. Of the journal and the
requests only what came since the last comparison counts; boots and reboots are those of all time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import acts
from tests.rehearsal.acts import Act
from tests.rehearsal.expect import Expectation, expectation
from tests.rehearsal.table import ScenarioError, Table, read

FOLDER = Path(__file__).parent / "scenarios"
NOUVEAU = ("absent", "idle", "busy")
T4 = {"slot": "0000:03:00.0", "device": "1eb8", "subsystem": "12a2"}
PLACEHOLDER = re.compile(r"@([a-z0-9_]+)@")


@dataclass(frozen=True)
class Setup:
    """node.yaml: the machine, and what befalls it."""

    description: str
    core: bool
    release: str
    kernel: str
    hostname: str
    gpus: tuple[Mapping[str, str], ...]
    nouveau: str
    initramfs: bool
    efi: bool
    secure_boot: bool
    deadline: float
    power_cuts: tuple[str, ...]
    faults: Mapping[str, object]


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
    return Scenario(
        name=folder.name,
        folder=folder,
        setup=_setup(read(folder / "node.yaml")),
        expect=expectation(expect, state=expect.text("state")),
        config=_text(folder / "config.yaml"),
        user_data=_text(folder / "user-data.yaml"),
        acts=acts.load(folder / "acts.yaml"),
    )


def fill(scenario: Scenario, values: Mapping[str, str]) -> tuple[str, str]:
    """config.yaml and user-data.yaml with the placeholders filled in."""
    config = _fill(scenario.folder / "config.yaml", scenario.config, values)
    file = scenario.folder / "user-data.yaml"
    return config, fill_text(file, scenario.user_data, config, values)


def fill_text(file: Path, text: str, config: str, values: Mapping[str, str]) -> str:
    """A text of the scenario with the placeholders filled in, @config@ among them."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() == "@config@":
            indent = line[: line.index("@")]
            lines += [indent + row if row else "" for row in config.splitlines()]
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


def _setup(table: Table) -> Setup:
    setup = Setup(
        description=table.text("description"),
        core=table.flag("core", default=False),
        release=table.text("release", "bookworm"),
        kernel=table.text("kernel", "auto"),
        hostname=table.text("hostname", "gpu-worker-1"),
        gpus=tuple(map(acts.gpu, table.rows("gpus"))) if "gpus" in table else (T4,),
        nouveau=table.choice("nouveau", NOUVEAU, "absent"),
        initramfs=table.flag("initramfs", default=True),
        efi=table.flag("efi", default=False),
        secure_boot=table.flag("secure-boot", default=False),
        deadline=table.seconds("deadline", 600.0),
        power_cuts=table.texts("power-cuts") or (),
        faults=table.mapping("faults"),
    )
    table.end()
    return setup
