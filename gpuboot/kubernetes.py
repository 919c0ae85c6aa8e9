"""Whether this node is a member of its cluster, and if it is not, why and what we can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apiserver, containerd, diagnosis, dropin, labels, rke2, systemd
from gpuboot.apiserver import NOT_JOINED, ApiServer, Node, minor
from gpuboot.clock import stamp
from gpuboot.diagnosis import UNINITIALIZED_TAINT, Seen
from gpuboot.dropin import Rke2Config
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.step import Finding, Ok, Pending, Waiting

if TYPE_CHECKING:
    from gpuboot.host import Host
    from gpuboot.systemd import Start, Unit

NO_RUNTIME = Code(
    "GB543",
    "RKE2 has not found the NVIDIA container runtime",
    (
        "nvidia-container-runtime is not in the PATH of rke2-agent's unit.",
        "rke2-agent was started before the toolkit was installed.",
        "A config.toml.tmpl of somebody's own leaves RKE2's runtimes out.",
    ),
    (
        "systemctl restart rke2-agent (drain the node first)",
        "ls -l /usr/bin/nvidia-container-runtime",
        "ls /var/lib/rancher/rke2/agent/etc/containerd",
    ),
    evidence="the runtimes in the containerd configuration that RKE2 has generated",
)
TOO_NEW = Code(
    "GB556",
    "this node's RKE2 is newer than its servers",
    ("Kubernetes allows an agent to be older than its servers, and never newer.",),
    (
        Elsewhere("upgrade the servers first"),
        Elsewhere("rke2.version: a release that is not newer, for nodes that are made from now on"),
    ),
    evidence="the versions that rke2 and the supervisor tell",
)
DIFFERS = Code(
    "GB557",
    "the Node differs from what is wanted, and only an administrator can change that",
    (
        "RKE2 sets taints only when a node registers, and no node may change its own.",
        "The configuration was changed after the node had joined, or somebody took them away.",
    ),
    ("gpuboot status (it names each difference, and the kubectl line)",),
    evidence="the own Node's labels and taints, beside the configured ones",
)

JOIN_TIMEOUT = 300.0  # seconds we look on before we call it waiting: images have to be fetched
POLL = 2.0
JOURNAL_LINES = 80
KUBELET_TAIL = 16 << 10  # bytes: the log itself may have 50 MB
HEALTHZ = "http://127.0.0.1:10248/healthz"
RKE2_FOLDER = "/etc/rancher/rke2"
RUNTIME = "/usr/bin/nvidia-container-runtime"
# The releases whose servers bring RuntimeClasses along (chart rke2-runtimeclasses).
RUNTIME_CLASS = "nvidia"
SHIPS_RUNTIME_CLASS = "v1.29.13, v1.30.9, v1.31.5 and v1.32.1"


@dataclass(frozen=True)
class NodeJoined:
    """The own Node is Ready, with its labels and taints, and containerd has the nvidia runtime."""

    name: ClassVar[str] = "node-joined"
    disruptive: ClassVar[bool] = False

    config: Rke2Config
    node_name: str | None
    with_node_id: bool
    admin_labels: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()  # keys of labels that the node must not have any more
    timeout: float = field(default=JOIN_TIMEOUT, compare=False)

    def check(self, host: Host) -> Finding:
        unit = systemd.unit(host, rke2.AGENT)
        if problem := _unhealthy(host, unit):
            return self._amiss(host, unit, problem)
        try:
            server = apiserver.connect(host, self.config.data_dir(host))
            node = server.node(host, self._own_name(host))
        except GpubootError as error:
            return self._amiss(host, unit, error.message)
        if not node.ready:
            problem = f"node {node.name} is not Ready: {node.not_ready_because}"
            return self._amiss(host, unit, problem, node)
        if any(taint.key == UNINITIALIZED_TAINT for taint in node.taints):
            problem = f"node {node.name} waits for the cloud provider to initialise it"
            return self._amiss(host, unit, problem, node)
        if self._obsolete_taints(host, node):
            return Pending(f"the taints are on the Node and still in {dropin.FILE}")
        if present := [key for key in self.unwanted if key in node.labels]:
            return Pending(f"node {node.name} still has the label {', '.join(present)}")
        return self._joined(host, server, node)

    def apply(self, host: Host) -> None:
        """Look on until the node is Ready; then take from the drop-in what it carries.

        Raises GpubootError with the cause as soon as one can be seen. Until the node is up, an
        rke2-agent that has not read the files as they are now is restarted.
        """
        deadline = host.clock.boottime() + self.timeout
        while True:
            self._restart_unread(host)
            self._settle(host)
            finding = self.check(host)
            if isinstance(finding, Waiting):
                raise GpubootError(
                    finding.code, finding.reason,
                    hint=finding.hint, evidence=finding.evidence, retry=True,
                )  # fmt: skip
            if not isinstance(finding, Pending):
                return
            if host.clock.boottime() > deadline or host.woken:
                evidence = systemd.journal(host, rke2.AGENT, lines=12)
                raise GpubootError(NOT_JOINED, finding.reason, evidence=evidence, retry=True)
            host.sleep(POLL)

    # -- a node that has joined

    def _joined(self, host: Host, server: ApiServer, node: Node) -> Ok:
        theirs = server.version(host) or ""
        found = [*self._differences(host, node, theirs)]
        drift = tuple(text for text, _, _ in found)
        code, hint = found[0][1:] if found else (None, None)
        to_do = (*drift, *self._unset(node), *_runtime_class(host, server, theirs))
        shown = node.shown(to_do, stamp(host.clock.now()))
        reason = f"node {node.name} is Ready in the cluster"
        return Ok(reason, drift, {"node": shown}, code, hint)

    def _differences(self, host: Host, node: Node, server: str) -> Iterator[tuple[str, Code, str]]:
        """What only an administrator, or a restart after a drain, can change, and how."""
        for what, command in lacks(node, self.config.labels, self.config.taints):
            yield f"{what}: {command}", DIFFERS, command
        yield from self._runtime_differs(host)
        ours, highest = minor(node.version), minor(server)
        if ours and highest and ours > highest:
            text = f"RKE2 {node.version} is newer than its server's {server}"
            yield f"{text} (gpuboot explain {TOO_NEW.id})", TOO_NEW, TOO_NEW.commands[0]

    def _runtime_differs(self, host: Host) -> Iterator[tuple[str, Code, str]]:
        known = containerd.runtimes(host, self.config.data_dir(host))
        told = f"(gpuboot explain {NO_RUNTIME.id})"
        if "nvidia" not in known:
            text = f"RKE2 has not found the NVIDIA container runtime {told}"
            yield text, NO_RUNTIME, NO_RUNTIME.commands[0]
        elif known["nvidia"] and not host.exists(known["nvidia"]):
            text = f"containerd's NVIDIA runtime {known['nvidia']} is gone {told}"
            yield text, NO_RUNTIME, f"ls -l {known['nvidia']}"

    def _unset(self, node: Node) -> list[str]:
        """Labels that only an administrator may set: told, and never an obstacle."""
        wanted = map(labels.label, self.admin_labels)
        return [
            f"label {label} is not set: kubectl label node {node.name} {label}"
            + (" --overwrite" if label.key in node.labels else "")
            for label in wanted
            if node.labels.get(label.key) != label.value
        ]

    def _settle(self, host: Host) -> None:
        """On a node that is up: take from it, and from our file, what must not be there."""
        if _unhealthy(host, systemd.unit(host, rke2.AGENT)):
            return
        try:
            server = apiserver.connect(host, self.config.data_dir(host))
            node = server.node(host, self._own_name(host))
        except GpubootError:
            return
        if self._obsolete_taints(host, node):
            host.write(dropin.FILE, self.config.text(host, without_taints=True), mode=0o600)
        gone = [key for key in self.unwanted if key in node.labels]
        if node.ready and gone:
            server.remove_labels(host, node.name, gone)

    def _obsolete_taints(self, host: Host, node: Node) -> bool:
        carried = all(labels.taint(text) in node.taints for text in self.config.taints)
        return (
            carried
            and node.ready
            and host.read(dropin.FILE) != self.config.text(host, without_taints=True)
        )

    # -- a node that has not

    def _amiss(
        self, host: Host, unit: Unit, problem: str, node: Node | None = None
    ) -> Pending | Waiting:
        """Not joined: because of something that we know, or nobody knows yet."""
        if not unit.live:
            return Pending(problem)
        start = systemd.last_start(host, rke2.AGENT)
        unread = self._unread(host, start)
        if unread and unit.active != "active":
            return Pending(f"{unread} has changed since rke2-agent started: it starts again")
        cause = diagnosis.diagnose(self._seen(host, start, node))
        if cause is None:
            return Pending(problem)
        hint = cause.hint
        if unread and cause.code not in diagnosis.CLUSTERS:
            hint = f"{diagnosis.RESTART} (it has not read {unread} as it is now)"
        return Waiting(cause.message, cause.code, hint, cause.evidence)

    def _seen(self, host: Host, start: Start | None, node: Node | None) -> Seen:
        invocation = start.invocation if start else ""
        log = host.tail(f"{self.config.data_dir(host)}/agent/logs/kubelet.log", KUBELET_TAIL)
        return Seen(
            name=self._own_name(host),
            journal=systemd.journal(host, rke2.AGENT, lines=JOURNAL_LINES, invocation=invocation),
            kubelet=host.mask(log),
            node=node,
            seconds=start.age if start else 0.0,
        )

    def _restart_unread(self, host: Host) -> None:
        """Nothing but a start makes rke2-agent read its files: never done once it is up.

        Before that it holds nothing that a restart would disturb; and where its process has
        ended, systemd starts another one anyway.
        """
        start = systemd.last_start(host, rke2.AGENT)
        starting = systemd.unit(host, rke2.AGENT).active == "activating"
        if start and start.process and starting and self._unread(host, start):
            systemd.restart_later(host, rke2.AGENT)

    def _unread(self, host: Host, start: Start | None) -> str | None:
        """A file that rke2-agent reads when it starts, and that has changed since it did.

        By ages, which no clock that was set in between can turn into a restart for ever: after
        a restart, whatever the clock said, every file is older than the process.
        """
        if start is None:
            return None
        now = host.clock.now()
        for name in self._read_at_start(host):
            changed = host.changed(name)
            if changed and 0 <= (now - changed).total_seconds() < start.age:
                return name
        return None

    def _read_at_start(self, host: Host) -> list[str]:
        own = [f"{dropin.FOLDER}/{name}" for name in host.names(dropin.FOLDER)]
        beside = [f"{RKE2_FOLDER}/{name}" for name in host.names(RKE2_FOLDER)]
        token = self.config.settings.get("token-file") or dropin.setting(host, "token-file")
        tokens = [str(token)] if token else []
        return [*own, *beside, RKE2_FOLDER, *tokens, *rke2.ENVIRONMENT, RUNTIME]

    def _own_name(self, host: Host) -> str:
        if name := dropin.registered_name(host, self.config.data_dir(host)):
            return name
        wanted = self.node_name or dropin.setting(host, "node-name")
        with_id = self.with_node_id or dropin.setting(host, "with-node-id") == "true"
        return apiserver.own_name(host, wanted, with_id=with_id)


def lacks(node: Node, wanted: Iterable[str], taints: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each wanted label and taint that the Node has not, in words, and the line that sets it."""
    for label in map(labels.label, wanted):
        if node.labels.get(label.key) != label.value:
            overwrite = " --overwrite" if label.key in node.labels else ""
            command = f"kubectl label node {node.name} {label}{overwrite}"
            yield f"label {label} is missing", command
    there = {(taint.key, taint.effect): taint for taint in node.taints}
    for taint in map(labels.taint, taints):
        other = there.get((taint.key, taint.effect))
        if other != taint:
            # RKE2 sets taints only when a node registers.
            overwrite = " --overwrite" if other else ""
            command = f"kubectl taint node {node.name} {taint}{overwrite}"
            yield f"taint {taint} is missing", command


def _unhealthy(host: Host, unit: Unit) -> str | None:
    if unit.active != "active":
        return f"rke2-agent is {unit.active}"
    return None if kubelet_answers(host) else "the kubelet does not answer yet"


def kubelet_answers(host: Host) -> bool:
    """Whether the kubelet calls itself healthy."""
    try:
        return host.web.get(HEALTHZ).status == 200
    except GpubootError:
        return False


def _runtime_class(host: Host, server: ApiServer, version: str) -> list[str]:
    """What pods name to get the GPU: the servers' business, so it is only told."""
    if not server.lacks_runtime_class(host, RUNTIME_CLASS):
        return []
    shipped = f"RKE2 ships it since {SHIPS_RUNTIME_CLASS}; the server is {version or 'unknown'}"
    return [f"RuntimeClass {RUNTIME_CLASS} is missing ({shipped}): kubectl get runtimeclass"]
