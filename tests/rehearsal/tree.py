"""The trees nodes boot from: a cached base, two layers over it, and one overlay a rehearsal.

    base      Debian by mmdebstrap                    (.cache/base/DEBIAN-HASH, a minute)
    machine   the stand-ins, trust, names, network    (.cache/layers/machine-…, seconds)
    gpuboot   gpuboot's .deb, installed by apt        (.cache/layers/gpuboot-…, seconds)

There is one of each for each release of Debian, and another of the layers where the driver's
packages are real; each is built again when what went into it has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import (
    archive,
    cluster,
    cuda,
    hardware,
    kernels,
    lab,
    packages,
    release,
    strange,
    ubuntu,
)
from tests.rehearsal.command import run
from tests.rehearsal.packages import Kernel
from tests.rehearsal.report import RigError, say
from tests.rehearsal.standins.rancher import machine as rancher_machine

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
RKE2_VERSION = cluster.RKE2_VERSION
HOSTS = "archive.lab releases.lab mirror.lab cluster.lab proxy.lab rancher.lab"
BEHIND_PROXY = "cluster.lab proxy.lab rancher.lab"
ARCHIVE_KEY = "/usr/share/keyrings/lab-archive.gpg"
TOOLKIT_KEY = "/usr/share/keyrings/lab-toolkit.gpg"
KEYS = Path("/run/lab-keys")  # gone with the lab, and short enough for gpg-agent's socket
KEPT_BUILDS = 3  # of each kind; a run beside this one may still stand on the one before

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
            "archive_key": ARCHIVE_KEY,
            "toolkit_key": TOOLKIT_KEY,
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


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Only one rehearsal at a time builds into the cache."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetched(kind: Kind) -> bool:
    """Whether there is nothing left to fetch."""
    wanted = [_base(kind.debian), *_debs(kind), _kernel_debs(kind)]
    return all(folder.is_dir() for folder in wanted)


def fetch(kind: Kind) -> None:
    """Gets what comes from the network; called outside the lab, which has none."""
    base, (debs, *driver) = _base(kind.debian), _debs(kind)
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
    newest = packages.headers_kernel(_debs(kind)[0] / "main")
    known = kernels.known(_kernel_debs(kind), debian, newest)
    if kind.ubuntu:
        known = dict(ubuntu.SYSTEMS[kind.ubuntu].kernels)
    lab_archive = _archive(kind, known, newest)
    identity = CACHE / "identity" / _digest([_here("cluster.py"), _here("pki.py")])
    made = cluster.prepare(identity)
    releases, sha256 = _releases()
    machine = _layer(
        f"machine-{kind}", [_base(debian)], _machine_inputs(debian, lab_archive, made.web_ca),
        lambda tree: _furnish(tree, kind, known["auto"], lab_archive, made.web_ca),
    )  # fmt: skip
    product = _layer(
        f"gpuboot-{kind}", [machine, _base(debian)],
        _digest((ROOT / part for part in PRODUCT), [machine.name]),
        lambda tree: _install(tree, debian, lab_archive),
    )  # fmt: skip
    layers = (product, machine, _base(debian))
    return Ground(
        known, layers, lab_archive, releases, identity,
        made.token, made.server, made.proxy, sha256, made.rancher_token, made.rancher_checksum,
    )  # fmt: skip


def _here(name: str) -> Path:
    return Path(__file__).with_name(name)


def _base(debian: str) -> Path:
    return CACHE / "base" / f"{debian}-{_digest([], packages.BASE)}"


def _debs(kind: Kind) -> list[Path]:
    """The folders of real packages: Debian's own, and where it is real the driver's."""
    debian = kind.debian
    own = _digest([], packages.WALK + packages.ALONE + packages.DEPENDENCIES)
    driver = _digest([], [*packages.DRIVER, *packages.OPEN, "image", own])
    folders = [CACHE / "debs" / f"{debian}-{own}", CACHE / "debs" / f"{debian}-real-{driver}"]
    return folders if kind.real else folders[:1]


def _digest(paths: Iterable[Path], extra: Iterable[object] = ()) -> str:
    """A short name for the content of files and folders."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode}\0".encode())
                digest.update(file.read_bytes())
    digest.update(repr(tuple(map(str, extra))).encode())
    return digest.hexdigest()[:16]


def _kernel_debs(kind: Kind) -> Path:
    """What kernels.py has fetched for the packages of `_debs`: its kernels go by theirs."""
    name = f"{kind.debian}-kernels-{_digest([], [_debs(kind)[0].name, kernels.GRUB])}"
    return CACHE / "debs" / name


def _archive(kind: Kind, known: Mapping[str, Kernel], newest: Kernel) -> Path:
    """What http://archive.lab/ serves: the signed suite, the toolkit's flat repository.

    And the suite again, as it is when a newer driver has come.
    """
    names = ("archive.py", "cuda.py", "hardware.py", "kernels.py", "standins", "strange.py",
             "ubuntu.py")  # fmt: skip
    debian, debs = kind.debian, _debs(kind)
    inputs = _digest(map(_here, names), [*debs, *known.values()])
    folder = CACHE / "archive" / f"{kind}-{inputs}"
    if not folder.is_dir():
        say("Building the lab's archive: the real packages and the stand-ins.")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        pools = partial / "pools"
        archive.build_standins(pools, debian, driver=not kind.real)
        kernels.build(partial / "kernels", known)
        for source in (*debs, _kernel_debs(kind), partial / "kernels"):
            _merge(source, pools)
        suites = {"debian": pools}
        if not kind.real:
            suites["later"] = partial / "later-pools"
            archive.build_later(suites["later"], debian, pools)
        key = archive.signing_key(KEYS)
        for name, source in suites.items():
            suite = {path.name: path for path in sorted(source.iterdir()) if path.name != "toolkit"}
            archive.publish_suite(partial / name, debian, suite, KEYS)
        archive.date_later(partial / "later")
        archive.publish_flat(partial / "toolkit", pools / "toolkit", KEYS)
        strange.publish(partial / "strange", pools / "toolkit", KEYS)
        cuda.publish(partial, pools / "toolkit", KEYS)
        if kind.ubuntu:
            system = ubuntu.SYSTEMS[kind.ubuntu]
            ubuntu.publish(partial / "ubuntu", system, debs[0] / "main", newest.release, KEYS)
        shutil.copyfile(key, partial / "archive.gpg")
        for source in suites.values():
            shutil.rmtree(source)
        partial.rename(folder)
    _prune(folder)
    return folder


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
    folder = CACHE / "releases" / _digest([_here("release.py"), _here("standins")], [RKE2_VERSION])
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        sha256 = release.build(partial, RKE2_VERSION)
        (partial / ".sha256").write_text(sha256, encoding="ascii")
        partial.rename(folder)
    _prune(folder)
    return folder, (folder / ".sha256").read_text(encoding="ascii")


def _machine_inputs(debian: str, lab_archive: Path, web_ca: Path) -> str:
    inputs = [*(_here(name) for name in STANDINS), Path(__file__), web_ca]
    return _digest(inputs, [debian, lab_archive])


def _layer(name: str, lower: list[Path], inputs: str, fill: Callable[[Path], None]) -> Path:
    """The folder that holds what `fill` changed in a tree over `lower`."""
    folder = CACHE / "layers" / f"{name}-{inputs}"
    if not folder.is_dir():
        say(f"Building the {name} layer of the node.")
        partial = folder.with_name(folder.name + ".partial")
        for left in (partial, partial.with_name(partial.name + ".work")):
            shutil.rmtree(left, ignore_errors=True)
        with lab.overlay(lower, partial, CACHE / "layers" / "tree") as tree:
            fill(tree)
        shutil.rmtree(partial.with_name(partial.name + ".work"))
        partial.rename(folder)
    _prune(folder)
    return folder


def _prune(used: Path) -> None:
    """Removes builds of the same kind that are long out of use."""
    used.touch()
    kind = used.name.rpartition("-")[0]
    alike = [path for path in used.parent.iterdir() if path.name.rpartition("-")[0] == kind]
    for old in sorted(alike, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_BUILDS:]:
        shutil.rmtree(old)


def _furnish(tree: Path, kind: Kind, kernel: Kernel, lab_archive: Path, web_ca: Path) -> None:
    """Makes a bare Debian a machine of the lab: names, trust, network, the hardware's stand-ins."""
    debian = kind.debian
    _install_grub(tree, kind)
    write(tree, "etc/hosts", f"127.0.0.1 localhost\n{lab.ADDRESS} {HOSTS}\n")
    source = f"http://archive.lab/debian {debian} main"
    if kind.ubuntu:
        system = ubuntu.SYSTEMS[kind.ubuntu]
        source = f"http://archive.lab/ubuntu {system.codename} {' '.join(ubuntu.COMPONENTS)}"
        (tree / "etc/os-release").unlink()
        write(tree, "etc/os-release", ubuntu.os_release(system))
    write(tree, "etc/apt/sources.list", f"deb [signed-by={ARCHIVE_KEY}] {source}\n")
    for keyring in (ARCHIVE_KEY, TOOLKIT_KEY):
        shutil.copyfile(lab_archive / "archive.gpg", tree / keyring.lstrip("/"))
        (tree / keyring.lstrip("/")).chmod(0o644)
    ca = tree / "usr/local/share/ca-certificates/lab-web.crt"
    shutil.copyfile(web_ca, ca)
    ca.chmod(0o644)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "var/log/journal").mkdir(exist_ok=True)  # the journal outlives the reboots
    write(tree, "etc/machine-id", "")
    in_tree(tree, "update-ca-certificates")
    in_tree(tree, "systemctl", "enable", "systemd-networkd.service")
    hardware.install_programs(tree)
    if kind.real:
        version = packages.version(_debs(kind)[1], "nvidia-kernel-dkms")
        with tempfile.TemporaryDirectory() as scratch:
            files = archive.build_answering(Path(scratch), debian, version)
            hardware.stand_in_front(tree, Path(scratch), files)
    kernels.install(tree, lab_archive / "kernels/templates", kernel, in_tree)
    if kind.real:
        kernels.furnish(tree, _debs(kind)[1] / "image", kernel, in_tree)
    in_tree(tree, "update-grub")
    write(tree, f"{hardware.PROGRAMS}/plan.py", (PROBES / "plan.py").read_text(encoding="utf-8"))
    unit = (PROBES / "lab-plan.service").read_text(encoding="utf-8")
    write(tree, "etc/systemd/system/lab-plan.service", unit)
    in_tree(tree, "systemctl", "enable", "lab-plan.service")


def _install_grub(tree: Path, kind: Kind) -> None:
    """The real grub-mkconfig, with Debian's settings for it: the boot loader itself is ours."""
    others = {path.name for path in (_debs(kind)[0] / "main").iterdir()}
    debs = [path for path in (_kernel_debs(kind) / "main").iterdir()
            if path.name not in others and not path.name.startswith("linux-")]  # fmt: skip
    binds = (f"--bind-ro={_kernel_debs(kind)}:/mnt/grub",)
    in_tree(tree, "dpkg", "--install", *(f"/mnt/grub/main/{deb.name}" for deb in debs), binds=binds)
    (tree / "mnt/grub").rmdir()
    (tree / "boot/grub").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / "usr/share/grub/default/grub", tree / "etc/default/grub")


def _install(tree: Path, debian: str, lab_archive: Path) -> None:
    """Builds gpuboot's .deb and has the node's apt install it, as a template's maker would."""
    debs = CACHE / "deb"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir()
    say("Building gpuboot's .deb.")
    run(str(ROOT / "packaging/build-deb"), str(debs), cwd=ROOT)
    found = sorted(debs.glob("gpuboot_*.deb"))
    if len(found) != 1:
        raise RigError(f"packaging/build-deb left {len(found)} packages named gpuboot, not one")
    source = f"deb [signed-by={ARCHIVE_KEY}] file:/mnt/archive/debian {debian} main\n"
    (debs / "sources.list").write_text(source, encoding="ascii")
    apt = ("apt-get", "-q", "-o", "Dir::Etc::SourceList=/mnt/deb/sources.list",
           "-o", "APT::Sandbox::User=root")  # fmt: skip
    binds = (f"--bind-ro={lab_archive}:/mnt/archive", f"--bind-ro={debs}:/mnt/deb")
    in_tree(tree, *apt, "update", binds=binds)
    in_tree(tree, *apt, "install", "--yes", "--no-install-recommends", f"/mnt/deb/{found[0].name}",
            binds=binds)  # fmt: skip
    # For scenarios that install it once more.
    shutil.copyfile(found[0], tree / hardware.PROGRAMS / "gpuboot.deb")
    for cached in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(tree / cached)
        (tree / cached).mkdir()
    for mounted in ("mnt/archive", "mnt/deb"):
        (tree / mounted).rmdir()


def in_tree(tree: Path, *argv: str, binds: tuple[str, ...] = ()) -> str:
    """Runs a command in a tree that is not booted."""
    return run(
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--resolv-conf=off",
        "--timezone=off", "--link-journal=no", "--pipe", "--setenv=DEBIAN_FRONTEND=noninteractive",
        "--setenv=LC_ALL=C.UTF-8", *binds, f"--directory={tree}", *argv,
    )  # fmt: skip


def write(tree: Path, name: str, text: str, *, mode: int = 0o644) -> None:
    """A file of the tree; the folders above it are made."""
    file = tree / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.touch(mode=mode)
    file.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Seed:
    """What makes a tree one particular node: its name, its address, what its cloud-init is told."""

    hostname: str
    address: str
    user_data: str


def lay_release(tree: Path, releases: Path, folder: str) -> None:
    """Puts a release's files into a folder of the node, as somebody would who has no network."""
    shutil.copytree(releases / RKE2_VERSION, tree / folder.lstrip("/"))


def plant(tree: Path, seed: Seed, *, behind_proxy: bool = False) -> None:
    """Makes a tree that node; one behind a proxy knows no address of archive and releases."""
    network = (
        f"[Match]\nName=host0\n\n[Network]\nAddress={seed.address}/24\nGateway={lab.ADDRESS}\n"
        "IPv6AcceptRA=no\n"  # or the network is said to be up only 13 s later
    )
    write(tree, "etc/systemd/network/10-lab.network", network)
    names = BEHIND_PROXY if behind_proxy else HOSTS
    hosts = f"127.0.0.1 localhost\n{lab.ADDRESS} {names}\n127.0.1.1 {seed.hostname}\n"
    write(tree, "etc/hosts", hosts)
    write(tree, "etc/hostname", f"{seed.hostname}\n")
    cloud = {
        "meta-data": f"instance-id: i-{seed.hostname}\nlocal-hostname: {seed.hostname}\n",
        "user-data": seed.user_data,
    }
    # ds-identify is a shell script and finds the list only in this spelling; JSON is YAML.
    settings = (
        "datasource_list: [ NoCloud ]\n"
        f"datasource: {json.dumps({'NoCloud': cloud})}\n"
        "network: {config: disabled}\n"
        "locale: false\n"  # a minimal Debian has no locales to choose from
    )
    # Root's own, because the user-data may hold the token.
    write(tree, "etc/cloud/cloud.cfg.d/90-lab.cfg", settings, mode=0o600)


def without_cloud_init(tree: Path, config: str, token: str) -> None:
    """Takes cloud-init off a node, and writes what it would have written."""
    in_tree(tree, "dpkg", "--purge", "--force-depends", "cloud-init")
    shutil.rmtree(tree / "etc/cloud", ignore_errors=True)
    write(tree, "etc/gpuboot/config.yaml", config, mode=0o600)
    write(tree, "etc/gpuboot/token", token, mode=0o600)
