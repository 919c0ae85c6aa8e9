#!/usr/bin/python3
"""update-initramfs of the pretended machine.

Stands in for initramfs-tools' own, which takes a minute and whose image no container boots from.
What matters of an initramfs here is which blacklist went into it (facts/nvidia.md 3.3): that is
written down for the next boot. The image is a real archive, for the real lsinitramfs to read, of
modprobe's settings and, where the machine's has it, nouveau or nova_core. Where the kernel's real
modules are there, as beside a real driver, the real mkinitramfs makes it, in the time that takes.
Called by a package's script it defers to the trigger, as the real one does.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # on a node the programs lie in one folder
    from tests.rehearsal.standins.hardware import lab_kernel as kernel
else:
    import lab_kernel as kernel

REAL_MODPROBE = "/usr/lib/lab/real/modprobe"
RUNS = Path("/var/lib/lab/initramfs-runs")  # a line for each image made: kernel, and who had it
DRIVERS = "usr/lib/modules/{}/kernel/drivers/gpu"
RIVALS = {"nouveau": "drm/nouveau/nouveau.ko", "nova_core": "nova-core/nova_core.ko"}


def deferred() -> bool:
    # initramfs-tools' own script empties the variable when it has come to the trigger.
    package = os.environ.get("DPKG_MAINTSCRIPT_PACKAGE", "")
    if package in ("", "initramfs-tools") or not Path("/usr/bin/dpkg-trigger").exists():
        return False
    sys.stdout.write("update-initramfs: deferring update (trigger activated)\n")
    return subprocess.run(["dpkg-trigger", "--no-await", "update-initramfs"],
                          check=False).returncode == 0  # fmt: skip


def generate(release: str) -> None:
    image = Path(f"/boot/initrd.img-{release}")
    sys.stdout.write(f"update-initramfs: Generating {image}\n")
    configuration = subprocess.run(
        [REAL_MODPROBE, "--showconfig"], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[1] for line in configuration.splitlines() if line[:10] == "blacklist "]
    record = kernel.blacklisted_at_start(release)
    record.parent.mkdir(parents=True, exist_ok=True)
    replace(record, "".join(f"{name}\n" for name in sorted(set(names))).encode())
    image.parent.mkdir(exist_ok=True)
    if Path(f"/lib/modules/{release}/kernel/fs").is_dir():
        subprocess.run(["mkinitramfs", "-o", f"{image}.new", release], check=True)
        Path(f"{image}.new").replace(image)
    else:
        replace(image, archive(release))
    with RUNS.open("a") as runs:
        # initramfs-tools' own script empties the variable when it has come to the trigger.
        package = os.environ.get("DPKG_MAINTSCRIPT_PACKAGE", "by-hand") or "dpkg-trigger"
        runs.write(f"{release} {package}\n")


def archive(release: str) -> bytes:
    """The image: a compressed cpio archive that nobody boots from."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        settings = root / "etc/modprobe.d"
        settings.mkdir(parents=True)
        for file in Path("/etc/modprobe.d").glob("*.conf"):
            shutil.copy(file, settings)
        if kernel.settings().get("initramfs", True) and kernel.settings()["nouveau"] != "absent":
            module = root / DRIVERS.format(release) / RIVALS[kernel.rival()]
            module.parent.mkdir(parents=True)
            module.write_text("a pretended module\n")
        listed = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        packed = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, check=True,
                                input=listed.encode(), stdout=subprocess.PIPE)  # fmt: skip
    return gzip.compress(packed.stdout)


def replace(file: Path, content: bytes) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(content)
    fresh.replace(file)


def main(argv: list[str]) -> int:
    if "-d" in argv or not kernel.SETTINGS.exists():
        return 0
    if "-u" in argv and deferred():
        return 0
    generate(argv[argv.index("-k") + 1] if "-k" in argv else kernel.release())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
