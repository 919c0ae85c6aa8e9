"""YAML of other programs' making: each value with its place, read as Go's yaml.v2 reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gpuboot.errors import Code
from gpuboot.reader import Loader, Problem, Severity, parsed

Kind = Literal["map", "list", "null", "bool", "number", "text"]

# YAML 1.1 as yaml.v2 resolves it (resolve.go); PyYAML differs: `y`, `1:30`, `1e3`.
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)")
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]{1,16})|0[bB](?P<bin>[01]{1,64})"
    r"|0[oO]?(?P<oct>[0-7]{1,22})|(?P<dec>0|[1-9][0-9]{0,18}))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_DEEPEST = 5  # merges in merges (<<) that are followed; a map may merge itself


@dataclass(frozen=True)
class Value:
    """A value, the file and line of its key or list item, and the dotted key that leads to it."""

    node: Node = field(repr=False)  # it may hold a secret
    file: str
    line: int
    key: str = ""
    # Set where the text has no lines of its own, as in a quoted text that is YAML again.
    pinned: bool = False

    @property
    def kind(self) -> Kind:
        """What yaml.v2 makes of it."""
        if isinstance(self.node, MappingNode):
            return "map"
        if isinstance(self.node, SequenceNode):
            return "list"
        plain = isinstance(self.node, ScalarNode) and self.node.style is None
        return _resolved(str(self.node.value)) if plain else "text"

    @property
    def what(self) -> str:
        """The same in words, after "is"."""
        return {"null": "empty", "bool": "a boolean"}.get(self.kind, f"a {self.kind}")

    @property
    def text(self) -> str | None:
        """A scalar as it was written; None for a map or list."""
        return str(self.node.value) if isinstance(self.node, ScalarNode) else None

    @property
    def printed(self) -> str | None:
        """A scalar as Go prints it once yaml.v2 has read it; None for a map or list."""
        text = self.text
        return text if text is None or self.kind == "text" else _printed(text, self.kind)

    def get(self, *names: str) -> Value | None:
        """The value below these keys; of a key that stands twice the last one, as yaml.v2 does."""
        found: Value | None = self
        for name in names:
            if found is None:
                return None
            below = [value for key, value in found.entries() if key == name]
            found = below[-1] if below else None
        return found

    def entries(self) -> list[tuple[str, Value]]:
        """The keys and values of a map in their order; of anything else none."""
        return list(self._entries(self.node, _DEEPEST))

    def items(self) -> list[Value]:
        """The items of a list; of anything else none."""
        if not isinstance(self.node, SequenceNode):
            return []
        return [self._below(item, item, self.key) for item in self.node.value]

    def problem(
        self,
        code: Code,
        message: str,
        expected: str | None = None,
        *,
        severity: Severity = "error",
        hint: str | None = None,
    ) -> Problem:
        """What is wrong with this value, at its place."""
        where = f"{self.file}:{self.line}"
        return Problem(where, self.key, message, expected, severity, hint, code.id)

    def _entries(self, node: Node, depth: int) -> Iterator[tuple[str, Value]]:
        if not isinstance(node, MappingNode) or not depth:
            return
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if key.value == "<<" and key.style is None:
                merged = value.value if isinstance(value, SequenceNode) else [value]
                own = {str(one.value) for one, _ in node.value if isinstance(one, ScalarNode)}
                for other in merged:
                    found = self._entries(other, depth - 1)
                    yield from (pair for pair in found if pair[0] not in own)
                continue
            name = str(key.value)
            yield name, self._below(value, key, f"{self.key}.{name}" if self.key else name)

    def _below(self, node: Node, place: Node, key: str) -> Value:
        line = self.line if self.pinned else place.start_mark.line + 1
        return Value(node, self.file, line, key, self.pinned)


def read(file: str, content: bytes | str) -> Sequence[Value] | Problem:
    """The documents in a file, or why it is no YAML. Empty ones are left out."""
    nodes = parsed(file, content, lambda text: list(yaml.compose_all(text, Loader)))
    if isinstance(nodes, Problem):
        return nodes
    documents = [Value(node, file, node.start_mark.line + 1) for node in nodes]
    return [value for value in documents if value.kind != "null"]


def inner(value: Value) -> Sequence[Value] | Problem:
    """The documents in a text that is itself YAML, with their places in the outer file."""
    text = value.text or ""
    first = body_line(value)
    if first is None:
        found = read(value.file, text)
        if isinstance(found, Problem):
            return Problem(f"{value.file}:{value.line}", "", found.message, found.expected)
        return [Value(one.node, one.file, value.line, value.key, pinned=True) for one in found]
    # As many empty lines before it as the outer file has: the lines are right by themselves.
    found = read(value.file, "\n" * (first - 1) + text)
    return found if isinstance(found, Problem) else [replace(one, key=value.key) for one in found]


def body_line(value: Value) -> int | None:
    """The line on which a literal text (`|`) begins; None for a text whose lines are lost."""
    if value.pinned or getattr(value.node, "style", None) != "|":
        return None
    return int(value.node.start_mark.line) + 2


def _resolved(plain: str) -> Kind:
    if plain in _NULL:
        return "null"
    if plain in _TRUE or plain in _FALSE:
        return "bool"
    number = plain.replace("_", "")
    if _INTEGER.fullmatch(number) or _FLOAT.fullmatch(number):
        return "number"
    return "text"


def _printed(plain: str, kind: Kind) -> str:
    if kind == "null":
        return ""
    if kind == "bool":
        return "true" if plain in _TRUE else "false"
    number = plain.replace("_", "")
    if match := _INTEGER.fullmatch(number):
        value = next(int(match[name], base) for name, base in _BASES.items() if match[name])
        return str(-value if match["sign"] == "-" else value)
    return _float(number)


def _float(number: str) -> str:
    """Go's %v: the shortest digits, with an exponent only below 1e-4 and from 1e21."""
    if number.lstrip("+-") in (".inf", ".nan"):
        return number
    value = float(number)
    if value and not 1e-4 <= abs(value) < 1e21:
        return repr(value)
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
