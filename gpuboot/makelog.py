"""What DKMS and make say of a module that was not built: the cause, and the lines worth showing."""

from __future__ import annotations

import re

# The kernel's out-of-memory killer ends the compiler, or the compiler is refused more.
STARVED = re.compile(
    r"Killed signal terminated program|virtual memory exhausted|out of memory allocating"
    r"|^collect2: fatal error: .* terminated with signal 9|^(?:/bin/sh: .* )?Killed\b"
    r"|Cannot allocate memory",
    re.MULTILINE,
)
NO_HEADERS = re.compile(
    r"kernel headers for kernel \S+ cannot be found"
    r"|kernel headers for this kernel do not seem to be installed"
)
# NVIDIA's own check only warns; what does not compile then says this, or something else.
OTHER_COMPILER = re.compile(r"Failed CC (?:version|sanity) check|unrecognized command.line option")
UNSIGNED = re.compile(r"^.*(?:modules won't be signed|openssl not found).*$", re.MULTILINE)

# file:line:column: error: text, as gcc, its linker and make's own scripts have it.
_ERROR = re.compile(
    r"^\S+?:(?:\d+:)*\s*(?:fatal )?error:|^ERROR: modpost:"
    r"|^\S*\bld(?:\.bfd)?: (?!warning)|^virtual memory exhausted",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^(?:In file included from|\s+from) |: In function|: At top level")
_FOLLOWING = re.compile(r"^\s|: note:|^In file included from")
_MAKE = re.compile(r"^make(?:\[\d+\])?: \*\*\* ")

LEADING, FOLLOWING, LONGEST = 4, 8, 200  # lines before and after, and characters of a line


def first_error(text: str) -> str | None:
    """The first line in which a compiler tells of an error."""
    return next((line for line in text.splitlines() if _ERROR.search(line)), None)


def excerpt(text: str) -> str:
    """The first error with what belongs to it; without one, make's complaints or the last lines.

    The last lines alone are of no use: with many jobs they tell of others that ended in between.
    """
    lines = [line[:LONGEST] for line in text.splitlines()]
    at = next((number for number, line in enumerate(lines) if _ERROR.search(line)), None)
    if at is None:
        return "\n".join([line for line in lines if _MAKE.search(line)][:8] or lines[-15:])
    start = at
    while start > max(0, at - LEADING) and _LEADING.search(lines[start - 1]):
        start -= 1
    end = at + 1
    while end < min(len(lines), at + 1 + FOLLOWING) and _FOLLOWING.search(lines[end]):
        end += 1
    ended = [line for line in lines[end:] if _MAKE.search(line)][:1]
    return "\n".join([*lines[start:end], *ended])
