"""The apt archive of a rehearsal: stand-in packages with the real names, and signed indexes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rehearsal import hardware

PACKAGES = hardware.STANDINS / "packages"
# What cannot work without a card, or without the kernel it was built for: on a node with the real
# packages these of the stand-ins' programs and libraries answer in their places.
ANSWERING = ("contrib/nvidia-modprobe", "contrib/nvidia-persistenced", "non-free/libcuda1",
             "non-free/libnvidia-ml1", "non-free/nvidia-smi")  # fmt: skip

# What the stand-ins' files say, by Debian release: the versions are those of its own archive, its
# security updates included (asked in November 2026).
WORDS: Mapping[str, Mapping[str, str]] = {
    "bookworm": {
        "@SUITE@": "oldstable", "@BRANCH@": "535", "@VERSION@": "535.309.01",
        "@DEBIAN@": "535.309.01-0+deb12u1", "@MODPROBE@": "535.309.01-0+deb12u1",
        "@PERSISTENCED@": "535.171.04-1~deb12u1", "@SUPPORT@": "20220217+3~deb12u1",
    },
    "trixie": {
        "@SUITE@": "stable", "@BRANCH@": "550", "@VERSION@": "550.163.01",
        "@DEBIAN@": "550.163.01-2", "@MODPROBE@": "570.133.07-1",
        "@PERSISTENCED@": "550.163.01-1", "@SUPPORT@": "20240109+1",
    },
}  # fmt: skip
# What an archive brings later: the driver alone is newer.
LATER: Mapping[str, Mapping[str, str]] = {
    "bookworm": {
        "@VERSION@": "535.320.02", "@DEBIAN@": "535.320.02-0+deb12u1",
        "@MODPROBE@": "535.320.02-0+deb12u1",
    },
    "trixie": {"@VERSION@": "550.170.04", "@DEBIAN@": "550.170.04-1"},
}  # fmt: skip
TOOLKITS = ("1.19.1", "1.20.0")  # the toolkit's repository keeps older versions
SCRIPTS = frozenset({"preinst", "postinst", "prerm", "postrm"})
CONTROL_FILES = frozenset({"control", "conffiles", "triggers"}) | SCRIPTS
MAINTAINER = "gpuboot rehearsal <rehearsal@archive.lab>"
IDENTITY = "gpuboot rehearsal archive"
ARCHITECTURES = ("amd64", "all")
VALID_UNTIL = "Valid-Until"


# -- keys -------------------------------------------------------------------------------------


def signing_key(folder: Path, expires: str = "never", words: Sequence[str] = ()) -> Path:
    """A GNUPGHOME with one key, made once; the public key, as apt's signed-by wants it.

    `words` are for gpg as it makes the key, such as another time of day.
    """
    public = folder / "archive.gpg"
    if public.exists():
        return public
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    kind = ("rsa3072", "sign", expires)
    _gpg(folder, *words, "--passphrase", "", "--quick-generate-key", IDENTITY, *kind)
    _gpg(folder, "--output", str(public), "--export", IDENTITY)
    _gpg(folder, "--armor", "--output", str(folder / "archive.asc"), "--export", IDENTITY)
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=True)
    return public


def _gpg(folder: Path, *words: str) -> None:
    subprocess.run(
        ["gpg", "--homedir", str(folder), "--batch", "--yes", "--quiet", "--pinentry-mode",
         "loopback", *words],
        check=True,
    )  # fmt: skip


# -- building packages ------------------------------------------------------------------------


def build_standins(out: Path, debian: str, *, driver: bool = True) -> None:
    """Build the stand-in packages of a Debian release into out/COMPONENT/ and out/toolkit/.

    Without the driver's: only those that Debian does not have.
    """
    words = WORDS[debian]
    for component in sorted(path for path in PACKAGES.iterdir() if path.is_dir()):
        if not driver and component.name not in ("main", "toolkit"):
            continue
        for toolkit in TOOLKITS if component.name == "toolkit" else TOOLKITS[-1:]:
            versions = {"@TOOLKIT@": f"{toolkit}-1", "@TOOLKIT_VERSION@": toolkit}
            _build(component, out / component.name, {**words, **versions})
    if driver:
        _pack_pynvml(out / "contrib")


def build_answering(out: Path, debian: str, version: str) -> list[Path]:
    """The programs and libraries of ANSWERING for a driver's version, below `out` as on a node."""
    words = {**WORDS[debian], "@VERSION@": version}
    for name in ANSWERING:
        lay_out(PACKAGES / name, out, words)
        compile_programs(PACKAGES / name, out, words)
    shutil.rmtree(out / "DEBIAN")
    found = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in found if os.access(path, os.X_OK)]


def build_later(out: Path, debian: str, standins: Path) -> None:
    """The stand-ins in `standins`, hard links, but for the driver, which is newer."""
    shutil.copytree(standins, out, copy_function=os.link)
    words = {**WORDS[debian], **LATER[debian]}
    for component in ("contrib", "non-free", "non-free-firmware"):
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch)
            _build(PACKAGES / component, fresh, words)
            for deb in fresh.glob(f"*_{LATER[debian]['@VERSION@']}*.deb"):
                for older in (out / component).glob(f"{deb.name.split('_')[0]}_*.deb"):
                    older.unlink()
                shutil.copy(deb, out / component)


def _build(component: Path, folder: Path, words: Mapping[str, str]) -> None:
    """Every stand-in package of a component."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in sorted(path for path in component.iterdir() if path.is_dir()):
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "tree"
            lay_out(package, tree, words)
            compile_programs(package, tree, words)
            pack(tree, folder)
    for line in _lines(component / "empty"):
        pack_empty(_fill(line, words), folder)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def lay_out(package: Path, tree: Path, words: Mapping[str, str]) -> None:
    """Copy the package's root and its control files, the @WORDS@ filled in."""
    for source in sorted((package / "root").rglob("*")):
        target = tree / _fill(str(source.relative_to(package / "root")), words)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
            write(target, _fill(source.read_text(), words), mode)
    for name in sorted(CONTROL_FILES):
        if (package / name).exists():
            mode = 0o755 if name in SCRIPTS else 0o644
            write(tree / "DEBIAN" / name, _fill((package / name).read_text(), words), mode)
    control = tree / "DEBIAN/control"
    control.write_text(complete(control.read_text()))


def complete(control: str) -> str:
    """The fields that are the same in every package."""
    common = f"Architecture: amd64\nMaintainer: {MAINTAINER}\nPriority: optional\n"
    note = (
        " Part of gpuboot's rehearsal: it has the real package's name and manners, not its work.\n"
    )
    return control.replace("Description:", f"{common}Description:", 1) + note


def compile_programs(package: Path, tree: Path, words: Mapping[str, str]) -> None:
    """What a package holds beside texts: the C libraries, and the setuid nvidia-modprobe."""
    version = words["@VERSION@"]
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    if package.name in ("libnvidia-ml1", "libcuda1"):
        library(libraries / "nvidia/current", f"{package.name[:-1]}.so", version)
    elif package.name == "libnvidia-cfg1":
        blank_library(libraries / "nvidia/current", "libnvidia-cfg.so", version)
    elif package.name == "libnvidia-container1":
        blank_library(libraries, "libnvidia-container.so", words["@TOOLKIT_VERSION@"])
    for source in sorted(package.glob("*.c")):
        program = tree / "usr/bin" / source.stem
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["gcc", "-O1", "-Wall", f'-DDRIVER_VERSION="{version}"', "-o", str(program),
             str(source)],
            check=True,
        )  # fmt: skip
        program.chmod(0o4755)


def library(folder: Path, stem: str, version: str) -> None:
    """The stand-in of NVML or CUDA, by the name that a driver's version gives it."""
    with tempfile.TemporaryDirectory() as scratch:
        hardware.build_libraries(Path(scratch), version)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(scratch) / f"{stem}.{version}", folder)
    (folder / f"{stem}.1").symlink_to(f"{stem}.{version}")
    (folder / stem).symlink_to(f"{stem}.1")


def blank_library(folder: Path, stem: str, version: str) -> None:
    """A library without a function, for what only looks whether it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["gcc", "-shared", f"-Wl,-soname,{stem}.1", "-o", str(folder / f"{stem}.{version}"),
         "-x", "c", "/dev/null"],
        check=True,
    )  # fmt: skip
    (folder / f"{stem}.1").symlink_to(f"{stem}.{version}")


def pack_empty(line: str, folder: Path) -> None:
    """A package without a file, of a line that says its name, version and section."""
    with tempfile.TemporaryDirectory() as scratch:
        pack(_empty(Path(scratch) / "tree", line), folder)


def _empty(tree: Path, line: str) -> Path:
    name, version, section = line.split()
    control = f"Package: {name}\nVersion: {version}\nSection: {section}\nDescription: stand-in\n"
    write(tree / "DEBIAN/control", complete(control))
    return tree


def _pack_pynvml(folder: Path) -> None:
    """The real pynvml, as the tests have it installed, under Debian's name."""
    found = importlib.util.find_spec("pynvml")
    if found is None or found.origin is None:
        raise RuntimeError("pynvml is not installed: pip install nvidia-ml-py")
    version = importlib.metadata.version("nvidia-ml-py")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        write(tree / "usr/lib/python3/dist-packages/pynvml.py", Path(found.origin).read_text())
        control = (
            f"Package: python3-pynvml\nVersion: {version}-1\nSection: contrib/python\n"
            "Depends: libnvidia-ml1 | libnvidia-ml.so.1, python3:any\n"
            "Description: the real nvidia-ml-py\n"
        )
        write(tree / "DEBIAN/control", complete(control))
        pack(tree, folder)


def pack(tree: Path, folder: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


# -- publishing -------------------------------------------------------------------------------


def publish_suite(
    folder: Path,
    suite: str,
    pools: Mapping[str, Path],
    key_folder: Path,
    fields: Mapping[str, str] | None = None,
) -> None:
    """A signed suite; `pools` maps each component to a folder of .debs.

    `fields` are the index's own instead of those of a suite by a release of Debian's name.
    """
    signing_key(key_folder)
    dist = folder / "dists" / suite
    for component, source in sorted(pools.items()):
        pool = folder / "pool" / suite / component
        _fill_pool(pool, source)
        index = dist / component / "binary-amd64"
        index.mkdir(parents=True, exist_ok=True)
        _write_packages(index, folder, f"pool/{suite}/{component}")
    own = fields or {
        "Origin": "gpuboot rehearsal", "Label": "gpuboot rehearsal",
        "Suite": WORDS[suite]["@SUITE@"], "Codename": suite,
    }  # fmt: skip
    parts = {"Architectures": " ".join(ARCHITECTURES), "Components": " ".join(sorted(pools))}
    _sign(dist, key_folder, {**own, **parts})


def date_later(folder: Path) -> None:
    """Give an archive's indexes a later time than now: apt asks by the second what is newer."""
    for path in (folder / "dists").rglob("*") if folder.is_dir() else ():
        times = path.stat()
        os.utime(path, (times.st_atime, times.st_mtime + 60))


def publish_flat(
    folder: Path,
    debs: Path,
    key_folder: Path,
    fields: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
) -> None:
    """A flat signed repository (`deb … /`), with its key in ASCII armour at `gpgkey`.

    `fields` are the index's own beside or instead of the usual ones; `words` are for gpg.
    """
    signing_key(key_folder)
    folder.mkdir(parents=True, exist_ok=True)
    _fill_pool(folder, debs)
    _write_packages(folder, folder, ".")
    usual = {"Origin": "gpuboot rehearsal", "Label": "gpuboot toolkit"}
    _sign(folder, key_folder, {**usual, **(fields or {})}, words)
    shutil.copy(key_folder / "archive.asc", folder / "gpgkey")


def _fill_pool(pool: Path, source: Path) -> None:
    """Bring the pool to what the source holds: hard links where the file system allows."""
    pool.mkdir(parents=True, exist_ok=True)
    if pool.samefile(source):
        return
    # A file name from apt's cache may hold an epoch as %3a; a pool's names have none.
    wanted = {re.sub(r"_\d+(%3a|:)", "_", path.name): path for path in source.rglob("*.deb")}
    for stale in pool.glob("*.deb"):
        stale.unlink()
    for name, path in wanted.items():
        try:
            (pool / name).hardlink_to(path)
        except OSError:
            shutil.copy(path, pool / name)


def _write_packages(index: Path, root: Path, pool: str) -> None:
    text = _ftparchive(root, "packages", pool)
    (index / "Packages").write_bytes(text)
    subprocess.run(["gzip", "-9nkf", str(index / "Packages")], check=True)


def _sign(
    dist: Path, key_folder: Path, fields: Mapping[str, str], words: Sequence[str] = ()
) -> None:
    known = {name: value for name, value in fields.items() if name != VALID_UNTIL}
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in known.items()]
    for name in ("Release", "InRelease", "Release.gpg"):
        (dist / name).unlink(missing_ok=True)
    release = _ftparchive(dist, *options, "release", ".")
    if VALID_UNTIL in fields:  # apt-ftparchive knows only times to come
        release = f"{VALID_UNTIL}: {fields[VALID_UNTIL]}\n".encode() + release
    (dist / "Release").write_bytes(release)
    _gpg(key_folder, *words, "--clearsign", "--output", str(dist / "InRelease"),
         str(dist / "Release"))  # fmt: skip
    _gpg(key_folder, *words, "--armor", "--detach-sign", "--output", str(dist / "Release.gpg"),
         str(dist / "Release"))  # fmt: skip
    subprocess.run(["gpgconf", "--homedir", str(key_folder), "--kill", "all"], check=True)


def _ftparchive(folder: Path, *words: str) -> bytes:
    return subprocess.run(
        ["apt-ftparchive", *words], cwd=folder, check=True, stdout=subprocess.PIPE
    ).stdout
