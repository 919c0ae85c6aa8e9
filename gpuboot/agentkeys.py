"""The keys that RKE2 knows in its configuration files, and what kind of value each takes."""

from __future__ import annotations

from dataclasses import fields

from gpuboot import settings

# pkg/cli/cmds/agent.go and root.go of RKE2, beside those that gpuboot passes through itself.
_PASSED = {item.name.replace("_", "-"): item for item in fields(settings.Agent)}
AGENT = frozenset(_PASSED) | {
    "s", "t", "v", "vmodule", "log", "alsologtostderr", "system-default-registry",
    "node-name-from-cloud-provider-metadata", "audit-policy-file",
    "pod-security-admission-config-file", "control-plane-resource-requests",
    "control-plane-resource-limits", "control-plane-probe-configuration",
    *(f"{part}-image" for part in (
        "kube-apiserver", "kube-controller-manager", "cloud-controller-manager", "kube-scheduler",
        "etcd", "kube-proxy", "pause", "runtime",
    )),
    *(f"{part}-extra-{what}" for what in ("mount", "env") for part in (
        "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kube-proxy", "etcd",
        "cloud-controller-manager",
    )),
}  # fmt: skip
# pkg/cli/cmds/server.go: an agent skips them with a warning.
SERVER = frozenset({
    "advertise-address", "agent-token", "agent-token-file", "cluster-cidr", "cluster-dns",
    "cluster-domain", "cluster-reset", "cluster-reset-restore-path", "cni", "datastore-cafile",
    "datastore-certfile", "datastore-endpoint", "datastore-keyfile", "disable", "disable-agent",
    "disable-apiserver", "disable-cloud-controller", "disable-controller-manager", "disable-etcd",
    "disable-kube-proxy", "disable-scheduler", "egress-selector-mode", "embedded-registry",
    "enable-servicelb", "etcd-arg", "etcd-disable-snapshots", "etcd-expose-metrics", "etcd-s3",
    "etcd-s3-access-key", "etcd-s3-bucket", "etcd-s3-config-secret", "etcd-s3-endpoint",
    "etcd-s3-endpoint-ca", "etcd-s3-folder", "etcd-s3-insecure", "etcd-s3-proxy", "etcd-s3-region",
    "etcd-s3-secret-key", "etcd-s3-session-token", "etcd-s3-skip-ssl-verify", "etcd-s3-timeout",
    "etcd-snapshot-compress", "etcd-snapshot-dir", "etcd-snapshot-name", "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron", "helm-job-image", "ingress-controller", "kube-apiserver-arg",
    "kube-cloud-controller-manager-arg", "kube-controller-manager-arg", "kube-scheduler-arg",
    "secrets-encryption", "service-cidr", "service-node-port-range", "servicelb-namespace",
    "supervisor-metrics", "tls-san", "tls-san-security", "write-kubeconfig",
    "write-kubeconfig-group", "write-kubeconfig-mode",
})  # fmt: skip
LISTS = frozenset(
    name for name, item in _PASSED.items() if item.metadata["kind"].many
) | frozenset(
    name for name in AGENT
    if name.startswith("control-plane-") or name.endswith(("-extra-mount", "-extra-env"))
)  # fmt: skip
BOOLEANS = frozenset({
    "with-node-id", "selinux", "protect-kernel-defaults", "disable-default-registry-endpoint",
    "nonroot-devices", "enable-pprof", "debug", "node-name-from-cloud-provider-metadata",
})  # fmt: skip
SECRETS = frozenset({
    "token", "t", "agent-token", "datastore-endpoint", "etcd-s3-access-key", "etcd-s3-secret-key",
    "etcd-s3-session-token",
})  # fmt: skip
