"""What people, editors and accidents write into a configuration file, for the reader's fuzzing.

Everything here is a strategy of bytes: trees over the known keys in every style that YAML has, and
files that are right or wrong with bytes inserted, deleted, flipped, cut, repeated and spliced.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints
from urllib.parse import quote

from hypothesis import strategies as st

from gpuboot.config import Config
from gpuboot.kinds import Kind, Wrong

PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's, but secret in every case
ODD_PASSWORD = "corr:ect/horse'b@ttery"  # noqa: S105 - nobody's either
BOOTSTRAP = "abcdef.0123456789abcdef"
HASH = "a" * 64
FULL = [
    f"K10{HASH}::{user}:{password}"
    for user in ("node", "server")
    for password in (PASSWORD, ODD_PASSWORD)
] + [f"K10{HASH}::{BOOTSTRAP}"]
TOKENS = [*FULL, BOOTSTRAP]
ADDRESSES = [
    f"{scheme}{user}:{password}@cluster:9345/x"
    for scheme in ("https://", "http://", "")
    for user in ("node", "")
    for password in (PASSWORD, ODD_PASSWORD)
]
# These show by their form that they are secret, so they may stand anywhere, even as a key.
SHAPED = TOKENS + ADDRESSES
# A plain word is known to be secret only by its key.
SECRET_KEYS = ("rke2.config.token", "rke2.node-password", "proxy.http", "proxy.https")

PLAIN = [PASSWORD, ODD_PASSWORD, BOOTSTRAP]
TANGLED = [f"!{PASSWORD}!x", f"&{PASSWORD}", f"*{PASSWORD}", f"@{PASSWORD}", f"[{PASSWORD}",
           f"{PASSWORD}: x", f'"{PASSWORD}', f'"{PASSWORD}\\q"', f"|{PASSWORD}", f"%{PASSWORD}",
           f"{PASSWORD}\n", f"{PASSWORD} x", f"{PASSWORD}\0", f"{PASSWORD}\ud800"]  # fmt: skip
SPELLINGS = [
    spelling
    for word in PLAIN
    for spelling in (
        word,
        quote(word, safe=""),
        base64.b64encode(word.encode()).decode(),
        repr(word)[1:-1],
        json.dumps(word)[1:-1],
    )
]

SCALARS = [
    "auto", "-", "none", "agent", "rancher", "any", "true", "false", "True", "yes", "~", "null",
    "0", "1", "16", "17", "-1", "0x1f", "0o17", "1_0", "1:30", "1.5", "1e3", ".inf", ".nan",
    "9" * 5000, "90s", "15m", "1h", "999999h", "1.5h", "2001-12-14", "580", "580.10", "1.20.0",
    "a=b", "a=", "=b", "a=b:NoSchedule", "a:NoExecute", "a/b/c=d", "kubernetes.io/os=linux",
    "node-role.kubernetes.io/gpu=true", "v1.35.7+rke2r1", "v1.35", "stable", "cis", HASH, "a" * 40,
    "/", "//", "/a", "/a\0b", "relative", "https://a:9345", "https://", "https://[", "http://a/b/",
    "https://a]b", "https://a\nb", "ftp://a", "node-1", "nöde", "K10::", f"K10{HASH}::", "K10:x",
    "", " ", "\n", "\t", "\r", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "\u200e", "\ud800",
    "😀", "\uffff", "a\nb", "a: b", "- a", "#", "a #b", "*a", "&a", "!a", "!a!b",
    "%a", "@a", "`a", "|", ">", "?", "? a", ":", "{", "[", "}", ",", "'", '"', "\\", "<<", "---",
    "...", "x" * 300, "[" * 50, "{a: " * 30, "[" * 3000, "- " * 1500,
]  # fmt: skip


def _kinds(cls: type[object], prefix: str = "") -> dict[str, Kind[object]]:
    found: dict[str, Kind[object]] = {}
    hints = get_type_hints(cls)
    for item in fields(cast("Any", cls)):
        name = prefix + item.name.replace("_", "-")
        if is_dataclass(hints[item.name]):
            found |= _kinds(cast("type[object]", hints[item.name]), name + ".")
        else:
            found[name] = item.metadata["kind"]
    return found


def _takes(kind: Kind[object], text: str) -> bool:
    try:
        kind.parse(text)
    except Wrong:
        return False
    return True


KINDS = _kinds(Config)
RIGHT = {key: [text for text in SCALARS if _takes(kind, text)] for key, kind in KINDS.items()}
KEYS = list(KINDS)
NEAR = ["gpus", "gpu.cuont", "rke2.config.node-lable", "rke2.server", "Gpu.Count", "on_gpu_failure",
        "rke2.config.token.x", "proxy.http.x.y", "gpu", "rke2.config", "sources.apt", "proxy",
        "deadline.x", ""]  # fmt: skip

Tree = Any  # a text, a list of trees, or Pairs


class Pairs(list[tuple[str, Tree]]):
    """A map as pairs, for a key may stand twice; a class, for a list is a list of trees."""


WORDS = st.one_of(
    st.sampled_from(SCALARS),
    st.sampled_from(SCALARS),
    st.sampled_from(SHAPED),
    st.text(st.characters(), max_size=6),  # surrogates and control characters too
)


def _values(key: str) -> st.SearchStrategy[Tree]:
    """What may stand behind a key: mostly what fits, else anything."""
    right: st.SearchStrategy[Tree] = st.sampled_from(RIGHT.get(key) or SCALARS)
    if key in KINDS and KINDS[key].many:
        right = st.lists(right, max_size=3)
    if key in SECRET_KEYS:
        right = st.sampled_from(SHAPED + PLAIN + TANGLED)
    odd = st.one_of(
        WORDS,
        st.lists(WORDS, max_size=3),
        st.lists(st.tuples(WORDS, WORDS), max_size=2).map(Pairs),
        st.just([["a"], Pairs([("b", [])])]),
    )
    return st.one_of(right, right, right, odd)


_VALUES = {key: _values(key) for key in [*KEYS, *NEAR]}


@st.composite
def trees(draw: st.DrawFn) -> Pairs:
    """A tree over known keys, keys that are nearly known, and keys that are none."""
    top = Pairs([("rke2", Pairs([("join", "none")]))] if draw(st.booleans()) else [])
    for _ in range(draw(st.integers(0, 5))):
        key = draw(st.sampled_from(KEYS + KEYS + NEAR))
        put(top, key.split("."), draw(_VALUES[key]))
    if draw(st.integers(0, 5)) == 0:
        place = top
        while place and isinstance(place[-1][1], Pairs) and draw(st.booleans()):
            place = place[-1][1]
        place.append((draw(WORDS), draw(WORDS)))
    return top


def put(tree: Pairs, path: list[str], value: Tree) -> None:
    if len(path) == 1:
        tree.append((path[0], value))
        return
    # Only the last map is gone on with, so now and then a section stands twice.
    if not tree or tree[-1][0] != path[0] or not isinstance(tree[-1][1], Pairs):
        tree.append((path[0], Pairs()))
    put(tree[-1][1], path[1:], value)


@st.composite
def written(draw: st.DrawFn, tree: st.SearchStrategy[Tree] | None = None) -> bytes:
    """A tree as a file, in one style of many; of the configuration where none is given."""
    style = draw(st.sampled_from(STYLES))
    adorned = draw(st.integers(0, 3)) == 0
    text = "".join(
        f"{line}\n" for line in _block(draw(trees() if tree is None else tree), style, 0)
    )
    if adorned:
        text = draw(st.sampled_from(HEADS)) + text + draw(st.sampled_from(TAILS))
        text = draw(st.sampled_from(TURNS))(text)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def neat(draw: st.DrawFn, tree: st.SearchStrategy[Tree]) -> bytes:
    """A tree as a file that can be parsed, so that what is in it is looked at."""
    style = draw(st.sampled_from(["double", "single", "flow"]))
    return "".join(f"{line}\n" for line in _block(draw(tree), style, 0)).encode("utf-8", "replace")


STYLES = ["plain", "single", "double", "literal", "folded", "flow", "anchor", "tag", "question"]
HEADS = ["", "---\n", "%YAML 1.1\n---\n", "%YAML 2.0\n---\n", "%YAML 1." + "9" * 5000 + "\n---\n",
         "%TAG ! tag:x,2000:\n---\n", "%TAG !a! x\n%TAG !a! x\n---\n", "%x\n---\n", "\ufeff", "#\n",
         "<<: {gpu: {count: 1}}\n", "a: &a {}\n<<: *a\n", "a: 1\n---\n", "\n\n", "--- |\n",
         "--- &a\n", "--- !!map\n", "? [a]\n: b\n", ": b\n", "\t"]  # fmt: skip
TAILS = ["", "...\n", "---\n", "---\na: b\n", "...\n---\na: b\n", "\n\n\n", "  ", "\0", "gpu: [",
         "gpu: {", 'gpu: "', "gpu: 'a\n\n", "gpu: |", "gpu: *a", "gpu: !a!b c", "gpu: &a &b c",
         'gpu: "\\U00110000"', 'gpu: "\\UFFFFFFFF"', 'gpu: "\\x"', "? a", "gpu: !%ff a",
         "gpu: !<a"]  # fmt: skip
TURNS = [
    lambda text: text,
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\r"),
    lambda text: text.replace("\n", "\x85"),
    lambda text: text.replace("\n", "\u2028"),
    lambda text: text.rstrip("\n"),
    lambda text: text.replace("  ", "\t"),
]  # fmt: skip


def _block(tree: list[Tree], style: str, depth: int) -> list[str]:
    """The lines of a tree, indented."""
    lines: list[str] = []
    for item in tree:
        name, value = item if isinstance(tree, Pairs) else (None, item)
        head = "  " * depth + _head(name, style, depth)
        if not isinstance(value, list):
            lines.append(f"{head} {_scalar(value, style, depth)}")
        elif style == "flow" or not value:
            lines.append(f"{head} {_flow(value)}")
        else:
            lines += [head, *_block(value, style, depth + 1)]
    return lines


def _head(name: str | None, style: str, depth: int) -> str:
    """What stands before a value: a hyphen or its key."""
    if name is None:
        return "-"
    if style == "question":
        return f"? {name}\n{'  ' * depth}:"
    key = _scalar(name, style if style in ("plain", "single") else "double", depth)
    return key + {"anchor": f": &a{depth}", "tag": ": !!str"}.get(style, ":")


def _flow(tree: Tree) -> str:
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{json.dumps(name)}: {_flow(below)}" for name, below in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_flow, tree)) + "]"
    return json.dumps(tree)


def _scalar(text: str, style: str, depth: int) -> str:
    pad = "\n" + "  " * (depth + 2)
    if style in ("literal", "folded"):
        return ("|" if style == "literal" else ">") + pad + text.replace("\n", pad)
    if style == "single":
        return "'" + text.replace("'", "''") + "'"
    if style in ("plain", "tag", "question"):
        return text
    return json.dumps(text)


# -- files with bytes changed

CASES = Path(__file__).parents[1] / "data/bad-config"
VALID = [
    b"",
    b"gpu:\n  count: 2\n  model: 10de:1eb8\n  wait: 90s\ndriver: {branch: 580.10}\n",
    b"rke2:\n  join: none\n  admin-labels: [node-role.kubernetes.io/gpu=true]\n",
    f"rke2:\n  channel: v1.35\n  config:\n    server: https://c:9345\n    token: {TOKENS[0]}\n"
    f"    node-label: [a=b]\nproxy:\n  https: http://me:{PASSWORD}@proxy:3128\n".encode(),
    f'"rke2": {{"config": {{"server": "https://a", "token": "{BOOTSTRAP}"}}}}\n'.encode(),
]  # fmt: skip
FILES = VALID + [path.read_bytes() for path in sorted(CASES.rglob("*.yaml"))]
PIECES = [b"\0", b"\t", b"\r", b"\n", b" ", b":", b"- ", b"#", b'"', b"'", b"[", b"{", b"&a ",
          b"*a", b"!", b"|\n", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\x85",
          b"\xe2\x80\xa8", b"---\n", b"? ", b"%", b"\\", b"<<: "]  # fmt: skip


_SHAPED = re.compile(
    rb"(K10a{64}::(?:node|server):correct-horse-battery|[a-z]+:correct-horse-battery@"
    rb"|abcdef\.0123456789abcdef(?![a-z0-9]))"
)


def _tellable(content: bytes) -> bytes:
    """A file without the secrets that lost their form: nothing tells those from other words."""
    parts = _SHAPED.split(content)
    for index in range(0, len(parts), 2):
        for word in (PASSWORD, BOOTSTRAP):
            parts[index] = parts[index].replace(word.encode(), b"x")
    return b"".join(parts)


def _flipped(content: bytes, bit: int) -> bytes:
    return bytes(byte ^ 1 << bit for byte in content)


@st.composite
def mutated(draw: st.DrawFn, files: Sequence[bytes] = FILES) -> bytes:
    """A file that is right or wrong, with one to four changes of its bytes."""
    content = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(
            (draw(st.integers(0, len(content))), draw(st.integers(0, len(content))))
        )
        short = content[first : min(last, first + 8)]
        content = draw(
            st.sampled_from([
                content[:first] + draw(st.sampled_from(PIECES)) + content[first:],
                content[:first] + draw(st.binary(min_size=1, max_size=2)) + content[first:],
                content[:first] + content[first + len(short) :],
                content[:first] + content[last:],
                content[:first] + _flipped(short[:1], last % 8) + content[first + 1 :],
                content[:first],
                content[:last] + content[first:last] + content[last:],
                content[:first] + draw(st.sampled_from(files))[-(last + 1) :],
            ])
        )  # fmt: skip
    return _tellable(content)


MERGED = st.lists(st.one_of(written(), mutated()), min_size=2, max_size=3)
