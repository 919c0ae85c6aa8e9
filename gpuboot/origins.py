"""Which source the driver's packages come from: all of one, or nothing is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gpuboot import apt, aptsources
from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    from gpuboot.host import Host

MIXED = Code(
    "GB217",
    "the driver's packages would come from two sources",
    (
        "Parts of it are installed from NVIDIA's repository, from backports or from a .deb file.",
        "The source that was chosen has been changed since this node's driver was installed.",
    ),
    ("apt-cache policy PACKAGE", "dpkg -l '*nvidia*'", "gpuboot config schema"),
    evidence="the sources that apt would take each package of the driver from",
)

# What a driver consists of, whoever packs it; the toolkit's packages share its names.
_PARTS = ("nvidia-*", "libnvidia-*", "libcuda1*", "cuda-drivers*", "xserver-xorg-video-nvidia*")
_TOOLKIT = re.compile(r"(?:lib)?nvidia-container")


def refuse_mixture(host: Host, driver: Sequence[str], options: Sequence[str]) -> None:
    """Raises GB217 if a part of the driver would be, or stay, of another source than the rest.

    A complete driver is nobody's to judge here: nothing would be installed beside it.
    """
    options = options or aptsources.ONLY
    there = apt.installed(host, [*driver, *_PARTS])
    if all(name in there for name in driver):
        return
    parts = sorted({*driver, *(name for name in there if not _TOOLKIT.match(name))})
    known = apt.policy(host, parts, options)
    if strange := _strange(known):
        names = ", ".join(f"{name} {version}" for name, version in strange.items())
        raise GpubootError(
            MIXED,
            f"{names} installed from {_origin(host, strange)}; the rest of the driver would come"
            f" from {_chosen(driver, known)}",
            hint=f"apt-get purge {' '.join(strange)}, then: gpuboot run (or keep that driver whole,"
            " and set driver.source: preinstalled)",
            retry=True,
        )
    if lacking := [name for name in driver if name not in known or not known[name].candidate]:
        raise GpubootError(
            MIXED,
            f"{', '.join(lacking)} could only come from {_candidates(host, lacking)}; the rest of"
            f" the driver would come from {_chosen(driver, known)}",
            hint=f"cat {aptsources.FILE} (a component is missing there, or the mirror lacks it)",
            retry=True,
        )


def _strange(known: Mapping[str, apt.Policy]) -> dict[str, str]:
    """Installed packages that no source of ours has in that version, and that apt would keep.

    An older one of ours, which the archive has replaced since, is not among them: it is upgraded.
    """
    return {
        name: one.installed
        for name, one in known.items()
        if one.installed and one.candidate == one.installed and not one.versions.get(one.installed)
    }


def _origin(host: Host, strange: Mapping[str, str]) -> str:
    """The sources of the node that have them in these versions."""
    try:
        known = apt.policy(host, list(strange), aptsources.EVERYBODYS)
    except GpubootError:  # its other sources cannot be read
        known = {}
    places = [place for name, version in strange.items() if name in known
              for place in known[name].versions.get(version, ())]  # fmt: skip
    return _addresses(places) or "no source that this node still has"


def _candidates(host: Host, names: Sequence[str]) -> str:
    known = apt.policy(host, names, aptsources.EVERYBODYS)
    return _addresses([place for one in known.values() if one.offered
                       for place in one.versions[one.offered]])  # fmt: skip


def _chosen(driver: Sequence[str], known: Mapping[str, apt.Policy]) -> str:
    offers = [known[name] for name in driver if name in known]
    return _addresses([place for one in offers if one.offered
                       for place in one.versions[one.offered]])  # fmt: skip


def _addresses(places: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(" ".join(place.split()[:2]) for place in places))
