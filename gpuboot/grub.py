"""Which kernel GRUB boots next, by the texts of its own files: grub.cfg and grubenv.

After GRUB 2.06's own reading of them (normal/menu.c, script/lexer). /etc/default/grub is not asked:
only update-grub reads that, a boot does not. What is conditional in grub.cfg is taken to be there;
update-grub puts only the firmware's entry under a condition, and that one last.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

CONFIG = "/boot/grub/grub.cfg"
ENVIRONMENT = "/boot/grub/grubenv"

KEYWORDS = ("if", "elif", "then", "else", "do")
MENUS = ("menuentry", "submenu")

_PIECE = re.compile(
    r"""(?P<skip>[ \t\r\f\v]+|\\\n|\#[^\n]*)
      | (?P<mark>[\n;{}])
      | (?P<word>(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|\$\{[^}\n]{0,99}\}|[^\s;{}'"\\])+)
      | (?P<odd>.)""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""", re.DOTALL)
_KERNEL = re.compile(r"vmlinu[xz]-(.+?)(?:\.efi\.signed)?")
_NUMBER = re.compile(r"\s*(?:0[xX](?P<hex>[0-9a-fA-F]{1,8})|(?P<oct>0[0-7]{0,8})|(?P<dec>\d{1,9}))")


@dataclass
class _Entry:
    """A menu entry, or a submenu with its own; `kind` is another word for other blocks."""

    kind: str
    title: str = ""
    id: str = ""
    kernel: str | None = None
    entries: list[_Entry] = field(default_factory=list)


def next_kernel(config: str, environment: str) -> str | None:
    """The release of the kernel in the entry GRUB takes by itself; None where that is not clear.

    `config` is grub.cfg, `environment` grubenv's block of variables.
    """
    parsed = _parsed(config)
    if parsed is None:
        return None
    entries, defaults = parsed
    wanted = _default(defaults, _variables(environment))
    while entries:
        number, wanted = _place(entries, wanted)
        # A number or name that the menu lacks is its first entry.
        entry = entries[number if number < len(entries) else 0]
        if entry.kind == "menuentry":
            return entry.kernel
        entries = entry.entries
    return None


def _parsed(text: str) -> tuple[list[_Entry], list[str]] | None:
    """The top menu, and what `default` is set to, in order; None for a text that is cut off."""
    top = _Entry("top")
    blocks = [top]
    defaults: list[str] = []
    words: list[str] = []
    for piece in _pieces(text):
        if piece not in ("\n", ";", "{", "}"):
            words.append(piece)
            continue
        while words and words[0] in KEYWORDS:
            del words[0]
        if piece == "{":
            blocks.append(_block(words))
        elif words:
            _command(words, blocks, defaults)
        words = []
        if piece == "}":
            if len(blocks) == 1:
                return None
            block = blocks.pop()
            if block.kind in MENUS:
                blocks[-1].entries.append(block)
    return (top.entries, defaults) if len(blocks) == 1 else None


def _pieces(text: str) -> Iterator[str]:
    for match in _PIECE.finditer(text):
        if match.lastgroup != "skip":
            yield match[0]


def _block(words: Sequence[str]) -> _Entry:
    if not words or words[0] not in MENUS:
        return _Entry("other")
    plain = [_plain(word) for word in words]
    named = (after for word, after in itertools.pairwise(plain)
             if word in ("$menuentry_id_option", "${menuentry_id_option}", "--id"))  # fmt: skip
    return _Entry(words[0], plain[1] if len(plain) > 1 else "", next(named, ""))


def _command(words: Sequence[str], blocks: Sequence[_Entry], defaults: list[str]) -> None:
    block = blocks[-1]
    if block.kind == "menuentry" and words[0] in ("linux", "linuxefi", "linux16"):
        name = _plain(words[1]).rpartition("/")[2] if len(words) > 1 else ""
        if match := _KERNEL.fullmatch(name):
            block.kernel = block.kernel or match[1]
    elif block.kind == "top" and words[0] == "set" and len(words) > 1:
        name, _, value = words[1].partition("=")
        if name == "default":
            defaults.append(_plain(value))


def _plain(word: str) -> str:
    """A word without its quotes; variables stay as they are written."""

    def inner(match: re.Match[str]) -> str:
        if match[2] is not None:
            return re.sub(r'\\(["$\\])', r"\1", match[2])
        return match[1] if match[1] is not None else match[3]

    return _QUOTED.sub(inner, word)


def _variables(block: str) -> Mapping[str, str]:
    """grubenv: NAME=VALUE lines, a backslash doubled, then # up to its 1024 bytes."""
    rows = (line.partition("=") for line in block.splitlines() if not line.startswith("#"))
    return {name: value.replace("\\\\", "\\") for name, sign, value in rows if sign}


def _default(defaults: Sequence[str], variables: Mapping[str, str]) -> str:
    """What `default` stands for at the next boot: `grub-reboot` has asked for it once, or always.

    grub.cfg takes next_entry if it is not empty, and in the other branch what is configured.
    """
    once = variables.get("next_entry", "")
    always = [value for value in defaults if "next_entry" not in value]
    if once and len(always) < len(defaults):
        return once
    told = always[-1] if always else ""
    return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: variables.get(m[1] or m[2], ""), told)


def _place(entries: Sequence[_Entry], wanted: str) -> tuple[int, str]:
    """The number of the entry that the first part of `a>b` names, and the rest for its submenu.

    A number counts as one whatever follows it; in a name `>>` stands for `>`.
    """
    if match := _NUMBER.match(wanted):
        base = {"hex": 16, "oct": 8, "dec": 10}[str(match.lastgroup)]
        rest = wanted[match.end() :].lstrip(" \t")
        return int(match[str(match.lastgroup)], base), rest.removeprefix(">")
    head = re.match(r"(?:[^>]|>>)*", wanted)
    name = head[0].replace(">>", ">") if head else ""
    for number, entry in enumerate(entries):
        if name and name in (entry.title, entry.id):
            return number, wanted[len(head[0]) + 1 :] if head else ""
    return 0, ""
