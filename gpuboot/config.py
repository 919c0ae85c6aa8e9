"""What the operator wants: /etc/gpuboot/config.yaml and its drop-ins, checked when read.

The dataclasses are the one table that parser, defaults, JSON Schema and documentation come from.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gpuboot import reader, settings
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.kinds import (
    ADMIN_LABEL,
    ARCHIVE,
    AUTO,
    BOOLEAN,
    DURATION,
    INTERVAL,
    KEY,
    NODE_PASSWORD,
    PATH,
    PROXY,
    SHA256,
    SOURCE,
    TEXT,
    VERSION,
    WEB,
    choice,
    number,
    optional,
    pattern,
)
from gpuboot.reader import Problem, Reader, key, keys
from gpuboot.secret import Secret
from gpuboot.settings import Agent

if TYPE_CHECKING:
    from gpuboot.host import Host

FILE = "/etc/gpuboot/config.yaml"
FOLDER = "/etc/gpuboot/config.d"
# Keys of rke2 that only an RKE2 of ours has.
AGENT_ONLY = ("version", "channel", "sha256", "images", "node-password", "node-password-file")

CONFIG_WRONG = Code(
    "GB001",
    "the configuration is wrong",
    ("A key, a value or a combination of keys is not what gpuboot understands.",),
    ("gpuboot config check", "gpuboot config schema", "gpuboot run"),
    evidence="the file and line of each problem, with what was expected there",
)
NOT_ROOT = Code(
    "GB105",
    "gpuboot is not run by root",
    ("Some of what has to be looked at can only be read by root.",),
    (Elsewhere("the same command as root, with sudo"),),
    evidence="the user id, and the file that may not be read",
)


class ConfigError(GpubootError):
    """The configuration cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(
            CONFIG_WRONG,
            "\n".join(str(problem) for problem in problems),
            hint="correct the file, then: gpuboot run",
        )
        self.problems = tuple(problems)


# -- the configuration --------------------------------------------------------------------------


# The strings below are documentation for the operator: one sentence a key.
@dataclass(frozen=True)
class Gpu:
    """Which cards this node is to have."""

    count: int | None = key(
        optional(number(1, 16), "auto"), None,
        "Exactly that many cards, on PCI and in NVML; auto: what is there, at least one.",
    )  # fmt: skip
    model: str = key(TEXT, "any", "A name such as T4, or a PCI id such as 10de:1eb8.")
    wait: float = key(DURATION, 900.0, "How long a missing card is waited for.")


@dataclass(frozen=True)
class Driver:
    """Which NVIDIA driver, and from where."""

    source: str = key(
        choice("auto", "distribution", "nvidia", "preinstalled"), "auto",
        "Whose packages: the distribution's, NVIDIA's, or what the template has.",
    )  # fmt: skip
    branch: str | None = key(AUTO, None, "The driver branch; auto: the source's own.")
    build: str = key(
        choice("auto", "precompiled", "dkms"), "auto",
        "auto: precompiled signed modules where there are any, else DKMS.",
    )  # fmt: skip
    kernel_module_type: str = key(
        choice("auto", "proprietary", "open"), "auto",
        "auto: by the card's PCI id and the branch.",
    )  # fmt: skip


@dataclass(frozen=True)
class Toolkit:
    """The NVIDIA Container Toolkit."""

    version: str | None = key(
        optional(pattern(r"\d+\.\d+\.\d+(-\d+)?", "a version such as 1.20.0"), "auto"),
        None, "One version for all four packages; auto: the newest.",
    )  # fmt: skip


@dataclass(frozen=True)
class Rke2:
    """How the node joins its cluster."""

    join: str = key(
        choice("auto", "agent", "rancher", "none"), "auto",
        "auto: agent if rke2.config.server is set, else rancher.",
    )  # fmt: skip
    version: str | None = key(optional(VERSION), None, "RKE2's release to install.")
    channel: str | None = key(
        optional(pattern(r"stable|latest|testing|v\d+\.\d+", "a channel")), None,
        "RKE2's channel; its release is looked up once, at installation.",
    )  # fmt: skip
    sha256: str | None = key(optional(SHA256), None, "Pins the release tarball.")
    images: tuple[str, ...] = keys(
        ARCHIVE, [],
        "Image archives of the release for a node without a registry, by the release's own names.",
    )  # fmt: skip
    node_password: Secret | None = key(
        optional(NODE_PASSWORD), None,
        "The node's password in the cluster, kept over rebuilds; rather node-password-file.",
    )  # fmt: skip
    node_password_file: str | None = key(
        optional(PATH), None, "A root-only file with the node's password."
    )
    config: Agent = field(default_factory=Agent)
    admin_labels: tuple[str, ...] = keys(
        ADMIN_LABEL, [], "Labels only an administrator can set; missing ones are reported."
    )


@dataclass(frozen=True)
class Reboot:
    """Whether and how often gpuboot may reboot."""

    allow: bool = key(BOOLEAN, True, "false: wait for someone to reboot the machine.")  # noqa: FBT003
    budget: int = key(number(0, 20), 3, "Reboots until the node is ready.")


@dataclass(frozen=True)
class Proxy:
    """The proxy for everything gpuboot fetches, and in agent mode for rke2-agent."""

    http: Secret | None = key(optional(PROXY), None, "For http addresses.")
    https: Secret | None = key(optional(PROXY), None, "For https addresses.")
    no_proxy: tuple[str, ...] = keys(TEXT, [], "Hosts, domains and networks to reach directly.")


@dataclass(frozen=True)
class Apt:
    """The distribution's archive."""

    url: str | None = key(optional(SOURCE), None, "A mirror; -: the node's own sources.")
    key: str | None = key(optional(KEY), None, "What signs it; -: the archive's keyring.")


@dataclass(frozen=True)
class Nvidia:
    """NVIDIA's driver repository."""

    url: str | None = key(
        optional(SOURCE), None, "A mirror of it for this release; -: NVIDIA's own."
    )
    key: str | None = key(
        optional(KEY), None,
        "What signs it; -: NVIDIA's pinned key. A fingerprint's key is at URL/LAST8DIGITS.pub.",
    )  # fmt: skip


@dataclass(frozen=True)
class ToolkitSource:
    """The container toolkit's repository."""

    url: str = key(
        SOURCE, "https://nvidia.github.io/libnvidia-container/stable/deb/amd64", "A mirror."
    )
    key: str = key(
        KEY, "C95B321B61E88C1809C4F759DDCAE044F796ECB0",
        "What signs it; a fingerprint is looked for at URL/gpgkey.",
    )  # fmt: skip


@dataclass(frozen=True)
class Rke2Source:
    """RKE2's releases."""

    url: str = key(SOURCE, "https://github.com/rancher/rke2/releases/download", "A mirror.")
    channels: str = key(
        WEB, "https://update.rke2.io/v1-release/channels", "Where a channel is looked up."
    )


@dataclass(frozen=True)
class Sources:
    """Where everything comes from."""

    apt: Apt = field(default_factory=Apt)
    nvidia: Nvidia = field(default_factory=Nvidia)
    toolkit: ToolkitSource = field(default_factory=ToolkitSource)
    rke2: Rke2Source = field(default_factory=Rke2Source)


@dataclass(frozen=True)
class Monitor:
    """The health daemon."""

    interval: float = key(INTERVAL, 15.0, "Time between two looks at the card.")
    textfile: str | None = key(optional(PATH), None, "A Prometheus textfile to write.")


@dataclass(frozen=True)
class Config:
    """Everything the operator said, and the defaults for the rest."""

    gpu: Gpu = field(default_factory=Gpu)
    driver: Driver = field(default_factory=Driver)
    toolkit: Toolkit = field(default_factory=Toolkit)
    rke2: Rke2 = field(default_factory=Rke2)
    on_gpu_failure: str = key(
        choice("hold", "join"), "hold",
        "hold: stay out of the cluster; join: join without GPU labels and taints.",
    )  # fmt: skip
    deadline: float = key(
        DURATION, 2700.0, "Trouble before the first join that lasts longer is a GPU failure."
    )
    reboot: Reboot = field(default_factory=Reboot)
    proxy: Proxy = field(default_factory=Proxy)
    sources: Sources = field(default_factory=Sources)
    monitor: Monitor = field(default_factory=Monitor)

    @property
    def mode(self) -> str:
        """How the node joins: agent, rancher or none."""
        if self.rke2.join != "auto":
            return self.rke2.join
        return "agent" if self.rke2.config.server else "rancher"

    def secrets(self) -> list[Secret]:
        """Every secret that stands in the configuration itself."""
        inline = [
            self.rke2.config.token,
            self.rke2.node_password,
            self.proxy.http,
            self.proxy.https,
        ]
        return [secret for secret in inline if secret]


# -- reading it ---------------------------------------------------------------------------------


def files(host: Host) -> list[str]:
    """The configuration files that are there, in the order they are read."""
    drop_ins = [f"{FOLDER}/{name}" for name in host.names(FOLDER) if name.endswith(".yaml")]
    return [name for name in (FILE, *drop_ins) if host.exists(name)]


def _names(host: Host) -> list[str]:
    try:
        return files(host)
    except PermissionError as error:
        raise GpubootError(NOT_ROOT, f"{error.filename} can only be read by root") from None


def load(host: Host) -> Config:
    """Read, merge and check the node's configuration; its secrets are masked from then on.

    Raises ConfigError with every problem found, GB105 if a file is for root alone.
    """
    names = _names(host)
    reading = Reader()
    for name in names:
        if problem := unsafe(host, name):
            reading.problems.append(problem)
        content = host.read_bytes(name)
        if content is None and host.forbidden(name):
            raise GpubootError(NOT_ROOT, f"{name} can only be read by root")
        if content is None:
            reading.problems.append(Problem(f"{name}:1", "", "cannot be read", "a readable file"))
        reading.add(name, content or b"")
    config = parse(reading)
    for secret in config.secrets():
        host.mask.add(secret)
    for file in (config.rke2.config.token_file, config.rke2.node_password_file):
        if file:
            host.mask.add(Secret(host.read(file) or ""))
    if reading.problems:
        raise ConfigError(reading.problems)
    return config


def parse(reading: Reader) -> Config:
    """The configuration in the files that `reading` has; problems are collected there."""
    config = reading.section(Config, reading.tree)
    _check(config, reading)
    return config


def warnings(host: Host, config: Config) -> list[str]:
    """What is allowed and unwise: a secret in a file that others can read."""
    if not config.secrets():
        return []
    return [
        f"{name}: holds a secret and can be read by others; chmod 0600 {name}"
        for name in files(host)
        if (host.mode(name) or 0) & stat.S_IROTH
    ]


def unwise(config: Config) -> list[str]:
    """What is unwise before a join; a joined node has its release, and is not reminded."""
    if config.mode != "agent" or not config.rke2.channel:
        return []
    what = f"{config.rke2.channel} may stand for an agent that is newer than the servers"
    return [f"rke2.channel: {what}, which Kubernetes does not support; rke2.version pins it"]


def unsafe(host: Host, name: str) -> Problem | None:
    """A file that somebody but root can change is somebody else's root access."""
    try:
        status = host.path(name).stat()
    except OSError:
        return None  # told as one that cannot be read
    if status.st_uid != host.owner:
        return Problem(f"{name}:1", "", f"belongs to user id {status.st_uid}", "root as owner")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return Problem(f"{name}:1", "", f"can be written by others (mode {mode:04o})", "0600")
    return None


def _check(config: Config, reading: Reader) -> None:
    """Rules over more than one key."""
    agent = config.rke2.config
    # A server that could not be read was meant to be one all the same.
    meant = (
        "agent" if config.rke2.join == "auto" and reading.given(settings.SERVER) else config.mode
    )
    if meant == "agent":
        settings.check_agent(agent, reading)
        _check_password(config, reading)
    if meant == "rancher":
        for name in AGENT_ONLY:
            if getattr(config.rke2, name.replace("-", "_")):
                reading.problem(f"rke2.{name}", "belongs to agent mode: Rancher installs RKE2")
        for name in settings.given(agent):
            if name not in ("node-label", "node-taint"):
                reading.problem(
                    f"rke2.config.{name}",
                    "belongs to agent mode: in rancher mode Rancher writes RKE2's configuration",
                    "only node-label and node-taint, or rke2.config.server for agent mode",
                )
    if config.rke2.version and config.rke2.channel:
        reading.problem("rke2.channel", "stands beside rke2.version", "one of the two")
    if config.rke2.sha256 and not config.rke2.version:
        reading.problem("rke2.sha256", "pins a tarball but rke2.version is not set", "both")
    settings.check(agent, reading)
    _check_images(config, reading)


def _check_images(config: Config, reading: Reader) -> None:
    images = config.rke2.images
    if images and config.sources.rke2.url.startswith("http:"):
        reading.problem(
            "rke2.images",
            "cannot be verified: the checksum file comes over plain http",
            "an https address or a local folder under sources.rke2.url",
        )
    if images and config.rke2.config.container_runtime_endpoint:
        reading.problem(
            "rke2.images",
            "stands beside container-runtime-endpoint: RKE2 imports into its own containerd only",
            "one of the two",
        )
    for name in sorted({name for name in images if images.count(name) > 1}):
        reading.problem("rke2.images", f"{name} stands twice", "each archive once")


def _check_password(config: Config, reading: Reader) -> None:
    if config.rke2.node_password and config.rke2.node_password_file:
        reading.problem("rke2.node-password", "stands beside node-password-file", "one of the two")


def effective(config: object) -> dict[str, Any]:
    """The whole configuration as one could write it in the file, secrets masked.

    Of RKE2's own settings only those that are set: the others are RKE2's business.
    """
    plain: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type] # always one of our dataclasses
        value = getattr(config, item.name)
        name = item.name.replace("_", "-")
        if hasattr(value, "__dataclass_fields__"):
            plain[name] = effective(value)
        elif isinstance(config, Agent) and value == item.default and value in (None, ()):
            continue
        elif value is None:
            plain[name] = item.metadata["kind"].nothing
        elif isinstance(value, tuple):
            plain[name] = list(value)
        elif isinstance(value, float):
            plain[name] = reader.duration(value)
        else:
            plain[name] = str(value) if isinstance(value, Secret) else value
    return plain
