"""RKE2's agent settings as its files say them, and the rules that they break."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gpuboot import dropin, labels, token
from gpuboot.agentkeys import AGENT, BOOLEANS, LISTS, SECRETS, SERVER
from gpuboot.document import Value
from gpuboot.errors import Code, Elsewhere
from gpuboot.kinds import SERVER_ADDRESS, Wrong
from gpuboot.labels import Label, Taint
from gpuboot.reader import Problem
from gpuboot.secret import Secret, quoted

UNREADABLE = Code(
    "GB560",
    "RKE2 or Rancher cannot read a file",
    (
        "A tab, a missing quote or an indentation is wrong: each ends rke2-agent at its start.",
        "The file is not UTF-8, is a dangling link, or is no map of keys.",
    ),
    ("gpuboot config check", "journalctl -u rke2-agent -n 20"),
    evidence="the line at which the file cannot be read",
)
LABEL = Code(
    "GB561",
    "a label is one that no node may give itself",
    (
        "The key is below kubernetes.io or k8s.io: the kubelet never starts (rancher#45906).",
        "Key or value breaks Kubernetes' syntax, or holds a comma.",
    ),
    (
        Elsewhere("kubectl label node NODE KEY=VALUE"),
        "tail /var/lib/rancher/rke2/agent/logs/kubelet.log",
    ),
    evidence="the label, by Kubernetes' rules for keys and values",
)
TAINT = Code(
    "GB562",
    "a taint is wrong, or stands twice",
    (
        "It is not key=value:effect, or the effect is unknown: rke2-agent ends.",
        "The same key and effect stand in two files or lists: rke2-agent ends.",
    ),
    ("gpuboot config check", Elsewhere("kubectl taint node NODE KEY=VALUE:EFFECT")),
    evidence="the taint, and the files and lists that give it",
)
LOST = Code(
    "GB563",
    "a setting is lost before it reaches the node",
    (
        "A later file has the same key without '+', which replaces the whole list.",
        "RKE2 does not know the key, or does not read a file of that name.",
        "Rancher overwrites node-label and node-taint, and drops numbers.",
    ),
    ("ls -A /etc/rancher/rke2/config.yaml.d", "gpuboot config check"),
    evidence="the files in the order in which RKE2 reads them",
)
VALUE = Code(
    "GB564",
    "a value is one that RKE2 or Rancher refuses or misreads",
    (
        "YAML 1.1 reads it as a number or boolean: 0123 is 83, yes is true.",
        "It is empty, of the wrong kind, or none of the values that are allowed.",
        "A default runtime is not installed.",
    ),
    ("gpuboot config check", "journalctl -u rke2-agent -n 20"),
    evidence="the value as YAML 1.1 reads it, beside what is allowed there",
)
OPEN = Code(
    "GB565",
    "others can read or change RKE2's configuration",
    (
        "Whoever can write it can become root by it.",
        "A token in it lets others join machines of their own to the cluster.",
    ),
    ("chown root: FILE", "chmod 0600 FILE"),
    evidence="the file's owner and mode",
)
KNOWN_LATER = Code(
    "GB569",
    "something in RKE2's or Rancher's configuration that is good to know",
    ("A key has no effect on this kind of node, or has one only at the node's registration.",),
    ("gpuboot config check",),
    evidence="the keys that are set",
)

RANCHER = f"{dropin.FOLDER}/50-rancher.yaml"
MACHINE = "rke.cattle.io/machine="  # Rancher finds the Node of a machine by this label


@dataclass(frozen=True)
class Setting:
    """One key in one of RKE2's files."""

    value: Value
    name: str  # without '+'
    appends: bool

    @property
    def items(self) -> list[Value]:
        """The flags RKE2 makes of it: one an item, one of a single value."""
        if self.value.kind == "list":
            return self.value.items()
        return [self.value] if self.value.kind != "null" or not self.appends else []


Rule = Callable[[Setting], Iterator[Problem]]


def settings(top: Value) -> list[Setting]:
    """The keys of a file in their order."""
    return [
        Setting(value, key.removesuffix("+"), key.endswith("+")) for key, value in top.entries()
    ]


def check(tops: Sequence[Value]) -> list[Problem]:
    """What is wrong in RKE2's files, which are given in the order RKE2 reads them."""
    every = [one for top in tops for one in settings(top)]
    found = [problem for one in every for rule in RULES for problem in rule(one)]
    found += [problem for one in every for problem in BY_NAME.get(one.name, _nothing)(one)]
    return found + [problem for over_all in OVER_ALL for problem in over_all(every)]


# -- rules about one key ------------------------------------------------------------------------


def _nothing(_: Setting) -> Iterator[Problem]:
    yield from ()


def _known(one: Setting) -> Iterator[Problem]:
    # What Rancher writes it has looked up for this release.
    if one.name in AGENT or one.value.file == RANCHER:
        return
    if one.name in SERVER:
        yield one.value.problem(
            KNOWN_LATER, "is a server's key, which an agent skips", severity="notice"
        )
        return
    near = difflib.get_close_matches(one.name, sorted(AGENT), 1, 0.75)
    yield one.value.problem(
        LOST,
        "unknown key; RKE2 skips what it does not know"
        + (f"; did you mean {near[0]}?" if near else ""),
        severity="warning",
        hint="correct the key, or take it out",
    )


def _shaped(one: Setting) -> Iterator[Problem]:
    if one.name not in AGENT:
        return
    many = one.name in LISTS
    for item in [one.value, *one.value.items()]:
        inside = item is not one.value
        if item.kind == "map" or (item.kind == "list" and inside):
            yield item.problem(
                VALUE,
                f"is {item.what}, of which RKE2 makes one useless text",
                "a list of: key=value" if many else "a single value",
            )
    if one.value.kind == "list" and not many:
        yield one.value.problem(
            VALUE, "is a list, and RKE2 takes one value", "a single value", severity="warning"
        )
    if one.appends and not many:
        yield one.value.problem(
            VALUE,
            "has one value, to which '+' cannot append: RKE2 gives it twice",
            f"{one.name} without '+'",
            severity="warning",
        )


def _unbent(one: Setting) -> Iterator[Problem]:
    """YAML 1.1 makes other texts of some that have no quotes."""
    if one.name not in AGENT - BOOLEANS - {"node-label", "node-taint", "lb-server-port"}:
        return
    for item in one.items:
        text, printed = item.text, item.printed
        if text is None or item.kind == "null" or text == printed:
            continue
        read = f"{quoted(text)} without quotes is read as {quoted(printed or '')}"
        yield item.problem(
            VALUE,
            "without quotes is read as something else" if one.name in SECRETS else read,
            "quotes around it",
            severity="warning",
        )


def _flag(one: Setting) -> Iterator[Problem]:
    texts = [item.printed for item in one.items if item.kind != "null"]
    if one.name in BOOLEANS:
        # strconv.ParseBool
        allowed = {"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"}
        if any(text not in allowed for text in texts if text is not None):
            yield one.value.problem(VALUE, "is neither true nor false", "true or false")
    elif one.name == "lb-server-port" and any(
        not re.fullmatch(r"[0-9]{1,5}", text) for text in texts if text is not None
    ):
        yield one.value.problem(VALUE, "is no port", "a number, usually 6444")


RULES: tuple[Rule, ...] = (_known, _shaped, _unbent, _flag)


def _labels(one: Setting) -> Iterator[Problem]:
    for item in one.items:
        text = item.printed
        if text is None:
            continue
        if "," in text:
            yield item.problem(
                LABEL,
                f"label {quoted(text)} holds a comma, at which the kubelet splits its labels",
                "one item for each label",
            )
            continue
        try:
            label = labels.label(text)
        except ValueError as error:
            yield item.problem(LABEL, f"{error}: the kubelet does not start", "key=value")
            continue
        if problem := refused_label(item, label):
            yield problem


def refused_label(place: Value, label: Label) -> Problem | None:
    """A label that keeps the kubelet from starting, or that only an administrator may set."""
    refused = labels.refusal(label)
    if not refused:
        return None
    return place.problem(
        LABEL,
        f"label {label.key} {refused}; the node never joins",
        hint=f"take it out; once the node has joined: kubectl label node NODE {label}",
    )


def _taints(one: Setting) -> Iterator[Problem]:
    for item in one.items:
        if item.printed is None:
            continue
        try:
            labels.taint(item.printed)
        except ValueError as error:
            yield item.problem(TAINT, f"{error}, which ends rke2-agent", "key=value:effect")


def _server(one: Setting) -> Iterator[Problem]:
    text = one.value.text
    expected = "https://HOST:9345"
    if text is None:
        return
    if not text.strip() or one.value.kind == "null":
        yield one.value.problem(VALUE, "is empty, so rke2-agent does not start", expected)
        return
    try:
        SERVER_ADDRESS.parse(text)
    except Wrong as wrong:
        for_ever = ": RKE2 tries again for ever" if "is no https address" in str(wrong) else ""
        yield one.value.problem(VALUE, f"{wrong}{for_ever}", expected)


def _token(one: Setting) -> Iterator[Problem]:
    text = one.value.printed
    if text is None:
        return
    if not text.strip():
        yield one.value.problem(
            VALUE,
            "is empty: RKE2 says that --token is required",
            "the token, on the same line as its key",
        )
        return
    try:
        parsed = token.parse(Secret(text))
    except ValueError as error:
        yield one.value.problem(VALUE, str(error), "K10<hash>::node:<password>")
        return
    if not parsed.ca_hash and one.value.file != RANCHER:
        yield one.value.problem(
            KNOWN_LATER,
            "names no CA hash, so RKE2 trusts whoever answers first",
            "K10<hash>::node:<password>",
            severity="notice",
        )


def _profile(one: Setting) -> Iterator[Problem]:
    text = one.value.printed
    if text not in (None, "", "cis", "etcd"):
        yield one.value.problem(
            VALUE, f"{quoted(str(text))} is unknown, which ends rke2-agent", "cis or etcd"
        )


def _node_name(one: Setting) -> Iterator[Problem]:
    if not one.value.printed:
        return
    try:
        labels.node_name(one.value.printed)
    except ValueError as error:
        yield one.value.problem(VALUE, str(error))


BY_NAME: dict[str, Rule] = {
    "node-label": _labels,
    "node-taint": _taints,
    "server": _server,
    "s": _server,
    "token": _token,
    "t": _token,
    "profile": _profile,
    "node-name": _node_name,
}


# -- rules about what the files say together ----------------------------------------------------


def effective(every: Sequence[Setting]) -> dict[str, list[Value]]:
    """What counts in the end: a later file replaces a key, `key+` appends to it."""
    found: dict[str, list[Value]] = {}
    for one in every:
        before = found.get(one.name, []) if one.appends else []
        found[one.name] = before + one.items
    return found


def _twice_in_a_file(every: Sequence[Setting]) -> Iterator[Problem]:
    seen: set[tuple[str, str]] = set()
    for one in every:
        if (one.value.file, one.value.key) in seen:
            yield one.value.problem(
                LOST,
                "stands twice in this file; only the last one counts",
                "each key once",
                severity="warning",
            )
        seen.add((one.value.file, one.value.key))


def _replaced(every: Sequence[Setting]) -> Iterator[Problem]:
    """A list that a later file replaces, of which something is missing there."""
    before: dict[str, list[Value]] = {}
    for one in every:
        there = before.get(one.name, [])
        kept = {item.printed for item in one.items}
        lost = [item for item in there if item.printed not in kept]
        if one.name in LISTS and not one.appends and lost and lost[0].file != one.value.file:
            yield _replacing(one, lost)
        before[one.name] = (there if one.appends else []) + one.items


def _replacing(one: Setting, lost: Sequence[Value]) -> Problem:
    first = lost[0]
    if any((item.printed or "").startswith(MACHINE) for item in lost):
        return one.value.problem(
            LOST,
            f"replaces what {first.file}:{first.line} says, with it the label by which Rancher"
            " finds this node",
            f"{one.name}+",
        )
    if one.value.file == RANCHER:
        return first.problem(
            LOST,
            f"is replaced by {one.value.file}:{one.value.line}, which Rancher writes",
            severity="warning",
            hint=f"write {one.name}+ into a file that sorts after 50-rancher.yaml",
        )
    return one.value.problem(
        LOST,
        f"without '+' replaces what {first.file}:{first.line} says",
        f"{one.name}+",
        severity="warning",
    )


def _taints_twice(every: Sequence[Setting]) -> Iterator[Problem]:
    listed = []
    for item in effective(every).get("node-taint", []):
        with suppress(ValueError):  # told as no taint
            listed.append((item, labels.taint(item.printed or "")))
    yield from taints_twice(listed)


def taints_twice(listed: Sequence[tuple[Value, Taint]]) -> Iterator[Problem]:
    """Taints of a key and effect that stand once already, of which RKE2 dies."""
    seen: dict[tuple[str, str], Value] = {}
    for item, taint in listed:
        other = seen.setdefault((taint.key, taint.effect), item)
        if other is not item:
            place = (
                f"line {other.line}" if other.file == item.file else f"{other.file}:{other.line}"
            )
            yield item.problem(
                TAINT,
                f"taint {taint.key}:{taint.effect} stands in {place} too, which ends rke2-agent",
                "each key and effect once",
            )


def _labels_twice(every: Sequence[Setting]) -> Iterator[Problem]:
    seen: dict[str, tuple[Label, Value]] = {}
    for item in effective(every).get("node-label", []):
        try:
            label = labels.label(item.printed or "")
        except ValueError:
            continue
        other, place = seen.setdefault(label.key, (label, item))
        if other.value != label.value:
            yield item.problem(
                LABEL,
                f"label {label.key} has another value in {place.file}:{place.line}",
                "one of the two",
                severity="warning",
            )


def _together(every: Sequence[Setting]) -> Iterator[Problem]:
    found = {name: values for name, values in effective(every).items() if values}
    providers = [name for name in ("cloud-provider-name", "cloud-provider-config") if name in found]
    if providers and "node-external-ip" in found:
        yield found["node-external-ip"][0].problem(
            VALUE, f"cannot stand beside {providers[0]}: rke2-agent ends", "one of the two"
        )
    if "token" in found and "token-file" in found:
        yield found["token"][0].problem(
            LOST, "is not used: token-file is set", "one of the two", severity="warning"
        )


OVER_ALL = (_twice_in_a_file, _replaced, _taints_twice, _labels_twice, _together)
