"""RKE2's configuration: what its files say together, and the one drop-in that is ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from gpuboot import certificate, labels
from gpuboot.errors import Code, GpubootError
from gpuboot.labels import Taint
from gpuboot.reader import Loader
from gpuboot.secret import Secret, blotted
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

MAIN = "/etc/rancher/rke2/config.yaml"
FOLDER = "/etc/rancher/rke2/config.yaml.d"
FILE = f"{FOLDER}/60-gpuboot.yaml"
RANCHER = f"{FOLDER}/50-rancher.yaml"
DATA = "/var/lib/rancher/rke2"

FOREIGN_CONFIG = Code(
    "GB510",
    "RKE2's own configuration contradicts gpuboot's",
    (
        "Another file sets the same label or taint to another value.",
        "A file read after ours replaces the whole list of labels or taints.",
        "A file cannot be parsed, which ends rke2-agent.",
    ),
    ("ls /etc/rancher/rke2/config.yaml.d", "gpuboot config show"),
    evidence="RKE2's files, merged as RKE2 does it, with the file that each value came from",
)


# What PyYAML raises beside its own errors, for nesting without an end or for a value that is not
# what it looks like, such as a date of the 99th.
STUMBLES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
UNREADABLE = (yaml.YAMLError, *STUMBLES)


@dataclass(frozen=True)
class Merged:
    """What RKE2 makes of some of its files: the values of each key, and where each came from."""

    values: dict[str, list[str]] = field(default_factory=dict)
    files: dict[tuple[str, str], str] = field(default_factory=dict)  # by key and value


@dataclass(frozen=True)
class Rke2Config:
    """Our drop-in holds agent mode's settings, and the labels and taints that others lack."""

    name: ClassVar[str] = "rke2-config"
    disruptive: ClassVar[bool] = False

    settings: Mapping[str, Any]  # RKE2's own keys, without labels and taints
    labels: tuple[str, ...]
    taints: tuple[str, ...]

    def check(self, host: Host) -> Finding:
        text = host.read(FILE)
        forms = [self.text(host)]
        if registered(host, self.data_dir(host)):
            # Once the Node carries the taints they leave the file; only the API server knows.
            forms.append(self.text(host, without_taints=True))
        if text not in forms:
            return Pending(f"{FILE} is not written" if text is None else f"{FILE} differs")
        if host.mode(FILE) != 0o600:
            return Pending(f"{FILE} can be read by others")
        return Ok(f"{FILE} is written")

    def apply(self, host: Host) -> None:
        host.write(FILE, self.text(host), mode=0o600)

    def writes(self, host: Host) -> Mapping[str, str]:
        return {FILE: self.text(host)}

    def data_dir(self, host: Host) -> str:
        return data_dir(host, self.settings.get("data-dir"))

    def text(self, host: Host, *, without_taints: bool = False) -> str:
        """The drop-in's wanted content. Raises GB510."""
        _check_later(host, later_files(host))
        others = merged(host, [*earlier_files(host), *later_files(host)])
        if not registered(host, self.data_dir(host)):
            # Later the other file wins: whoever changed it must not keep a node from its cluster.
            _check_agreement(self.labels, self.taints, others)
        content = {key: _plain(value) for key, value in self.settings.items()}
        missing_labels = _missing_labels(self.labels, others)
        missing_taints = _missing_taints(self.taints, others)
        if missing_labels:
            content["node-label+"] = missing_labels
        if missing_taints and not without_taints:
            content["node-taint+"] = missing_taints
        return as_yaml(content)


def as_yaml(content: Mapping[str, object]) -> str:
    """JSON that YAML 1.1 reads the same (RKE2 has gopkg.in/yaml.v2).

    Every text is in quotes, so none is bent. YAML takes no character as the two halves that JSON
    would escape it with, so most stand there as they are; but not those that YAML takes for line
    breaks, or takes nowhere.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda char: f"\\u{ord(char[0]):04x}", text
    )


def _plain(value: object) -> object:
    """The value as it goes into the file: the one place where the token is revealed."""
    if isinstance(value, Secret):
        return value.reveal()
    return list(value) if isinstance(value, tuple) else value


def registered(host: Host, data: str) -> bool:
    """Whether this node was ever registered: RKE2 keeps the kubelet's certificate."""
    return host.exists(f"{data}/agent/client-kubelet.crt")


def registered_name(host: Host, data: str) -> str | None:
    """The Node's name in the kubelet's certificate, whichever way RKE2 came by it."""
    pem = host.read_bytes(f"{data}/agent/client-kubelet.crt")
    name = certificate.common_name(pem) if pem else None
    return name.removeprefix("system:node:") if name else None


def data_dir(host: Host, ours: str | None = None) -> str:
    """RKE2's data folder: a file after ours has the last word, then ours. Raises GB510."""
    if ours and "data-dir" not in merged(host, later_files(host)).values:
        return ours
    return setting(host, "data-dir") or DATA


def setting(host: Host, key: str) -> str | None:
    """What the files beside ours say of a key that has one value. Raises GB510."""
    found = merged(host, [*earlier_files(host), *later_files(host)]).values.get(key)
    return found[-1] if found else None


def _drop_ins(host: Host) -> list[str]:
    """Every file RKE2 would read, in its order: hidden ones too, by bytes of the name."""
    names = [name for name in host.names(FOLDER) if name.lower().endswith((".yaml", ".yml"))]
    return [f"{FOLDER}/{name}" for name in sorted(names, key=str.encode)]


def earlier_files(host: Host) -> list[str]:
    """The files RKE2 reads before ours."""
    main = [MAIN] if host.exists(MAIN) else []
    return main + [name for name in _drop_ins(host) if name.encode() < FILE.encode()]


def later_files(host: Host) -> list[str]:
    """The files RKE2 reads after ours."""
    return [name for name in _drop_ins(host) if name.encode() > FILE.encode()]


def merged(host: Host, files: Sequence[str]) -> Merged:
    """Merge as RKE2 does: a later file replaces a key, `key+` appends to it. Raises GB510."""
    result = Merged()
    for name in files:
        for key, value in _content(host, name).items():
            plain = key.removesuffix("+")
            listed = value if isinstance(value, list) else [value]
            items = [_scalar(item) for item in listed if item is not None]
            before = result.values.get(plain, []) if key.endswith("+") else []
            result.values[plain] = before + items
            result.files.update({(plain, item): name for item in items})
    return result


def _content(host: Host, name: str) -> dict[str, Any]:
    try:
        # Of several documents RKE2 reads the first.
        content = next(yaml.load_all(host.read(name) or "", Loader=Loader), None)
    except UNREADABLE as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise GpubootError(
            FOREIGN_CONFIG, f"{name}:{line}: cannot be parsed, which ends rke2-agent",
            retry=name == RANCHER,  # it is not written at once
        ) from None  # fmt: skip
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise GpubootError(FOREIGN_CONFIG, f"{name}:1: is no map, which ends rke2-agent")
    return {_scalar(key): value for key, value in content.items()}


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list, set, bytes)) or (isinstance(value, int) and value >> 63 > 0):
        # Nothing that we look at is one of these, and aliases can make a page of them fill the
        # memory.
        return f"<{type(value).__name__}>"
    return str(value)


def _missing_labels(wanted: Sequence[str], others: Merged) -> list[str]:
    there = {text.partition("=")[0] for text in others.values.get("node-label", [])}
    return [text for text in wanted if labels.label(text).key not in there]


def _missing_taints(wanted: Sequence[str], others: Merged) -> list[str]:
    there = _taints(others)
    pairs = [(text, labels.taint(text)) for text in wanted]
    return [text for text, taint in pairs if (taint.key, taint.effect) not in there]


def _taints(others: Merged) -> dict[tuple[str, str], tuple[Taint, str]]:
    """The taints and their files, by what RKE2 takes each once of. Raises GB510."""
    there: dict[tuple[str, str], tuple[Taint, str]] = {}
    for text in others.values.get("node-taint", []):
        file = others.files["node-taint", text]
        try:
            taint = labels.taint(text)
        except ValueError as error:
            raise GpubootError(
                FOREIGN_CONFIG, f"{file}: {error}, which ends rke2-agent", retry=file == RANCHER
            ) from None
        there[taint.key, taint.effect] = taint, file
    return there


def _check_agreement(ours: Sequence[str], taints: Sequence[str], others: Merged) -> None:
    """Raises GB510 for a label or taint that another file sets to another value."""
    there = dict(text.partition("=")[::2] for text in others.values.get("node-label", []))
    for text in ours:
        label = labels.label(text)
        if there.get(label.key, label.value) != label.value:
            theirs = f"{label.key}={there[label.key]}"
            # A label may stand there without the sign.
            file = others.files.get(("node-label", theirs)) or others.files["node-label", label.key]
            raise _contradiction(file, "node-label", theirs, text)
    placed = _taints(others)
    for text in taints:
        taint = labels.taint(text)
        other, file = placed.get((taint.key, taint.effect), (taint, ""))
        if other != taint:
            raise _contradiction(file, "node-taint", str(other), text)


def _contradiction(file: str, key: str, theirs: str, ours: str) -> GpubootError:
    return GpubootError(
        FOREIGN_CONFIG,
        f"{file}: {key} {blotted(theirs)} contradicts {ours} in /etc/gpuboot/config.yaml",
        hint="make both say the same, then: gpuboot run",
        retry=file == RANCHER,  # who changes the pool in Rancher knows nothing of gpuboot
    )


def _check_later(host: Host, files: Sequence[str]) -> None:
    for name in files:
        for key in ("node-label", "node-taint"):
            if key in _content(host, name):
                raise GpubootError(
                    FOREIGN_CONFIG,
                    f"{name}: {key} without '+' replaces what {FILE} adds",
                    hint=f"write {key}+ there, or name the file so that it sorts before ours",
                )
