"""The program's table of contents: from what is wanted and what the machine is to the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpuboot import drivers, labels, rancher, settings, web
from gpuboot.cards import OPEN, PROPRIETARY
from gpuboot.catalog import ARCHIVES, DISTRIBUTION, DKMS, NVIDIA, REPOSITORIES
from gpuboot.dkms import DriverBuilt
from gpuboot.driver import DriverLoaded
from gpuboot.dropin import Rke2Config
from gpuboot.headers import KernelHeaders
from gpuboot.identity import NodePassword
from gpuboot.images import ImagesPlaced
from gpuboot.kubernetes import NodeJoined
from gpuboot.nvidia import GpuPresent, GpusAnswer, NouveauBlocked
from gpuboot.packages import Packages, UpgradesBlocked
from gpuboot.precompiled import KernelModules, Modules
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
    modules = None
    if choice and choice.stem:
        modules = Modules(choice.stem, choice.otherwise, choice.packages)
    # Where DKMS builds nothing, nothing needs headers.
    builds = choice is None or choice.build == DKMS or bool(choice.otherwise)
    kind = choice.kernel_module_type if choice else PROPRIETARY
    env = proxy(config).env()
    prepare: tuple[Step, ...] = (
        Rke2Hold(),
        Preflight(facts, config),
        GpuPresent(config.gpu.count, config.gpu.model),
        NouveauBlocked(gsp_off=choice.gsp_off if choice else True),
        PackageSources(
            _sources(config, facts, choice, headers=builds), choice.pin if choice else ""
        ),
        UpgradesBlocked(),
        *((KernelModules(modules, env),) if modules else ()),
        *((KernelHeaders(env, modules),) if builds else ()),
        Packages(
            driver=choice.packages if choice else (),
            modules=modules,
            unwanted=choice.rivals if choice else (),
            toolkit_version=config.toolkit.version,
            # Anywhere else it would bring Debian's own libnvidia-ml1 over the driver's.
            tools=("python3-pynvml",) if _of_debian(choice, facts) else (),
            env=env,
        ),
        DriverBuilt(),
        DriverLoaded(kind if kind in (PROPRIETARY, OPEN) else None),
        GpusAnswer(),
        Cdi(),
    )
    return Plan(prepare, _join(config), choice)


def _of_debian(choice: Choice | None, facts: Facts) -> bool:
    source = choice.source if choice else DISTRIBUTION
    return (facts.os_id, source) == ("debian", DISTRIBUTION)


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
    config: Config, facts: Facts, choice: Choice | None, *, headers: bool
) -> tuple[Source | OwnArchive, ...]:
    """The toolkit's, NVIDIA's if the driver is its, and the distribution's where it is needed.

    An adopted driver needs of that only headers, which the node's own sources have, unless the
    configuration names the archive.
    """
    archive, toolkit = config.sources.apt, config.sources.toolkit
    adopted = choice is not None and choice.adopted
    kind = ARCHIVES.get(facts.os_id, ARCHIVES["debian"])
    found: list[Source | OwnArchive] = []
    if archive.url and (headers or not adopted):
        suites = " ".join(f"{facts.codename}{pocket}" for pocket in kind.pockets)
        key = archive.key or kind.keyring
        found.append(Source("distribution", archive.url, suites, key, kind.components))
    elif not adopted:
        found.append(OwnArchive(facts.codename, kind.components))
    if choice and choice.source == NVIDIA:
        found.append(_nvidia(config, facts))
    return *found, Source("toolkit", toolkit.url, "/", toolkit.key)


def _nvidia(config: Config, facts: Facts) -> Source:
    known, wanted = REPOSITORIES[drivers.release_of(facts)], config.sources.nvidia
    key = wanted.key or known.key
    names = tuple(f"{word}.pub" for word in (key[-8:].lower(), key[-8:].upper()))
    return Source("nvidia", wanted.url or known.url, "/", key, key_names=(*names, "gpgkey"))


def proxy(config: Config) -> web.Proxy:
    """The proxy settings with their passwords, for whoever fetches something.

    RKE2 itself reaches its server directly, so asking that through a proxy would prove nothing.
    """

    def text(secret: Secret | None) -> str | None:
        return secret.reveal() if secret else None

    server = urlsplit(config.rke2.config.server or "").hostname
    direct = dict.fromkeys((*config.proxy.no_proxy, *((server,) if server else ())))
    return web.Proxy(text(config.proxy.http), text(config.proxy.https), tuple(direct))
