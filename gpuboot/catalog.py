"""The drivers that can be had, as data: release, source, branch, kind of module, packages.

Names and versions were looked up in the archives in November 2026 (tests/data/packages says how
for each; facts: nvidia 2.3 to 2.5), the modules' names in the packages' dkms.conf.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from gpuboot.cards import OPEN, PROPRIETARY

ARCHITECTURE = "amd64"
DKMS, PRECOMPILED = "dkms", "precompiled"
DISTRIBUTION, NVIDIA = "distribution", "nvidia"


@dataclass(frozen=True)
class Archive:
    """A distribution's archive: components, what is added to its codename, and its keyring."""

    components: tuple[str, ...]
    pockets: tuple[str, ...]
    keyring: str


ARCHIVES = {
    # Debian's security updates are at another address than its archive.
    "debian": Archive(("main", "contrib", "non-free", "non-free-firmware"), ("",),
                      "/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Archive(("main", "restricted", "universe", "multiverse"),
                      ("", "-updates", "-security"),
                      "/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """NVIDIA's repository for one release: its address, and the fingerprint of what signs it."""

    url: str
    key: str


_CUDA = "https://developer.download.nvidia.com/compute/cuda/repos"
# The key of 2022 has a self-signature by SHA-1, which Debian 13's apt refuses since 2026: its
# repository has a key of its own (facts: nvidia 2.5).
_KEY_2022 = "EB693B3035CD5710E231E123A4B469963BF863CC"
_KEY_DEBIAN13 = "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
REPOSITORIES = {
    "debian 12": Repository(f"{_CUDA}/debian12/x86_64", _KEY_2022),
    "debian 13": Repository(f"{_CUDA}/debian13/x86_64", _KEY_DEBIAN13),
    "ubuntu 22.04": Repository(f"{_CUDA}/ubuntu2204/x86_64", _KEY_2022),
    "ubuntu 24.04": Repository(f"{_CUDA}/ubuntu2404/x86_64", _KEY_2022),
}


@dataclass(frozen=True)
class Row:
    """One driver that one source packages for one release.

    `packages` is the smallest set for a container host. The module is brought by the first of
    them, or where it comes precompiled by a package for each kernel, STEM-RELEASE, and by a
    meta-package for each flavour, STEM-FLAVOUR: then `stem` is theirs. `module` is the module
    file's name without suffix. `owners`, a regular expression, fits the packages that its files
    are of; empty: `packages`. `rivals` bring the other kind of module, by name or pattern: both
    kinds have one version, and modprobe takes whichever it finds. `signed`: with a key that the
    release's kernels know. `pin`: the versions of it that apt may take, where its source has other
    branches too. `trouble`: what is known to go wrong, told to whoever asks for it all the same.
    `moved`: the older branches whose packages are transitional ones to this branch.
    """

    release: str
    source: str
    branch: str
    kernel_module_type: str
    build: str
    module: str
    packages: tuple[str, ...]
    stem: str = ""
    owners: str = ""
    rivals: tuple[str, ...] = ()
    signed: bool = False
    pin: str = ""
    trouble: str = ""
    moved: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The row in a list of what can be had."""
        return f"{self.branch} ({self.kernel_module_type})"


_CURRENT = ("nvidia-smi", "libnvidia-ml1", "libcuda1", "nvidia-modprobe", "nvidia-persistenced",
            "firmware-nvidia-gsp")  # fmt: skip
_PROPRIETARY = ("nvidia-kernel-dkms", *_CURRENT)
_OPEN = ("nvidia-open-kernel-dkms", *_CURRENT)
# cfg1 is named because nvidia-persistenced would bring the current branch's, and with it the
# alternative that outranks this one: then nothing finds its libraries (tried in Debian 13).
_TESLA = ("nvidia-tesla-535-kernel-dkms", "nvidia-tesla-535-smi", "libnvidia-tesla-535-ml1",
          "libnvidia-tesla-535-cuda1", "libnvidia-tesla-535-cfg1", "nvidia-modprobe",
          "nvidia-persistenced", "firmware-nvidia-tesla-535-gsp")  # fmt: skip

_KIND = {PROPRIETARY: ("nvidia-kernel-dkms", "nvidia-kernel-support"),
         OPEN: ("nvidia-open-kernel-dkms", "nvidia-open-kernel-support")}  # fmt: skip


def _debian() -> Iterator[Row]:
    """Debian's own packages: all are built by DKMS."""
    proprietary = (PROPRIETARY, DKMS, "nvidia-current", _PROPRIETARY)
    free = (OPEN, DKMS, "nvidia-current-open", _OPEN)
    tesla = (PROPRIETARY, DKMS, "nvidia-tesla-535", _TESLA)
    yield Row("debian 12", DISTRIBUTION, "535", *proprietary, rivals=_KIND[OPEN])
    yield Row("debian 12", DISTRIBUTION, "535", *free, rivals=_KIND[PROPRIETARY],
              trouble="it has had no security update and cannot be installed beside the updated"
                      " libraries")  # fmt: skip
    yield Row("debian 13", DISTRIBUTION, "550", *proprietary, rivals=_KIND[OPEN])
    yield Row("debian 13", DISTRIBUTION, "535", *tesla, rivals=_KIND[OPEN])
    yield Row("debian 13", DISTRIBUTION, "550", *free, rivals=_KIND[PROPRIETARY],
              trouble="it does not compile for kernels from 6.12.117 on")  # fmt: skip


def _ubuntu(release: str, branch: str, moved: tuple[str, ...]) -> Iterator[Row]:
    """Ubuntu's server branch: modules signed by its own key for every kernel, else by DKMS.

    The headless set has neither nvidia-smi nor the compute libraries of its own: utils does.
    """
    name = f"{branch}-server"
    for kind, mark, other in ((PROPRIETARY, "", "-open"), (OPEN, "-open", "")):
        beside = (f"nvidia-headless-no-dkms-{name}{mark}", f"nvidia-utils-{name}")
        rivals = (f"nvidia-dkms-{name}{other}", f"nvidia-headless-no-dkms-{name}{other}",
                  f"linux-modules-nvidia-{name}{other}-[0-9]*",
                  f"linux-modules-nvidia-{name}{other}-generic*")  # fmt: skip
        owners = (r"(linux-(modules|objects)-nvidia|libnvidia-compute|nvidia-(dkms|kernel-source))"
                  rf"-{name}(-open)?(-.*)?")  # fmt: skip
        yield Row(release, DISTRIBUTION, branch, kind, PRECOMPILED, "nvidia", beside,
                  stem=f"linux-modules-nvidia-{name}{mark}", owners=owners, rivals=rivals,
                  signed=True, moved=moved)  # fmt: skip
        yield Row(release, DISTRIBUTION, branch, kind, DKMS, "nvidia",
                  (f"nvidia-dkms-{name}{mark}", *beside), owners=owners, rivals=rivals,
                  moved=moved)  # fmt: skip


def _nvidia() -> Iterator[Row]:
    """NVIDIA's repository: every branch in one place, so that apt is told which; all by DKMS.

    That for Debian 13 has no 580, that for Ubuntu 26.04 neither. From 615 on its nvidia-kernel-dkms
    is an empty package that brings the open modules.
    """
    modules = {PROPRIETARY: "nvidia-kernel-dkms", OPEN: "nvidia-kernel-open-dkms"}
    for release, branch in (("debian 12", "580"), ("debian 13", "595")):
        for kind, other in ((PROPRIETARY, OPEN), (OPEN, PROPRIETARY)):
            yield Row(release, NVIDIA, branch, kind, DKMS, "nvidia",
                      (modules[kind], "nvidia-driver-cuda", "nvidia-persistenced",
                       "nvidia-modprobe"),
                      rivals=(modules[other],), pin=f"{branch}.*")  # fmt: skip
    for release in ("ubuntu 22.04", "ubuntu 24.04"):
        for kind, mark, other in ((PROPRIETARY, "", "-open"), (OPEN, "-open", "")):
            yield Row(release, NVIDIA, "580", kind, DKMS, "nvidia",
                      (f"nvidia-dkms-580{mark}", f"nvidia-headless-no-dkms-580{mark}",
                       "nvidia-utils-580", "nvidia-persistenced", "nvidia-modprobe"),
                      owners=r"(nvidia-(dkms|kernel-source)|libnvidia-compute)-580(-open)?",
                      rivals=(f"nvidia-dkms-580{other}", f"nvidia-headless-no-dkms-580{other}"),
                      pin="580.*")  # fmt: skip


TRANSITIONAL = ("535", "570")  # to 580-server, in all three (tests/data/packages)
# What stands first is preferred: on Debian NVIDIA's repository, as Debian's own branches have
# reached their end (facts: nvidia 2.1); on Ubuntu the signed modules, which Secure Boot accepts.
_UBUNTU = ("ubuntu 22.04", "ubuntu 24.04", "ubuntu 26.04")
TABLE = (
    *(row for release in _UBUNTU for row in _ubuntu(release, "580", TRANSITIONAL)),
    *_nvidia(),
    *_debian(),
)
RELEASES = ("debian 12", "debian 13", *_UBUNTU)  # in the order in which people are told of them


def listed(releases: Container[str] = RELEASES) -> str:
    """Releases as a person says them: `Debian 12 and 13, Ubuntu 24.04`."""
    known: dict[str, list[str]] = {}
    for release in RELEASES:
        name, _, version = release.partition(" ")
        if release in releases:
            known.setdefault(name.capitalize(), []).append(version)
    return ", ".join(f"{name} {_and(versions)}" for name, versions in known.items())


def _and(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
