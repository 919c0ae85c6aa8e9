"""Which driver a machine is given: one pure function from what is wanted and what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import cards
from gpuboot.cards import PROPRIETARY
from gpuboot.catalog import ARCHITECTURE, DKMS, PRECOMPILED, RELEASES, TABLE, Row, listed
from gpuboot.errors import Code, Elsewhere, GpubootError

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.config import Driver as Wanted
    from gpuboot.existing import Driver
    from gpuboot.facts import Facts
    from gpuboot.pci import Gpu

UNSUPPORTED = Code(
    "GB101",
    "this machine is not one that gpuboot can set up",
    ("This version knows Debian and Ubuntu on amd64, in the releases that the message names.",),
    ("gpuboot facts", "cat /etc/os-release"),
    evidence="/etc/os-release, and dpkg --print-architecture",
)
NO_DRIVER_FOR_CARD = Code(
    "GB120",
    "there is no driver for this card",
    (
        "The card's family needs another branch or the other kernel module than can be had here.",
        "The card is newer than this gpuboot; named branch and kernel module type are believed.",
    ),
    ("gpuboot facts", "gpuboot plan", "lspci -nn -d 10de:"),
    evidence="the card's PCI id, in the table of the families and their branches",
)
NOT_PREINSTALLED = Code(
    "GB121",
    "the template has no driver that works",
    (
        "driver.source is preinstalled, and the template was made without a driver.",
        "A new kernel runs for which the template's driver has no module.",
        "Module and libraries are of different versions, or a part of the driver is not there.",
    ),
    (
        "gpuboot facts",
        "modinfo nvidia",
        "find /lib/modules -name 'nvidia*.ko*'",
        "ls -l /usr/lib/x86_64-linux-gnu/libnvidia*",
    ),
    evidence="the modules of this kernel, the installed libraries, and their versions",
)
NO_SUCH_DRIVER = Code(
    "GB122",
    "the release has no such driver",
    ("driver.branch, driver.build and driver.kernel-module-type name none of its drivers.",),
    ("gpuboot plan", "gpuboot config show"),
    evidence="the table of what each release offers",
)
OTHER_DRIVER = Code(
    "GB123",
    "the machine has another driver than the configured one",
    (
        "The template has a driver of its own, and the configuration names another one.",
        "A driver of NVIDIA's .run installer and one of packages overwrite each other's files.",
    ),
    ("gpuboot facts", Elsewhere("nvidia-uninstall"), "gpuboot config show"),
    evidence="the driver on the machine, its version and where it came from",
)

AGAIN = "correct it in /etc/gpuboot/config.yaml, then: gpuboot run"


@dataclass(frozen=True)
class Choice:
    """The driver that this machine is given, and why this one.

    `packages` is empty for a driver that is adopted as it is: then `source` is preinstalled.
    `stem`, where the module comes precompiled: a package STEM-KERNEL brings it for each kernel;
    `otherwise` then builds it by DKMS for a kernel that the source has no such package for, and is
    empty where that may not be. `rivals` must not be there. `pin`: the versions that apt may
    take. `gsp_off`: the module is told to do without the GSP firmware.
    """

    source: str
    branch: str
    kernel_module_type: str
    build: str  # dkms, or precompiled: nothing is compiled on this machine
    signed: bool
    packages: tuple[str, ...]
    reason: str
    stem: str = ""
    otherwise: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    pin: str = ""
    gsp_off: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def adopted(self) -> bool:
        """Whether the driver is there already and is left as it is."""
        return self.source == "preinstalled"

    @property
    def text(self) -> str:
        """The choice in a few words."""
        return f"driver {self.branch} ({self.kernel_module_type}), {self.source}"


def choose(config: Config, facts: Facts, table: Sequence[Row] = TABLE) -> Choice:
    """The driver for this machine; pure. Raises GB101 and GB120 to GB123.

    A driver that works and is none of ours is adopted rather than replaced. One that our own
    packages have brought is none to adopt: the plan is the same before and after they came.
    """
    wanted = config.driver
    release = release_of(facts)
    rows = [row for row in table if row.release == release and facts.architecture == ARCHITECTURE]
    if not rows:
        raise _unsupported(facts)
    there = facts.driver
    if wanted.source == "preinstalled":
        return _adopt(_working(there), wanted, facts)
    foreign = there if there and not any(_brought(row, there) for row in rows) else None
    if foreign and not foreign.fault and not _contradiction(wanted, foreign, facts.gpus):
        return _adopt(foreign, wanted, facts)
    offered = [row for row in rows if wanted.source in ("auto", row.source)]
    if not offered:
        have = dict.fromkeys(row.source for row in rows)
        raise GpubootError(
            NO_SUCH_DRIVER,
            f"driver.source is {wanted.source}: there is none of it for {_name(facts)}",
            hint=f"set driver.source: {' or '.join(have)}, then: gpuboot run",
        )
    if foreign and not foreign.fault and not foreign.package:
        raise _other(_contradiction(wanted, foreign, facts.gpus), foreign)
    if there and not there.fault:  # where a driver once came from it comes from again
        ours = {(row.source, row.branch) for row in offered if _brought(row, there)}
        offered.sort(key=lambda row: (row.source, row.branch) not in ours)
    row = _row(wanted, facts, offered)
    return _of_packages(row, offered, wanted, facts, foreign)


def chosen(config: Config, facts: Facts) -> Choice | None:
    """The choice; None where it is refused, which preflight tells before anything is done."""
    try:
        return choose(config, facts)
    except GpubootError:
        return None


def release_of(facts: Facts) -> str:
    """The release as the table names it."""
    return f"{facts.os_id} {facts.os_version}"


def system(facts: Facts) -> str:
    """The system, for a person."""
    return f"{facts.os_id or 'unknown system'} {facts.os_version} on {facts.architecture}"


def unfit(facts: Facts) -> GpubootError | None:
    """Why no configuration gives this machine a driver. The error is GB101."""
    known = release_of(facts) in RELEASES and facts.architecture == ARCHITECTURE
    return None if known else _unsupported(facts)


def _unsupported(facts: Facts) -> GpubootError:
    message = f"{system(facts)} is not supported; on {ARCHITECTURE} these are: {listed()}"
    return GpubootError(UNSUPPORTED, message)


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(row.text for row in rows)


# -- a driver that is there already ---------------------------------------------------------------


def _working(there: Driver | None) -> Driver:
    """The machine's own driver. Raises GB121 where there is none that works."""
    if there and not there.fault:
        return there
    what = there.fault if there else "there is none on this machine"
    raise GpubootError(
        NOT_PREINSTALLED,
        f"driver.source is preinstalled: {what}",
        hint="make the template's driver whole, or set another driver.source (gpuboot facts)",
    )


def _adopt(there: Driver, wanted: Wanted, facts: Facts) -> Choice:
    """The driver that is there, untouched. Raises GB123 where the configuration names another."""
    if problem := _contradiction(wanted, there, facts.gpus):
        raise _other(problem, there)
    why = "as driver.source says" if wanted.source == "preinstalled" else "it works as it is"
    kind = there.kernel_module_type or "unknown"
    return Choice(
        "preinstalled", there.branch, kind, DKMS if there.dkms else PRECOMPILED, signed=False,
        packages=(),
        reason=f"{there.version} of {there.origin} is on this machine and stays untouched: {why}",
        gsp_off=_gsp_off(kind, facts),
    )  # fmt: skip


def _brought(row: Row, there: Driver) -> bool:
    """Whether the driver came with these packages.

    The file's name counts where no package is known: dpkg notes what it has unpacked only
    afterwards, and a power cut may come between.
    """
    if there.package and row.owners:
        ours = re.fullmatch(row.owners, there.package) is not None
    elif there.package:
        ours = there.package in row.packages
    else:  # NVIDIA's .run installer names it nvidia as well
        return there.name == row.module != "nvidia"
    return ours and there.branch in ("", row.branch)


def _contradiction(wanted: Wanted, there: Driver, gpus: Sequence[Gpu]) -> str:
    """What of the configuration or the cards the driver is not; empty if it will do."""
    kind = there.kernel_module_type
    built = DKMS if there.dkms else PRECOMPILED
    for key, want, has in (
        ("branch", wanted.branch, there.branch),
        ("kernel-module-type", _named(wanted.kernel_module_type), kind),
        ("build", _named(wanted.build), built),
    ):
        if want and want != has:
            return f"driver.{key} is {want}"
    for gpu in gpus:
        family = cards.family(gpu.device)
        if family and kind and not family.carried(int(there.branch), kind):
            return f"{gpu.model} ({family.name}) needs {family.needs}"
    return ""


def _other(problem: str, there: Driver) -> GpubootError:
    kind = f" ({there.kernel_module_type})" if there.kernel_module_type else ""
    return GpubootError(
        OTHER_DRIVER,
        f"{problem}, and the machine has {there.version}{kind} of {there.origin}",
        hint="name in the configuration what the machine has, or remove its driver"
        f" ({f'apt-get purge {there.package}' if there.package else 'nvidia-uninstall'})",
    )


# -- a driver of packages -------------------------------------------------------------------------


def _row(wanted: Wanted, facts: Facts, offered: Sequence[Row]) -> Row:
    """The first row that is named and carries every card. Raises GB120, GB122."""
    named = [row for row in offered if not list(_unmet(wanted, row))]
    if not named:
        asked = " and ".join(dict.fromkeys(key for row in offered for key in _unmet(wanted, row)))
        raise GpubootError(
            NO_SUCH_DRIVER,
            f"{asked}: {_name(facts)} has {_listed(offered)}, built by"
            f" {' or '.join(dict.fromkeys(row.build for row in offered))}",
            hint=AGAIN,
        )
    believed = bool(wanted.branch and _named(wanted.kernel_module_type))
    for gpu in facts.gpus:
        family = cards.family(gpu.device)
        if family is None and not believed:
            raise GpubootError(
                NO_DRIVER_FOR_CARD,
                f"{gpu.id} at {gpu.slot} is a card that this version does not know",
                hint="name driver.branch and driver.kernel-module-type, and it is tried:"
                f" {_listed(offered)}",
            )
        fitting = [row for row in named if family is None or _carries(row, gpu)]
        if family and not fitting:
            others = [row for row in offered if _carries(row, gpu)]
            hint = f"{_listed(others)} would drive it" if others else "give the VM another card"
            raise GpubootError(
                NO_DRIVER_FOR_CARD,
                f"{gpu.model} at {gpu.slot} ({family.name}) needs {family.needs};"
                f" here it would be {_listed(named)}",
                hint=hint,
            )
        named = fitting
    return named[0]


def _unmet(wanted: Wanted, row: Row) -> Iterator[str]:
    """The keys of the configuration that ask for another driver than this one."""
    if wanted.branch not in (None, row.branch, *row.moved) and not _version_of(wanted, row):
        yield f"driver.branch is {wanted.branch}"
    if wanted.kernel_module_type not in ("auto", row.kernel_module_type):
        yield f"driver.kernel-module-type is {wanted.kernel_module_type}"
    if wanted.build not in ("auto", row.build):
        yield f"driver.build is {wanted.build}"


def _version_of(wanted: Wanted, row: Row) -> bool:
    """Whether driver.branch names one version of a branch, where versions can be had by name."""
    return bool(row.pin and wanted.branch and wanted.branch.startswith(f"{row.branch}."))


def _carries(row: Row, gpu: Gpu) -> bool:
    family = cards.family(gpu.device)
    return family is None or family.carried(int(row.branch), row.kernel_module_type)


def _of_packages(
    row: Row, offered: Sequence[Row], wanted: Wanted, facts: Facts, foreign: Driver | None
) -> Choice:
    warnings = []
    if row.trouble:
        warnings.append(f"{_name(facts)}'s driver {row.text} is known to fail: {row.trouble}")
    if foreign:
        version = foreign.version or foreign.library
        warnings.append(
            f"a driver {version} of {foreign.origin} is here too, and can be in the way"
        )
    exact = _version_of(wanted, row)
    return Choice(
        row.source, row.branch, row.kernel_module_type, row.build, row.signed, row.packages,
        _why(row, wanted, facts),
        stem=row.stem,
        otherwise=_otherwise(row, offered, wanted, facts),
        rivals=row.rivals,
        pin=f"{wanted.branch}*" if exact else row.pin,
        gsp_off=_gsp_off(row.kernel_module_type, facts),
        warnings=tuple(warnings),
    )  # fmt: skip


def _otherwise(row: Row, offered: Sequence[Row], wanted: Wanted, facts: Facts) -> tuple[str, ...]:
    """What DKMS needs beside the row's own packages; under Secure Boot its module is of no use."""
    if row.build != PRECOMPILED or wanted.build != "auto" or facts.signed_only:
        return ()
    for one in offered:
        same = one.source == row.source and one.text == row.text
        if same and one.build == DKMS:
            return tuple(name for name in one.packages if name not in row.packages)
    return ()


def _gsp_off(kernel_module_type: str, facts: Facts) -> bool:
    """Only the proprietary module can do without it. A card that is to come is taken for a T4."""
    families = [cards.family(gpu.device) for gpu in facts.gpus]
    frail = not families or any(family and family.gsp_off for family in families)
    return kernel_module_type == PROPRIETARY and frail


def _why(row: Row, wanted: Wanted, facts: Facts) -> str:
    families = [cards.family(gpu.device) for gpu in facts.gpus]
    frail = next((family for family in families if family and family.gsp_off), None)
    if row.kernel_module_type == PROPRIETARY and frail:
        kind = f"with the GSP firmware off, which times out on {frail.name} cards"
        if not _named(wanted.kernel_module_type):
            kind += " and which the open module needs"
    elif _named(wanted.kernel_module_type):
        kind = "as driver.kernel-module-type says"
    elif row.kernel_module_type == PROPRIETARY:
        kind = f"it is what {_owner(row, facts)} keeps up"
    else:
        kind = "the proprietary module does not drive this card, or is not to be had"
    branch = "driver.branch says so" if wanted.branch else f"{_owner(row, facts)}'s own"
    if wanted.branch in row.moved:
        branch = f"the packages of {wanted.branch} are transitional ones to it"
    return f"branch {row.branch}: {branch}; the {row.kernel_module_type} module: {kind}"


def _owner(row: Row, facts: Facts) -> str:
    return "NVIDIA" if row.source == "nvidia" else _name(facts)


def _name(facts: Facts) -> str:
    return f"{facts.os_id.capitalize()} {facts.os_version}"


def _named(value: str) -> str | None:
    return None if value == "auto" else value
