"""NVIDIA's cards as data: which family a PCI device id is of, and what drives that family."""

from __future__ import annotations

from dataclasses import dataclass

PROPRIETARY, OPEN = "proprietary", "open"


@dataclass(frozen=True)
class Family:
    """Cards of one architecture, and the driver branches that carry them with either module.

    `proprietary` and `open` are the first and the last branch, None for a bound that is not
    known yet; the whole is None where that module never drives these cards. Sources: facts
    nvidia 2.1 and 2.2; the open module's README (Turing and newer); the release notes of 470
    (last for Kepler), 580 (last for Maxwell, Pascal, Volta) and 570 (first for Blackwell, open
    only). `gsp_off`: the GSP firmware times out on it, and only the proprietary module can do
    without.
    """

    name: str
    proprietary: tuple[int, int | None] | None
    open: tuple[int, int | None] | None
    gsp_off: bool = False

    def carried(self, branch: int, kernel_module_type: str) -> bool:
        """Whether that branch drives these cards with that module."""
        span = self.open if kernel_module_type == OPEN else self.proprietary
        if span is None:
            return False
        first, last = span
        return first <= branch and (last is None or branch <= last)

    @property
    def needs(self) -> str:
        """What drives these cards, as a person says it."""
        spans = ((PROPRIETARY, self.proprietary), (OPEN, self.open))
        return " or ".join(f"{kind} {_span(span)}" for kind, span in spans if span)


def _span(span: tuple[int, int | None]) -> str:
    first, last = span
    return f"{first} or newer" if last is None else f"{first} to {last}"


KEPLER = Family("Kepler", (304, 470), None)
MAXWELL = Family("Maxwell", (343, 580), None)
PASCAL = Family("Pascal", (367, 580), None)
VOLTA = Family("Volta", (384, 580), None)
TURING = Family("Turing", (410, 619), (515, None), gsp_off=True)
AMPERE = Family("Ampere", (450, 619), (515, None))
HOPPER = Family("Hopper", (525, 619), (525, None))
ADA = Family("Ada", (525, 619), (525, None))
BLACKWELL = Family("Blackwell", None, (570, None))

# NVIDIA numbers the cards of one chip in one block, first and last id included: the chips' names
# in pci.ids of June 2025, rounded to the chip's block.
BLOCKS: tuple[tuple[int, int, Family], ...] = (
    (0x0FA0, 0x103F, KEPLER),
    (0x1180, 0x11FF, KEPLER),
    (0x1280, 0x12BF, KEPLER),
    (0x1340, 0x143F, MAXWELL),
    (0x15C0, 0x15FF, PASCAL),
    (0x1600, 0x167F, MAXWELL),
    (0x1720, 0x173F, PASCAL),
    (0x1740, 0x17FF, MAXWELL),
    (0x1B00, 0x1D7F, PASCAL),
    (0x1D80, 0x1DFF, VOLTA),
    (0x1E00, 0x1FFF, TURING),
    (0x2080, 0x20FF, AMPERE),
    (0x2180, 0x21FF, TURING),
    (0x2200, 0x22FF, AMPERE),
    (0x2300, 0x23FF, HOPPER),
    (0x2400, 0x25FF, AMPERE),
    (0x2600, 0x28FF, ADA),
    (0x2900, 0x33FF, BLACKWELL),
)


def family(device: str) -> Family | None:
    """The family of a PCI device id, four hex digits; None for a card we do not know."""
    try:
        number = int(device, 16)
    except ValueError:
        return None
    return next((one for first, last, one in BLOCKS if first <= number <= last), None)
