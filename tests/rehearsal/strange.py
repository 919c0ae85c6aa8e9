"""Archives of the lab that a node had better not use: http://archive.lab/strange/NAME, all flat.

unknown-key   the toolkit's packages, signed with a key that no node has
expired-key   the same, with a key that expired in January 2025
sha1          the same, signed with SHA-1
stale         the same, valid until the beginning of 2025
cuda          parts of a driver as NVIDIA's repository names them, newer than Debian's

Each has its key at `gpgkey`.
"""

from __future__ import annotations

from pathlib import Path

from tests.rehearsal import archive

# In 2025 the key was young, and gpg signs with it as if it were that day.
THEN = ("--faked-system-time", "20250115T000000!")
BORN = ("--faked-system-time", "20250101T000000!")
CUDA_VERSION = "580.95.05-1"
CUDA = ("nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-persistenced")


def publish(folder: Path, toolkit: Path, own_key: Path) -> None:
    """All of them below `folder`; `own_key` is the key folder of the lab's own archive."""
    keys = own_key.with_name(f"{own_key.name}-strange")
    unknown, expired = keys / "unknown", keys / "expired"
    archive.signing_key(expired, "2025-01-31", BORN)
    archive.publish_flat(folder / "unknown-key", toolkit, unknown)
    archive.publish_flat(folder / "expired-key", toolkit, expired, words=THEN)
    archive.publish_flat(folder / "sha1", toolkit, own_key, words=("--digest-algo", "SHA1"))
    past = {archive.VALID_UNTIL: "Wed, 01 Jan 2025 00:00:00 UTC"}
    archive.publish_flat(folder / "stale", toolkit, own_key, past)
    debs = folder / "cuda"
    debs.mkdir(parents=True)
    for name in CUDA:
        archive.pack_empty(f"{name} {CUDA_VERSION} contrib/libs", debs)
    archive.publish_flat(debs, debs, unknown, {"Label": "NVIDIA CUDA"})
