"""Why a node does not join: rke2-agent's journal, the kubelet's log and the Node, in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpuboot.apiserver import NOT_JOINED, Node
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.supervisor import CA_MISMATCH, NOT_READY, TOKEN_MISSING, TOKEN_REFUSED, TOO_MANY
from gpuboot.web import NO_ANSWER, NO_NAME, OUT_OF_DATE, PORT_CLOSED, UNREACHABLE

RESTART = "systemctl restart rke2-agent"
KUBELET_LOG = "tail -20 /var/lib/rancher/rke2/agent/logs/kubelet.log"
FILES = "ls -l /etc/rancher/rke2 /etc/rancher/rke2/config.yaml.d"
WALK = "gpuboot run (once it is corrected: rke2-agent is restarted where the node has not joined)"

PASSWORD_REJECTED = Code(
    "GB541",
    "the cluster rejects this node's password",
    (
        "A Node of the same name exists and was made by another machine.",
        "This node was rebuilt and its old Node was not deleted.",
    ),
    (
        Elsewhere("kubectl delete node NAME (then it joins by itself)"),
        Elsewhere("rke2.config.with-node-id: true (a name of its own for every machine)"),
        Elsewhere("keep /etc/rancher/node/password over a rebuild"),
    ),
    evidence="the words of rke2-agent when the supervisor answers 403",
)
KUBELET_DIES = Code(
    "GB542",
    "the kubelet does not stay up",
    ("It refuses one of its settings, or something on the machine keeps it from starting.",),
    (KUBELET_LOG, "gpuboot config show", WALK),
    evidence="the kubelet's last lines, and how often it was started",
)
FORBIDDEN_LABEL = Code(
    "GB544",
    "a label that no node may give itself",
    (
        "The kubelet refuses labels below kubernetes.io and k8s.io, such as node-role ones.",
        "NodeRestriction keeps node-restriction.kubernetes.io for administrators.",
    ),
    (
        Elsewhere("take it out of node-label, list it under rke2.admin-labels instead"),
        Elsewhere("kubectl label node NAME KEY=VALUE (by an administrator, after the join)"),
        WALK,
    ),
    evidence="the kubelet's words, or the label in the configuration",
)
INVALID_LABEL = Code(
    "GB545",
    "a label that is none",
    ("Key or value has characters that Kubernetes does not allow, or is no KEY=VALUE.",),
    (FILES, "gpuboot config check", WALK),
    evidence="the words of rke2-agent or of the kubelet",
)
BAD_TAINT = Code(
    "GB546",
    "a taint that is none",
    ("It must be KEY=VALUE:EFFECT; effects are NoSchedule, PreferNoSchedule, NoExecute.",),
    (FILES, "gpuboot config check", WALK),
    evidence="the words of rke2-agent or of the kubelet",
)
DUPLICATE_TAINT = Code(
    "GB547",
    "a taint is given twice",
    ("Two of RKE2's files, or one of them twice, set the same key and effect.",),
    ("grep -rn taint /etc/rancher/rke2", "gpuboot config show", WALK),
    evidence="the words of rke2-agent, and the files that give the taint",
)
NO_DEFAULT_RUNTIME = Code(
    "GB548",
    "RKE2's default-runtime is not on this node",
    (
        "nvidia-container-runtime is not in the PATH of rke2-agent's unit, or was removed.",
        "default-runtime names a runtime that this node does not have.",
    ),
    ("ls -l /usr/bin/nvidia-container-runtime", "grep -rn default-runtime /etc/rancher/rke2", WALK),
    evidence="the words of rke2-agent",
)
CIS_SYSCTL = Code(
    "GB549",
    "RKE2's CIS profile wants other kernel settings",
    ("profile: cis is set, and the settings it asks for are not in force.",),
    (
        "cp /usr/local/share/rke2/rke2-cis-sysctl.conf /etc/sysctl.d/60-rke2-cis.conf",
        "systemctl restart systemd-sysctl",
        "sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops",
    ),
    evidence="the words of rke2-agent, and the settings in /proc/sys",
)
SETTING_REFUSED = Code(
    "GB550",
    "RKE2 refuses one of its settings",
    ("A file of RKE2's, or its environment, holds a value that rke2-agent ends at.",),
    (FILES, "gpuboot config show", "cat /etc/default/rke2-agent", WALK),
    evidence="the words of rke2-agent",
)
BAD_ARGUMENT = Code(
    "GB551",
    "the kubelet refuses one of its arguments",
    ("A kubelet-arg names a flag that this kubelet does not have, or gives it a wrong value.",),
    ("grep -rn kubelet-arg /etc/rancher/rke2", KUBELET_LOG, WALK),
    evidence="the kubelet's words",
)
NOT_YAML = Code(
    "GB552",
    "RKE2 cannot read one of its YAML files",
    ("A file in /etc/rancher/rke2 or its drop-in folder has an error of syntax.",),
    (FILES, "journalctl -u rke2-agent -n 20", "gpuboot run (once it is corrected)"),
    evidence="the words of rke2-agent",
)
KERNEL_DEFAULTS = Code(
    "GB553",
    "the kubelet wants other kernel settings",
    ("protect-kernel-defaults is set, and the settings it asks for are not in force.",),
    (
        "sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops",
        "cp /usr/local/share/rke2/rke2-cis-sysctl.conf /etc/sysctl.d/60-rke2-cis.conf",
        "systemctl restart systemd-sysctl",
    ),
    evidence="the kubelet's words, and the settings in /proc/sys",
)
NO_NETWORK = Code(
    "GB554",
    "the network plugin (CNI) of this node is not up",
    (
        "Its pod cannot start here: no image, a taint it does not tolerate, no connection.",
        "In the first minutes of a node this is usual: the plugin's images are fetched.",
    ),
    (
        Elsewhere("kubectl -n kube-system get pods -o wide --field-selector spec.nodeName=NAME"),
        "ls /etc/cni/net.d",
        "ls /var/log/pods",
    ),
    evidence="the Node's Ready condition, and its reason",
)
UNINITIALIZED = Code(
    "GB555",
    "no cloud provider has initialised this node",
    (
        "The cluster's cloud controller (such as rancher-vsphere-cpi) does not run.",
        "It does not know this machine: another data centre, or no rights to see it.",
    ),
    (
        Elsewhere("kubectl -n kube-system get pods | grep -e cloud -e cpi"),
        Elsewhere("kubectl describe node NAME"),
    ),
    evidence="the Node's taint of an uninitialised cloud provider",
)

CLUSTERS = (NO_NETWORK, UNINITIALIZED)  # no file on the node has to do with these
UNINITIALIZED_TAINT = "node.cloudprovider.kubernetes.io/uninitialized"


@dataclass(frozen=True)
class Seen:
    """What there is to see of a node that wants to join.

    `journal` is rke2-agent's, of its last start alone; `seconds` is how long that is ago. `node`
    is the Node where the API server has it; `kubelet` the end of the kubelet's log.
    """

    name: str
    journal: str = ""
    kubelet: str = ""
    node: Node | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Sign:
    """One row: where this pattern is found, it is that code.

    `says` takes the pattern's groups and {name}; `each`, if given, is said once for every match.
    For the first `patience` seconds of rke2-agent it may be so without anything being wrong.
    """

    code: Code
    pattern: str
    says: str
    each: str = ""
    hint: str | None = None
    patience: float = 0.0


# rke2-agent asks its server, through a load balancer of its own on loopback.
_ASKING = r"(?:Failed to validate connection|failed to get CA certs|Waiting to retrieve)[^\n]*?"
_SYSCTL = r"(?P<key>[\w./]+)"

# What rke2-agent writes to its journal (facts: rke2 1 and 2; k3s pkg/agent, rke2 pkg/cli/cmds).
JOURNAL = (
    Sign(PASSWORD_REJECTED, r"Node password rejected",
         "the cluster rejects this node's password: another machine had the node name {name}"
         " (delete that Node, or set rke2.config.with-node-id: true, or bring back its"
         " /etc/rancher/node/password)",
         hint="kubectl delete node {name}"),
    Sign(SETTING_REFUSED, r"--(?P<flag>server|token) is required",
         "rke2-agent ends: none of its files sets {flag}"),
    Sign(SETTING_REFUSED, r"only https:// URLs are supported",
         "rke2-agent only takes an https:// address for server"),
    Sign(SETTING_REFUSED, r"invalid value provided for --profile flag",
         "rke2-agent ends: it does not know the profile (it knows cis and etcd)"),
    Sign(SETTING_REFUSED, r"(?P<what>--protect-kernel-defaults must be true when using [^\n\"]+)",
         "rke2-agent ends: {what}"),
    Sign(SETTING_REFUSED, r"can't set node-external-ip while using cloud provider",
         "rke2-agent ends: node-external-ip and a cloud provider exclude each other"),
    Sign(SETTING_REFUSED, r"(?P<what>flag (?:provided but not defined|needs an argument): [^\s\"]+"
                          r"|invalid (?:boolean )?value .{0,80}? for (?:flag )?-{1,2}[\w-]+)",
         "rke2-agent ends: {what}"),
    Sign(TOKEN_MISSING, r"Waiting for (?P<file>/\S+) to be available",
         "rke2-agent waits for the token file {file}", hint="ls -l {file}"),
    Sign(TOKEN_MISSING, _ASKING + r"(?:invalid token (?:format|CA hash)|token must)",
         "rke2-agent cannot read its token"),
    Sign(SETTING_REFUSED, r"level=fatal[^\n]*open (?P<file>/[^\s:]+): no such file or directory",
         "rke2-agent ends: there is no {file}", hint="ls -l {file}"),
    Sign(NOT_YAML, r"(?P<what>yaml: [^\n\"]{1,160})",
         "rke2-agent cannot read one of its YAML files: {what}"),
    Sign(BAD_TAINT, r"failed to parse node taints: (?P<what>[^\n\"]{1,160})",
         "rke2-agent ends at a taint: {what}"),
    Sign(DUPLICATE_TAINT, r"duplicated taints with the same key and effect:"
                          r" \{(?P<key>\S+) (?P<value>\S*) (?P<effect>\w+)",
         "rke2-agent ends: the taint {key} with the effect {effect} is given twice"),
    Sign(NO_DEFAULT_RUNTIME, r"default runtime (?P<runtime>\S+) was not found",
         "rke2-agent ends: its default-runtime {runtime} is not on this node"),
    Sign(CIS_SYSCTL, rf"invalid kernel parameter value {_SYSCTL}=(?P<found>\S+)"
                     r" - expected (?P<wanted>-?\d+)",
         "RKE2's CIS profile wants other kernel settings: ",
         each="{key} is {found} and must be {wanted}"),
    Sign(FORBIDDEN_LABEL, r"is not allowed to (?:set the following|modify) labels:"
                          r" (?P<labels>[^\n\"]{1,200})",
         "the API server refuses labels that only an administrator may set: {labels}"),
    Sign(CA_MISMATCH, r"token CA hash does not match the Cluster CA certificate hash",
         "rke2-agent finds another CA than the one in its token"),
    Sign(OUT_OF_DATE, _ASKING + r"(?:certificate has expired|not yet valid)",
         "the server's certificate is not valid by this node's clock"),
    Sign(CA_MISMATCH, _ASKING + r"(?:x509: certificate signed by unknown authority"
                                r"|CERTIFICATE_VERIFY_FAILED)",
         "the server's certificate is not from the cluster's CA"),
    Sign(TOKEN_REFUSED, _ASKING + r"\b(?P<status>401 Unauthorized|403 Forbidden)",
         "the server refuses rke2-agent's token ({status})"),
    Sign(TOO_MANY, _ASKING + r"429 Too Many Requests",
         "the server is asked by too many at once (429)"),
    Sign(NOT_READY, _ASKING + r"(?:503 Service Unavailable|runtime core not ready)",
         "the server is not ready (503)", patience=20.0),
    Sign(NO_NAME, _ASKING + r"(?:no such host|Name or service not known"
                            r"|[Tt]emporary failure in name resolution)",
         "the server's name does not resolve", patience=20.0),
    Sign(PORT_CLOSED, _ASKING + r"[Cc]onnection refused",
         "the server refuses rke2-agent's connection", patience=20.0),
    Sign(NO_ANSWER, _ASKING + r"(?:i/o timeout|deadline exceeded|Client\.Timeout|timed out)",
         "the server does not answer rke2-agent in time", patience=20.0),
    # What its own load balancer makes of a server that cannot be had.
    Sign(UNREACHABLE, _ASKING + r"(?:EOF|reset by peer|no route to host|is unreachable|Remote end)",
         "rke2-agent cannot reach the server", patience=20.0),
    # And whatever else it says why it waits: the last row, for what no other one knows.
    Sign(NOT_JOINED, r"(?:Failed to validate connection to cluster at \S+"
                     r"|Waiting to retrieve [\w -]+; server is not ready): (?P<what>[^\n]{1,300})",
         "rke2-agent waits: {what}", patience=60.0),
)  # fmt: skip

# What the kubelet writes to its own log before it ends: the journal only has that it ended
# (facts: rke2 1 and 4; kubernetes cmd/kubelet/app).
KUBELET = (
    Sign(FORBIDDEN_LABEL, r"unknown 'kubernetes\.io' or 'k8s\.io' labels specified with"
                          r" --node-labels: \[(?P<labels>[^\]\n]*)\]",
         "the kubelet refuses labels that no node may give itself: {labels}"),
    Sign(INVALID_LABEL, r"invalid node labels: (?P<what>[^\n]{1,200})",
         "the kubelet refuses a label: {what}"),
    Sign(INVALID_LABEL, r"invalid argument (?P<what>[^\n]{1,120}?) for \W*--node-labels",
         "the kubelet refuses the labels {what}"),
    Sign(BAD_TAINT, r"invalid argument (?P<what>[^\n]{1,120}?) for \W*--register-with-taints",
         "the kubelet refuses the taints {what}"),
    Sign(BAD_ARGUMENT, r"(?P<what>unknown (?:shorthand )?flag: [^\s\"]+"
                       r"|invalid argument [^\n]{1,120}? for \W*--[\w-]+\"?)",
         "the kubelet refuses an argument: {what}"),
    Sign(BAD_ARGUMENT, r"failed to (?:validate|load) kubelet config\w*,? (?P<what>[^\n]{1,200})",
         "the kubelet refuses its configuration: {what}"),
    Sign(KERNEL_DEFAULTS, rf"invalid kernel flag: {_SYSCTL}, expected value: (?P<wanted>-?\d+),"
                          r" actual value: (?P<found>-?\d+)",
         "the kubelet wants other kernel settings (protect-kernel-defaults): ",
         each="{key} is {found} and must be {wanted}"),
)  # fmt: skip

# What it writes while it lives and cannot register the Node: its last lines are about now.
REGISTERING = (
    Sign(UNREACHABLE, r"https://127\.0\.0\.1:\d+/api[^\n]*(?:EOF|[Cc]onnection refused"
                      r"|reset by peer|i/o timeout|timed out|Remote end closed)",
         "the kubelet cannot reach the API server, which is on port 6443 of the servers",
         hint="curl -vk https://SERVER:6443/readyz (that port must be open to all servers)",
         patience=30.0),
)  # fmt: skip

# Why the Node itself says that it is not Ready.
NODE = (
    Sign(NO_NETWORK, r"NetworkPluginNotReady|cni plugin not initialized|network not ready",
         "node {name} is not Ready: its network plugin (CNI) is not up",
         hint="kubectl -n kube-system get pods -o wide --field-selector spec.nodeName={name}",
         patience=60.0),
)  # fmt: skip

_CLOUD_PATIENCE = 60.0  # seconds a cloud controller may take to see a new node
_EXITS = 3  # of the kubelet, one every 5 s: none of them by chance
# What comes before these lines in a journal is over.
_PROGRESS = re.compile(
    r"Running kubelet |labels have (?:been set successfully|already set) on node"
    r"|agent is up and running"
)
_EXIT = re.compile(r"Kubelet exited: [^\n\"]*")
_ABOUT_NOW = 12  # lines at the end of a living kubelet's log
# The line that tells why a kubelet ended: of several, only the last one's reason counts.
_END = re.compile(r"^(?=.*(?:\"command failed\"|Failed to start ContainerManager))", re.MULTILINE)


def diagnose(seen: Seen) -> GpubootError | None:
    """The cause, as an error that waiting can heal; None if nothing that we know is to be seen."""
    exits = _EXIT.findall(seen.journal)
    journal = _plain(_PROGRESS.split(seen.journal)[-1])
    if found := _latest(JOURNAL, journal, seen):
        return found
    kubelet = _plain(seen.kubelet)
    if exits and (found := _latest(KUBELET, _END.split(kubelet)[-1], seen)):
        return found
    if seen.node is None and _PROGRESS.search(seen.journal):
        last = "\n".join(kubelet.splitlines()[-_ABOUT_NOW:])
        if found := _latest(REGISTERING, last, seen):
            return found
    if len(exits) >= _EXITS:
        return GpubootError(
            KUBELET_DIES, "the kubelet ends again and again",
            evidence="\n".join(_errors(kubelet) or exits[-2:]), retry=True,
        )  # fmt: skip
    return _of_node(seen, seen.node) if seen.node else None


def _of_node(seen: Seen, node: Node) -> GpubootError | None:
    if not node.ready:
        return _latest(NODE, node.not_ready_because, seen)
    waits = any(taint.key == UNINITIALIZED_TAINT for taint in node.taints)
    if waits and seen.seconds >= _CLOUD_PATIENCE:
        return GpubootError(
            UNINITIALIZED,
            f"node {node.name} waits for a cloud provider to initialise it",
            hint=f"kubectl describe node {node.name}", evidence=UNINITIALIZED_TAINT, retry=True,
        )  # fmt: skip
    return None


def _latest(signs: tuple[Sign, ...], text: str, seen: Seen) -> GpubootError | None:
    """By the sign that was seen last: what was so before may have healed."""
    best: tuple[int, Sign] | None = None
    for sign in signs:
        if sign.patience > seen.seconds:
            continue
        starts = [match.start() for match in re.finditer(sign.pattern, text)]
        if starts and (best is None or starts[-1] > best[0]):
            best = starts[-1], sign
    return _error(best[1], text, seen) if best else None


def _error(sign: Sign, text: str, seen: Seen) -> GpubootError:
    matches = list(re.finditer(sign.pattern, text))
    values = {"name": seen.name, **_trimmed(matches[-1].groupdict())}
    told = dict.fromkeys(sign.each.format(**match.groupdict()) for match in matches)
    return GpubootError(
        sign.code,
        sign.says.format(**values) + "; ".join(told),
        hint=sign.hint.format(**values) if sign.hint else None,
        evidence="\n".join(_lines(text, matches)),
        retry=True,
    )


def _trimmed(values: dict[str, str]) -> dict[str, str]:
    """Without the quotation mark at the end that belongs to the log's own quoting."""
    return {
        key: value[:-1] if value.endswith('"') and value.count('"') % 2 else value
        for key, value in values.items()
    }


def _lines(text: str, matches: list[re.Match[str]]) -> list[str]:
    """The last lines with a match, each once."""
    found: dict[str, None] = {}
    for match in matches:
        start = text.rfind("\n", 0, match.start()) + 1
        line, _, _ = text[start:].partition("\n")
        found.setdefault(line.strip()[:600])
    return list(found)[-4:]


def _errors(kubelet: str) -> list[str]:
    lines = kubelet.splitlines()
    return [line for line in lines if re.search(r"failed|error|unknown|invalid", line, re.I)][-5:]


def _plain(text: str) -> str:
    r"""Log lines with their own quoting undone, as far as patterns care: \" and \n."""
    return text.replace('\\"', '"').replace("\\n", "\n")
