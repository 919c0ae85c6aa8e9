"""What makes a bare tree a machine of the lab: names, trust, gpuboot, its own settings."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import cluster, lab
from tests.rehearsal.cache import CACHE, ROOT
from tests.rehearsal.command import run
from tests.rehearsal.report import RigError, say

HOSTS = "archive.lab releases.lab mirror.lab cluster.lab proxy.lab rancher.lab"
BEHIND_PROXY = "cluster.lab proxy.lab rancher.lab"
ARCHIVE_KEY = "/usr/share/keyrings/lab-archive.gpg"
TOOLKIT_KEY = "/usr/share/keyrings/lab-toolkit.gpg"


def connect(tree: Path, source: str, lab_archive: Path, web_ca: Path) -> None:
    """Gives a bare Debian the lab's names, its archive (URI, suite, components), its trust."""
    write(tree, "etc/hosts", f"127.0.0.1 localhost\n{lab.ADDRESS} {HOSTS}\n")
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


def build_gpuboot() -> Path:
    """gpuboot's .deb, as a template's maker would build it."""
    debs = CACHE / "deb"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir()
    say("Building gpuboot's .deb.")
    run(str(ROOT / "packaging/build-deb"), str(debs), cwd=ROOT)
    found = sorted(debs.glob("gpuboot_*.deb"))
    if len(found) != 1:
        raise RigError(f"packaging/build-deb left {len(found)} packages named gpuboot, not one")
    return found[0]


def install(
    tree: Path, debian: str, lab_archive: Path, debs: Sequence[Path], names: Sequence[str] = ()
) -> None:
    """Has the tree's own apt install .debs, and packages of the lab's archive by their names."""
    with tempfile.TemporaryDirectory() as folder:
        source = f"deb [signed-by={ARCHIVE_KEY}] file:/mnt/archive/debian {debian} main\n"
        (Path(folder) / "sources.list").write_text(source, encoding="ascii")
        for deb in debs:
            shutil.copy(deb, folder)
        apt = ("apt-get", "-q", "-o", "Dir::Etc::SourceList=/mnt/deb/sources.list",
               "-o", "APT::Sandbox::User=root")  # fmt: skip
        binds = (f"--bind-ro={lab_archive}:/mnt/archive", f"--bind-ro={folder}:/mnt/deb")
        in_tree(tree, *apt, "update", binds=binds)
        wanted = (*(f"/mnt/deb/{deb.name}" for deb in debs), *names)
        in_tree(tree, *apt, "install", "--yes", "--no-install-recommends", *wanted, binds=binds)
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
    gateway: str = lab.ADDRESS
    port: str = "host0"  # its network port, as systemd.network(5) matches names


def lay_release(tree: Path, releases: Path, folder: str) -> None:
    """Puts a release's files into a folder of the node, as somebody would who has no network."""
    shutil.copytree(releases / cluster.RKE2_VERSION, tree / folder.lstrip("/"))


def plant(tree: Path, seed: Seed, *, behind_proxy: bool = False) -> None:
    """Makes a tree that node; one behind a proxy knows no address of archive and releases."""
    network = (
        f"[Match]\nName={seed.port}\n\n"
        f"[Network]\nAddress={seed.address}/24\nGateway={seed.gateway}\n"
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
