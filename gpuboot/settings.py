"""RKE2's own agent settings, by RKE2's own names, and which of them break the join."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from gpuboot import labels
from gpuboot.kinds import (
    ADDRESS,
    ARGUMENT,
    BOOLEAN,
    ENVIRONMENT,
    FOLDER,
    LABEL,
    MOUNT,
    NAME,
    NODE_NAME,
    PATH,
    REGISTRY,
    SERVER_ADDRESS,
    TAINT,
    TEXT,
    TOKEN,
    choice,
    number,
    optional,
)
from gpuboot.reader import key, keys
from gpuboot.secret import Secret

if TYPE_CHECKING:
    from gpuboot.reader import Reader

SERVER = "rke2.config.server"

# What a kubelet-arg would take out of RKE2's hands, and with which key it is said instead.
OURS = {
    "node-labels": "rke2.config.node-label",
    "register-with-taints": "rke2.config.node-taint",
    "hostname-override": "rke2.config.node-name",
}


def _text(doc: str) -> str | None:
    return key(optional(TEXT), None, doc)


def _path(doc: str) -> str | None:
    return key(optional(PATH), None, doc)


def _flag(doc: str) -> bool | None:
    return key(optional(BOOLEAN), None, doc)


@dataclass(frozen=True)
class Agent:
    """RKE2's own agent settings, by RKE2's own names (rke2 pkg/cli/cmds/agent.go, root.go).

    Left out is what only a server has a use for: the images, mounts and variables of the control
    plane's pods. kube-proxy is the one such pod that an agent runs.
    """

    server: str | None = key(
        optional(SERVER_ADDRESS), None, "The supervisor, https://HOST:9345."
    )  # fmt: skip
    token: Secret | None = key(optional(TOKEN), None, "The join token; rather token-file.")
    token_file: str | None = _path("A root-only file with the token.")
    node_label: tuple[str, ...] = keys(LABEL, ["nvidia.com/gpu=present"], "Labels of this node.")
    node_taint: tuple[str, ...] = keys(
        TAINT,
        ["nvidia.com/gpu=present:NoSchedule"],
        "Taints of this node, at its registration.",
    )
    node_name: str | None = key(optional(NODE_NAME), None, "The Node's name.")
    with_node_id: bool | None = _flag("Append an id of this machine to the Node's name.")
    node_name_from_cloud_provider_metadata: bool | None = _flag("The Node's name is the cloud's.")
    data_dir: str | None = key(optional(FOLDER), None, "RKE2's data folder.")
    node_ip: tuple[str, ...] = keys(ADDRESS, [], "Addresses of this node, one of each family.")
    node_external_ip: tuple[str, ...] = keys(ADDRESS, [], "External addresses of this node.")
    node_internal_dns: tuple[str, ...] = keys(NAME, [], "Internal names of this node.")
    node_external_dns: tuple[str, ...] = keys(NAME, [], "External names of this node.")
    bind_address: str | None = key(optional(ADDRESS), None, "The address RKE2 listens on.")
    resolv_conf: str | None = _path("The kubelet's resolv.conf.")
    kubelet_arg: tuple[str, ...] = keys(ARGUMENT, [], "Arguments for the kubelet, key=value.")
    kube_proxy_arg: tuple[str, ...] = keys(ARGUMENT, [], "Arguments for kube-proxy, key=value.")
    private_registry: str | None = _path("RKE2's registries file.")
    selinux: bool | None = _flag("Run containerd with SELinux.")
    lb_server_port: int | None = key(
        optional(number(2, 65535)), None, "The agent's local balancer (6444)."
    )
    protect_kernel_defaults: bool | None = _flag("Refuse kernel settings unlike the kubelet's.")
    snapshotter: str | None = _text("containerd's snapshotter.")
    default_runtime: str | None = key(
        optional(choice("nvidia", "nvidia-cdi", "crun")), None, "containerd's default runtime."
    )
    container_runtime_endpoint: str | None = _text("Another container runtime's socket.")
    disable_default_registry_endpoint: bool | None = _flag("Only mirrors from registries.yaml.")
    nonroot_devices: bool | None = _flag("Let non-root containers use devices.")
    image_credential_provider_bin_dir: str | None = _path("Credential provider programs.")
    image_credential_provider_config: str | None = _path("Credential provider configuration.")
    airgap_extra_registry: tuple[str, ...] = keys(REGISTRY, [], "Registries to tag images for.")
    enable_pprof: bool | None = _flag("RKE2's profiling endpoint.")
    debug: bool | None = _flag("RKE2's debug log.")
    profile: str | None = key(
        optional(choice("cis", "etcd")), None, "Hardening checks at RKE2's start."
    )
    cloud_provider_name: str | None = _text("A cloud provider's name.")
    cloud_provider_config: str | None = _path("A cloud provider's configuration file.")
    kubelet_path: str | None = _path("Another kubelet program.")
    runtime_image: str | None = _text("Another image with RKE2's binaries.")
    pause_image: str | None = _text("Another pause image.")
    kube_proxy_image: str | None = _text("Another kube-proxy image.")
    kube_proxy_extra_mount: tuple[str, ...] = keys(MOUNT, [], "More mounts of kube-proxy's pod.")
    kube_proxy_extra_env: tuple[str, ...] = keys(
        ENVIRONMENT, [], "More variables of kube-proxy's pod."
    )
    control_plane_resource_requests: tuple[str, ...] = keys(
        ARGUMENT, [], "Requests of RKE2's own pods, such as kube-proxy-cpu=100m."
    )
    control_plane_resource_limits: tuple[str, ...] = keys(
        ARGUMENT, [], "Limits of RKE2's own pods, such as kube-proxy-memory=128M."
    )
    control_plane_probe_configuration: tuple[str, ...] = keys(
        ARGUMENT, [], "Probes of RKE2's own pods, such as kube-proxy-startup-failure-threshold=24."
    )


def given(agent: Agent) -> dict[str, Any]:
    """RKE2's settings that differ from the defaults, by RKE2's names."""
    return {
        item.name.replace("_", "-"): getattr(agent, item.name)
        for item in fields(agent)
        if getattr(agent, item.name) != item.default
    }


def check(agent: Agent, reading: Reader) -> None:
    """Note what of the settings breaks a join, however RKE2 gets them."""
    if double := labels.twice(labels.taint(text) for text in agent.node_taint):
        reading.problem(
            "rke2.config.node-taint",
            f"taint {double.key}:{double.effect} stands twice, which ends rke2-agent",
            "each key and effect once",
        )
    label_keys = [labels.label(text).key for text in agent.node_label]
    for name in sorted({name for name in label_keys if label_keys.count(name) > 1}):
        reading.problem("rke2.config.node-label", f"label {name} stands twice", "each key once")
    families = [ipaddress.ip_address(text).version for text in agent.node_ip]
    if len(set(families)) != len(families):
        reading.problem(
            "rke2.config.node-ip",
            "has two addresses of one family, which ends the kubelet",
            "one IPv4 address, one IPv6 address, or one of each",
        )
    for text in agent.kubelet_arg:
        name = text.partition("=")[0]
        if name in OURS:
            reading.problem(
                "rke2.config.kubelet-arg",
                f"{name} replaces what RKE2 tells the kubelet",
                f"{OURS[name]} instead",
            )


def check_agent(agent: Agent, reading: Reader) -> None:
    """Note what agent mode needs and lacks, and keys that contradict each other."""
    if not agent.server and not reading.given(SERVER):
        reading.problem(SERVER, "is not set", "the supervisor, https://HOST:9345")
    named = ("rke2.config.token", "rke2.config.token-file")
    if not agent.token and not agent.token_file and not any(map(reading.given, named)):
        reading.problem("rke2.config", "has neither token-file nor token", "one of the two")
    if agent.token and agent.token_file:
        reading.problem("rke2.config.token", "stands beside token-file", "one of the two")
    if agent.node_external_ip and (agent.cloud_provider_name or agent.cloud_provider_config):
        reading.problem(
            "rke2.config.node-external-ip", "cannot stand beside a cloud provider", "one of them"
        )
    if agent.node_name and agent.node_name_from_cloud_provider_metadata:
        reading.problem(
            "rke2.config.node-name",
            "stands beside node-name-from-cloud-provider-metadata",
            "one of the two",
        )
    if agent.container_runtime_endpoint:
        for name in ("default_runtime", "snapshotter"):
            if getattr(agent, name):
                reading.problem(
                    f"rke2.config.{name.replace('_', '-')}",
                    "stands beside container-runtime-endpoint: it is for RKE2's own containerd",
                    "one of the two",
                )
