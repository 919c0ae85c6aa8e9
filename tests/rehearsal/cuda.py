"""NVIDIA's repository, as a mirror of it would have it: http://archive.lab/NAME/, all flat.

cuda           for Debian 12: branches 580 and 615, an older toolkit, and a dkms whose epoch
               outranks Debian's
cuda-bad-key   the same; where its key lies, there is another one
cuda-rotated   the same, signed with a new key; the old one is still there too
cuda-ubuntu    for Ubuntu 24.04, where a branch's packages have its number in their names, but for
               two that everything needs

A key lies at its last eight digits and .pub. What the packages do is what Debian's stand-ins do;
their names, versions and files are NVIDIA's (tests/data/packages).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal import archive

RELEASE = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA"}
BRANCHES = (("580.178.04", "1"), ("615.71.09", "2"))
ON_UBUNTU = "1ubuntu1"  # the revision of its packages
TOOLKIT = "1.18.0-1"
DKMS = "dkms 1:3.4.1-1 kernel"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
KEYS = "keys.json"  # the fingerprints, by the words of config.yaml

BLACKLIST = "blacklist nouveau\nalias nouveau off\n"


@dataclass(frozen=True)
class Package:
    """One of the repository's packages, beside its name: relations, and Debian's stand-in of it."""

    relations: str = ""
    like: str = ""  # COMPONENT/NAME of the stand-in whose programs and scripts it has


def packages(upstream: str, version: str) -> dict[str, Package]:
    """A branch's packages for a container host."""
    same = f"(= {version})"
    kernel = f"nvidia-kernel-support {same}, firmware-nvidia-gsp {same}, dkms (>= 3.0.3-4~)"
    parts = ", ".join(f"{name} {same}" for name in ("libcuda1", "libnvidia-ml1"))
    return {
        "nvidia-driver-cuda": Package(
            f"Depends: {parts}, nvidia-persistenced, nvidia-modprobe, python3:any\n"
            "Conflicts: nvidia-smi, nvidia-alternative\nReplaces: nvidia-smi\n",
            "non-free/nvidia-smi"),
        "nvidia-kernel-dkms": Package(
            f"Depends: {kernel}\nConflicts: nvidia-kernel-open-dkms\n",
            "non-free/nvidia-kernel-dkms"),
        "nvidia-kernel-open-dkms": Package(
            f"Depends: {kernel}\nConflicts: nvidia-kernel-dkms\n", "non-free/nvidia-kernel-dkms"),
        "nvidia-kernel-support": Package(),
        "libnvidia-ml1": Package(f"Provides: libnvidia-ml.so.1 (= {upstream})\n"),
        "libcuda1": Package(f"Provides: libcuda.so.1 (= {upstream})\n"),
        "libnvidia-cfg1": Package(),
        "firmware-nvidia-gsp": Package("", "non-free-firmware/firmware-nvidia-gsp"),
        "nvidia-modprobe": Package("", "contrib/nvidia-modprobe"),
        "nvidia-persistenced": Package(
            f"Depends: libnvidia-cfg1 {same}, adduser, python3:any\n",
            "contrib/nvidia-persistenced"),
    }  # fmt: skip


def ubuntu_packages(upstream: str, version: str) -> dict[str, Package]:
    """The branch 580's packages for a container host with Ubuntu."""
    same, up = f"(= {version})", "580"
    common = f"nvidia-kernel-common-{up}-{upstream}"
    answering = ("libnvidia-ml1", "libnvidia-ml.so.1", "libcuda1", "libcuda.so.1")
    provided = ", ".join(f"{name} {same}" for name in answering)
    return {
        f"nvidia-dkms-{up}": Package(
            f"Depends: dkms, nvidia-kernel-source-{up} {same}, nvidia-kernel-common-{up} {same}\n"
            "Conflicts: nvidia-dkms-kernel\nProvides: nvidia-dkms-kernel\n",
            "non-free/nvidia-kernel-dkms"),
        f"nvidia-kernel-source-{up}": Package("", "non-free/nvidia-kernel-dkms"),
        f"nvidia-headless-no-dkms-{up}": Package(
            f"Depends: nvidia-kernel-common-{up} {same}, nvidia-kernel-source-{up} {same},"
            f" libnvidia-compute-{up} {same}, libnvidia-cfg1-{up} {same}\n"),
        f"nvidia-utils-{up}": Package(
            f"Depends: libnvidia-compute-{up} {same}, python3:any\n"
            "Conflicts: nvidia-utils, nvidia-smi\nProvides: nvidia-utils, nvidia-smi\n",
            "non-free/nvidia-smi"),
        f"libnvidia-compute-{up}": Package(
            f"Depends: libnvidia-gpucomp-{up} {same}, libnvidia-decode-{up} (>= {upstream}),"
            f" nvidia-persistenced (>= {version}), {common}\n"
            f"Conflicts: libnvidia-compute\nProvides: libnvidia-compute, {provided}\n"),
        f"libnvidia-gpucomp-{up}": Package(),
        f"libnvidia-decode-{up}": Package(),
        f"libnvidia-cfg1-{up}": Package("Provides: libnvidia-cfg1\n"),
        f"nvidia-kernel-common-{up}": Package(
            f"Depends: nvidia-firmware-{up} {same}, nvidia-modprobe (>= {version})\n"
            f"Provides: {common}\n"),
        f"nvidia-firmware-{up}": Package("", "non-free-firmware/firmware-nvidia-gsp"),
        **_shared("nvidia-modprobe", "nvidia-persistenced"),
    }  # fmt: skip


def _shared(*names: str) -> dict[str, Package]:
    """What every branch has by one name: of these the branch 615's are there too."""
    return {name: Package("Depends: adduser, python3:any\n", f"contrib/{name}") for name in names}


def publish(folder: Path, toolkit: Path, own_key: Path) -> None:
    """All of them below `folder`; `toolkit` has the toolkit's packages of other versions."""
    old, new = (own_key.with_name(f"{own_key.name}-cuda-{name}") for name in ("old", "new"))
    with tempfile.TemporaryDirectory() as scratch:
        debs = Path(scratch)
        for upstream, revision in BRANCHES:
            for name, package in packages(upstream, f"{upstream}-{revision}").items():
                _build(debs, name, package, upstream, f"{upstream}-{revision}")
        for name in sorted({path.name.split("_")[0] for path in toolkit.glob("*.deb")}):
            archive.pack_empty(f"{name} {TOOLKIT} utils", debs)
        archive.pack_empty(DKMS, debs)
        _publish_ubuntu(folder / "cuda-ubuntu", old)
        for name, key in (("cuda", old), ("cuda-bad-key", old), ("cuda-rotated", new)):
            archive.publish_flat(folder / name, debs, key, RELEASE)
            (folder / name / "gpgkey").unlink()
    fingerprints = {"nvidia_key": _fingerprint(old), "nvidia_new_key": _fingerprint(new)}
    for name, lies in (("cuda", {old: old}), ("cuda-bad-key", {old: new}),
                       ("cuda-rotated", {old: old, new: new}),
                       ("cuda-ubuntu", {old: old})):  # fmt: skip
        for asked, there in lies.items():
            place = folder / name / f"{_fingerprint(asked)[-8:].lower()}.pub"
            shutil.copy(there / "archive.asc", place)
    (folder / "cuda" / KEYS).write_text(json.dumps(fingerprints), encoding="ascii")


def _publish_ubuntu(folder: Path, key: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        debs = Path(scratch)
        (upstream, _), (newer, _) = BRANCHES
        own = f"{upstream}-{ON_UBUNTU}"
        for name, package in ubuntu_packages(upstream, own).items():
            _build(debs, name, package, upstream, own)
        for name, package in _shared("nvidia-modprobe", "nvidia-persistenced").items():
            _build(debs, name, package, newer, f"{newer}-{ON_UBUNTU}")
        for name in ("nvidia-dkms-open", "libnvidia-compute", "nvidia-kernel-common"):
            archive.pack_empty(f"{name} {newer}-{ON_UBUNTU} libs", debs)
        archive.pack_empty(DKMS, debs)
        archive.publish_flat(folder, debs, key, RELEASE)
    (folder / "gpgkey").unlink()


def keys(folder: Path) -> Mapping[str, str]:
    """The fingerprints of the keys, by the words of config.yaml."""
    found: Mapping[str, str] = json.loads((folder / "cuda" / KEYS).read_text(encoding="ascii"))
    return found


def _fingerprint(key: Path) -> str:
    argv = ["gpg", "--homedir", str(key), "--batch", "--with-colons", "--list-keys"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return next(line.split(":")[9] for line in said.splitlines() if line.startswith("fpr:"))


def _build(debs: Path, name: str, package: Package, upstream: str, version: str) -> None:
    words = {**archive.WORDS["bookworm"], "@VERSION@": upstream, "@DEBIAN@": version}
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        if package.like:
            source = archive.PACKAGES / package.like
            archive.lay_out(source, tree, words)
            archive.compile_programs(source, tree, words)
        _own(tree, name, upstream)
        control = (
            f"Package: {name}\nVersion: {version}\nSection: contrib/libs\n{package.relations}"
            "Description: stand-in: of NVIDIA's repository\n"
        )
        archive.write(tree / "DEBIAN/control", archive.complete(control))
        archive.pack(tree, debs)


def _own(tree: Path, name: str, upstream: str) -> None:
    """What of a package is not as in Debian's stand-in of it."""
    if ("dkms" in name and "no-dkms" not in name) or name.startswith("nvidia-kernel-source"):
        _rename(tree, upstream, open_module="open" in name)
    if name.startswith("nvidia-kernel-source"):  # Ubuntu has source and scripts in two packages
        (tree / "DEBIAN/postinst").unlink()
        (tree / "DEBIAN/prerm").unlink()
    elif name.startswith("nvidia-dkms"):
        shutil.rmtree(tree / "usr")
    elif name.startswith(("nvidia-driver-cuda", "nvidia-utils")):
        _move(tree / "usr/lib/nvidia/current/nvidia-smi", tree / "usr/bin/nvidia-smi")
    elif name == "nvidia-kernel-support":
        archive.write(tree / "etc/modprobe.d/nvidia.conf", BLACKLIST)
    elif name.startswith("nvidia-kernel-common"):
        archive.write(tree / "lib/modprobe.d/nvidia-graphics-drivers.conf", BLACKLIST)
    elif name == "libnvidia-cfg1":
        archive.blank_library(tree / LIBRARIES, "libnvidia-cfg.so", upstream)
    elif name in ("libnvidia-ml1", "libcuda1"):
        archive.library(tree / LIBRARIES, f"{name[:-1]}.so", upstream)
    elif name.startswith("libnvidia-compute"):
        for stem in ("libnvidia-ml.so", "libcuda.so"):
            archive.library(tree / LIBRARIES, stem, upstream)


def _rename(tree: Path, upstream: str, *, open_module: bool) -> None:
    """Debian's names of the module, its files and its source give way to NVIDIA's own."""
    source = next((tree / "usr/src").iterdir())
    source = source.rename(source.with_name(f"nvidia-{upstream}"))
    for file in (source / "dkms.conf", tree / "DEBIAN/postinst", tree / "DEBIAN/prerm"):
        file.write_text(file.read_text().replace("nvidia-current", "nvidia"))
    if open_module:
        text = (source / "nvidia.c").read_text()
        text = text.replace("x86_64 Kernel Module", "Open Kernel Module for x86_64")
        text = text.replace('LICENSE("NVIDIA")', 'LICENSE("Dual MIT/GPL")')
        (source / "nvidia.c").write_text(text)


def _move(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    file.rename(place)
    shutil.rmtree(file.parents[1])
