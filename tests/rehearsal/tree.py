"""The trees nodes boot from: a cached base, two layers over it, and one overlay a rehearsal.

    base      Debian by mmdebstrap                    (.cache/base/DEBIAN-HASH, a minute)
    machine   the stand-ins, trust, names, network    (.cache/layers/machine-…, seconds)
    gpuboot   gpuboot's .deb, installed by apt        (.cache/layers/gpuboot-…, seconds)

There is one of each for each release of Debian, and another of the layers where the driver's
packages are real; each is built again when what went into it has changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import (
    archive,
    cluster,
    cuda,
    hardware,
    kernels,
    packages,
    release,
    strange,
    template,
    ubuntu,
)
from tests.rehearsal.cache import CACHE, ROOT, built, digest, layer
from tests.rehearsal.packages import Kernel
from tests.rehearsal.standins.rancher import machine as rancher_machine
from tests.rehearsal.template import in_tree, write

RKE2_VERSION = cluster.RKE2_VERSION
KEYS = Path("/run/lab-keys")  # gone with the lab, and short enough for gpg-agent's socket

PROBES = Path(__file__).parent / "probes"

# What gpuboot's .deb is built from.
PRODUCT = ("gpuboot", "systemd", "cloud-init", "packaging", "docs", "setup.cfg", "pyproject.toml",
           "README.md", "CHANGELOG.md", "LICENSE")  # fmt: skip
# What the stand-ins are built from.
STANDINS = ("archive.py", "hardware.py", "kernels.py", "release.py", "cluster.py", "pki.py",
            "probes", "standins", "ubuntu.py")  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """What every node of a rehearsal stands on."""

    kernels: Mapping[str, Kernel]  # by the words of node.yaml
    layers: tuple[Path, ...]  # topmost first
    archive: Path
    releases: Path
    identity: Path
    token: str
    server: str
    proxy: str  # its address, with user and password
    rke2_sha256: str
    rancher_token: str
    rancher_checksum: str

    @property
    def base(self) -> Path:
        """The bare Debian below all layers."""
        return self.layers[-1]

    @property
    def web_ca(self) -> Path:
        """Whom a node must trust to download."""
        return self.identity / "pki/web-ca.crt"

    def values(self) -> dict[str, str]:
        """The placeholders of config.yaml and user-data.yaml."""
        return {
            "kernel": self.kernels["auto"].release,
            "older_kernel": self.kernels["older"].release,
            "token": self.token,
            "ca_hash": self.token[3:67],  # of K10HASH::USER:PASSWORD
            "server": self.server,
            "proxy": self.proxy,
            "rke2_version": RKE2_VERSION,
            "rke2_sha256": self.rke2_sha256,
            "archive_key": template.ARCHIVE_KEY,
            "toolkit_key": template.TOOLKIT_KEY,
            **cuda.keys(self.archive),
            "rancher_command": rancher_machine.registration(
                cluster.RANCHER, self.rancher_checksum, self.rancher_token
            ),
        }


@dataclass(frozen=True)
class Kind:
    """What kind of machine: its release of Debian, and whether the driver's packages are real.

    Or the release of Ubuntu that the machine says it is, by the words of ubuntu.py.
    """

    debian: str
    real: bool = False
    ubuntu: str = ""

    def __str__(self) -> str:
        return self.ubuntu or (f"{self.debian}-real" if self.real else self.debian)


def fetched(kind: Kind) -> bool:
    """Whether there is nothing left to fetch."""
    wanted = [base_tree(kind.debian), *real_debs(kind), _kernel_debs(kind)]
    return all(folder.is_dir() for folder in wanted)


def fetch(kind: Kind) -> None:
    """Gets what comes from the network; called outside the lab, which has none."""
    base, (debs, *driver) = base_tree(kind.debian), real_debs(kind)
    if not base.is_dir():
        packages.build_base(base, kind.debian)
    if not debs.is_dir():
        packages.download(base, kind.debian, debs)
    if not _kernel_debs(kind).is_dir():
        newest = packages.headers_kernel(debs / "main")
        kernels.fetch(base, kind.debian, newest, _kernel_debs(kind))
    for folder in driver:
        if not folder.is_dir():
            packages.download_driver(base, kind.debian, debs, folder)


def prepare(kind: Kind) -> Ground:
    """Builds what is missing of archive, release, identity and layers; called inside the lab."""
    debian = kind.debian
    newest = packages.headers_kernel(real_debs(kind)[0] / "main")
    known = kernels.known(_kernel_debs(kind), debian, newest)
    if kind.ubuntu:
        known = dict(ubuntu.SYSTEMS[kind.ubuntu].kernels)
    lab_archive = _archive(kind, known, newest)
    identity = CACHE / "identity" / digest([_here("cluster.py"), _here("pki.py")])
    made = cluster.prepare(identity)
    releases, sha256 = _releases()
    machine = layer(
        f"machine-{kind}", [base_tree(debian)], _machine_inputs(debian, lab_archive, made.web_ca),
        lambda tree: _furnish(tree, kind, known["auto"], lab_archive, made.web_ca),
    )  # fmt: skip
    product = layer(
        f"gpuboot-{kind}", [machine, base_tree(debian)],
        digest((ROOT / part for part in PRODUCT), [machine.name]),
        lambda tree: _install(tree, debian, lab_archive),
    )  # fmt: skip
    layers = (product, machine, base_tree(debian))
    return Ground(
        known, layers, lab_archive, releases, identity,
        made.token, made.server, made.proxy, sha256, made.rancher_token, made.rancher_checksum,
    )  # fmt: skip


def _here(name: str) -> Path:
    return Path(__file__).with_name(name)


def base_tree(debian: str) -> Path:
    """Where the bare Debian of a release is kept."""
    return CACHE / "base" / f"{debian}-{digest([], packages.BASE)}"


def real_debs(kind: Kind) -> list[Path]:
    """The folders of real packages: Debian's own, and where it is real the driver's."""
    debian = kind.debian
    own = digest([], packages.WALK + packages.ALONE + packages.DEPENDENCIES)
    driver = digest([], [*packages.DRIVER, *packages.OPEN, "image", own])
    folders = [CACHE / "debs" / f"{debian}-{own}", CACHE / "debs" / f"{debian}-real-{driver}"]
    return folders if kind.real else folders[:1]


def _kernel_debs(kind: Kind) -> Path:
    """What kernels.py has fetched for the packages of `_debs`: its kernels go by theirs."""
    name = f"{kind.debian}-kernels-{digest([], [real_debs(kind)[0].name, kernels.GRUB])}"
    return CACHE / "debs" / name


def _archive(kind: Kind, known: Mapping[str, Kernel], newest: Kernel) -> Path:
    """What http://archive.lab/ serves: the signed suite, the toolkit's flat repository.

    And the suite again, as it is when a newer driver has come.
    """
    names = ("archive.py", "cuda.py", "hardware.py", "kernels.py", "standins", "strange.py",
             "ubuntu.py")  # fmt: skip
    inputs = digest(map(_here, names), [*real_debs(kind), *known.values()])
    return built(
        CACHE / "archive" / f"{kind}-{inputs}",
        "Building the lab's archive: the real packages and the stand-ins.",
        lambda folder: _publish(folder, kind, known, newest),
    )


def _publish(folder: Path, kind: Kind, known: Mapping[str, Kernel], newest: Kernel) -> None:
    debian, debs, pools = kind.debian, real_debs(kind), folder / "pools"
    archive.build_standins(pools, debian, driver=not kind.real)
    kernels.build(folder / "kernels", known)
    for source in (*debs, _kernel_debs(kind), folder / "kernels"):
        _merge(source, pools)
    suites = {"debian": pools}
    if not kind.real:
        suites["later"] = folder / "later-pools"
        archive.build_later(suites["later"], debian, pools)
    key = archive.signing_key(KEYS)
    for name, source in suites.items():
        suite = {path.name: path for path in sorted(source.iterdir()) if path.name != "toolkit"}
        archive.publish_suite(folder / name, debian, suite, KEYS)
    archive.date_later(folder / "later")
    archive.publish_flat(folder / "toolkit", pools / "toolkit", KEYS)
    strange.publish(folder / "strange", pools / "toolkit", KEYS)
    cuda.publish(folder, pools / "toolkit", KEYS)
    if kind.ubuntu:
        system = ubuntu.SYSTEMS[kind.ubuntu]
        ubuntu.publish(folder / "ubuntu", system, debs[0] / "main", newest.release, KEYS)
    shutil.copyfile(key, folder / "archive.gpg")
    for source in suites.values():
        shutil.rmtree(source)


def _merge(debs: Path, pools: Path) -> None:
    """Adds Debian's packages to the pools; where there is a real one its stand-in goes."""
    for component in (path for path in debs.iterdir() if path.name in packages.COMPONENTS):
        (pools / component.name).mkdir(parents=True, exist_ok=True)
        for deb in component.glob("*.deb"):
            for standin in pools.glob(f"*/{deb.name.split('_')[0]}_*.deb"):
                standin.unlink()
            with contextlib.suppress(FileExistsError):  # fetched with the other folder's as well
                os.link(deb, pools / component.name / deb.name)


def _releases() -> tuple[Path, str]:
    """What https://releases.lab/ serves, and the tarball's sha256."""
    digested = digest([_here("release.py"), _here("standins")], [RKE2_VERSION])

    def fill(folder: Path) -> None:
        sha256 = release.build(folder, RKE2_VERSION)
        (folder / ".sha256").write_text(sha256, encoding="ascii")

    folder = built(CACHE / "releases" / digested, "Building the stand-in of RKE2's release.", fill)
    return folder, (folder / ".sha256").read_text(encoding="ascii")


def _machine_inputs(debian: str, lab_archive: Path, web_ca: Path) -> str:
    inputs = [*(_here(name) for name in STANDINS), Path(__file__), _here("template.py"), web_ca]
    return digest(inputs, [debian, lab_archive])


def _furnish(tree: Path, kind: Kind, kernel: Kernel, lab_archive: Path, web_ca: Path) -> None:
    """Makes a bare Debian a machine of the lab: names, trust, network, the hardware's stand-ins."""
    debian = kind.debian
    _install_grub(tree, kind)
    source = f"http://archive.lab/debian {debian} main"
    if kind.ubuntu:
        system = ubuntu.SYSTEMS[kind.ubuntu]
        source = f"http://archive.lab/ubuntu {system.codename} {' '.join(ubuntu.COMPONENTS)}"
        (tree / "etc/os-release").unlink()
        write(tree, "etc/os-release", ubuntu.os_release(system))
    template.connect(tree, source, lab_archive, web_ca)
    hardware.install_programs(tree)
    if kind.real:
        version = packages.version(real_debs(kind)[1], "nvidia-kernel-dkms")
        with tempfile.TemporaryDirectory() as scratch:
            files = archive.build_answering(Path(scratch), debian, version)
            hardware.stand_in_front(tree, Path(scratch), files)
    kernels.install(tree, lab_archive / "kernels/templates", kernel, in_tree)
    if kind.real:
        kernels.furnish(tree, real_debs(kind)[1] / "image", kernel, in_tree)
    in_tree(tree, "update-grub")
    write(tree, f"{hardware.PROGRAMS}/plan.py", (PROBES / "plan.py").read_text(encoding="utf-8"))
    unit = (PROBES / "lab-plan.service").read_text(encoding="utf-8")
    write(tree, "etc/systemd/system/lab-plan.service", unit)
    in_tree(tree, "systemctl", "enable", "lab-plan.service")


def _install_grub(tree: Path, kind: Kind) -> None:
    """The real grub-mkconfig, with Debian's settings for it: the boot loader itself is ours."""
    others = {path.name for path in (real_debs(kind)[0] / "main").iterdir()}
    debs = [path for path in (_kernel_debs(kind) / "main").iterdir()
            if path.name not in others and not path.name.startswith("linux-")]  # fmt: skip
    binds = (f"--bind-ro={_kernel_debs(kind)}:/mnt/grub",)
    in_tree(tree, "dpkg", "--install", *(f"/mnt/grub/main/{deb.name}" for deb in debs), binds=binds)
    (tree / "mnt/grub").rmdir()
    (tree / "boot/grub").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / "usr/share/grub/default/grub", tree / "etc/default/grub")


def _install(tree: Path, debian: str, lab_archive: Path) -> None:
    deb = template.build_gpuboot()
    template.install(tree, debian, lab_archive, [deb])
    # For scenarios that install it once more.
    shutil.copyfile(deb, tree / hardware.PROGRAMS / "gpuboot.deb")
