"""What comes from the machine's own apt: the base tree and real packages for the lab's archive."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.rehearsal.command import run
from tests.rehearsal.report import RigError, say

HOME = "bookworm"  # the release whose archives the machine's own apt knows
STATUS = "var/lib/dpkg/status"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")

# What a cloud image of Debian has and the walk leans on. openssh-client: without ssh-keygen
# cloud-init 22.4 ends in `error`. curl: Rancher's install.sh needs it.
BASE = (
    "apt", "ca-certificates", "cloud-init", "curl", "dbus", "gpg", "initramfs-tools", "iproute2",
    "kmod", "openssh-client", "openssl", "pciutils", "procps", "python3", "systemd-sysv", "udev",
)  # fmt: skip

# What gpuboot's .deb depends on, and what its walk installs that is no stand-in.
DEPENDENCIES = (
    "python3-click", "python3-psutil", "python3-requests", "python3-tenacity", "python3-yaml",
)  # fmt: skip
WALK = ("dkms", "linux-headers-amd64")
# Alone: what it depends on is NVIDIA's, and in the lab's archive a stand-in.
ALONE = ("python3-pynvml",)

# NVIDIA's own, for the archive whose driver is real: what the walk installs, with all it depends
# on; and alone the open modules, which do not go together with all of it in Debian 12.
DRIVER = (
    "nvidia-kernel-dkms", "nvidia-smi", "libnvidia-ml1", "libcuda1", "nvidia-modprobe",
    "nvidia-persistenced", "firmware-nvidia-gsp",
)  # fmt: skip
OPEN = ("nvidia-open-kernel-dkms", "nvidia-open-kernel-support")

# How the machine reaches its archive; everything else of its apt settings stays outside.
SETTINGS = re.compile(r"Acquire::(http|https|Check-|Retries|Max-|ForceIPv)", re.IGNORECASE)


class Kernel(NamedTuple):
    """The kernel that linux-headers-amd64 stands for, and the version of its packages."""

    release: str
    version: str


def sources(release: str, components: Sequence[str]) -> list[str]:
    """The machine's own archives of a Debian release, as lines of a sources.list."""
    lines = derive(_targets(), release, components)
    if not lines:  # nothing is listed before the first update
        run("apt-get", "-q", "update")
        lines = derive(_targets(), release, components)
    if not lines:
        raise RigError(
            f"this machine's apt knows no archive of Debian {release}",
            hint="the rehearsal needs a Debian 12 machine whose apt works",
        )
    return lines


def _targets() -> str:
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    return run("apt-get", "indextargets", "--format", fields, "Created-By: Packages")


def derive(targets: str, release: str, components: Sequence[str]) -> list[str]:
    """The archives of a release where apt lists them, else where it lists the machine's own.

    A mirror has all of Debian's releases at one address.
    """
    found: dict[str, list[str]] = {HOME: [], release: []}
    for target in targets.splitlines():
        uri, suite, component, origin, *_ = [*target.split(), "", "", ""]
        codename, dash, part = suite.partition("-")
        if origin == "Debian" and component == "main" and codename in found:
            place = f"{uri} {release}{dash}{part} {' '.join(components)}"
            found[codename].append(f"deb [signed-by={KEYRING}] {place}")
    return found[release] or found[HOME]


def build_base(folder: Path, release: str) -> None:
    """A minimal Debian in `folder`, which appears whole or not at all."""
    say(f"Building the base tree of Debian {release} with mmdebstrap; this takes about a minute.")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    options = [f"--aptopt={line}" for line in _settings()]
    run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BASE)}", *options,
        release, str(partial), "-", stdin="\n".join(sources(release, ["main"])) + "\n",
    )  # fmt: skip
    # The node must not know where this machine gets its packages.
    (partial / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    (partial / "etc/apt/sources.list").write_text("", encoding="utf-8")
    for cached in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(partial / cached)
        (partial / cached).mkdir()
    partial.rename(folder)


def _settings() -> list[str]:
    dump = run("apt-config", "dump").splitlines()
    return [line for line in dump if SETTINGS.match(line) and not line.endswith(' "";')]


def download(base: Path, release: str, folder: Path) -> None:
    """The real packages that the walk and gpuboot's .deb need over `base`, by component."""
    say("Fetching the node's real packages (DKMS, compiler, kernel headers, Python modules).")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    apt = private_apt(partial / "apt", base / STATUS, sources(release, COMPONENTS))
    run(*apt, "update")
    archives = partial / "apt/cache/archives"
    run(*apt, "download", *ALONE, "linux-headers-amd64", cwd=archives)
    with (partial / "apt/status").open("a", encoding="utf-8") as status:
        status.write(_image(headers_kernel(archives)))
    run(*apt, "install", "--download-only", "--yes", *DEPENDENCIES, *WALK)
    _sort(archives.glob("*.deb"), partial)
    shutil.rmtree(partial / "apt")
    partial.rename(folder)


def download_driver(base: Path, release: str, others: Path, folder: Path) -> None:
    """NVIDIA's real packages of that release, by component; what is in `others` is not doubled.

    And in folder/image the real package of the kernel, whose modules the initramfs is made of.
    """
    say("Fetching Debian's real NVIDIA packages and kernel; about 200 MB.")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    apt = private_apt(partial / "apt", base / STATUS, sources(release, COMPONENTS))
    run(*apt, "update")
    archives = partial / "apt/cache/archives"
    for deb in others.glob("*/*.deb"):
        (archives / deb.name).hardlink_to(deb)
    run(*apt, "download", *OPEN, cwd=archives)
    (partial / "image").mkdir()
    kernel = headers_kernel(others / "main")
    run(*apt, "download", f"linux-image-{kernel.release}", cwd=partial / "image")
    run(*apt, "install", "--download-only", "--yes", *DRIVER)
    known = {deb.name.partition("_")[0] for deb in others.glob("*/*.deb")}
    fresh = [deb for deb in archives.glob("*.deb") if deb.name.partition("_")[0] not in known]
    _sort(fresh, partial)
    shutil.rmtree(partial / "apt")
    partial.rename(folder)


def version(folder: Path, name: str) -> str:
    """The upstream version of a package that lies below the folder: 535.309.01."""
    for deb in folder.glob(f"*/{name}_*.deb"):
        return _field(deb, "Version").rpartition(":")[2].rpartition("-")[0]
    raise RigError(f"{folder} holds no {name}")


def _sort(debs: Iterable[Path], folder: Path) -> None:
    """Move packages into the folders of their components."""
    for deb in debs:
        section = _field(deb, "Section")
        component = section.split("/")[0] if "/" in section else "main"
        (folder / component).mkdir(exist_ok=True)
        deb.rename(folder / component / deb.name)


def _image(kernel: Kernel) -> str:
    """dpkg's entry of that kernel's image, which Debian 13's headers depend on.

    Every machine has the image of the kernel it runs, and so has a node: a stand-in without files,
    as nothing in a container boots it. The real one would be 100 MB.
    """
    return (
        # Held, or apt would take the archive's of that version for a newer one.
        f"\nPackage: linux-image-{kernel.release}\nStatus: hold ok installed\n"
        f"Version: {kernel.version}\nArchitecture: amd64\nMaintainer: none\nDescription: none\n"
    )


def private_apt(state: Path, status: Path, lines: Sequence[str]) -> list[str]:
    """apt-get with the machine's settings, the given sources and a copy of dpkg's status."""
    (state / "lists/partial").mkdir(parents=True)
    (state / "cache/archives/partial").mkdir(parents=True)
    (state / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copyfile(status, state / "status")
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    return ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]


def headers_kernel(folder: Path) -> Kernel:
    """What the linux-headers-amd64 in a folder of packages stands for."""
    for deb in folder.glob("linux-headers-amd64_*.deb"):
        match = re.search(r"linux-headers-(\d\S*-amd64) \(= (\S+)\)", _field(deb, "Depends"))
        if match:
            return Kernel(match[1], match[2])
    raise RigError(f"{folder} holds no linux-headers-amd64 that names a kernel")


def _field(deb: Path, name: str) -> str:
    return run("dpkg-deb", "--field", str(deb), name).strip()
