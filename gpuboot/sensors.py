"""One look at the node's GPUs and what they live on, as signs for health.Health.

NVML is asked in this process, and let go of after each look: a process that holds the card would
keep it from being reset, and one that keeps the library would not see that it was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gpuboot import aptlog, containerd, kernel, nvml, pci, rke2, xids
from gpuboot.health import FINE, Sign, bad, unseen

if TYPE_CHECKING:
    from gpuboot.host import Host
    from gpuboot.xids import Event

NOT_LOADED, NO_LIBRARY, LOST, MISMATCH = 9, 12, 15, 18  # of nvml.h
QUIET = 40  # looks without another error, after which a card that answers is well again
MODULE = "/sys/module/nvidia/version"
# nvmlClocksEventReason*: of the reasons for lower clocks those that mean trouble (nvml.h).
SLOWED = {0x08: "hardware slowdown", 0x20: "software thermal slowdown",
          0x40: "hardware thermal slowdown", 0x80: "power brake"}  # fmt: skip
UNCORRECTED, VOLATILE = 1, 0  # ECC errors since the last reset
# The checks of what the GPUs live on; every other one is about the GPUs themselves.
AROUND = ("next kernel", "rke2-agent", "runtime", "kubelet", "node")
LOOK_AT_AGENT = "journalctl -u rke2-agent -n 50"
RESTART = "systemctl restart rke2-agent (drain the node first)"


@dataclass(frozen=True)
class Card:
    """What NVML says of one card; None: it does not say. Power in watts."""

    pci: str
    uuid: str = ""
    temperature_c: int | None = None
    memory_used_mib: int | None = None
    memory_mib: int | None = None
    power_w: float | None = None
    slowed: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None
    pages_pending: bool = False
    persistence: bool | None = None

    def shown(self) -> dict[str, Any]:
        """As health.json has it."""
        return asdict(self)


@dataclass(frozen=True)
class Nvml:
    """What NVML says: the cards that answer, those that do not, or why it says nothing at all."""

    cards: tuple[Card, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)  # by NVML's index
    error: int = 0  # NVML's number
    text: str = ""


def ask(binding: Any) -> Nvml:  # noqa: ANN401 - pynvml, or barenvml: neither's types are the other's
    """One question to NVML, from its initialisation to its end."""
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        return Nvml(error=getattr(error, "value", 999), text=str(error))
    try:
        cards, lost = [], {}
        for index in range(binding.nvmlDeviceGetCount()):
            try:
                cards.append(_card(binding, binding.nvmlDeviceGetHandleByIndex(index)))
            except binding.NVMLError as error:
                lost[str(index)] = str(error)
        return Nvml(tuple(cards), lost)
    except binding.NVMLError as error:
        return Nvml(error=getattr(error, "value", 999), text=str(error))
    finally:
        binding.nvmlShutdown()


def _card(binding: Any, handle: Any) -> Card:  # noqa: ANN401
    def maybe(name: str, *arguments: object) -> Any:  # noqa: ANN401
        """What not every card, driver or binding can tell."""
        function = getattr(binding, name, None)
        try:
            return function(handle, *arguments) if function else None
        except binding.NVMLError as error:
            if getattr(error, "value", None) == LOST:
                raise
            return None

    memory = maybe("nvmlDeviceGetMemoryInfo")
    power = maybe("nvmlDeviceGetPowerUsage")
    persistence = maybe("nvmlDeviceGetPersistenceMode")
    reasons = maybe("nvmlDeviceGetCurrentClocksEventReasons")  # so called since NVML 12.2
    if reasons is None:
        reasons = maybe("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    return Card(
        pci=pci.slot(nvml.text(binding.nvmlDeviceGetPciInfo(handle).busId)),
        uuid=nvml.text(binding.nvmlDeviceGetUUID(handle)),
        temperature_c=maybe("nvmlDeviceGetTemperature", 0),
        memory_used_mib=memory.used >> 20 if memory else None,
        memory_mib=memory.total >> 20 if memory else None,
        power_w=None if power is None else power / 1000,
        slowed=tuple(word for bit, word in SLOWED.items() if reasons & bit),
        ecc_uncorrected=maybe("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE),
        pages_pending=bool(maybe("nvmlDeviceGetRetiredPagesPendingStatus")),
        persistence=None if persistence is None else bool(persistence),
    )


@dataclass
class Errors:
    """The Xids that were seen: how many of each, and the last one that asks for something."""

    counts: dict[tuple[str, int], int] = field(default_factory=dict)  # by card and number
    _last: dict[str, Event] = field(default_factory=dict)
    _age: dict[str, int] = field(default_factory=dict)  # looks since then

    def take(self, event: Event, *, fresh: bool = True) -> None:
        """One more error; one that is not fresh is counted, and asks for nothing any more."""
        key = (event.pci, event.number)
        self.counts[key] = self.counts.get(key, 0) + 1
        if not fresh:
            return
        if event.action != xids.NONE:
            self._last[event.pci], self._age[event.pci] = event, 0
        elif event.number == xids.RECOVERY:  # the driver wants nothing any more
            self._last.pop(event.pci, None)

    def sign(self, slot: str, *, answers: bool) -> Sign:
        """What the errors of a card come to at this look; one that answers gets well by time."""
        place = slot.rpartition(".")[0]
        event = self._last.get(place)
        if event is None:
            return FINE
        self._age[place] += 1
        over = 1 if event.number == 79 else QUIET
        if answers and self._age[place] > over:
            del self._last[place]
            return FINE
        told = f"Xid {event.number}, {event.kind.name}: {event.kind.meaning}"
        return bad(told, event.action, sure=True)


def signs(
    host: Host, expected: Sequence[Mapping[str, Any]], seen: Nvml, errors: Errors
) -> dict[str, Sign]:
    """What each check says of the cards; `expected` are those that were proven, from the status."""
    by_slot = {card.pci: card for card in seen.cards}
    found = {"driver": _driver(host, seen)}
    for gpu in expected:
        slot = gpu["pci"]
        card = by_slot.get(slot)
        found[f"gpu {slot}"] = _answers(host, gpu, card, seen)
        found[f"errors {slot}"] = errors.sign(slot, answers=card is not None)
        if card:
            found[f"memory {slot}"] = _memory(card)
            found[f"clocks {slot}"] = _clocks(card)
    return found


def _driver(host: Host, seen: Nvml) -> Sign:
    """Whether module and library are there and of one version."""
    loaded, installed = (host.read(MODULE) or "").strip(), nvml.library(host)
    if seen.error == NOT_LOADED or not loaded:
        return bad("the nvidia module is not loaded", xids.REBOOT)
    if installed and installed != loaded:
        changed = aptlog.last_change(host, _of_the_driver)
        told = f"module {loaded} and library {installed} differ"
        return bad(f"{told}; {changed}" if changed else told, xids.DRAIN)
    if seen.error == MISMATCH and not installed:
        return bad(f"NVML is of another version than the module {loaded}", xids.DRAIN)
    if seen.error == NO_LIBRARY:
        return bad("NVML's library is not there", xids.NONE, hint="gpuboot run")
    return unseen(f"NVML: {seen.text}") if seen.error else FINE


def _of_the_driver(package: str) -> bool:
    return "nvidia" in package and "container" not in package


def stale(host: Host, seen: Nvml) -> bool:
    """Whether this process has kept an NVML that was replaced, and whose files fit by now."""
    loaded = (host.read(MODULE) or "").strip()
    return seen.error == MISMATCH and nvml.library(host) == loaded


def _answers(host: Host, gpu: Mapping[str, Any], card: Card | None, seen: Nvml) -> Sign:
    slot = gpu["pci"]
    vendor = (host.read(f"{pci.DEVICES}/{slot}/vendor") or "").strip()
    if not vendor:
        return bad(f"{slot} is not on the PCI bus any more", xids.REPLACE)
    if seen.error:
        return unseen(f"NVML: {seen.text}")
    if card is None:
        why = next(iter(seen.lost.values()), "NVML does not list it")
        return bad(f"{slot} does not answer: {why}", xids.REPLACE)
    if gpu.get("uuid") and card.uuid != gpu["uuid"]:
        return bad(f"{slot} is another card now: {card.uuid}", xids.DRAIN)
    return FINE


def _memory(card: Card) -> Sign:
    if card.ecc_uncorrected:
        told = f"{card.ecc_uncorrected} errors of memory that could not be corrected"
        return bad(told, xids.DRAIN)
    if card.pages_pending:
        return bad("bad pages of memory wait for a reset to be taken out of use", xids.RESET)
    return FINE


def _clocks(card: Card) -> Sign:
    if not card.slowed:
        return FINE
    # Without the temperature, which changes at every look: that is a metric, and no news.
    return bad(f"slowed down: {', '.join(card.slowed)}", xids.NONE)


def surroundings(host: Host, *, joined: bool, data: str) -> dict[str, Sign]:
    """What the GPUs live on: the kernel that boots next and, on a node that joins, RKE2."""
    release, by = kernel.choice(host)
    found = {"next kernel": FINE}
    if next(kernel.module_files(host, release), None) is None:
        told = f"kernel {release}, {by}, boots next and has no NVIDIA module"
        found["next kernel"] = bad(told, xids.NONE, hint="gpuboot run")
    if joined:
        active = host.run(["systemctl", "is-active", rke2.AGENT]).out.strip()
        found["rke2-agent"] = FINE if active == "active" else bad(
            f"rke2-agent is {active or 'not there'}", xids.NONE, hint=LOOK_AT_AGENT)  # fmt: skip
        found["runtime"] = FINE if "nvidia" in containerd.runtimes(host, data) else bad(
            "containerd does not know the nvidia runtime", xids.NONE, hint=RESTART)  # fmt: skip
    return found
