"""Ubuntu nodes: a Debian tree that says it is Ubuntu, and an archive as Ubuntu's.

Real: apt, dpkg, debconf, DKMS and the compiler, ld, depmod, modinfo. Stand-ins, with the real
names, versions and relations (tests/data/packages): the kernels, and NVIDIA's packages of the
restricted area, whose modules are objects that hold what modinfo reads and nothing else. They are
linked on the node by the package's own script and signed with a key named as Canonical's.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import archive, hardware, kernels
from tests.rehearsal.packages import Kernel

COMPONENTS = ("main", "restricted", "universe", "multiverse")
UPSTREAM = "580.178.04"
OLD, OLD_VERSION = "535-server", "535.309.01"
STEM = "linux-modules-nvidia-580-server"
SIGNER = "Canonical Ltd. Kernel Module Signing"
MODULES = {
    "nvidia": "",
    "nvidia-uvm": "nvidia",
    "nvidia-modeset": "nvidia",
    "nvidia-drm": "nvidia-modeset",
}  # and what each depends on
FOLDER = "nvidia-580srv"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")

BLACKLIST = """\
blacklist nouveau
blacklist lbm-nouveau
alias nouveau off
alias lbm-nouveau off
"""
# udev makes the device files here; on a node of the lab the pretended kernel does (lab_kernel.py).
RULES = 'SUBSYSTEM=="pci", ATTRS{vendor}=="0x10de", DRIVERS=="nvidia", TAG+="systemd"\n'
TEMPLATE = """\
Template: linux/nvidia/latelink
Type: boolean
Default: false
Description: Late-link NVIDIA kernel modules?
 Enable this to link the NVIDIA kernel modules in the kernel package and make them available.
"""
LINK = hardware.STANDINS / "ubuntu/postinst"  # of the package that links the modules


@dataclass(frozen=True)
class System:
    """A release of Ubuntu: its kernels by the words of node.yaml, and the driver's version."""

    version: str
    codename: str
    kernels: Mapping[str, Kernel]
    driver: str

    @property
    def newest(self) -> Kernel:
        return self.kernels["auto"]


def _system(version: str, codename: str, series: str, newest: int, older: int) -> System:
    """`older` has left the archive's modules behind; custom has none in any version."""

    def kernel(number: int, flavour: str = "generic") -> Kernel:
        return Kernel(f"{series}.0-{number}-{flavour}", f"{series}.0-{number}.{number}")

    known = {"auto": kernel(newest), "older": kernel(older), "custom": kernel(1090, "kvm")}
    return System(version, codename, known, f"{UPSTREAM}-0ubuntu0.{version}.1")


SYSTEMS = {
    "ubuntu-22.04": _system("22.04", "jammy", "5.15", 203, 191),
    "ubuntu-24.04": _system("24.04", "noble", "6.8", 149, 147),
    "ubuntu-26.04": _system("26.04", "resolute", "7.0", 43, 41),
}

OS_RELEASE = """\
PRETTY_NAME="Ubuntu {version} LTS"
NAME="Ubuntu"
VERSION_ID="{version}"
VERSION_CODENAME={codename}
ID=ubuntu
ID_LIKE=debian
"""


def os_release(system: System) -> str:
    """The text of /etc/os-release."""
    return OS_RELEASE.format(version=system.version, codename=system.codename)


# -- the archive ------------------------------------------------------------------------------


def publish(folder: Path, system: System, debs: Path, headers: str, key: Path) -> None:
    """Kernels and Debian's own packages in the release, NVIDIA's in its -updates.

    `debs` holds real packages, among them Debian's headers of the kernel `headers`.
    """
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # of one file system with the debs
        main, restricted = Path(scratch) / "main", Path(scratch) / "restricted"
        empty = Path(scratch) / "empty"
        for made in (main, restricted, empty):
            made.mkdir()
        for deb in debs.glob("*.deb"):
            (main / deb.name).hardlink_to(deb)
        _kernels(main, system, debs, headers)
        _driver(restricted, system)
        for pocket, pools in (("", {"main": main}), ("-updates", {"restricted": restricted}),
                              ("-security", {})):  # fmt: skip
            name = f"{system.codename}{pocket}"
            fields = {"Origin": "Ubuntu", "Label": "Ubuntu", "Suite": name,
                      "Codename": system.codename}  # fmt: skip
            parts = {component: pools.get(component, empty) for component in COMPONENTS}
            archive.publish_suite(folder, name, parts, key, fields)


def _kernels(main: Path, system: System, debs: Path, headers: str) -> None:
    """The kernels' images, which a template may have too, and the headers of the custom one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kernels.build(folder, dict(system.kernels))
        for deb in (folder / "main").glob("*.deb"):
            shutil.copy(deb, main)
    _headers(main, system.kernels["custom"], debs, headers)


def _headers(main: Path, kernel: Kernel, debs: Path, debian: str) -> None:
    """Headers that a module can really be built with: Debian's, by another kernel's name."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, real = Path(scratch) / "tree", Path(scratch) / "real"
        deb = next(debs.glob(f"linux-headers-{debian}_*.deb"))
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(real)], check=True)
        own = tree / f"usr/src/linux-headers-{kernel.release}"
        shutil.copytree(real / f"usr/src/linux-headers-{debian}", own, symlinks=True)
        archive.write(own / "include/config/kernel.release", f"{kernel.release}\n")
        archive.write(own / "include/generated/utsrelease.h",
                      f'#define UTS_RELEASE "{kernel.release}"\n')  # fmt: skip
        modules = tree / f"lib/modules/{kernel.release}"
        modules.mkdir(parents=True)
        (modules / "build").symlink_to(f"/usr/src/linux-headers-{kernel.release}")
        _pack(tree, main, f"linux-headers-{kernel.release}", kernel.version,
              f"Depends: linux-headers-{debian}\n")  # fmt: skip # for what these stand on
    meta = f"linux-headers-{kernels.flavour(kernel)}"
    _plain(main, meta, kernel.version, f"Depends: linux-headers-{kernel.release}\n")


def _driver(pool: Path, system: System) -> None:
    for name, relations in _userland(system).items():
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "tree"
            _fill(tree, name)
            _pack(tree, pool, name, system.driver, relations)
    for name, relations in _transitional():
        _plain(pool, name, f"{OLD_VERSION}-0ubuntu0.{system.version}.2", relations)
    newest = system.newest
    _modules(pool, newest)
    meta = f"Depends: {STEM}-{newest.release} (= {newest.version}), {_common('>=', UPSTREAM)}\n"
    _plain(pool, f"{STEM}-generic", newest.version, f"{meta}Provides: nvidia-prebuilt-kernel\n")


def _common(relation: str, version: str) -> str:
    return f"nvidia-kernel-common-580-server ({relation} {version})"


def _userland(system: System) -> dict[str, str]:
    """The packages beside the modules: name, and its relations as in a control file."""
    same, up = f"(= {system.driver})", "580-server"
    compute = f"libnvidia-compute-{up} {same}"
    return {
        f"nvidia-headless-no-dkms-{up}":
            f"Depends: {_common('>=', UPSTREAM)}, nvidia-kernel-source-{up} {same}, {compute},"
            f" nvidia-compute-utils-{up} {same}, libnvidia-cfg1-{up} {same}\n",
        f"nvidia-utils-{up}":
            f"Depends: libnvidia-compute-{up} (>= {UPSTREAM}),"
            f" nvidia-kernel-common-{up}-{UPSTREAM}, python3:any\n"
            "Conflicts: nvidia-utils, nvidia-smi\nProvides: nvidia-utils, nvidia-smi\n",
        f"nvidia-compute-utils-{up}":
            f"Depends: libnvidia-compute-{up}, adduser, python3:any\n"
            "Conflicts: nvidia-compute-utils, nvidia-persistenced\n"
            "Provides: nvidia-compute-utils, nvidia-persistenced\n",
        f"libnvidia-compute-{up}":
            f"Depends: libc6 (>= 2.34), nvidia-kernel-common-{up}-{UPSTREAM}\n"
            "Conflicts: libnvidia-compute, nvidia-opencl-icd\n"
            f"Provides: libnvidia-compute, libnvidia-ml1 {same}, libnvidia-ml.so.1 {same},"
            f" libcuda1 {same}, libcuda.so.1 {same}\n",
        f"libnvidia-cfg1-{up}": "Provides: libnvidia-cfg1\n",
        f"nvidia-kernel-common-{up}":
            f"Depends: nvidia-firmware-{up}-{UPSTREAM} {same}\n"
            "Conflicts: nvidia-kernel-common\n"
            f"Provides: nvidia-kernel-common, nvidia-kernel-common-{up}-{UPSTREAM}\n",
        f"nvidia-firmware-{up}-{UPSTREAM}": "Provides: nvidia-firmware\n",
        f"nvidia-kernel-source-{up}":
            "Conflicts: nvidia-kernel-source\nProvides: nvidia-kernel-source\n",
        f"nvidia-dkms-{up}":
            f"Depends: dkms, nvidia-kernel-source-{up} {same}, {_common('>=', UPSTREAM)}\n"
            "Conflicts: nvidia-dkms-kernel\nProvides: nvidia-dkms-kernel\n",
    }  # fmt: skip


def _transitional() -> Iterator[tuple[str, str]]:
    """The older branch's packages, which have nothing but what they lead to."""
    for stem in ("nvidia-headless-no-dkms", "nvidia-utils", "nvidia-compute-utils",
                 "libnvidia-compute", "nvidia-dkms", "nvidia-kernel-common"):  # fmt: skip
        yield f"{stem}-{OLD}", f"Depends: {stem}-580-server\n"
    yield f"linux-modules-nvidia-{OLD}-generic", f"Depends: {STEM}-generic\n"


def _fill(tree: Path, name: str) -> None:
    """What of a package somebody looks at, of the stand-ins for Debian's."""
    words = {**archive.WORDS["bookworm"], "@VERSION@": UPSTREAM}
    if name.startswith("libnvidia-compute"):
        for stem in ("libnvidia-ml.so", "libcuda.so"):
            archive.library(tree / LIBRARIES, stem, UPSTREAM)
    elif name.startswith("nvidia-utils"):
        archive.lay_out(archive.PACKAGES / "non-free/nvidia-smi", tree, words)
        (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
        (tree / "usr/lib/nvidia/current/nvidia-smi").rename(tree / "usr/bin/nvidia-smi")
    elif name.startswith("nvidia-compute-utils"):
        archive.lay_out(archive.PACKAGES / "contrib/nvidia-persistenced", tree, words)
    elif name.startswith("nvidia-kernel-common"):
        archive.write(tree / "lib/modprobe.d/nvidia-graphics-drivers.conf", BLACKLIST)
        archive.write(tree / "lib/udev/rules.d/71-nvidia.rules", RULES)
    elif name.startswith("nvidia-firmware"):
        archive.write(tree / f"lib/firmware/nvidia/{UPSTREAM}/gsp_tu10x.bin", "stand-in\n")
    elif name.startswith(("nvidia-kernel-source", "nvidia-dkms")):
        _source(tree, words, scripts=name.startswith("nvidia-dkms"))


def _source(tree: Path, words: Mapping[str, str], *, scripts: bool) -> None:
    """Debian's source of the module by Ubuntu's name; the scripts are another package's."""
    archive.lay_out(archive.PACKAGES / "non-free/nvidia-kernel-dkms", tree, words)
    source = next((tree / "usr/src").iterdir())
    for file in (source / "dkms.conf", tree / "DEBIAN/postinst", tree / "DEBIAN/prerm"):
        text = file.read_text().replace("nvidia-current", "nvidia-srv")
        text = text.replace('DEST_MODULE_NAME[0]="nvidia-srv', 'DEST_MODULE_NAME[0]="nvidia')
        for number in range(1, len(MODULES)):
            text = text.replace(f'NAME[{number}]="nvidia-srv-', f'NAME[{number}]="nvidia-')
        file.write_text(text)
    source.rename(source.with_name(f"nvidia-srv-{UPSTREAM}"))
    if scripts:
        shutil.rmtree(tree / "usr")
    else:
        (tree / "DEBIAN/postinst").unlink()
        (tree / "DEBIAN/prerm").unlink()


# -- ready-made modules -----------------------------------------------------------------------


def _modules(pool: Path, kernel: Kernel) -> None:
    """Objects, signatures, and the package that links them on the node."""
    release, version = kernel.release, kernel.version
    with tempfile.TemporaryDirectory() as scratch:
        objects, signatures = Path(scratch) / "objects", Path(scratch) / "signatures"
        bits = objects / f"lib/modules/{release}/kernel/{FOLDER}/bits"
        signed = signatures / f"lib/modules/{release}/kernel/nvidia-580/bits"
        for made in (bits, signed):
            made.mkdir(parents=True)
        key = _key(Path(scratch))
        for name, needs in MODULES.items():
            _compile(bits / f"{name}.o", name, needs, release)
            (signed / f"{name}.ko.sig").write_bytes(_signature(bits / f"{name}.o", key))
        _pack(objects, pool, f"linux-objects-nvidia-580-server-{release}", version,
              "Depends: binutils\n")  # fmt: skip
        _pack(signatures, pool, f"linux-signatures-nvidia-{release}", version,
              f"Depends: linux-image-{release} | linux-image-unsigned-{release}\n")  # fmt: skip
        tree = Path(scratch) / "modules"
        script = LINK.read_text().replace("@KERNEL@", release).replace("@FOLDER@", FOLDER)
        archive.write(tree / "DEBIAN/postinst", script, 0o755)
        archive.write(tree / "DEBIAN/templates", TEMPLATE)
        own = f"(= {version})"
        _pack(tree, pool, f"{STEM}-{release}", version,
              "Depends: debconf (>= 0.5) | debconf-2.0,"
              f" linux-image-{release} | linux-image-unsigned-{release},"
              f" linux-signatures-nvidia-{release} {own},"
              f" linux-objects-nvidia-580-server-{release} {own},"
              f" {_common('<=', f'{UPSTREAM}-1')}, {_common('>=', UPSTREAM)}\n")  # fmt: skip


def _compile(out: Path, name: str, needs: str, release: str) -> None:
    """An object with the lines that modinfo reads."""
    fields = {"version": UPSTREAM, "license": "NVIDIA", "name": name.replace("-", "_"),
              "depends": needs,
              "vermagic": f"{release} SMP preempt mod_unload modversions "}  # fmt: skip
    place = '__attribute__((section(".modinfo"), used)) static const char'
    lines = [f'{place} f{number}[] = "{key}={value}";'
             for number, (key, value) in enumerate(fields.items())]  # fmt: skip
    subprocess.run(["gcc", "-c", "-o", str(out), "-x", "c", "-"], input="\n".join(lines),
                   text=True, check=True)  # fmt: skip


def _key(folder: Path) -> Path:
    """A certificate by the name of Canonical's, with its key in the same file."""
    pem = folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650",
         "-subj", f"/CN={SIGNER}", "-keyout", str(pem), "-out", str(folder / "cert.pem")],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pem.write_text(pem.read_text() + (folder / "cert.pem").read_text())
    return pem


def _signature(object_file: Path, key: Path) -> bytes:
    """What sign-file of the kernel appends to the module that ld makes of this object."""
    linked = object_file.with_suffix(".ko")
    subprocess.run(["ld", "-r", "-o", str(linked), str(object_file)], check=True)
    pkcs7 = subprocess.run(
        ["openssl", "smime", "-sign", "-binary", "-noattr", "-outform", "DER", "-signer",
         str(key), "-in", str(linked)],
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    linked.unlink()
    # struct module_signature: PKCS#7, and the length of what stands before it.
    tail = bytes((0, 0, 2, 0, 0, 0, 0, 0)) + len(pkcs7).to_bytes(4, "big")
    return pkcs7 + tail + b"~Module signature appended~\n"


def _plain(pool: Path, name: str, version: str, relations: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _pack(Path(scratch) / "tree", pool, name, version, relations)


def _pack(tree: Path, pool: Path, name: str, version: str, relations: str) -> None:
    control = (
        f"Package: {name}\nVersion: {version}\nSection: restricted/misc\n{relations}"
        "Description: stand-in: of Ubuntu's archive\n"
    )
    archive.write(tree / "DEBIAN/control", archive.complete(control))
    archive.pack(tree, pool)
