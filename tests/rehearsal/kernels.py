"""The kernels of a rehearsal: their packages, and the boot loader that picks one at each boot.

Real: the headers, grub-mkconfig with all its scripts, linux-base, the package scripts' order of
events, and beside a real driver the kernel's modules. Stand-ins: the linux-image packages, which
have the real names, versions and maintainer scripts and a text for a kernel, and GRUB itself, which
no container boots by.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.rehearsal import archive, hardware
from tests.rehearsal.command import run
from tests.rehearsal.packages import COMPONENTS, STATUS, Kernel, private_apt, sources
from tests.rehearsal.report import RigError, say

IMAGE = Path(__file__).parent / "standins/kernel"
GRUB = ("grub2-common",)  # grub-mkconfig, update-grub; grub-common comes along
# Kernels of the release whose headers its archive has dropped: a template's of some months ago.
GONE = {
    "bookworm": Kernel("6.1.0-44-amd64", "6.1.164-1"),
    "trixie": Kernel("6.12.43+deb13-amd64", "6.12.43-1"),
}
WORDS = ("auto", "older", "cloud", "gone")  # of node.yaml; auto is the archive's newest
NAMES = "kernels.json"
CONFIG, ENVIRONMENT = "boot/grub/grub.cfg", "boot/grub/grubenv"

ENTRY = re.compile(r"(\t?)(?:menuentry|submenu) .*\$menuentry_id_option '([^']*)' \{")
LINUX = re.compile(r"\t+linux\t\S*/vmlinuz-(\S+)")

InTree = Callable[..., str]

UNPACK = """dpkg-deb --fsys-tarfile "$1" | tar --extract --directory "$2" \\
    --keep-directory-symlink --wildcards '*/lib/modules/*' '*/boot/config-*'"""


# -- from the network -------------------------------------------------------------------------


def fetch(base: Path, debian: str, newest: Kernel, folder: Path) -> None:
    """Debian's headers for one older kernel and for the cloud's, and GRUB, into folder/main."""
    say("Fetching more kernels' headers, and GRUB.")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    apt = private_apt(partial / "apt", base / STATUS, sources(debian, COMPONENTS))
    run(*apt, "update")
    archives = partial / "apt/cache/archives"
    names = run("apt-cache", *apt[2:], "pkgnames", "linux-headers-").split()
    older = _package(archives, apt, f"linux-headers-{_older(names, newest.release)}")
    cloud = _package(
        archives, apt, f"linux-headers-{newest.release.replace('amd64', 'cloud-amd64')}"
    )
    kernels = {"older": older, "cloud": cloud}
    with (partial / "apt/status").open("a", encoding="utf-8") as status:
        status.writelines(map(_installed, (newest, *kernels.values())))
    wanted = [f"linux-headers-{kernel.release}" for kernel in kernels.values()]
    run(*apt, "install", "--download-only", "--yes", "linux-headers-cloud-amd64", *wanted, *GRUB)
    (partial / "main").mkdir()
    for deb in archives.glob("*.deb"):
        deb.rename(partial / "main" / deb.name)
    (partial / NAMES).write_text(json.dumps(kernels), encoding="ascii")
    shutil.rmtree(partial / "apt")
    partial.rename(folder)


def _older(names: list[str], newest: str) -> str:
    """The newest kernel of the same series before this one, of those the archive has headers of."""
    series = re.escape(newest[: re.search(r"\d+\.\d+", newest).end()])  # type: ignore[union-attr]
    own = [re.fullmatch(rf"linux-headers-({series}\.[^a-z]*(?:deb\d+[.\d]*)?-amd64)", name)
           for name in names]  # fmt: skip
    found = sorted((match[1] for match in own if match and match[1] != newest), key=_numbers)
    kin = [one for one in found if re.findall(r"deb\d+", one) == re.findall(r"deb\d+", newest)]
    if not kin:
        raise RigError(f"the archive has headers for {newest} only")
    return kin[-1]


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _package(folder: Path, apt: list[str], name: str) -> Kernel:
    run(*apt, "download", name, cwd=folder)
    deb = next(folder.glob(f"{name}_*.deb"))
    version = run("dpkg-deb", "--field", str(deb), "Version").strip()
    return Kernel(name.removeprefix("linux-headers-"), version)


def _installed(kernel: Kernel) -> str:
    """dpkg's entry of a kernel's image, which Debian 13's headers depend on: ours is a stand-in."""
    return (
        f"\nPackage: linux-image-{kernel.release}\nStatus: hold ok installed\n"
        f"Version: {kernel.version}\nArchitecture: amd64\nMaintainer: none\nDescription: none\n"
    )


# -- packages ---------------------------------------------------------------------------------


def known(debs: Path, debian: str, newest: Kernel) -> dict[str, Kernel]:
    """The kernels by the words of node.yaml."""
    fetched = json.loads((debs / NAMES).read_text(encoding="ascii"))
    own = {word: Kernel(*pair) for word, pair in fetched.items()}
    return {"auto": newest, **own, "gone": GONE[debian]}


def build(folder: Path, kernels: Mapping[str, Kernel]) -> None:
    """The image packages and their metas: folder/main for the archive, folder/templates for nodes.

    A template has its own kernel's meta, of that version; the archive has the newest of a flavour.
    """
    for name in ("main", "templates"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for word, kernel in kernels.items():
        both = folder / "templates"
        image, meta = _image(both, kernel), _meta(both, kernel)
        if word != "gone":
            os.link(image, folder / "main" / image.name)
        if word in ("auto", "cloud", "custom"):
            os.link(meta, folder / "main" / meta.name)


def _image(folder: Path, kernel: Kernel) -> Path:
    """linux-image-RELEASE: what of a kernel somebody looks at, and Debian's scripts."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        modules = tree / "lib/modules" / kernel.release
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            archive.write(modules / name, "")
        archive.write(tree / f"boot/vmlinuz-{kernel.release}", "a pretended kernel\n")
        archive.write(
            tree / f"boot/config-{kernel.release}", "CONFIG_MODULES=y\nCONFIG_RD_GZIP=y\n"
        )
        depends = "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool"
        _control(tree, f"linux-image-{kernel.release}", kernel.version, depends)
        for script in sorted(IMAGE.iterdir()):
            text = script.read_text(encoding="utf-8").replace("@KERNEL@", kernel.release)
            archive.write(tree / "DEBIAN" / script.name, text, 0o755)
        return _packed(tree, folder, f"linux-image-{kernel.release}", kernel.version)


def _meta(folder: Path, kernel: Kernel) -> Path:
    name = f"linux-image-{flavour(kernel)}"
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        _control(tree, name, kernel.version, f"linux-image-{kernel.release} (= {kernel.version})")
        return _packed(tree, folder, name, kernel.version)


def flavour(kernel: Kernel) -> str:
    """The kernel's flavour, by which the metas go."""
    match = re.search(r"-((?:cloud-)?[a-z][a-z0-9]*)$", kernel.release)
    return match[1] if match else "amd64"


def _control(tree: Path, name: str, version: str, depends: str) -> None:
    text = (
        f"Package: {name}\nVersion: {version}\nSection: kernel\nDepends: {depends}\n"
        "Description: stand-in\n"
    )
    archive.write(tree / "DEBIAN/control", archive.complete(text))


def _packed(tree: Path, folder: Path, name: str, version: str) -> Path:
    archive.pack(tree, folder)
    return folder / f"{name}_{version}_amd64.deb"


# -- a node's kernel --------------------------------------------------------------------------


def install(tree: Path, debs: Path, kernel: Kernel, in_tree: InTree) -> None:
    """Makes this the only kernel of a machine that is switched off, with its meta, and GRUB's."""
    there = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    ours = packages_of(kernel)
    files = [f"/mnt/kernels/{name}_{kernel.version}_amd64.deb" for name in ours]
    in_tree(tree, "dpkg", "--install", *files, binds=(f"--bind-ro={debs}:/mnt/kernels",))
    (tree / "mnt/kernels").rmdir()
    others = {name for release in there for name in packages_of(Kernel(release, ""))}
    if others := others.difference(ours):
        in_tree(tree, "dpkg", "--purge", *sorted(others))


def furnish(tree: Path, image: Path, kernel: Kernel, in_tree: InTree) -> None:
    """Give that kernel its real modules and configuration, and a real initramfs made of them."""
    deb = next(image.glob(f"linux-image-{kernel.release}_*.deb"))
    run("sh", "-euc", UNPACK, "sh", str(deb), str(tree))
    in_tree(tree, "depmod", kernel.release)
    made = f"/boot/initrd.img-{kernel.release}"
    real = f"--bind-ro={tree}/usr/bin/kmod:/usr/sbin/modprobe"  # the stand-in wants to be booted
    in_tree(tree, "mkinitramfs", "-o", made, kernel.release, binds=(real,))


def packages_of(kernel: Kernel) -> tuple[str, str]:
    """The kernel's image package and the meta of its flavour."""
    return f"linux-image-{kernel.release}", f"linux-image-{flavour(kernel)}"


def boot(tree: Path) -> None:
    """What GRUB does when a machine is switched on: the kernel of this boot is in hardware.json."""
    settings = tree / hardware.SETTINGS
    if not settings.is_file() or not (tree / CONFIG).is_file():
        return
    environment = tree / ENVIRONMENT
    block = environment.read_text(encoding="utf-8") if environment.is_file() else ""
    variables = dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE))
    release = picked((tree / CONFIG).read_text(encoding="utf-8"), variables)
    if variables.get("next_entry"):  # grub.cfg has it emptied and saved
        emptied = re.sub(r"(?m)^next_entry=.*", "next_entry=", block)
        environment.write_text(emptied[:1024].ljust(1024, "#"), encoding="utf-8")
    told = json.loads(settings.read_text(encoding="utf-8"))
    if told["kernel"] != release:
        told["kernel"] = release
        settings.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    hardware.kernel_units(tree, release)


def picked(config: str, variables: Mapping[str, str]) -> str:
    """The kernel that grub-mkconfig's file boots: of the plain entry, or of the one asked for.

    Understands what the scenarios use: numbers and ids, `saved`, and what is asked for once.
    """
    default = re.findall(r'^\s+set default="(.*)"$', config, re.MULTILINE)[-1]
    if default == "${saved_entry}":
        default = variables.get("saved_entry", "0")
    first, _, rest = (variables.get("next_entry") or default).partition(">")
    menu: list[tuple[str, list[tuple[str, str]]]] = []  # id, and the ids and kernels in it
    for line in config.splitlines():
        if match := ENTRY.match(line):
            inner, name = match.groups()
            if inner:
                menu[-1][1].append((name, ""))
            else:
                menu.append((name, []))
        elif match := LINUX.match(line):
            inside = menu[-1][1]
            inside[-1:] = [(inside[-1][0] if inside else "", match[1])]
    inside = menu[_at([name for name, _ in menu], first)][1]
    return inside[_at([name for name, _ in inside], rest)][1]


def _at(names: list[str], wanted: str) -> int:
    if wanted.isdigit():
        return int(wanted) if int(wanted) < len(names) else 0
    return names.index(wanted) if wanted in names else 0
