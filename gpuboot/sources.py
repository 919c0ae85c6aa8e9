"""Where packages come from: apt's source files and the keys they are verified with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gpuboot import apt, aptsources
from gpuboot.aptsources import FILE, FOLDER
from gpuboot.errors import Code, GpubootError
from gpuboot.step import Finding, Ok, Pending

if TYPE_CHECKING:
    from gpuboot.host import Host

KEYRINGS = "/etc/apt/keyrings"
PREFERENCES = "/etc/apt/preferences.d/gpuboot"
# What a driver is packed in, whoever packs it.
DRIVER = "nvidia-* libnvidia-* libcuda1* libnvcuvid1* libnvoptix1* cuda-drivers* firmware-nvidia-*"

KEY_MISSING = Code(
    "GB210",
    "the key of a package source is not there",
    ("The file named under sources does not exist on this node.",),
    ("ls -l /usr/share/keyrings /etc/apt/keyrings", "gpuboot config show"),
    evidence="the file's absence",
)
KEY_REFUSED = Code(
    "GB211",
    "the key of a package source is not the pinned one",
    (
        "The mirror hands out another key than the one whose fingerprint is pinned.",
        "The source's owner changed the key: check the new fingerprint, then configure it.",
    ),
    ("gpg --show-keys FILE", "gpuboot config show"),
    evidence="the fingerprint of the key that was handed out",
)
NO_ARCHIVE = Code(
    "GB212",
    "the node's own apt sources name no archive of the distribution",
    ("apt is configured with other sources only.",),
    ("apt-get indextargets", "gpuboot config schema"),
    evidence="apt-get indextargets",
)


@dataclass(frozen=True)
class Source:
    """One apt source. `suite` is "/" for a flat repository; `url` may be a local folder.

    `key` is a key file on the node, or the fingerprint of the key that lies below the url by one
    of the `key_names`. Other suites, several with blanks between them, have `components`.
    """

    name: str
    url: str
    suite: str
    key: str
    components: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ("gpgkey",)

    @property
    def pinned(self) -> bool:
        """Whether the key is named by its fingerprint, so that we fetch it."""
        return not self.key.startswith("/")

    @property
    def key_file(self) -> str:
        """Where apt reads the key; .asc: apt takes armored keys by that suffix."""
        return f"{KEYRINGS}/gpuboot-{self.name}.asc" if self.pinned else self.key


@dataclass(frozen=True)
class OwnArchive:
    """The distribution's archive where the node's own apt sources have it, with all components."""

    codename: str
    components: tuple[str, ...]
    name: ClassVar[str] = "distribution"


@dataclass(frozen=True)
class PackageSources:
    """apt knows where driver and toolkit come from, and whose signature to want."""

    name: ClassVar[str] = "package-sources"
    disruptive: ClassVar[bool] = False

    sources: tuple[Source | OwnArchive, ...]
    pin: str = ""  # the driver's versions that apt may take; empty: any

    def check(self, host: Host) -> Finding:
        for source in self.sources:
            if isinstance(source, Source) and source.pinned:
                if not _has_key(host, source):
                    return Pending(f"the key of {source.name} is not there")
            elif isinstance(source, Source) and not host.exists(source.key_file):
                raise GpubootError(KEY_MISSING, f"sources.{source.name}.key: no {source.key_file}")
        if host.read(FILE) != text(host, self.sources):
            return Pending(f"{FILE} is not written")
        if host.read(PREFERENCES) != preferences(self.pin):
            return Pending(f"{PREFERENCES} does not say which driver apt may take")
        names = " and ".join(source.name for source in self.sources)
        return Ok(f"apt has the sources {names}")

    def writes(self, host: Host) -> Mapping[str, str | None]:
        keys = {
            source.key_file: None
            for source in self.sources
            if isinstance(source, Source) and not _has_key(host, source)
        }
        pinned = preferences(self.pin)
        pin = {PREFERENCES: pinned} if pinned else {}
        return {**keys, FILE: text(host, self.sources), **pin}

    def apply(self, host: Host) -> None:
        host.memory.pop(apt.LISTS, None)  # what apt has read is of other sources
        for source in self.sources:
            if isinstance(source, Source):
                _provide_key(host, source)
        host.write(FILE, text(host, self.sources))
        if pinned := preferences(self.pin):
            host.write(PREFERENCES, pinned)
        else:
            host.remove(PREFERENCES)


def preferences(pin: str) -> str | None:
    """What tells apt which of the driver's versions to take; None where it may take any.

    It outranks what cuda-keyring (600) and NVIDIA's nvidia-driver-pinning packages (1000) say.
    """
    if not pin:
        return None
    head = "# Written by gpuboot from /etc/gpuboot/config.yaml; changes here are overwritten.\n"
    # NVIDIA's repository has a dkms too, whose epoch outranks the distribution's for ever.
    own_dkms = "Package: dkms\nPin: release o=NVIDIA\nPin-Priority: -1\n"
    return f"{head}Package: {DRIVER}\nPin: version {pin}\nPin-Priority: 1001\n\n{own_dkms}"


def addresses(host: Host, wanted: Sequence[Source | OwnArchive]) -> list[str]:
    """What apt would ask these sources for first, and the keys to download. Raises GB212."""
    found = []
    for source in wanted:
        if isinstance(source, OwnArchive):
            archives = [(url, suite) for url, suite, _ in _own_archives(host, source.codename)]
        else:
            archives = [(source.url, suite) for suite in source.suite.split()]
            if not _has_key(host, source):
                found.append(_key_addresses(source)[0])
        for url, suite in archives:
            folder = "" if suite == "/" else f"/dists/{suite}"
            found.append(f"{_first_mirror(host, url)}{folder}/InRelease")
    return list(dict.fromkeys(found))


def _first_mirror(host: Host, url: str) -> str:
    """The address, or a cloud image's first in its list of mirrors, or a local folder's name."""
    kind, _, file = url.partition(":")
    if kind == "mirror+file":
        lines = re.findall(r"^[^#\s]\S*", host.read(file) or "", re.MULTILINE)
        return lines[0].rstrip("/") if lines else url
    return file if kind == "file" else url


def text(host: Host, wanted: Sequence[Source | OwnArchive], *, keys: Path | None = None) -> str:
    """The sources in apt's deb822 form. Raises GB212.

    With `keys` a pinned key is fetched into that folder and named there. Raises GB211 then.
    """
    head = "# Written by gpuboot from /etc/gpuboot/config.yaml; changes here are overwritten.\n"
    return head + "\n".join(one for source in wanted for one in _stanzas(host, source, keys))


def _stanzas(host: Host, source: Source | OwnArchive, keys: Path | None) -> list[str]:
    if isinstance(source, OwnArchive):
        return [
            _stanza(url, suite, source.components, signed_by)
            for url, suite, signed_by in _own_archives(host, source.codename)
        ]
    url = f"file:{source.url}" if source.url.startswith("/") else source.url
    key = source.key_file
    if keys and not _has_key(host, source):
        key = str(keys / f"{source.name}.asc")
        Path(key).write_text(_download_key(host, source), encoding="utf-8")
    return [_stanza(url, source.suite, source.components, key)]


def _stanza(url: str, suite: str, components: Sequence[str], signed_by: str | None) -> str:
    lines = ["Types: deb", f"URIs: {url}", f"Suites: {suite}"]
    if components:
        lines.append("Components: " + " ".join(components))
    if signed_by:
        lines.append(f"Signed-By: {signed_by}")
    return "\n".join([*lines, ""])


def _own_archives(host: Host, codename: str) -> list[tuple[str, str, str | None]]:
    """Address, suite and key of the node's own sources for this release. Raises GB212.

    Security updates belong to it: Debian's newest driver is there. The key is the entry's own,
    or none if it names none: apt refuses two entries of one archive with different keys.
    """
    found: list[tuple[str, str, str | None]] = []
    for line in dict.fromkeys(aptsources.targets(host)):
        site, suite, component, created_by, entry = [*line.split(), "", "", "", "", ""][:5]
        if entry.startswith(f"{FOLDER}/gpuboot"):
            continue
        if component == "main" and created_by == "Packages" and suite.startswith(codename):
            found.append((site.rstrip("/"), suite, _signed_by(host, entry)))
    if not found:
        raise GpubootError(NO_ARCHIVE, f"no apt source has {codename} main; set sources.apt.url")
    return found


def _signed_by(host: Host, entry: str) -> str | None:
    """The key that a source entry names itself: line N of a .list, stanza N of a .sources."""
    file, _, number = entry.rpartition(":")
    text = host.read(file) or ""
    if file.endswith(".sources"):
        text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
        entries = [stanza for stanza in re.split(r"\n\s*\n", text) if stanza.strip()]
        # The key itself may stand there, in lines that begin with a space.
        key = re.compile(r"^signed-by:[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE | re.IGNORECASE)
    else:
        entries = text.splitlines()
        key = re.compile(r"signed-by=([^\s\]]+)")
    index = int(number) - 1 if number.isdigit() else 0
    match = key.search(entries[index]) if index < len(entries) else None
    return match[1] if match else None


def _provide_key(host: Host, source: Source) -> None:
    """Download the key, and keep it only if it is the pinned one and no other. Raises GB211."""
    if not _has_key(host, source):
        host.write(source.key_file, _download_key(host, source))


def _key_addresses(source: Source) -> list[str]:
    return [f"{source.url}/{name}" for name in source.key_names]


def _download_key(host: Host, source: Source) -> str:
    """The pinned key, armored, if it is that one and no other. Raises GB211."""
    address, found = source.url, list[str]()
    for address in _key_addresses(source):
        key = _fetched(host, address)
        found = _fingerprints(host, key)
        if found == [source.key.upper()]:
            return key
        if found:
            break
    raise GpubootError(
        KEY_REFUSED,
        f"{address} holds {', '.join(found) or 'no key'}, expected {source.key.upper()}",
        retry=not found,
    )


def _fetched(host: Host, address: str) -> str:
    if address.startswith("/"):
        return host.read(address) or ""
    answer = host.web.get(address)
    return answer.text if answer.status == 200 else ""


def _has_key(host: Host, source: Source) -> bool:
    """Whether there is nothing to download: the key is a file's, or the pinned one is there."""
    if not source.pinned:
        return True
    key = host.read(source.key_file)
    return key is not None and _fingerprints(host, key) == [source.key.upper()]


def _fingerprints(host: Host, key: str) -> list[str]:
    """The primary keys in an armored text, by gpg; apt would trust every one of them."""
    # Without a home of its own gpg has no trust database, and lists nothing unless told so.
    options = ["--batch", "--trust-model", "always", "--with-colons"]
    argv = ["gpg", *options, "--show-keys"]
    listing = host.run(argv, env={"GNUPGHOME": "/nonexistent"}, input=key).out
    return re.findall(r"^pub:.*\n(?:.*\n)*?fpr:+([0-9A-F]{40}):", listing, re.MULTILINE)
