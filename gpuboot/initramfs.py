"""The initramfs: it loads modules before the root file system can forbid any."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpuboot import apt, kernel
from gpuboot.nvidia import MODPROBE, RIVALS

if TYPE_CHECKING:
    from gpuboot.host import Host

log = logging.getLogger(__name__)

TOOL = "/usr/sbin/update-initramfs"
# While this is there, packaging/path/update-initramfs adds a line to it for each image that the
# packages wanted made.
NOTE = "/var/lib/gpuboot/initramfs-deferred"
NOTICE = "# gpuboot installs packages; afterwards it makes the initramfs, if it must be made.\n"
INFO = "/var/lib/dpkg/info"
# The modules that take the card; what stands on them comes only with them.
TAKERS = tuple(dict.fromkeys(stack[-1] for stack in RIVALS.values()))
# Want nothing but nouveau kept out of it, and of that we see to it ourselves (tried with 12, 13).
NEEDLESS = frozenset({"glx-alternative-nvidia"})


@contextmanager
def deferred(host: Host) -> Iterator[None]:
    """Inside, no package makes the initramfs; after it that is done once, if it must be.

    A cold installation of the driver makes it three times on Debian 12, 22 s of processor each.
    Raises GB010, GB012.
    """
    late = left(host)
    before = {} if late else _askers(host)
    if not late:
        host.write(NOTE, NOTICE)
    yield
    if host.read(NOTE) != NOTICE:
        if late or _askers(host) != before:
            log.info("the initramfs is made anew: packages that are in it were installed")
            host.must(["update-initramfs", "-u"], timeout=1800, patient=True)
        else:
            renew(host, *TAKERS)
    host.remove(NOTE)


def left(host: Host) -> bool:
    """Whether a walk that was cut off still owes the initramfs that packages asked for."""
    return host.exists(NOTE)


def _askers(host: Host) -> Mapping[str, str]:
    """The installed packages that ask for an initramfs when they change, with their versions."""
    asking = set()
    for name in host.names(INFO):
        package, _, kind = name.rpartition(".")
        package = package.partition(":")[0]
        if kind in ("triggers", "postinst") and package not in NEEDLESS:
            text = host.read(f"{INFO}/{name}") or ""
            if re.search(r"^\s*[^#\s].*update-initramfs", text, re.MULTILINE):
                asking.add(package)
    return {name: version for name, version in apt.installed(host).items() if name in asking}


def renew(host: Host, *modules: str) -> None:
    """Make the initramfs of the next boot anew, if that one would load one of these again.

    Making one takes 20 to 50 s on two busy cores, and reading what is in one 0.6 s; by Debian's own
    choice of modules nouveau is not even in it (tried with 12 and 13). Only the kernel that boots
    next matters; without -k it would be the newest one's. Raises GB010 or GB012.
    """
    release = kernel.next_boot(host)
    module = _loaded(host, release, modules) if host.exists(TOOL) else None
    if module:
        log.info("the initramfs of kernel %s is made anew: it would load %s again", release, module)
        argv = ["update-initramfs", "-u", "-k", release]
        host.must(argv, timeout=1800, patient=True)


def _loaded(host: Host, release: str, modules: Sequence[str]) -> str | None:
    """Which of the modules that kernel's initramfs has, and nothing that keeps it out."""
    image = f"/boot/initrd.img-{release}"
    result = host.run(["lsinitramfs", str(host.path(image))], timeout=300)
    if result.code != 0:
        return modules[0]  # it cannot be read, or there is none: nobody knows what it would load
    # The whole of /etc/modprobe.d goes into it, and our file has had the blacklist ever since.
    kept_out = MODPROBE.lstrip("/") in result.out.splitlines()
    for module in modules:
        if not re.search(rf"/{module}[\w-]*\.ko(\.(xz|zst|gz))?$", result.out, re.MULTILINE):
            continue
        # No list of names tells nvidia's version.
        if not _newer(host, image, release) if module == "nvidia" else not kept_out:
            return module
    return None


def _newer(host: Host, image: str, release: str) -> bool:
    """Whether the image was made after that kernel's NVIDIA module was."""
    built = kernel.nvidia_module(host, release)
    made = host.changed(image)
    since = host.changed(built.path) if built else None
    return bool(made and since and made > since)
