"""The support bundle: what is needed to understand this node from afar, without its secrets."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuboot import evidence, explain, page, redaction, status
from gpuboot.errors import GpubootError
from gpuboot.secret import MASK

if TYPE_CHECKING:
    from gpuboot.evidence import Item
    from gpuboot.host import Host

LARGEST = 24 << 20  # bytes of all texts together; what comes after that is left out, and told
LEAST = 1 << 10  # bytes for which a text is still worth beginning
Tell = Callable[[int, int, str], None]  # number, of how many, which one


@dataclass(frozen=True)
class Text:
    """One file of the bundle, or why it is not there; sizes in bytes."""

    name: str
    tells: str
    content: str = ""
    missing: str = ""  # why there is none
    trouble: bool = False  # missing although it should be there
    cut: bool = False  # only its end

    @property
    def size(self) -> int:
        """Its size in the bundle, in bytes."""
        return len(self.content.encode())


@dataclass(frozen=True)
class Bundle:
    """Everything, and the page that leads through it."""

    name: str  # of its folder
    texts: Sequence[Text]
    index: str

    @property
    def masked(self) -> int:
        """How many secrets were taken out."""
        return sum(text.content.count(MASK) for text in self.texts)

    def packed(self, now: datetime) -> bytes:
        """A tar archive, compressed; only root can read what is unpacked from it."""
        file = io.BytesIO()
        there = {text.name: text.content for text in self.texts if not text.missing}
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in {"index.html": self.index, **there}.items():
                data = content.encode("utf-8", "replace")
                entry = tarfile.TarInfo(f"{self.name}/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now.timestamp())
                archive.addfile(entry, io.BytesIO(data))
        return file.getvalue()


def collect(host: Host, tell: Tell, items: Sequence[Item] = evidence.ITEMS) -> Bundle:
    """Gather everything; what cannot be had is told in its place. Raises Stopped."""
    name = default_name(host)
    redaction.learn(host)
    texts: list[Text] = []
    room = LARGEST
    for number, item in enumerate(items, 1):
        tell(number, len(items), item.name)
        text = _text(host, item, room)
        room -= text.size
        texts.append(text)
    return Bundle(name, texts, page.html(name, _standing(host), texts, _codes(texts)))


def default_name(host: Host) -> str:
    """The bundle's name: of the node, and of this moment."""
    node = re.sub(r"[^\w.-]", "_", (host.read("/proc/sys/kernel/hostname") or "node").strip())
    return f"gpuboot-report-{node}-{host.clock.now():%Y%m%dT%H%M%SZ}"


def _standing(host: Host) -> dict[str, Any]:
    """The status for the index; what programs have said in it may hold more than the agent knew."""
    found = status.look(host)
    said = {key: redaction.clean(host, str(found.get(key) or "")) for key in ("reason", "evidence")}
    drift = [redaction.clean(host, str(text)) for text in found.get("drift") or []]
    return {**found, **said, "drift": drift}


def _text(host: Host, item: Item, room: int) -> Text:
    try:
        content = item.read(host)
    except evidence.Absent as absent:
        return Text(item.name, item.tells, missing=redaction.clean(host, str(absent)))
    except Exception as error:  # ours too: a report is wanted where things are broken
        known = isinstance(error, (GpubootError, OSError))
        why = redaction.clean(host, str(error) if known else f"{type(error).__name__}: {error}")
        return Text(item.name, item.tells, missing=why, trouble=True)
    limit = min(item.limit, room)
    if limit < LEAST:
        why = f"the bundle has reached its {LARGEST >> 20} MiB"
        return Text(item.name, item.tells, missing=why, trouble=True)
    # Masked by their values before anything is cut: half of a secret is not known as one.
    whole = host.mask(content).encode("utf-8", "replace").decode()  # no half of a character
    end = _end(redaction.clean(host, _end(whole, limit)), limit)
    return Text(item.name, item.tells, end, cut=len(whole.encode()) > limit)


def _end(text: str, limit: int) -> str:
    """The last lines that fit into so many bytes."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[-limit:].decode("utf-8", "ignore").partition("\n")[2]


def _codes(texts: Sequence[Text]) -> dict[str, int]:
    """The codes that gpuboot's journal tells of, and how often."""
    known = explain.codes()
    said = "".join(text.content for text in texts if text.name == "journal/gpuboot.txt")
    found = [code for code in re.findall(r"\[(GB\d{3})\]", said) if code in known]
    return {code: found.count(code) for code in dict.fromkeys(found)}
