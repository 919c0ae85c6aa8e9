"""Whether the kernel would take the driver's module where it takes only signed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuboot import drivers
from gpuboot.catalog import TABLE, listed
from gpuboot.errors import Code, GpubootError

if TYPE_CHECKING:
    from gpuboot.drivers import Choice
    from gpuboot.facts import Facts
    from gpuboot.host import Host

SECURE_BOOT = Code(
    "GB104",
    "Secure Boot keeps the driver's module from loading",
    (
        "DKMS signs with a key of this machine's own, which the firmware does not know.",
        "The kernel is locked down, which it is by itself under Secure Boot.",
    ),
    ("gpuboot facts", "cat /sys/kernel/security/lockdown", "gpuboot plan"),
    evidence="the SecureBoot variable, the kernel's lockdown, the module's signer, enrolled keys",
)

# The keys that DKMS signs with: Debian's, and Ubuntu's (dkms's framework.conf of each).
KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
# Who signs what the releases' own kernels take; their certificates are built into them.
SIGNERS = ("Canonical Ltd.", "Debian Secure Boot")


def refusal(host: Host, facts: Facts, choice: Choice) -> GpubootError | None:
    """Why the chosen driver's module could not be loaded here; None where it could.

    Asked before anything is installed: neither a reboot nor a daemon can enrol a key, that takes
    somebody at the machine's console (facts: nvidia 4).
    """
    if not facts.signed_only or host.exists("/sys/module/nvidia") or choice.signed:
        return None
    if choice.adopted and _signed(host, facts):
        return None
    if not choice.adopted and any(_enrolled(host, key) for key in KEYS):
        return None
    what = "the driver that is there is" if choice.adopted else "what DKMS builds is"
    return GpubootError(
        SECURE_BOOT,
        f"Secure Boot is on, and {what} signed with no key that the firmware knows",
        hint=f"{_signed_packages(facts)}switch Secure Boot off in the VM's boot options",
    )


def _signed_packages(facts: Facts) -> str:
    """The release's own signed modules, or the releases that have some."""
    signed = [row for row in TABLE if row.signed]
    own = next((row.source for row in signed if row.release == drivers.release_of(facts)), None)
    if own:
        return f"set driver.source: {own} and driver.build: auto, whose modules are signed; or "
    others = {row.release for row in signed}
    return f"use a release with signed modules ({listed(others)}); or "


def _signed(host: Host, facts: Facts) -> bool:
    """Whether a release's own key has signed the module that is there."""
    module = facts.driver.module if facts.driver else ""
    if not module:
        return False
    signer = host.run(["modinfo", "--field", "signer", str(host.path(module))]).out.strip()
    return signer.startswith(SIGNERS)


def _enrolled(host: Host, key: str) -> bool:
    """Whether the firmware's list of the machine's own keys has this one.

    mokutil's exit status tells an enrolled key from none, but differs between its versions; the
    words do not (`FILE is already enrolled`).
    """
    if not host.exists(key):
        return False
    return "is already enrolled" in host.run(["mokutil", "--test-key", str(host.path(key))]).said
