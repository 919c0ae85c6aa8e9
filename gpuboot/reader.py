"""Typed access to YAML: every value checked once, every error with file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_type_hints

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node, ScalarNode

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file: where, which key, what, and what was expected."""

    where: str
    key: str
    message: str
    expected: str | None = None

    def __str__(self) -> str:
        name = f"{self.key}: " if self.key else ""
        wanted = f"; expected {self.expected}" if self.expected else ""
        return f"{self.where}: {name}{self.message}{wanted}"


class Wrong(ValueError):  # noqa: N818 - a finding of a parser, turned into a Problem at once
    """What a Kind's parser raises: the message, without the place."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of value: how a scalar's text becomes it, and what to say when it cannot."""

    parse: Callable[[str], T]
    expected: str
    schema: Mapping[str, Any]
    many: bool = False  # a list of such scalars


def key(kind: Kind[T], default: T, doc: str) -> T:
    """A dataclass field that is one configuration key: parser, default and documentation."""
    # The dataclass machinery replaces the field by its default; mypy is to see the value's type.
    return cast("T", field(default=default, metadata={"kind": kind, "doc": doc}))


def keys(kind: Kind[T], default: Sequence[T], doc: str) -> tuple[T, ...]:
    """Like `key`, for a list of values."""
    many = Kind(kind.parse, kind.expected, kind.schema, many=True)
    return cast("tuple[T, ...]", field(default=tuple(default), metadata={"kind": many, "doc": doc}))


# -- kinds ------------------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise Wrong(f"{text!r} is neither true nor false")


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})(s|m|h)", text)
    if not match:
        raise Wrong(f"{text!r} is not a duration")
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def _text(text: str) -> str:
    if not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise Wrong("is empty or holds a control character or line break")
    return text


def choice(*words: str) -> Kind[str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            near = difflib.get_close_matches(text, words, 1)
            raise Wrong(f"unknown value {text!r}" + (f", did you mean {near[0]}?" if near else ""))
        return text

    return Kind(parse, " | ".join(words), {"enum": list(words)})


def number(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise Wrong(f"{text!r} is not in range")
        return int(text)

    expected = f"a whole number from {low} to {high}"
    return Kind(parse, expected, {"type": "integer", "minimum": low, "maximum": high})


def pattern(regex: str, expected: str) -> Kind[str]:
    """A text of this form."""

    def parse(text: str) -> str:
        if not re.fullmatch(regex, text):
            raise Wrong(f"{text!r} does not fit")
        return text

    return Kind(parse, expected, {"type": ["string", "number"], "pattern": f"^(?:{regex})$"})


def optional(kind: Kind[T], word: str = "-") -> Kind[T | None]:
    """The same, or `word` for nothing."""

    def parse(text: str) -> T | None:
        return None if text == word else kind.parse(text)

    return Kind(
        parse, f"{kind.expected}, or {word}", {"anyOf": [{"const": word}, dict(kind.schema)]}
    )


BOOLEAN = Kind(_boolean, "true or false", {"type": "boolean"})
DURATION = Kind(
    _duration, "a duration such as 90s, 15m or 1h", {"type": "string", "pattern": "^[0-9]+[smh]$"}
)
TEXT = Kind(_text, "a text on one line", {"type": "string", "minLength": 1})


# -- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A key's node and the file it came from."""

    node: Node
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


Tree = dict[str, "Entry | Tree"]


class Reader:
    """Reads files into one tree, then the tree into dataclasses; collects every problem."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.tree: Tree = {}
        self._places: dict[str, str] = {}

    def where(self, key: str) -> str:
        """`file:line` of a key, of the nearest key above it, or "default"."""
        while key:
            if key in self._places:
                return self._places[key]
            key = key.rpartition(".")[0]
        return "default"

    def problem(self, key: str, message: str, expected: str | None = None) -> None:
        """Note that the value of a key that was read is wrong."""
        self.problems.append(Problem(self.where(key), key, message, expected))

    def add(self, file: str, text: str) -> None:
        """Merge one more file: maps merge, everything else replaces."""
        import yaml

        try:
            _no_aliases(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            what = error.problem or error.context or "cannot be read"
            self.problems.append(Problem(f"{file}:{line}", "", what, "YAML"))
        except (yaml.YAMLError, RecursionError) as error:
            # What is left is a character that YAML forbids, or nesting without end.
            what = getattr(error, "reason", None) or "cannot be read"
            self.problems.append(Problem(f"{file}:1", "", str(what), "YAML"))
        else:
            if node is not None:
                self._merge(self.tree, node, file, "")

    def _merge(self, tree: Tree, node: Node, file: str, prefix: str) -> None:
        if node.id != "mapping":
            where = f"{file}:{node.start_mark.line + 1}"
            self.problems.append(Problem(where, prefix.rstrip("."), "is no map", "key: value"))
            return
        seen: set[str] = set()
        for key_node, value in cast("MappingNode", node).value:
            where = f"{file}:{key_node.start_mark.line + 1}"
            if key_node.id != "scalar":
                self.problems.append(Problem(where, prefix.rstrip("."), "a key must be a word"))
                continue
            name = str(key_node.value)
            if name in seen:
                self.problems.append(
                    Problem(where, prefix + name, "stands twice in this file", "each key once")
                )
            seen.add(name)
            self._place(tree, name, value, file, prefix + name, key_node.start_mark.line + 1)

    def _place(self, tree: Tree, name: str, value: Node, file: str, key: str, line: int) -> None:
        self._places[key] = f"{file}:{line}"
        if value.id != "mapping":
            tree[name] = Entry(value, file, line)
            return
        below = tree.get(name)
        if not isinstance(below, dict):
            below = tree[name] = {}
        self._merge(below, value, file, key + ".")

    # -- from the tree to values

    def section(self, cls: type[T], tree: Tree | Entry | None, prefix: str = "") -> T:
        """A dataclass whose fields are keys (`key`, `keys`) or sections (dataclasses)."""
        if isinstance(tree, Entry):
            if _word(tree.node) not in ("", "~", "null"):
                self.problem(prefix.rstrip("."), "is no map", "keys below it")
            tree = None
        tree = tree or {}
        names = {item.name.replace("_", "-"): item for item in fields(cast("Any", cls))}
        self._unknown(tree, list(names), prefix)
        hints = get_type_hints(cls)
        values: dict[str, object] = {}
        for name, item in names.items():
            full = prefix + name
            if is_dataclass(hints[item.name]):
                values[item.name] = self.section(
                    cast("type[object]", hints[item.name]), tree.get(name), full + "."
                )
            elif "kind" in item.metadata:
                values[item.name] = self.value(
                    item.metadata["kind"], tree.get(name), full, item.default
                )
            elif name in tree:
                values[item.name] = self.custom(item.metadata["read"], tree[name], full)
        return cls(**values)

    def custom(
        self, read: Callable[[Reader, Tree | Entry, str], T], tree: Tree | Entry, key: str
    ) -> T:
        """A field with a reader of its own, for a section whose keys are not ours."""
        return read(self, tree, key)

    def value(self, kind: Kind[T], entry: Tree | Entry | None, key: str, default: T) -> T:
        """The value of a key, or its default when it is absent or wrong (and noted)."""
        if entry is None:
            return default
        if isinstance(entry, dict):
            self.problem(key, "is a map", kind.expected)
            return default
        try:
            if kind.many:
                return cast("T", tuple(kind.parse(text) for text in self.texts(entry)))
            return kind.parse(self.text(entry))
        except Wrong as wrong:
            self.problem(key, str(wrong), ("a list of: " if kind.many else "") + kind.expected)
            return default

    def text(self, entry: Entry) -> str:
        """A scalar as it was written. Raises Wrong for a list."""
        if entry.node.id != "scalar":
            raise Wrong("is a list")
        return _word(entry.node)

    def texts(self, entry: Entry) -> list[str]:
        """The scalars of a list as they were written. Raises Wrong for anything else."""
        if entry.node.id != "sequence":
            raise Wrong("is no list")
        items = cast("Sequence[Node]", entry.node.value)
        if any(item.id != "scalar" for item in items):
            raise Wrong("has an item that is no single value")
        return [_word(item) for item in items]

    def _unknown(self, tree: Tree, known: Iterable[str], prefix: str) -> None:
        for name in tree:
            if name not in known:
                near = difflib.get_close_matches(name, list(known), 1)
                hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
                self.problem(prefix + name, "unknown key", hint)


def _word(node: Node) -> str:
    scalar = cast("ScalarNode", node)
    return str(scalar.value)


def _no_aliases(text: str) -> None:
    """Refuse anchors and aliases: they hide what a file says, and can grow without bound."""
    import yaml

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed here", problem_mark=event.start_mark
            )


# -- the same table, shown ----------------------------------------------------------------------


def schema(cls: type[object]) -> dict[str, Any]:
    """The JSON Schema of a configuration dataclass."""
    properties: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in fields(cast("Any", cls)):
        name = item.name.replace("_", "-")
        if is_dataclass(hints[item.name]):
            properties[name] = schema(cast("type[object]", hints[item.name]))
        elif "kind" in item.metadata:
            kind: Kind[object] = item.metadata["kind"]
            one = dict(kind.schema)
            shape = {"type": "array", "items": one} if kind.many else one
            properties[name] = {**shape, "description": item.metadata["doc"]}
        elif "schema" in item.metadata:
            properties[name] = item.metadata["schema"]
    return {"type": "object", "additionalProperties": False, "properties": properties}


def documentation(cls: type[object], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows of (key, what is expected, default, meaning) of a configuration dataclass."""
    rows: list[tuple[str, str, str, str]] = []
    hints = get_type_hints(cls)
    for item in fields(cast("Any", cls)):
        name = prefix + item.name.replace("_", "-")
        if is_dataclass(hints[item.name]):
            rows += documentation(cast("type[object]", hints[item.name]), name + ".")
        elif "kind" in item.metadata:
            default = "" if item.default is MISSING else shown(item.default)
            rows.append((name, item.metadata["kind"].expected, default, item.metadata["doc"]))
    return rows


def shown(value: object) -> str:
    """A value as one would write it in the file."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return duration(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves no rest: 900.0 is "15m"."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"
