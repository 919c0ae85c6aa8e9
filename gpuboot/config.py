"""What the operator wants: /etc/gpuboot/config.yaml and its drop-ins, checked when read.

The dataclasses are the one table that parser, defaults, JSON Schema and documentation come from.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gpuboot import labels, reader
from gpuboot.errors import Code, GpubootError
from gpuboot.kinds import (
    ADMIN_LABEL,
    AUTO,
    BOOLEAN,
    DURATION,
    HTTPS,
    KEY,
    LABEL,
    NODE_NAME,
    PATH,
    SECRET,
    SHA256,
    SOURCE,
    TAINT,
    TEXT,
    TOKEN,
    VERSION,
    WEB,
    choice,
    number,
    optional,
    pattern,
)
from gpuboot.reader import Problem, Reader, key, keys
from gpuboot.secret import Secret

if TYPE_CHECKING:
    from gpuboot.host import Host

FILE = "/etc/gpuboot/config.yaml"
FOLDER = "/etc/gpuboot/config.d"
SERVER = "rke2.config.server"

CONFIG_WRONG = Code(
    "GB001",
    "the configuration is wrong",
    ("A key, a value or a combination of keys is not what gpuboot understands.",),
    ("gpuboot config check", "gpuboot config schema", "gpuboot run"),
)
NOT_ROOT = Code(
    "GB105",
    "gpuboot is not run by root",
    ("Some of what has to be looked at can only be read by root.",),
    ("the same command as root, with sudo",),
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


def _text(doc: str) -> str | None:
    return key(optional(TEXT), None, doc)


def _flag(doc: str) -> bool | None:
    return key(optional(BOOLEAN), None, doc)


@dataclass(frozen=True)
class Agent:
    """RKE2's own agent settings, by RKE2's own names (rke2 pkg/cli/cmds/agent.go)."""

    server: str | None = key(optional(HTTPS), None, "The supervisor, https://HOST:9345.")
    token: Secret | None = key(optional(TOKEN), None, "The join token; rather token-file.")
    token_file: str | None = key(optional(PATH), None, "A root-only file with the token.")
    node_label: tuple[str, ...] = keys(LABEL, ["nvidia.com/gpu=present"], "Labels of this node.")
    node_taint: tuple[str, ...] = keys(
        TAINT,
        ["nvidia.com/gpu=present:NoSchedule"],
        "Taints of this node, at its registration.",
    )
    node_name: str | None = key(optional(NODE_NAME), None, "The Node's name.")
    with_node_id: bool | None = _flag("Append an id of this machine to the Node's name.")
    data_dir: str | None = key(optional(PATH), None, "RKE2's data folder.")
    node_ip: tuple[str, ...] = keys(TEXT, [], "Addresses of this node.")
    node_external_ip: tuple[str, ...] = keys(TEXT, [], "External addresses of this node.")
    node_internal_dns: tuple[str, ...] = keys(TEXT, [], "Internal names of this node.")
    node_external_dns: tuple[str, ...] = keys(TEXT, [], "External names of this node.")
    bind_address: str | None = _text("The address RKE2 listens on.")
    resolv_conf: str | None = _text("The kubelet's resolv.conf.")
    kubelet_arg: tuple[str, ...] = keys(TEXT, [], "Arguments for the kubelet, key=value.")
    kube_proxy_arg: tuple[str, ...] = keys(TEXT, [], "Arguments for kube-proxy, key=value.")
    private_registry: str | None = _text("RKE2's registries file.")
    selinux: bool | None = _flag("Run containerd with SELinux.")
    lb_server_port: int | None = key(
        optional(number(2, 65535)), None, "The agent's local balancer (6444)."
    )
    protect_kernel_defaults: bool | None = _flag("Refuse kernel settings unlike the kubelet's.")
    snapshotter: str | None = _text("containerd's snapshotter.")
    default_runtime: str | None = _text("containerd's default runtime, such as nvidia.")
    container_runtime_endpoint: str | None = _text("Another container runtime's socket.")
    disable_default_registry_endpoint: bool | None = _flag("Only mirrors from registries.yaml.")
    nonroot_devices: bool | None = _flag("Let non-root containers use devices.")
    image_credential_provider_bin_dir: str | None = _text("Credential provider programs.")
    image_credential_provider_config: str | None = _text("Credential provider configuration.")
    airgap_extra_registry: tuple[str, ...] = keys(TEXT, [], "Registries to tag images for.")
    enable_pprof: bool | None = _flag("RKE2's profiling endpoint.")
    debug: bool | None = _flag("RKE2's debug log.")
    profile: str | None = key(
        optional(choice("cis", "etcd")), None, "Hardening checks at RKE2's start."
    )
    cloud_provider_name: str | None = _text("A cloud provider's name.")
    cloud_provider_config: str | None = _text("A cloud provider's configuration file.")
    kubelet_path: str | None = _text("Another kubelet program.")
    runtime_image: str | None = _text("Another image with RKE2's binaries.")
    pause_image: str | None = _text("Another pause image.")
    kube_proxy_image: str | None = _text("Another kube-proxy image.")


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
    """The proxy for everything gpuboot fetches."""

    http: Secret | None = key(optional(SECRET), None, "For http addresses.")
    https: Secret | None = key(optional(SECRET), None, "For https addresses.")
    no_proxy: tuple[str, ...] = keys(TEXT, [], "Hosts, domains and networks to reach directly.")


@dataclass(frozen=True)
class Apt:
    """The distribution's archive."""

    url: str | None = key(optional(SOURCE), None, "A mirror; -: the node's own sources.")
    key: str | None = key(optional(KEY), None, "What signs it; -: the archive's keyring.")


@dataclass(frozen=True)
class Nvidia:
    """NVIDIA's driver repository."""

    url: str = key(SOURCE, "https://developer.download.nvidia.com/compute/cuda/repos", "A mirror.")
    key: str | None = key(optional(KEY), None, "What signs it; -: NVIDIA's pinned key.")


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

    interval: float = key(DURATION, 15.0, "Time between two looks at the card.")
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
        inline = [self.rke2.config.token, self.proxy.http, self.proxy.https]
        return [secret for secret in inline if secret]


# -- reading it ---------------------------------------------------------------------------------


def files(host: Host) -> list[str]:
    """The configuration files that are there, in the order they are read."""
    drop_ins = [f"{FOLDER}/{name}" for name in host.names(FOLDER) if name.endswith(".yaml")]
    return [name for name in (FILE, *drop_ins) if host.exists(name)]


def load(host: Host) -> Config:
    """Read, merge and check the node's configuration; its secrets are masked from then on.

    Raises ConfigError with every problem found, GB105 if a file is for root alone.
    """
    names = files(host)
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
    if config.rke2.config.token_file:
        host.mask.add(Secret(host.read(config.rke2.config.token_file) or ""))
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
    meant = "agent" if config.rke2.join == "auto" and reading.given(SERVER) else config.mode
    if meant == "agent":
        _check_agent(config, reading)
    if meant == "rancher":
        for name in ("version", "channel", "sha256"):
            if getattr(config.rke2, name) is not None:
                reading.problem(f"rke2.{name}", "belongs to agent mode: Rancher installs RKE2")
        for name in given(agent):
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
    if double := labels.twice(labels.taint(text) for text in agent.node_taint):
        reading.problem(
            "rke2.config.node-taint",
            f"taint {double.key}:{double.effect} stands twice, which ends rke2-agent",
            "each key and effect once",
        )
    label_keys = [labels.label(text).key for text in agent.node_label]
    for name in sorted({name for name in label_keys if label_keys.count(name) > 1}):
        reading.problem("rke2.config.node-label", f"label {name} stands twice", "each key once")


def _check_agent(config: Config, reading: Reader) -> None:
    agent = config.rke2.config
    if not agent.server and not reading.given(SERVER):
        reading.problem("rke2.config.server", "is not set", "the supervisor, https://HOST:9345")
    named = ("rke2.config.token", "rke2.config.token-file")
    if not agent.token and not agent.token_file and not any(map(reading.given, named)):
        reading.problem("rke2.config", "has neither token-file nor token", "one of the two")
    if agent.token and agent.token_file:
        reading.problem("rke2.config.token", "stands beside token-file", "one of the two")
    if agent.node_external_ip and (agent.cloud_provider_name or agent.cloud_provider_config):
        reading.problem(
            "rke2.config.node-external-ip", "cannot stand beside a cloud provider", "one of them"
        )


def given(agent: Agent) -> dict[str, Any]:
    """RKE2's settings that differ from the defaults, by RKE2's names."""
    return {
        item.name.replace("_", "-"): getattr(agent, item.name)
        for item in fields(agent)
        if getattr(agent, item.name) != item.default
    }


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
