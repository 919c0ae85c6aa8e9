"""Which driver a machine is given: one table, and one pure function that reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuboot import cards
from gpuboot.cards import OPEN, PROPRIETARY
from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.config import Driver as Wanted
    from gpuboot.existing import Driver
    from gpuboot.facts import Facts
    from gpuboot.pci import Gpu

UNSUPPORTED = Code(
    "GB101",
    "this machine is not one that gpuboot can set up",
    ("This version knows Debian 12 and 13 on amd64.",),
    ("gpuboot facts", "cat /etc/os-release"),
)
UNSUPPORTED_SETTING = Code(
    "GB102",
    "the configuration asks for what this version cannot do",
    ("The key is part of the configuration, and its value is not carried out yet.",),
    ("gpuboot config show", "gpuboot config schema"),
)
NO_DRIVER_FOR_CARD = Code(
    "GB120",
    "there is no driver for this card",
    (
        "The card's family needs another branch or the other kernel module than can be had here.",
        "The card is newer than this gpuboot; named branch and kernel module type are believed.",
    ),
    ("gpuboot facts", "gpuboot plan", "lspci -nn -d 10de:"),
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
        "dkms status",
        "ls -l /usr/lib/x86_64-linux-gnu/libnvidia*",
    ),
)
NO_SUCH_DRIVER = Code(
    "GB122",
    "the release has no such driver",
    ("driver.branch, driver.build and driver.kernel-module-type name none of its drivers.",),
    ("gpuboot plan", "gpuboot config show"),
)
OTHER_DRIVER = Code(
    "GB123",
    "the machine has another driver than the configured one",
    (
        "The template has a driver of its own, and the configuration names another one.",
        "A driver of NVIDIA's .run installer and one of packages overwrite each other's files.",
    ),
    ("gpuboot facts", "nvidia-uninstall", "gpuboot config show"),
)

DKMS, PRECOMPILED = "dkms", "precompiled"
AGAIN = "correct it in /etc/gpuboot/config.yaml, then: gpuboot run"


@dataclass(frozen=True)
class Row:
    """One driver that one source packages for one release.

    `packages` is the smallest set for a container host; the first one brings the module. A name
    may hold {kernel} and {flavour}, the running kernel's release and its flavour, for modules
    that are packaged by kernel; a meta-package that follows the flavour is a name beside it.
    `module` is the module file's name without suffix. `before`: packages that must be installed
    before the others, such as a keyring or a pin. `signed`: with a key that the firmware knows.
    `trouble`: what is known to go wrong, told to whoever asks for it all the same.
    """

    release: str
    source: str
    branch: str
    kernel_module_type: str
    build: str
    module: str
    packages: tuple[str, ...]
    signed: bool = False
    before: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def text(self) -> str:
        """The row in a list of what can be had."""
        return f"{self.branch} ({self.kernel_module_type})"


_CURRENT = ("nvidia-smi", "libnvidia-ml1", "libcuda1", "nvidia-modprobe", "nvidia-persistenced",
            "firmware-nvidia-gsp")  # fmt: skip
_PROPRIETARY = ("nvidia-kernel-dkms", *_CURRENT)
_OPEN = ("nvidia-open-kernel-dkms", *_CURRENT)
# cfg1 is named because nvidia-persistenced would bring the current branch's, and with it the
# alternative that outranks this one: then nothing finds its libraries (tried with apt, trixie).
_TESLA = ("nvidia-tesla-535-kernel-dkms", "nvidia-tesla-535-smi", "libnvidia-tesla-535-ml1",
          "libnvidia-tesla-535-cuda1", "libnvidia-tesla-535-cfg1", "nvidia-modprobe",
          "nvidia-persistenced", "firmware-nvidia-tesla-535-gsp")  # fmt: skip

# What stands first is preferred. Names and versions were looked up in the archives in November
# 2026 (tests/data/packages; facts: nvidia 2.4), the modules' names in the packages' dkms.conf.
TABLE = (
    Row("debian 12", "distribution", "535", PROPRIETARY, DKMS, "nvidia-current",
        _PROPRIETARY),
    Row("debian 12", "distribution", "535", OPEN, DKMS, "nvidia-current-open", _OPEN,
        trouble="it has had no security update and cannot be installed beside the updated"
                " libraries"),
    Row("debian 13", "distribution", "550", PROPRIETARY, DKMS, "nvidia-current",
        _PROPRIETARY),
    Row("debian 13", "distribution", "535", PROPRIETARY, DKMS, "nvidia-tesla-535", _TESLA),
    Row("debian 13", "distribution", "550", OPEN, DKMS, "nvidia-current-open", _OPEN,
        trouble="it does not compile for kernels from 6.12.117 on"),
)  # fmt: skip
SOURCES = {"distribution": "the distribution's packages", "nvidia": "NVIDIA's repository"}
ARCHITECTURE = "amd64"


@dataclass(frozen=True)
class Choice:
    """The driver that this machine is given, and why this one.

    `packages` is empty for a driver that is adopted as it is: then `source` is preinstalled.
    """

    source: str
    branch: str
    kernel_module_type: str
    build: str  # dkms, or precompiled: nothing is compiled on this machine
    signed: bool
    packages: tuple[str, ...]
    reason: str
    before: tuple[str, ...] = ()
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
    """The driver for this machine; pure. Raises GB101, GB102 and GB120 to GB123.

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
    offered = [row for row in rows if row.source == wanted.source]
    if not offered:
        raise _not_yet(wanted, facts, rows, foreign)
    if foreign and not foreign.fault and not foreign.package:
        raise _other(_contradiction(wanted, foreign, facts.gpus), foreign)
    row = _row(wanted, facts, offered)
    return _of_packages(row, wanted, facts, foreign)


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
    known = {(row.release, ARCHITECTURE) for row in TABLE}
    return None if (release_of(facts), facts.architecture) in known else _unsupported(facts)


def _unsupported(facts: Facts) -> GpubootError:
    message = f"{system(facts)} is not supported; Debian 12 and 13 on amd64 are"
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
    )  # fmt: skip


def _brought(row: Row, there: Driver) -> bool:
    """Whether the driver came with these packages.

    The file's name counts where no package is known: dpkg notes what it has unpacked only
    afterwards, and a power cut may come between.
    """
    if there.package:
        return there.package in row.packages and there.branch in ("", row.branch)
    return there.name == row.module


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


def _not_yet(
    wanted: Wanted, facts: Facts, rows: Sequence[Row], foreign: Driver | None
) -> GpubootError:
    """A source that this version has no packages of, and what would work."""
    meant = "nvidia" if wanted.source == "auto" else wanted.source
    message = f"driver.source is {wanted.source}"
    if wanted.source == "auto":
        message += f", which here means {SOURCES[meant]}"
    message += ": not carried out yet"
    if foreign:
        why = foreign.fault or _contradiction(wanted, foreign, facts.gpus)
        message += f"; the driver that is there cannot be adopted, as {why}"
    offers = [f"{source} ({_listed([row for row in rows if row.source == source])})"
              for source in dict.fromkeys(row.source for row in rows)]  # fmt: skip
    hint = f"set driver.source: {' or '.join(offers)}, then: gpuboot run"
    return GpubootError(UNSUPPORTED_SETTING, message, hint=hint)


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
    if wanted.branch not in (None, row.branch):
        yield f"driver.branch is {wanted.branch}"
    if wanted.kernel_module_type not in ("auto", row.kernel_module_type):
        yield f"driver.kernel-module-type is {wanted.kernel_module_type}"
    if wanted.build not in ("auto", row.build):
        yield f"driver.build is {wanted.build}"


def _carries(row: Row, gpu: Gpu) -> bool:
    family = cards.family(gpu.device)
    return family is None or family.carried(int(row.branch), row.kernel_module_type)


def _of_packages(row: Row, wanted: Wanted, facts: Facts, foreign: Driver | None) -> Choice:
    warnings = []
    if row.trouble:
        warnings.append(f"{_name(facts)}'s driver {row.text} is known to fail: {row.trouble}")
    if foreign:
        version = foreign.version or foreign.library
        warnings.append(
            f"a driver {version} of {foreign.origin} is here too, and can be in the way"
        )
    names = {"kernel": facts.kernel, "flavour": _flavour(facts.kernel)}
    return Choice(
        row.source, row.branch, row.kernel_module_type, row.build, row.signed,
        tuple(name.format(**names) for name in row.packages),
        _why(row, wanted, facts), row.before, tuple(warnings),
    )  # fmt: skip


def _why(row: Row, wanted: Wanted, facts: Facts) -> str:
    families = [cards.family(gpu.device) for gpu in facts.gpus]
    frail = next((family for family in families if family and family.gsp_off), None)
    if _named(wanted.kernel_module_type):
        kind = "as driver.kernel-module-type says"
    elif row.kernel_module_type == PROPRIETARY and frail:
        kind = (
            f"{frail.name} cards run better without the GSP firmware, which the open module needs"
        )
    elif row.kernel_module_type == PROPRIETARY:
        kind = f"it is what {_name(facts)} keeps up"
    else:
        kind = "the proprietary module does not drive this card"
    branch = "driver.branch says so" if wanted.branch else f"{_name(facts)}'s own"
    return f"branch {row.branch}: {branch}; the {row.kernel_module_type} module: {kind}"


def _name(facts: Facts) -> str:
    return f"{facts.os_id.capitalize()} {facts.os_version}"


def _flavour(kernel: str) -> str:
    """cloud-amd64 of 6.1.0-50-cloud-amd64, generic of 6.8.0-60-generic."""
    match = re.search(r"-((?:[a-z]+-)*[a-z][a-z0-9]*)$", kernel)
    return match[1] if match else ""


def _named(value: str) -> str | None:
    return None if value == "auto" else value
