"""A configuration file as gopkg.in/yaml.v2 reads it: YAML 1.1 that bends unquoted scalars.

PyYAML does the grammar; what a plain scalar means is decided here, because PyYAML and yaml.v2
differ (`y` is a boolean to one, `1:30` a number to the other). facts/rke2.md §1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import yaml

Value = str | list[str]

_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)"
    r"|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)


class Unreadable(ValueError):
    """The text is no YAML, or no mapping."""


def pairs(text: str) -> list[tuple[str, Value]]:
    """The top mapping's keys and values in order, as the text RKE2 makes of them again."""
    try:
        top = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise Unreadable("yaml: " + " ".join(str(error).split())) from None
    if top is None or (isinstance(top, yaml.ScalarNode) and _scalar(top) == ""):
        return []
    if not isinstance(top, yaml.MappingNode):
        raise Unreadable(
            f"yaml: unmarshal errors: line {top.start_mark.line + 1}:"
            " cannot unmarshal into yaml.MapSlice"
        )
    return [(_text(key), _value(value)) for key, value in top.value]


def _value(node: yaml.Node) -> Value:
    if isinstance(node, yaml.SequenceNode):
        return [_text(element) for element in node.value]
    return _text(node)


def _text(node: yaml.Node) -> str:
    """What Go's fmt prints of the value."""
    if isinstance(node, yaml.MappingNode):
        # The garbage that a mapping under node-label becomes.
        return "map[" + " ".join(f"{_text(k)}:{_text(v)}" for k, v in node.value) + "]"
    if isinstance(node, yaml.SequenceNode):
        return "[" + " ".join(_text(element) for element in node.value) + "]"
    return _scalar(node)


def _scalar(node: yaml.Node) -> str:
    assert isinstance(node, yaml.ScalarNode)
    return bent(node.value) if node.style is None else str(node.value)


def bent(plain: str) -> str:
    """An unquoted scalar after yaml.v2 has made a value of it and Go has printed that."""
    if plain in _NULL:
        return ""
    if plain in _TRUE:
        return "true"
    if plain in _FALSE:
        return "false"
    number = plain.replace("_", "")
    if match := _INTEGER.fullmatch(number):
        return str(_integer(match))
    if _FLOAT.fullmatch(number):
        return _float(float(number))
    return plain


def _integer(match: re.Match[str]) -> int:
    bases: Sequence[tuple[str, int]] = (("hex", 16), ("bin", 2), ("oct", 8), ("dec", 10))
    value = next(int(match[name], base) for name, base in bases if match[name])
    return -value if match["sign"] == "-" else value


def _float(value: float) -> str:
    """Go's %v: the shortest digits, with an exponent only below 1e-4 and from 1e21."""
    if value and not 1e-4 <= abs(value) < 1e21:
        return repr(value)
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
