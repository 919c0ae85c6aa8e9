"""The program's table of contents: from what is wanted and what the machine is to the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpuboot import drivers, labels, rancher, settings, sources, web
from gpuboot.cards import OPEN, PROPRIETARY
from gpuboot.dkms import DriverBuilt
from gpuboot.driver import DriverLoaded
from gpuboot.dropin import Rke2Config
from gpuboot.headers import KernelHeaders
from gpuboot.identity import NodePassword
from gpuboot.images import ImagesPlaced
from gpuboot.kubernetes import NodeJoined
from gpuboot.nvidia import GpuPresent, GpusAnswer, NouveauBlocked
from gpuboot.packages import Packages, UpgradesBlocked
from gpuboot.preflight import Preflight
from gpuboot.proxy import AgentProxy
from gpuboot.release import Release
from gpuboot.rke2 import AgentStarted, Rke2Hold, Rke2Installed
from gpuboot.sources import OwnArchive, PackageSources, Source
from gpuboot.step import Step
from gpuboot.supervisor import SupervisorAnswers
from gpuboot.toolkit import Cdi

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.drivers import Choice
    from gpuboot.facts import Facts
    from gpuboot.secret import Secret

# What a label or taint of the GPU itself begins with; a pool's own labels are the node's.
GPU_PREFIX = "nvidia.com/"

# The modules and what says which of them modprobe loads: where both kinds are installed it is the
# proprietary one, and a kernel that comes later is built for twice.
DEBIAN_MODULES = {
    PROPRIETARY: ("nvidia-kernel-dkms", "nvidia-kernel-support"),
    OPEN: ("nvidia-open-kernel-dkms", "nvidia-open-kernel-support"),
}


@dataclass(frozen=True)
class Plan:
    """The steps in order: `prepare` proves the GPU, `join` brings the node into the cluster.

    `driver` is None where none can be chosen: then preflight ends the walk.
    """

    prepare: tuple[Step, ...]
    join: tuple[Step, ...]
    driver: Choice | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.prepare + self.join


def build(config: Config, facts: Facts) -> Plan:
    """The walk for this machine; a pure function."""
    choice = drivers.chosen(config, facts)
    adopted = choice is not None and choice.adopted
    # Without DKMS nothing is built here, so nothing needs headers.
    builds = choice is None or choice.build == drivers.DKMS
    kind = choice.kernel_module_type if choice else PROPRIETARY
    env = proxy(config).env()
    prepare: tuple[Step, ...] = (
        Rke2Hold(),
        Preflight(facts, config),
        GpuPresent(config.gpu.count, config.gpu.model),
        NouveauBlocked(kind),
        PackageSources(_sources(config, facts, driver=not adopted, distribution=builds)),
        UpgradesBlocked(),
        *((KernelHeaders(env),) if builds else ()),
        Packages(
            driver=choice.packages if choice else (),
            unwanted=_unwanted(choice),
            toolkit_version=config.toolkit.version,
            # It would bring Debian's libnvidia-ml1 over the libraries of an adopted driver.
            tools=() if adopted else ("python3-pynvml",),
            env=env,
        ),
        DriverBuilt(),
        DriverLoaded(kind if kind in DEBIAN_MODULES else None),
        GpusAnswer(),
        Cdi(),
    )
    return Plan(prepare, _join(config), choice)


def _unwanted(choice: Choice | None) -> tuple[str, ...]:
    """The packages of the other kind of module, which must not be there."""
    if choice is None or choice.adopted:
        return ()
    return DEBIAN_MODULES[OPEN if choice.kernel_module_type == PROPRIETARY else PROPRIETARY]


def bare(config: Config) -> tuple[Step, ...]:
    """The way into the cluster without the GPU's labels and taints (on-gpu-failure: join)."""
    agent = config.rke2.config
    runtime = agent.default_runtime
    plain = replace(
        agent,
        # RKE2 ends if its default runtime is not there, and without a GPU nobody has put it there.
        default_runtime=None if runtime and runtime.startswith("nvidia") else runtime,
        node_label=tuple(text for text in agent.node_label if not text.startswith(GPU_PREFIX)),
        node_taint=tuple(text for text in agent.node_taint if not text.startswith(GPU_PREFIX)),
    )
    unwanted = tuple(
        labels.label(text).key for text in set(agent.node_label) - set(plain.node_label)
    )
    return _join(replace(config, rke2=replace(config.rke2, config=plain)), unwanted)


def _join(config: Config, unwanted: tuple[str, ...] = ()) -> tuple[Step, ...]:
    agent = config.rke2.config
    drop_in = Rke2Config(_settings(config), agent.node_label, agent.node_taint)
    joined = NodeJoined(
        drop_in, agent.node_name, bool(agent.with_node_id), config.rke2.admin_labels, unwanted
    )
    if config.mode == "rancher":
        return (rancher.RancherPlan(), drop_in, rancher.AgentStarted(), joined)
    if config.mode == "agent":
        return (*_agent(config, drop_in), AgentStarted(), joined)
    return ()


def _agent(config: Config, drop_in: Rke2Config) -> tuple[Step, ...]:
    """What comes before the agent's start where no Rancher does it."""
    want, agent, source = config.rke2, config.rke2.config, config.sources.rke2
    release = Release(want.version, want.channel, want.sha256, source.url, source.channels)
    images = ImagesPlaced(release, want.images, agent.data_dir)
    password = NodePassword(want.node_password, want.node_password_file, agent.data_dir)
    server = str(agent.server)
    return (
        Rke2Installed(release),
        *((images,) if want.images else ()),
        drop_in,
        *((password,) if want.node_password or want.node_password_file else ()),
        AgentProxy(
            config.proxy.http, config.proxy.https, config.proxy.no_proxy, server, agent.node_ip
        ),
        SupervisorAnswers(server, agent.token, agent.token_file, agent.data_dir),
    )


def _settings(config: Config) -> Mapping[str, Any]:
    """RKE2's own keys for the drop-in; in rancher mode they are Rancher's business."""
    if config.mode != "agent":
        return {}
    given = settings.given(config.rke2.config)
    return {key: value for key, value in given.items() if key not in ("node-label", "node-taint")}


def _sources(
    config: Config, facts: Facts, *, driver: bool, distribution: bool
) -> tuple[Source | OwnArchive, ...]:
    """The toolkit's, and the distribution's where something of it is wanted.

    An adopted driver needs of it only headers, which the node's own sources have, unless the
    configuration names the archive.
    """
    archive, toolkit = config.sources.apt, config.sources.toolkit
    found: list[Source | OwnArchive] = []
    if archive.url and (driver or distribution):
        key = archive.key or sources.DISTRIBUTION_KEYRING
        found.append(Source("distribution", archive.url, facts.codename, key))
    elif driver:
        found.append(OwnArchive(facts.codename))
    return *found, Source("toolkit", toolkit.url, "/", toolkit.key)


def proxy(config: Config) -> web.Proxy:
    """The proxy settings with their passwords, for whoever fetches something.

    RKE2 itself reaches its server directly, so asking that through a proxy would prove nothing.
    """

    def text(secret: Secret | None) -> str | None:
        return secret.reveal() if secret else None

    server = urlsplit(config.rke2.config.server or "").hostname
    direct = dict.fromkeys((*config.proxy.no_proxy, *((server,) if server else ())))
    return web.Proxy(text(config.proxy.http), text(config.proxy.https), tuple(direct))
