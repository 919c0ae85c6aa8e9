"""The kinds of values a configuration file can hold: how text becomes each, and its schema."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from gpuboot import labels, token
from gpuboot.secret import Secret, blotted, quoted

T = TypeVar("T")
# Of the monitor's interval, in seconds: the unit's watchdog waits for two of the longest.
SHORTEST, LONGEST = 1, 120


class Wrong(ValueError):
    """What a Kind's parser raises: the message, without the place."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of value: how a scalar's text becomes it, and what to say when it cannot."""

    parse: Callable[[str], T]
    expected: str
    schema: Mapping[str, Any]
    many: bool = False  # a list of such scalars
    nothing: str | None = None  # the word for None, where None is allowed


# -- general kinds ---------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise Wrong(f"{quoted(text)} is neither true nor false")


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})(s|m|h)", text)
    if not match:
        raise Wrong(f"{quoted(text)} is not a duration")
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def _interval(text: str) -> float:
    seconds = _duration(text)
    if not SHORTEST <= seconds <= LONGEST:
        raise Wrong(f"{quoted(text)} is too {'short' if seconds < SHORTEST else 'long'}")
    return seconds


def _line(text: str) -> str:
    if not text or re.search(token.CONTROL, text):
        raise Wrong("is empty or holds a control character or line break")
    return text


def _text(text: str) -> str:
    # It would be shown wherever the configuration is.
    if re.search(rf"{token.FULL}[^\s:]*::", text):
        raise Wrong("holds a token, which belongs elsewhere")
    return _line(text)


def choice(*words: str) -> Kind[str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            near = difflib.get_close_matches(text, words, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise Wrong(f"unknown value {quoted(text)}{hint}")
        return text

    return Kind(parse, " | ".join(words), {"enum": list(words)})


def number(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise Wrong(f"{quoted(text)} is not in range")
        return int(text)

    expected = f"a whole number from {low} to {high}"
    return Kind(parse, expected, {"type": "integer", "minimum": low, "maximum": high})


def pattern(regex: str, expected: str) -> Kind[str]:
    """A text of this form."""

    def parse(text: str) -> str:
        if not re.fullmatch(regex, text, re.ASCII):
            raise Wrong(f"{quoted(text)} does not fit")
        return text

    return Kind(parse, expected, {"type": ["string", "number"], "pattern": f"^(?:{regex})$"})


def line(regex: str, expected: str) -> Kind[str]:
    """A text on one line, of this form; what it says beyond that is the reader's business."""

    def parse(text: str) -> str:
        if not re.fullmatch(regex, _text(text), re.ASCII):
            raise Wrong(f"{quoted(text)} does not fit")
        return text

    return Kind(parse, expected, {"type": "string", "pattern": f"^(?:{regex})$"})


def optional(kind: Kind[T], word: str = "-") -> Kind[T | None]:
    """The same, or `word` for nothing."""

    def parse(text: str) -> T | None:
        return None if text == word else kind.parse(text)

    expected = f"{kind.expected}, or {word}"
    schema = {"anyOf": [{"const": word}, dict(kind.schema)]}
    return Kind(parse, expected, schema, nothing=word)


BOOLEAN = Kind(_boolean, "true or false", {"type": "boolean"})
DURATION = Kind(
    _duration, "a duration such as 90s, 15m or 1h", {"type": "string", "pattern": "^[0-9]+[smh]$"}
)
INTERVAL = Kind(
    _interval,
    f"a duration between {SHORTEST}s and {LONGEST // 60}m, such as 15s",
    {"type": "string", "pattern": "^[0-9]+[sm]$"},
)
TEXT = Kind(_text, "a text on one line", {"type": "string", "minLength": 1})


# -- kinds of this field ----------------------------------------------------------------------


def _ruled(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A kind's parser from a rule that raises ValueError; the text is kept as written."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
            if blotted(text) != text and quoted(text) not in message:
                # A part of it would be quoted, which by itself looks like nothing.
                message = "holds what looks like a secret"
            raise Wrong(message) from None
        return text

    return check


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if "@" in text:
            raise Wrong("holds a user or password, which belong elsewhere")
        try:
            parts = urlsplit(text)
            _ = parts.port  # told only when asked for
        except ValueError as error:
            raise Wrong(f"{quoted(text)}: {error}") from None
        if parts.scheme not in schemes or not parts.hostname:
            raise Wrong(f"{quoted(text)} is no {' or '.join(schemes)} address")
        return _text(text).rstrip("/")

    return parse


def _source(text: str) -> str:
    if text.startswith("/"):
        return _text(text).rstrip("/") or "/"
    return _url("https", "http")(text)


def _secret(text: str) -> Secret:
    if not text.strip():
        raise Wrong("is empty")
    return Secret(_line(text))


def _proxy(text: str) -> Secret:
    """Never quoted: its password need not look like one, where the rest is wrong."""
    secret = _secret(text)
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise Wrong("is no http or https address, or a special character is not written as %XX")
    return secret


def _join_token(text: str) -> Secret:
    try:
        token.parse(Secret(text))
    except ValueError as error:
        raise Wrong(str(error)) from None
    return Secret(text.strip())


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise Wrong(f"{quoted(text)} is no absolute path")
    return _text(text)


def _folder(text: str) -> str:
    folder = _absolute(text).rstrip("/")
    if not folder:
        raise Wrong(f"{quoted(text)} is the whole file system")
    return folder


def _server(text: str) -> str:
    address = _url("https")(text)
    try:
        port = urlsplit(address).port
    except ValueError as error:
        raise Wrong(f"{quoted(text)}: {error}") from None
    if port == 6443:
        raise Wrong(f"{quoted(text)} is the API server's port, where no agent can join")
    return address


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Wrong(f"{quoted(text)} is no IP address") from None
    return text


def _registry(text: str) -> str:
    if "://" in text or "," in text:
        raise Wrong(f"{quoted(text)} is no registry's name")
    return _text(text)


def _node_password(text: str) -> Secret:
    # It travels in an HTTP header (k3s pkg/agent/config/config.go), and RKE2 strips blanks.
    if not re.fullmatch(r"[!-~]{16,128}", text.strip()):
        raise Wrong("is not 16 to 128 letters, digits and signs of ASCII without blanks")
    return Secret(text.strip())


_string = {"type": "string"}
LABEL = Kind(_ruled(labels.own_label), "key=value that a node may set itself", _string)
ADMIN_LABEL = Kind(_ruled(labels.label), "key=value", _string)
TAINT = Kind(_ruled(labels.taint), "key=value:effect", _string)
NODE_NAME = Kind(_ruled(labels.node_name), "a node name", _string)
PATH = Kind(_absolute, "an absolute path", {"type": "string", "pattern": "^/"})
FOLDER = Kind(_folder, "an absolute path", {"type": "string", "pattern": "^/"})
ADDRESS = Kind(_address, "an IP address", _string)
NAME = pattern(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?", "a DNS name")
# RKE2 takes the dashes off, the program that gets it needs the value (k3s pkg/util/args.go).
ARGUMENT = line(r"[A-Za-z0-9][-A-Za-z0-9.]*=.+", "name=value, without -- before it")
MOUNT = line(r"/[^:]*:/[^:]*(:(ro|rw))?", "/here:/there, with :ro or :rw or without")
ENVIRONMENT = line(r"[A-Za-z_][A-Za-z0-9_]*=.*", "NAME=value")
REGISTRY = Kind(_registry, "a registry such as registry.example.com:5000", _string)
ARCHIVE = pattern(
    r"[A-Za-z0-9][-A-Za-z0-9._]*\.tar(\.zst|\.gz)?",
    "an archive such as rke2-images.linux-amd64.tar.zst",
)
SOURCE = Kind(_source, "an https or http address, or a local folder", _string)
WEB = Kind(_url("https", "http"), "an https or http address", _string)
SERVER_ADDRESS = Kind(_server, "an https address", {"type": "string", "pattern": "^https://"})
SECRET = Kind(_secret, "a text on one line", {"type": "string", "writeOnly": True})
PROXY = Kind(_proxy, "http://[USER:PASSWORD@]HOST:PORT", SECRET.schema)
NODE_PASSWORD = Kind(_node_password, "a password of 16 to 128 characters", SECRET.schema)
TOKEN = Kind(_join_token, "a token such as K10<hash>::node:<password>", SECRET.schema)
SHA256 = pattern(r"[0-9a-f]{64}", "64 lower-case hex digits")
_N = "[0-9]{1,5}"
RELEASE = rf"v{_N}\.{_N}\.{_N}(-rc{_N})?\+rke2r{_N}"
VERSION = pattern(RELEASE, "a release such as v1.35.7+rke2r1")
BRANCH = pattern(r"[0-9]{3}(\.[0-9]+){0,2}", "a driver branch such as 580")
AUTO = optional(BRANCH, "auto")


def _fingerprint_or_file(text: str) -> str:
    if text.startswith("/"):
        return _text(text)
    if len(text) != 40 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError(f"{quoted(text)} is neither 40 hex digits nor an absolute path")
    return text


KEY = Kind(_ruled(_fingerprint_or_file), "a key's fingerprint or file", _string)
