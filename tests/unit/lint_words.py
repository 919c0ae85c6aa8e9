"""What people write into RKE2's files, cluster manifests and user-data, for their fuzzing."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from gpuboot.agentkeys import AGENT, SECRETS, SERVER
from tests.unit.words import (
    PASSWORD,
    PLAIN,
    SHAPED,
    TANGLED,
    WORDS,
    Pairs,
    Tree,
    mutated,
    neat,
    written,
)

DATA = Path(__file__).parents[1] / "data"
RKE2 = [path.read_bytes() for path in sorted((DATA / "rke2-files").rglob("*")) if path.is_file()]
RANCHER = [path.read_bytes() for path in sorted((DATA / "rancher").iterdir())]

LABELS = ["nvidia.com/gpu=present", "node-role.kubernetes.io/gpu=true", "a=b", "a=b,c=d", "=b", "a",
          "rke.cattle.io/machine=x", "a=", "-a=b"]  # fmt: skip
TAINTS = ["nvidia.com/gpu=present:NoSchedule", "nvidia.com/gpu=x:NoSchedule", "a:NoExecute", "a=b",
          "a=b:noschedule", ":NoSchedule", "a=b:NoSchedule:x"]  # fmt: skip


def lists(words: list[str]) -> st.SearchStrategy[Tree]:
    """A list of such words, and sometimes of anything."""
    return st.lists(st.one_of(st.sampled_from(words), st.sampled_from(words), WORDS), max_size=3)


def maps(keys: list[str], values: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    """A map of some of these keys, one of them perhaps twice."""
    return st.lists(st.tuples(st.sampled_from(keys), values), max_size=3).map(Pairs)


ODD: st.SearchStrategy[Tree] = st.one_of(
    WORDS, lists(["a"]), maps(["a", "", "<<"], WORDS), st.just([Pairs([("a", [[]])])])
)

# -- RKE2's own files

KEYS = [*sorted(AGENT | SERVER), *["node-label", "node-taint", "server", "token", "token"] * 20]
NEAR = ["node-lable", "node_label", "Server", "s", "t", "<<", "", "+", "node-label++"]


@st.composite
def settings(draw: st.DrawFn) -> Pairs:
    """RKE2's keys, some of them nearly right, with values that fit or do not."""
    top = Pairs()
    for _ in range(draw(st.integers(0, 5))):
        key = draw(st.sampled_from(KEYS + NEAR))
        top.append((key + draw(st.sampled_from(["", "", "+"])), draw(_setting(key))))
    return top


def _setting(key: str) -> st.SearchStrategy[Tree]:
    if key in SECRETS:
        return st.one_of(st.sampled_from(SHAPED + PLAIN + TANGLED), ODD)
    right = {"node-label": lists(LABELS), "node-taint": lists(TAINTS)}.get(key, WORDS)
    return st.one_of(right, right, ODD)


SETTINGS = st.lists(
    st.one_of(neat(settings()), written(settings()), mutated(RKE2)), min_size=1, max_size=3
)

# -- user-data: nothing in it is ever told

# Whatever is complained of holds the password, so that no complaint may quote it.
LINES = ["gpuboot run", "fi", "((", "cat <<EOF", f"# {PASSWORD}", f"gpuboot run --wait {PASSWORD}",
         f"reboot {PASSWORD}", f"set -e {PASSWORD}", f"exit {PASSWORD}", f"exec {PASSWORD}",
         f"echo root:{PASSWORD} | chpasswd", f"curl -u {PASSWORD}: https://x; systemctl reboot",
         f"export TOKEN={PASSWORD} && exit", "x" * 200 + " " * 200 + "-" * 200]  # fmt: skip
HEADERS = [*["#cloud-config\n"] * 4, *["#!/bin/sh\n"] * 4, "#!/bin/bash", "",
           "## template: jinja\n", "\n#cloud-config\n", "#cloud-config-archive\n",
           f"#!/{PASSWORD}\n", "\ufeff#cloud-config"]  # fmt: skip
NAMES = ["runcmd", "bootcmd", "write_files", "hostname", "power_state", "chpasswd", "users",
         "package_reboot_if_required"]  # fmt: skip
_OWN = f"rke2: {{config: {{token: {PASSWORD}}}}}"
_COMMAND = st.one_of(st.sampled_from(LINES), lists(["sh", "-c", *LINES]))
_FILE = st.tuples(
    st.sampled_from(["/etc/gpuboot/config.yaml", "/etc/gpuboot/config.d/1.yaml", "/root/x",
                     "/etc/rancher/rke2/config.yaml", "/etc/rancher/rke2/config.yaml.d/7.yaml"]),
    st.sampled_from(["", "{", "a: b", f"token: {PASSWORD}", _OWN,
                     "gpu:\n  count: many\n", "node-label: [node-role.kubernetes.io/x=y]\n"]),
).map(lambda one: Pairs([("path", one[0]), ("content", one[1])]))  # fmt: skip


@st.composite
def user_data(draw: st.DrawFn) -> str:
    """A cloud-config or a script, or what somebody took for one."""
    header = draw(st.sampled_from(HEADERS))
    if draw(st.booleans()):
        return header + "\n".join(draw(st.lists(st.sampled_from(LINES), max_size=5)))
    top = Pairs()
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(NAMES))
        right = st.lists(_FILE if name == "write_files" else _COMMAND, max_size=3)
        top.append((name, draw(st.one_of(right, right, _COMMAND))))
    write = neat if draw(st.integers(0, 3)) else written
    return header + str(draw(write(st.just(top))), "utf-8", "replace")


# -- manifests

DURATIONS = ["10m", "45m0s", "0s", "5m", "1h", "600", "soon", "1.5h", "9" * 400 + "h"]
POOL: dict[str, st.SearchStrategy[Tree]] = {
    "name": st.sampled_from(["gpu", "control", "no-gpu", "", *SHAPED]),
    "labels": maps(["nvidia.com/gpu", "node-role.kubernetes.io/gpu", "a", *SHAPED], WORDS),
    "machineDeploymentLabels": maps(["nvidia.com/gpu", "team", *SHAPED], WORDS),
    "taints": st.lists(maps(["key", "value", "effect"], st.one_of(
        st.sampled_from(["nvidia.com/gpu", "present", "NoSchedule", "a"]), WORDS)), max_size=3),
    "unhealthyNodeTimeout": st.sampled_from(DURATIONS),
    "nodeStartupTimeout": st.sampled_from(DURATIONS),
    "drainBeforeDelete": st.sampled_from(["true", "false", "yes"]),
    "drainBeforeDeleteTimeout": st.sampled_from(DURATIONS),
    "machineConfigRef": st.just(Pairs([("kind", "VmwarevsphereConfig"), ("name", "nc")])),
}  # fmt: skip
CONFIG = maps(["node-label", "default-runtime", "lb-server-port", "kubelet-arg", "token"],
              st.one_of(st.sampled_from(["nvidia", "1"]), lists(LABELS), ODD))  # fmt: skip


@st.composite
def _wrong(draw: st.DrawFn, right: st.SearchStrategy[Tree]) -> Tree:
    """Now and then something else. (one_of takes what is given twice for one.)"""
    return draw(ODD if draw(st.integers(0, 19)) == 7 else right)


@st.composite
def clusters(draw: st.DrawFn) -> Pairs:
    """A cluster with pools, in which anything may be of the wrong kind."""
    pools = []
    for _ in range(draw(st.integers(1, 3))):
        names = draw(st.lists(st.sampled_from(list(POOL)), min_size=2, max_size=8))
        pools.append(Pairs([(name, draw(_wrong(POOL[name]))) for name in names]))
    selector = Pairs([("config", draw(_wrong(CONFIG)))])
    if draw(st.booleans()):
        selector.append(("machineLabelSelector", draw(ODD)))
    rke = Pairs([
        ("machineGlobalConfig", draw(_wrong(CONFIG))),
        ("machineSelectorConfig", draw(_wrong(st.just([selector])))),
        ("machinePools", draw(_wrong(st.just(pools)))),
    ])  # fmt: skip
    spec = Pairs([("rkeConfig", draw(_wrong(st.just(rke))))])
    return _object("provisioning.cattle.io/v1", "Cluster", [("spec", draw(_wrong(st.just(spec))))])


@st.composite
def health_checks(draw: st.DrawFn) -> Pairs:
    """A health check of either version."""
    conditions = st.lists(maps(["timeout"], st.sampled_from(DURATIONS)))
    startup = draw(st.sampled_from(["nodeStartupTimeout", "checks"]))
    spec = Pairs([
        (startup, draw(_wrong(st.sampled_from(DURATIONS)))),
        ("unhealthyConditions", draw(_wrong(conditions))),
    ])  # fmt: skip
    return _object("cluster.x-k8s.io/v1beta1", "MachineHealthCheck", [("spec", spec)])


def _object(version: str, kind: str, more: list[tuple[str, Tree]]) -> Pairs:
    head = [("apiVersion", version), ("kind", kind), ("metadata", Pairs([("name", "nc")]))]
    return Pairs([*head, *more])


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """A file with a cluster, a health check, or a cluster and the user-data of its pools."""
    kind = draw(st.sampled_from(["cluster", "odd cluster", "check", "both", "user-data", "both"]))
    if kind == "cluster":
        return draw(neat(clusters()))
    if kind == "odd cluster":
        return draw(written(clusters()))
    if kind == "check":
        return draw(neat(health_checks()))
    text = draw(user_data())
    style = draw(st.sampled_from(["|", "|", "|2", ">", '"']))
    body = json.dumps(text) if style == '"' else style + "\n" + _indented(text)
    config = "apiVersion: rke-machine-config.cattle.io/v1\nkind: VmwarevsphereConfig\n"
    config += f"metadata: {{name: nc}}\ncloudConfig: {body}\n"
    cluster = draw(neat(clusters())) if kind == "both" else b""
    return cluster + b"\n---\n" + config.encode("utf-8", "surrogatepass")


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.split("\n"))


_FILES = st.sampled_from([manifests(), manifests(), manifests(), mutated(RANCHER)])
MANIFESTS = st.lists(_FILES.flatmap(lambda one: one), min_size=1, max_size=2)
