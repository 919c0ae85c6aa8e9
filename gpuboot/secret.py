"""Values nobody may read in a log, and the mask that keeps them out of text."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, unquote

MASK = "<secret>"
LONGEST = 2000  # characters of a wrong value that are quoted
SHORTEST = 4  # a shorter value would mask ordinary words, and is no secret worth the name


# What looks like a secret wherever it stands, the surest first; each with a sign that must be in a
# text, for the patterns are slow where there is nothing to find.
_LIKELY = tuple((sign, re.compile(pattern)) for sign, pattern in (
    # A token, or the greater part of one.
    ("::", r"(?:K10|[0-9a-fA-F]{8})[0-9a-fA-F]*::[^\s'\"]+"),
    (":", r"(?:(?<!\w)::\w+|(?:::|(?<![/\w.-]))(?:node|server)):(?!:)[^\s'\"]+"),
    (".", r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"),  # a bootstrap token
    # User and password in an address, up to its last @; and what is no port, where that is lost.
    ("@", r"(?<=//)[^\s'\"]+(?=@)"),
    ("//", r"(?<=//)[^\s'\"/@:\[]+:(?!\d+(?!\w))[^\s'\"]+"),
    ("@", r"[^\s/'\"@:]+:(?!//)[^\s'\"]+(?=@)"),
))  # fmt: skip
# In a value or key alone: without a known end, all that follows is part of the secret.
_TO_THE_END = re.compile(
    r"K10[^\s'\":]*:.*"  # a token
    r"|[a-z0-9]{6}\.[a-z0-9]{16}(?![a-z0-9])"  # a bootstrap token
    r"|(?<![^\s/'\"@:])[^\s/'\"@:]*:(?!//).*(?=@)",  # user and password in an address
    re.DOTALL,
)


class Secret:
    """A text that shows itself only when asked: `reveal()` where the byte is written or sent."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def redact(text: str) -> str:
    """The text without what looks like a token, or like a password in an address."""
    for sign, pattern in _LIKELY:
        if sign in text:
            text = pattern.sub(MASK, text)
    return text


class Mask:
    """Replaces every known secret in a text, also URL-encoded and inside base64."""

    def __init__(self) -> None:
        self._spellings: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: Secret) -> None:
        """Mask this secret from now on, and the password in a token or an address by itself."""
        text = secret.reveal().strip()
        for part in {text, _password(text)}:
            if len(part) >= SHORTEST:
                self._spellings.update(_spellings(part))
        # The longest first, so that a token is masked whole before its password part is.
        ordered = sorted(self._spellings, key=len, reverse=True)
        if ordered:
            self._pattern = re.compile("|".join(re.escape(spelling) for spelling in ordered))

    def __call__(self, text: str) -> str:
        """The text with every spelling of every secret replaced by `<secret>`."""
        return self._pattern.sub(MASK, text) if self._pattern else text


def blotted(text: str) -> str:
    """A value or key by itself, without what looks like a secret in it and all that follows."""
    if len(text) > LONGEST:  # nobody reads it, and the patterns would take minutes
        return f"a text of {len(text)} characters"
    return redact(_TO_THE_END.sub(MASK, text))


def quoted(text: str) -> str:
    """A wrong value as a message quotes it: a token may stand where something else belongs."""
    return blotted(text) if len(text) > LONGEST else repr(blotted(text))


def _password(text: str) -> str:
    """The password in `K10<hash>::user:password` or `scheme://user:password@host`."""
    if "://" in text:
        user, at, _ = text.partition("://")[2].rpartition("@")
        return unquote(user.partition(":")[2]) if at else ""
    return text.rpartition("::")[2].rpartition(":")[2]


def _spellings(text: str) -> set[str]:
    raw = text.encode("utf-8", "surrogatepass")
    found = {text, quote(raw, safe="")}
    # As it stands in a file of JSON, with a quote or a backslash in it, or in plain ASCII.
    found |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    # In base64 of "user:secret" the secret starts at any of three offsets; the characters at
    # both ends depend on the neighbours, so only the ones in between can be looked for.
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        start = (offset * 8 + 5) // 6
        inner = encoded[start : (offset + len(raw)) * 8 // 6]
        if len(inner) >= 8:
            found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return found
