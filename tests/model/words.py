"""What the commands say on a full or read-only disk, as it was captured on Debian 12."""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOSPC, EROFS

from gpuboot.process import Result

_DPKG = {
    ENOSPC: "dpkg: unrecoverable fatal error, aborting:\n"
    " unable to fill /var/lib/dpkg/updates/tmp.i with padding: No space left on device\n",
    EROFS: "dpkg: error: unable to access the dpkg database directory /var/lib/dpkg:"
    " Read-only file system\n",
}
_WORDS = {
    "apt-get": {
        ENOSPC: "dpkg: error processing archive /var/cache/apt/archives/a_1_amd64.deb (--unpack):\n"
        " cannot copy extracted data for './usr/a' to '/usr/a.dpkg-new': failed to write"
        " (No space left on device)\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n",
        EROFS: "W: Not using locking for read only lock file /var/lib/dpkg/lock-frontend\n"
        "E: Failed to fetch http://archive/a_1_amd64.deb  Could not open file"
        " /var/cache/apt/archives/partial/a_1_amd64.deb - open (30: Read-only file system)\n"
        "E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?\n",
    },
    "dpkg": _DPKG,
    "apt-mark": {
        number: f"{said}E: Sub-process dpkg --set-selections returned an error code (2)\n"
        "E: Executing dpkg failed. Are you root?\n"
        for number, said in _DPKG.items()
    },
    "systemctl": {
        number: 'Failed to enable unit, file "/etc/systemd/system/multi-user.target.wants/'
        f'gpuboot.service": {said}\n'
        for number, said in ((ENOSPC, "No space left on device"), (EROFS, "Read-only file system"))
    },
    "dkms": {
        ENOSPC: "cc.s: Fatal error: can't fill 256 bytes: 'No space left on device'\n"
        "Error! Bad return status for module build on kernel: 6.1.0-50-amd64 (x86_64)\n",
        EROFS: "cp: cannot create directory '/var/lib/dkms/x/1/build/source':"
        " Read-only file system\n"
        "Error! Bad return status for module build on kernel: 6.1.0-50-amd64 (x86_64)\n",
    },
    "update-initramfs": {
        # The first line is not always there: what packs the image may say nothing.
        ENOSPC: "update-initramfs: failed for /boot/initrd.img-6.1.0-50-amd64 with 1.\n",
        EROFS: "touch: cannot touch '/boot/initrd.img-6.1.0-50-amd64.new': Read-only file system\n"
        "update-initramfs: failed for /boot/initrd.img-6.1.0-50-amd64 with 1.\n",
    },
}
_WORDS["systemctl restart"] = dict.fromkeys(
    (ENOSPC, EROFS),
    "Job for nvidia-cdi-refresh.service failed because the control process exited with error code.",
)
_STATUS = {"apt-get": 100, "apt-mark": 100, "dpkg": 2, "dkms": 11}


def refusal(argv: Sequence[str], error: OSError) -> Result:
    """How a command ends that met this error."""
    words = _WORDS.get(" ".join(argv[:2]), _WORDS.get(argv[0], {}))
    return Result(_STATUS.get(argv[0], 1), err=words[error.errno or 0])
