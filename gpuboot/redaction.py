"""What may leave this machine: text without secrets, by their values and by how they look.

The values are read from every file in which this machine keeps some. What no file of ours names is
still found where it looks like a secret: beside the name of one, in an address, in a header, in the
armour of a key. Too much is masked rather than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import yaml

from gpuboot import config, dropin, identity, rancher, rke2
from gpuboot.errors import GpubootError
from gpuboot.reader import Loader
from gpuboot.secret import LONGEST, MASK, Secret, redact

if TYPE_CHECKING:
    from gpuboot.host import Host

# Files and folders whose settings may be secrets; a folder stands for every file in it.
SETTINGS = (
    "/etc/gpuboot/config.yaml", "/etc/gpuboot/config.d",
    dropin.MAIN, dropin.FOLDER, "/etc/rancher/rke2/registries.yaml",
    "/etc/rancher/rke2/gpuboot-proxy.env", *rke2.ENVIRONMENT, "/etc/environment",
    "/etc/rancher/agent", rancher.CONNECTION, rancher.SCRIPT,
    "/etc/apt/auth.conf", "/etc/apt/auth.conf.d", "/etc/apt/apt.conf", "/etc/apt/apt.conf.d",
    "/etc/apt/sources.list", "/etc/apt/sources.list.d",
    "/var/lib/cloud/instance/user-data.txt",
)  # fmt: skip
# Whole files that are one secret.
WHOLE = (identity.FILE, "/etc/gpuboot/token")
LARGEST = 1 << 20  # bytes of a file of settings; a longer one is none

_NAMES = (
    r"(?:token|passw(?:or)?d|passphrase|secret|(?:api|access|private)[-_]?key|key-data|auth"
    r"|credentials?)"
)
_NAME = re.compile(rf"{_NAMES}\+?$", re.IGNORECASE)
# name: value, "name": "value", NAME=value, --name value; netrc's `password value`. A value in
# quotes may hold anything, a bare one ends where a word does.
_SETTING = re.compile(
    rf"""(?P<name>{_NAMES}\+?\\?["']?\s*(?:[:=]|(?<=password)\s)\s*|--[\w-]*{_NAMES}[=\s])
         (?P<value>\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;&\]}}\\]+)""",
    re.IGNORECASE | re.VERBOSE,
)
# What stands beside such a name and is no secret: nothing, a word of YAML, a small number, a path.
_SHOWN = re.compile(
    rf"|{MASK}|true|false|null|none|auto|yes|no|\d{{1,5}}|[\[{{|>~-]+"
    r"|/(?:etc|var|run|usr|opt|root|home|tmp|proc|mnt|srv)/.*",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?<=://)([^\s'\"/@]*):([^\s'\"]+?)(?=@[\w.\[-])")
_ALONE = re.compile(
    r"\b(?:bearer|basic)\s+[\w.~+/=-]{8,}"  # of an Authorization header
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # a JSON Web Token
    r"|LS0tLS1CRUdJTi[\w+/=]+",  # -----BEGIN in base64, as in a kubeconfig
    re.IGNORECASE,
)
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\A(?:[\w+/=]+\n)+-----END [A-Z ]*PRIVATE KEY-----",  # one whose beginning was cut off
    re.DOTALL,
)


def data_dir(host: Host) -> str:
    """RKE2's data folder; the usual one where no configuration says so that can be read."""
    with suppress(GpubootError):
        return dropin.data_dir(host, config.load(host).rke2.config.data_dir)
    return dropin.DATA


def learn(host: Host) -> None:
    """Mask from now on, in everything that the host reads, what this machine's files keep secret.

    A configuration that is wrong is no obstacle: its lines are looked at as those of any file.
    """
    places = (*SETTINGS, f"{data_dir(host)}/agent")
    for name in (name for place in places for name in _files(host, place)):
        for value in values(host.tail(name, LARGEST)):
            host.mask.add(Secret(value))
    for name in (*WHOLE, *_token_files(host)):
        host.mask.add(Secret(host.tail(name, LARGEST)))


def _token_files(host: Host) -> list[str]:
    """Those that RKE2's own configuration names; gpuboot's is known by its configuration."""
    with suppress(GpubootError):
        return [name] if (name := dropin.setting(host, "token-file")) else []
    return []


def values(text: str) -> Iterator[str]:
    """The secrets in a file of settings: YAML, JSON, an environment, apt's auth.conf."""
    with suppress(*dropin.UNREADABLE):
        for document in yaml.load_all(text, Loader=Loader):
            yield from _below(document, secret=False, seen=set())
    for setting in _SETTING.finditer(text):
        value = setting["value"].strip("\\\"'")
        if not _SHOWN.fullmatch(value):
            yield value
    for match in _ADDRESS.finditer(text):
        yield match[2]


def clean(host: Host, text: str) -> str:
    """The text as it may be handed on; a line of more than 2,000 characters is cut."""
    text = _KEY.sub(MASK, host.mask(text))
    return "".join(_line(line) for line in text.splitlines(keepends=True))


def _line(line: str) -> str:
    # Cut only now: half a secret would not be known by its value.
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]} … ({len(line) - LONGEST} more characters)\n"
    return redact(_ALONE.sub(MASK, _SETTING.sub(_without_value, line)))


def _without_value(setting: re.Match[str]) -> str:
    value = setting["value"]
    bare = value.strip("\\\"'")
    return setting[0] if _SHOWN.fullmatch(bare) else setting["name"] + value.replace(bare, MASK)


def _below(content: object, *, secret: bool, seen: set[tuple[int, bool]]) -> Iterator[str]:
    """Every text that stands, at any depth, under a key with a secret's name.

    What aliases stand for is gone through once: they may name each other without end.
    """
    if isinstance(content, str):
        if secret and not _SHOWN.fullmatch(content):
            yield content
        elif "\n" in content:  # a file within a file, such as a kubeconfig in JSON
            yield from values(content)
        return
    if not isinstance(content, (dict, list)) or (id(content), secret) in seen:
        return
    seen.add((id(content), secret))
    if isinstance(content, list):
        for one in content:
            yield from _below(one, secret=secret, seen=seen)
        return
    for key, value in content.items():
        # `auth` in registries.yaml is a map with a user's name, which is no secret.
        named = secret or (not isinstance(value, dict) and bool(_NAME.search(str(key))))
        yield from _below(value, secret=named, seen=seen)


def _files(host: Host, place: str) -> list[str]:
    names = host.names(place)
    return [f"{place}/{name}" for name in names] if names else [place]
