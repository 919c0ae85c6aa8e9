"""Which sources apt reads: ours alone or everybody's; and whose entry is to blame."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboot.host import Host

FOLDER = "/etc/apt/sources.list.d"
FILE = f"{FOLDER}/gpuboot.sources"
# Our sources alone. Whatever else the node has can then neither stop us by being broken nor hand us
# a package that outranks ours, as NVIDIA's repository does with its pin (facts: nvidia 2.5). What
# apt has read of the others stays.
ONLY = (
    "-o", f"Dir::Etc::SourceList={FILE}",
    "-o", "Dir::Etc::SourceParts=/dev/null",
    "-o", "APT::Get::List-Cleanup=false",
)  # fmt: skip
# apt does not get to keep what it then knows: looking leaves nothing behind.
FORGETFUL = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
EVERYBODYS = ("-o", f"Dir::Etc::SourceParts={FOLDER}", *FORGETFUL)  # all, as apt does by itself
# Without release information it also answers before the first update.
INDEXTARGETS = (
    "apt-get", "indextargets", "--no-release-info", "--format",
    "$(SITE) $(RELEASE) $(COMPONENT) $(CREATED_BY) $(SOURCESENTRY)", *FORGETFUL,
)  # fmt: skip


def unreadable(host: Host) -> str | None:
    """Which entry keeps apt from reading the node's sources, in apt's words; None if it can."""
    result = host.run(INDEXTARGETS)
    told = re.findall(r"^E: (?!The list of sources could not be read)(.*)$", result.err, re.M)
    return told[0] if result.code and told else None


def entry(host: Host, said: str) -> str | None:
    """FILE:NUMBER of the node's source whose address stands in what apt has said."""
    lines = (line.split() for line in targets(host))
    found = {
        site.rstrip("/"): rest[-1] for site, *rest in lines if rest and site.rstrip("/") in said
    }
    return found[max(found, key=len)] if found else None


def targets(host: Host) -> list[str]:
    """A line for each index of the node's sources; those of a file that apt cannot read are left
    out, which otherwise make apt name none at all.
    """
    whole = host.run(INDEXTARGETS)
    if whole.code == 0:
        return whole.out.splitlines()
    listed = [f"{FOLDER}/{name}" for name in host.names(FOLDER)
              if name.endswith((".list", ".sources"))]  # fmt: skip
    found = []
    for file in ("/etc/apt/sources.list", *listed):
        alone = ("-o", f"Dir::Etc::SourceList={file}", "-o", "Dir::Etc::SourceParts=/dev/null")
        result = host.run([*INDEXTARGETS, *alone])
        found += result.out.splitlines() if result.code == 0 else []
    return found
