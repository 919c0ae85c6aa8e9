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
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
class ExpectedNode:
    """What the API server's Node must be."""

    name: str | None
    ready: bool | None
    labels: Mapping[str, str]
    without_labels: tuple[str, ...]
    taints: tuple[str, ...] | None


@dataclass(frozen=True)
class ExpectedFile:
    """What a file of the node must be."""

    mode: str | None
    contains: tuple[str, ...]
    lacks: tuple[str, ...]
    absent: bool


@dataclass(frozen=True)
class Expectation:
    """expect.yaml: how the node must end; None and empty are not compared."""

    state: str
    exit: int | None = None
    step: str | None = None
    code: str | None = None
    boots: int | None = None
    reboots_spent: int | None = None
    reboot_reasons: tuple[str, ...] | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    gpus: int | None = None
    node: ExpectedNode | None = None
    files: Mapping[str, ExpectedFile] = field(default_factory=dict)
    cloud_init: str = "done"
    journal: tuple[str, ...] = ()
    journal_lacks: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    requests_lacks: tuple[str, ...] = ()
    starts_within: float | None = None


@dataclass(frozen=True)
class Scenario:
    """One folder, read."""

    name: str
    folder: Path
    setup: Setup
    expect: Expectation
    config: str
    user_data: str


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
    return Scenario(
        name=folder.name,
        folder=folder,
        setup=_setup(read(folder / "node.yaml")),
        expect=_expectation(read(folder / "expect.yaml")),
        config=_text(folder / "config.yaml"),
        user_data=_text(folder / "user-data.yaml"),
    )


def fill(scenario: Scenario, values: Mapping[str, str]) -> tuple[str, str]:
    """config.yaml and user-data.yaml with the placeholders filled in."""
    config = _fill(scenario.folder / "config.yaml", scenario.config, values)
    lines: list[str] = []
    for line in scenario.user_data.splitlines():
        if line.strip() == "@config@":
            indent = line[: line.index("@")]
            lines += [indent + text if text else "" for text in config.splitlines()]
        else:
            lines.append(_fill(scenario.folder / "user-data.yaml", line, values))
    return config, "\n".join(lines) + "\n"


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
        gpus=tuple(row.strings() for row in table.rows("gpus")) if "gpus" in table else (T4,),
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


def _expectation(table: Table) -> Expectation:
    reboots = table.table("reboots")
    node = table.table("node")
    files = table.table("files")
    steps = table.table("steps")
    expectation = Expectation(
        state=table.text("state"),
        exit=table.number("exit"),
        step=table.optional_text("step"),
        code=table.optional_text("code"),
        boots=table.number("boots"),
        reboots_spent=reboots.number("spent") if reboots else None,
        reboot_reasons=reboots.patterns("reasons") if reboots else None,
        steps=steps.strings() if steps else {},
        gpus=table.number("gpus"),
        node=_expected_node(node) if node else None,
        files={path: _expected_file(files, path) for path in files} if files else {},
        cloud_init=table.text("cloud-init", "done"),
        journal=table.patterns("journal") or (),
        journal_lacks=table.patterns("journal-lacks") or (),
        requests=table.patterns("requests") or (),
        requests_lacks=table.patterns("requests-lacks") or (),
        starts_within=table.optional_seconds("starts-within"),
    )
    for part in (reboots, files, table):
        if part:
            part.end()
    return expectation


def _expected_node(table: Table) -> ExpectedNode:
    labels = table.table("labels")
    node = ExpectedNode(
        name=table.optional_text("name"),
        ready=table.flag("ready") if "ready" in table else None,
        labels=labels.strings() if labels else {},
        without_labels=table.texts("without-labels") or (),
        taints=table.texts("taints"),
    )
    table.end()
    return node


def _expected_file(files: Table, path: str) -> ExpectedFile:
    table = files.table(path)
    if table is None:
        raise ScenarioError(f"{files.place(path)}: expected a mapping, such as {{mode: '0600'}}")
    file = ExpectedFile(
        mode=table.optional_text("mode"),
        contains=table.patterns("contains") or (),
        lacks=table.patterns("lacks") or (),
        absent=table.flag("absent", default=False),
    )
    table.end()
    return file
