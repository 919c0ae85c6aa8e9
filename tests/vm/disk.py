"""The virtual machine's disk: Debian with its own kernel and GRUB, made without a boot."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.rehearsal import packages, template, tree
from tests.rehearsal.cache import CACHE, ROOT, built, digest, layer
from tests.rehearsal.command import run
from tests.rehearsal.packages import Kernel
from tests.rehearsal.report import say
from tests.rehearsal.template import in_tree, write

HERE = Path(__file__).parent
KIND = tree.Kind("bookworm")
GRUB = ("grub2-common", "grub-pc-bin")  # what grub-install and update-grub are of
# As the rehearsal's stand-in of grub-probe says, which update-grub asks where there is no disk yet.
UUID, LABEL = "6d1c4b8e-52b1-4f27-9a43-0c1f6a3e7d52", "0x3f2a9c1e"
PROBE = ROOT / "tests/rehearsal/standins/hardware/grub_probe"
SIZE, START = 8 << 30, 1 << 20  # bytes: of the disk, and where its only partition begins
OWN = HERE / "root"  # files of the machine, as they lie there
UNITS = ("vm-look.service", "vm-end.service")


def fetch() -> Path:
    """Debian's kernel and GRUB, from the network; called outside the lab, which has none."""
    base = tree.base_tree(KIND.debian)
    kernel = packages.headers_kernel(tree.real_debs(KIND)[0] / "main")
    folder = CACHE / "debs" / f"vm-{digest([], [base.name, kernel, GRUB])}"
    return built(folder, "Fetching Debian's kernel and GRUB.", lambda into: _fetch(into, kernel))


def _fetch(folder: Path, kernel: Kernel) -> None:
    lines = packages.sources(KIND.debian, ["main"])
    status = tree.base_tree(KIND.debian) / packages.STATUS
    apt = packages.private_apt(folder / "apt", status, lines)
    run(*apt, "update")
    run(*apt, "install", "--download-only", "--yes", f"linux-image-{kernel.release}", *GRUB)
    for deb in (folder / "apt/cache/archives").glob("*.deb"):
        deb.rename(folder / deb.name)
    shutil.rmtree(folder / "apt")


def prepare(ground: tree.Ground, debs: Path) -> Path:
    """The layer over the base tree that makes it the machine's template; called in the lab."""
    kernel = ground.kernels["auto"]
    own = [HERE / "disk.py", HERE / "keeper", OWN]
    inputs = [*own, *(ROOT / part for part in tree.PRODUCT)]
    made = digest(inputs, [debs.name, ground.archive.name, ground.identity.name])
    return layer("vm", [ground.base], made, lambda root: _furnish(root, ground, debs, kernel))


def _furnish(root: Path, ground: tree.Ground, debs: Path, kernel: Kernel) -> None:
    source = f"http://archive.lab/debian {KIND.debian} main"
    template.connect(root, source, ground.archive, ground.web_ca)
    shutil.copytree(OWN, root, dirs_exist_ok=True)
    write(root, "etc/fstab", f"UUID={UUID} / ext4 defaults 0 1\n")
    # A template's maker bakes in what takes long: compiler, DKMS and headers. Not the driver.
    names = ("dkms", "linux-headers-amd64", "linux-image-amd64")
    files = [template.build_gpuboot(), *sorted(debs.glob("*.deb"))]
    template.install(root, KIND.debian, ground.archive, files, names)
    _keeper(root, kernel.release)
    in_tree(root, "systemctl", "enable", *UNITS)
    in_tree(root, "update-initramfs", "-u", "-k", kernel.release)
    _grub(root)


def _keeper(root: Path, release: str) -> None:
    """Builds nvkeep against the kernel's headers, as DKMS would."""
    built_in = root / "usr/src/nvkeep"
    shutil.copytree(HERE / "keeper", built_in)
    modules = f"/lib/modules/{release}"
    in_tree(root, "make", "-C", f"{modules}/build", "M=/usr/src/nvkeep", "modules")
    place = root / modules.lstrip("/") / "updates"
    place.mkdir(exist_ok=True)
    shutil.copy(built_in / "nvkeep.ko", place)
    shutil.rmtree(built_in)
    in_tree(root, "depmod", release)


def _grub(root: Path) -> None:
    """GRUB with its menu, but for its first sectors, which lie outside of any file system."""
    folder = root / "boot/grub"
    shutil.copytree(root / "usr/lib/grub/i386-pc", folder / "i386-pc", dirs_exist_ok=True)
    in_tree(root, "grub-mkimage", "--format=i386-pc", "--prefix=(hd0,msdos1)/boot/grub",
            "--output=/boot/grub/i386-pc/core.img", "biosdisk", "part_msdos", "ext2")  # fmt: skip
    # It names the file system only where udev does.
    known = f"mkdir -p /dev/disk/by-uuid && touch /dev/disk/by-uuid/{UUID} && exec update-grub"
    in_tree(root, "sh", "-c", known, binds=(f"--bind-ro={PROBE}:/usr/sbin/grub-probe",))


def write_image(root: Path, image: Path) -> None:
    """The disk with that tree on its only partition, and GRUB before it."""
    say("Writing the machine's disk.")
    with image.open("wb") as disk:
        disk.truncate(SIZE)
    table = f"label: dos\nlabel-id: {LABEL}\nstart={START // 512}, type=83, bootable\n"
    run("sfdisk", "--quiet", str(image), stdin=table)
    # GRUB 2.06 reads no file system that has these two.
    features = "^metadata_csum_seed,^orphan_file"
    run("mkfs.ext4", "-q", "-F", "-U", UUID, "-O", features, "-E", f"offset={START}",
        "-d", str(root), str(image), f"{(SIZE - START) >> 10}k")  # fmt: skip
    boot = (root / "boot/grub/i386-pc/boot.img").read_bytes()
    core = (root / "boot/grub/i386-pc/core.img").read_bytes()
    with image.open("r+b") as disk:
        disk.write(boot[:440])  # behind that the table of partitions begins
        disk.seek(512)  # where boot.img looks for the rest, unless told otherwise
        disk.write(core)
