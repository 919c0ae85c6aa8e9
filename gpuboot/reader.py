"""Typed access to YAML: every value checked once, every error with file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gpuboot.kinds import Kind, Wrong
from gpuboot.secret import blotted, redact

T = TypeVar("T")
_DEEPEST = 100  # brackets in brackets that are read; nobody writes ten

# An error keeps a node from what was meant; a warning may; a notice is only good to know.
Severity = Literal["error", "warning", "notice"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file: where, which key, what, what was expected, and what to do."""

    where: str
    key: str
    message: str
    expected: str | None = None
    severity: Severity = "error"
    hint: str | None = None
    code: str = "GB001"

    def __post_init__(self) -> None:
        # A key may be anything: a token, a line break, a terminal's escape, half a character.
        object.__setattr__(self, "key", _printable(blotted(self.key)))
        object.__setattr__(self, "message", _printable(redact(self.message)))
        object.__setattr__(self, "hint", self.hint and _printable(redact(self.hint)))

    @property
    def file(self) -> str:
        return self.where.rpartition(":")[0] or self.where

    @property
    def line(self) -> int:
        """From 1; 0 for what stands in no file."""
        line = self.where.rpartition(":")[2]
        return int(line) if line.isdecimal() else 0

    def __str__(self) -> str:
        name = f"{self.key}: " if self.key else ""
        wanted = f"; expected {self.expected}" if self.expected else ""
        return f"{self.where}: {name}{self.message}{wanted}"


def key(kind: Kind[T], default: T, doc: str) -> T:
    """A dataclass field that is one configuration key: parser, default and documentation."""
    found: T = field(default=default, metadata={"kind": kind, "doc": doc})
    return found


def keys(kind: Kind[T], default: Sequence[T], doc: str) -> tuple[T, ...]:
    """Like `key`, for a list of values."""
    many = Kind(kind.parse, kind.expected, kind.schema, many=True)
    found: tuple[T, ...] = field(default=tuple(default), metadata={"kind": many, "doc": doc})
    return found


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
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        return self._places.get(key, "default")

    def given(self, key: str) -> bool:
        """Whether the key stands in a file, whatever its value."""
        return key in self._places

    def problem(self, key: str, message: str, expected: str | None = None) -> None:
        """Note that the value of a key that was read is wrong."""
        self.problems.append(Problem(self.where(key), key, message, expected))

    def add(self, file: str, content: bytes | str) -> None:
        """Merge one more file: maps merge, everything else replaces."""
        node = parsed(file, content, lambda text: yaml.compose(text, Loader=_Loader))
        if isinstance(node, Problem):
            self.problems.append(node)
        elif node is not None and not _nothing(node):
            self._merge(self.tree, node, file, "")

    def _merge(self, tree: Tree, node: Node, file: str, prefix: str) -> None:
        if not isinstance(node, MappingNode):
            where = f"{file}:{node.start_mark.line + 1}"
            self.problems.append(Problem(where, prefix.rstrip("."), "is no map", "key: value"))
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            where = f"{file}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, ScalarNode) or not key_node.value:
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
        below = tree.get(name)
        if not isinstance(value, MappingNode):
            if below is not None:  # what stood below is gone, and so are its places
                for gone in [one for one in self._places if one.startswith(key + ".")]:
                    del self._places[gone]
            tree[name] = Entry(value, file, line)
            return
        if not isinstance(below, dict):
            below = tree[name] = {}
        self._merge(below, value, file, key + ".")

    # -- from the tree to values

    def section(self, cls: type[T], tree: Tree | Entry | None, prefix: str = "") -> T:
        """A dataclass whose fields are keys (`key`, `keys`) or sections (dataclasses)."""
        if isinstance(tree, Entry):
            if not _nothing(tree.node):
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
        return cls(**values)

    def value(self, kind: Kind[T], entry: Tree | Entry | None, key: str, default: T) -> T:
        """The value of a key, or its default when it is absent or wrong (and noted)."""
        if entry is None:
            return default
        if isinstance(entry, dict):
            self.problem(key, "is a map", ("a list of: " if kind.many else "") + kind.expected)
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
        if not isinstance(entry.node, ScalarNode):
            raise Wrong("is a list")
        return str(entry.node.value)

    def texts(self, entry: Entry) -> list[str]:
        """The scalars of a list as they were written. Raises Wrong for anything else."""
        if not isinstance(entry.node, SequenceNode):
            raise Wrong("is no list")
        texts: list[str] = []
        for item in entry.node.value:
            if not isinstance(item, ScalarNode):
                raise Wrong("has an item that is no single value")
            texts.append(str(item.value))
        return texts

    def _unknown(self, tree: Tree, known: Iterable[str], prefix: str) -> None:
        for name in tree:
            if name not in known:
                near = difflib.get_close_matches(name, list(known), 1)
                message = f"unknown key, did you mean {near[0]}?" if near else "unknown key"
                self.problem(prefix + name, message, None if near else ", ".join(known))


def parsed(file: str, content: bytes | str, parse: Callable[[str], T]) -> T | Problem:
    """What `parse` makes of a file's text, or why that is no YAML, with the line."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _line(error.object[: error.start].decode() + "?", error.start)
        return Problem(f"{file}:{line}", "", "holds bytes that are not UTF-8", "UTF-8")
    try:
        return parse(text)
    except AliasError as error:
        where = f"{file}:{error.line}"
        return Problem(where, "", "aliases (*name) are not allowed", "the value")
    except yaml.MarkedYAMLError as error:
        line = _line(text, error.problem_mark.index) if error.problem_mark else 1
        # A tag's handle and an alias are not quoted: a password without quotes looks like one.
        what = error.problem or error.context or "cannot be read"
        what = re.split(r" handle '|(?<=alias) '", what)[0]
        return Problem(f"{file}:{line}", "", what, "YAML")
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        # What is left is a character that YAML or Python forbids, or indentation without end.
        what = getattr(error, "reason", None) or "cannot be read"
        line = _line(text, getattr(error, "position", 0))
        return Problem(f"{file}:{line}", "", str(what), "YAML")


def _line(text: str, index: int) -> int:
    """The line of a character, from 1, by YAML's line breaks; of the last one after the end."""
    lines = re.split(r"\r\n|[\r\n\x85\u2028\u2029]", text[: index + 1])
    return max(1, len(lines) - (not lines[-1]))


def _nothing(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value in ("", "~", "null")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class AliasError(Exception):
    """An alias in a file; `line` counts from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class Loader(yaml.SafeLoader):
    """Stops where brackets nest without end: PyYAML's time grows with the square of the depth."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= _DEEPEST:
            problem = f"brackets are nested more than {_DEEPEST} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


class _Loader(Loader):
    """Refuses aliases: they hide what a file says, and can grow without bound."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # PyYAML has no types
            raise AliasError(mark.line + 1 if mark else 1)
        return super().compose_node(parent, index)


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
            kind: Kind[object] = item.metadata["kind"]
            default = str(kind.nothing) if item.default is None else shown(item.default)
            rows.append((name, kind.expected, default, item.metadata["doc"]))
    return rows


def shown(value: object) -> str:
    """A value as one would write it in the file."""
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
