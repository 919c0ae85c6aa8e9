"""What a GPU node's signs come to: faults that last, and not every flicker; pure.

A check says fine, bad or unknown. A fault begins after some bad looks in a row and ends after some
fine ones; what cannot be seen neither begins nor ends one, and is told as a state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from gpuboot.xids import ACTIONS, ADVICE, NONE

HEALTHY, UNHEALTHY, UNKNOWN = "healthy", "unhealthy", "unknown"
BEGINS = 2  # bad looks in a row that make a fault
ENDS = 3  # fine looks in a row that end one
BLIND = 3  # looks in a row that saw nothing, until that is told


@dataclass(frozen=True)
class Sign:
    """What one check says at one look; `sure` is a fault at once, for it is no flicker."""

    state: str  # fine, bad or unknown
    reason: str = ""
    action: str = NONE
    sure: bool = False
    hint: str = ""  # what to type, where the action's own advice is not it


FINE = Sign("fine")


def bad(reason: str, action: str, *, sure: bool = False, hint: str = "") -> Sign:
    """Something is wrong."""
    return Sign("bad", reason, action, sure, hint)


def unseen(reason: str) -> Sign:
    """It could not be looked at."""
    return Sign("unknown", reason)


@dataclass(frozen=True)
class Fault:
    """What has been wrong since when, in seconds of this boot, and what is to be done."""

    check: str
    reason: str
    action: str
    since: float
    hint: str = ""

    @property
    def advice(self) -> str:
        """What to do, in words."""
        return self.hint or ADVICE[self.action]


@dataclass(frozen=True)
class Verdict:
    """What some checks come to together. `worst` is there where the state is unhealthy."""

    state: str
    worst: Fault | None = None


def _each(_: str) -> bool:
    return True


@dataclass
class _Count:
    """How often in a row a check said the same."""

    bad: int = 0
    fine: int = 0
    blind: int = 0
    first: float = 0.0  # when the bad ones began


@dataclass
class Health:
    """Everything that is remembered between two looks."""

    faults: dict[str, Fault] = field(default_factory=dict)  # by check
    blind: dict[str, str] = field(default_factory=dict)  # checks that see nothing, and why
    _counts: dict[str, _Count] = field(default_factory=dict)

    def verdict(self, among: Callable[[str], bool] = _each) -> Verdict:
        """unhealthy by a fault; unknown where none is known and something is not seen; healthy.

        The worst fault is the one whose action goes furthest; of several the oldest.
        """
        faults = [fault for check, fault in self.faults.items() if among(check)]
        if not faults:
            return Verdict(UNKNOWN if any(map(among, self.blind)) else HEALTHY)
        return Verdict(UNHEALTHY, max(
            faults, key=lambda fault: (ACTIONS.index(fault.action), -fault.since)))  # fmt: skip

    def resume(self, faults: Collection[Fault], blind: Mapping[str, str]) -> None:
        """Go on from faults and blindness that were known before; they end as any other."""
        for fault in faults:
            self.faults[fault.check] = fault
            self._counts[fault.check] = _Count(bad=BEGINS, first=fault.since)
        for check, why in blind.items():
            self.blind[check] = why
            self._counts.setdefault(check, _Count()).blind = BLIND

    def look(
        self, now: float, signs: Mapping[str, Sign], waiting: Collection[str] = ()
    ) -> list[str]:
        """Take one look's signs in, by check; what is news by it, as sentences.

        A check that is neither among the signs nor waiting for its turn has nothing to look at any
        more, such as a card that is not wanted: it is forgotten.
        """
        news = [text for check, sign in signs.items() for text in self._take(now, check, sign)]
        for gone in set(self._counts) - set(signs) - set(waiting):
            del self._counts[gone]
            self.blind.pop(gone, None)
            if self.faults.pop(gone, None):
                news.append(f"{gone}: over")
        return news

    def _take(self, now: float, check: str, sign: Sign) -> list[str]:
        count = self._counts.setdefault(check, _Count())
        if sign.state == "unknown":
            return self._blind(check, count, sign)
        count.blind = 0
        news = [f"{check}: seen again"] if self.blind.pop(check, None) else []
        if sign.state == "bad":
            return news + self._bad(now, check, count, sign)
        count.bad, count.fine = 0, count.fine + 1
        if check in self.faults and count.fine >= ENDS:
            news.append(f"{check}: over: {self.faults.pop(check).reason}")
        return news

    def _bad(self, now: float, check: str, count: _Count, sign: Sign) -> list[str]:
        if count.bad == 0:
            count.first = now
        count.bad, count.fine = count.bad + 1, 0
        known = self.faults.get(check)
        if known is None and count.bad < BEGINS and not sign.sure:
            return []
        if known and (known.reason, known.action) == (sign.reason, sign.action):
            return []
        since = known.since if known else count.first
        self.faults[check] = Fault(check, sign.reason, sign.action, since, sign.hint)
        return [f"{check}: {sign.reason}; to do: {sign.action}"]

    def _blind(self, check: str, count: _Count, sign: Sign) -> list[str]:
        count.blind += 1
        if count.blind < BLIND or check in self.blind:
            return []
        self.blind[check] = sign.reason
        return [f"{check}: cannot be seen: {sign.reason}"]
