"""What may be loaded under Secure Boot, and what is refused before anything is installed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuboot import drivers, preflight, secureboot, survey
from gpuboot.config import Config, Driver
from gpuboot.drivers import Choice
from gpuboot.errors import GpubootError
from gpuboot.existing import Driver as There
from gpuboot.facts import EFI_VARIABLE, Facts
from gpuboot.pci import Gpu
from gpuboot.process import Result
from tests.unit.node import SLOT, Node, facts

LOCKED = facts(gpus=(Gpu(SLOT, "1eb8", None),), secure_boot=True, lockdown="integrity")
UBUNTU = replace(LOCKED, os_id="ubuntu", os_version="24.04")
KEY = "/var/lib/dkms/mok.pub"
MODULE = "/lib/modules/6.1.0-50-amd64/kernel/drivers/video/nvidia.ko"


def choice(machine: Facts, **driver: str) -> Choice:
    return drivers.choose(Config(driver=Driver(**{"source": "distribution", **driver})), machine)


def refusal(node: Node, machine: Facts, **driver: str) -> GpubootError | None:
    return secureboot.refusal(node.host, machine, choice(machine, **driver))


def test_dkms_cannot_sign_for_the_firmware(node: Node) -> None:
    found = refusal(node, LOCKED)
    assert found
    assert (found.code.id, found.retry) == ("GB104", False)
    assert "what DKMS builds is signed with no key that the firmware knows" in found.message
    assert "Ubuntu 22.04, 24.04 and 26.04" in found.hint
    assert "switch Secure Boot off in the VM's boot options" in found.hint


def test_signed_modules_are_let_in(node: Node) -> None:
    assert refusal(node, UBUNTU) is None
    assert choice(UBUNTU).otherwise == ()  # and DKMS is no way out


def test_where_the_release_has_signed_ones_they_are_the_way_out(node: Node) -> None:
    found = refusal(node, UBUNTU, build="dkms")
    assert found
    assert found.hint.startswith("set driver.source: distribution and driver.build: auto")


@pytest.mark.parametrize(
    ("secure", "lockdown", "refused"),
    [(True, "", True), (None, "integrity", True), (False, "confidentiality", True),
     (False, "none", False), (None, "", False)],
)  # fmt: skip
def test_lockdown_alone_means_it_too(
    node: Node, *, secure: bool | None, lockdown: str, refused: bool
) -> None:
    machine = replace(LOCKED, secure_boot=secure, lockdown=lockdown)
    assert (refusal(node, machine) is not None) is refused


def test_a_module_that_is_loaded_was_let_in(node: Node) -> None:
    node.put("/sys/module/nvidia/version", "535.309.01\n")
    assert refusal(node, LOCKED) is None


@pytest.mark.parametrize("key", secureboot.KEYS)
@pytest.mark.parametrize(
    ("said", "refused"),
    [(Result(1, "{} is already enrolled\n"), False), (Result(0, "{} is not enrolled\n"), True),
     (Result(127), True)],
)  # fmt: skip
def test_a_key_that_somebody_has_enrolled_is_as_good(
    node: Node, key: str, said: Result, *, refused: bool
) -> None:
    node.put(key, "a key")
    node.answers[f"mokutil --test-key {node.root}{key}"] = said
    assert (refusal(node, LOCKED) is not None) is refused


@pytest.mark.parametrize(
    ("signer", "refused"),
    [("Canonical Ltd. Kernel Module Signing", False), ("Debian Secure Boot Signer", False),
     ("DKMS module signing key", True), ("", True)],
)  # fmt: skip
def test_of_a_driver_that_is_there_the_signer_counts(
    node: Node, signer: str, *, refused: bool
) -> None:
    there = There("550.90.07", "proprietary", MODULE, "", False, "550.90.07", ())
    node.answers[f"modinfo --field signer {node.root}{MODULE}"] = f"{signer}\n"
    found = refusal(node, replace(LOCKED, driver=there))
    assert (found is not None) is refused
    assert not found or "the driver that is there is signed with no key" in found.message


def test_an_enrolled_key_of_dkms_has_not_signed_somebody_elses_driver(node: Node) -> None:
    there = There("550.90.07", "proprietary", MODULE, "", False, "550.90.07", ())
    node.put(KEY, "a key")
    node.answers[f"mokutil --test-key {node.root}{KEY}"] = "mok.pub is already enrolled\n"
    assert refusal(node, LOCKED) is None
    assert refusal(node, replace(LOCKED, driver=there))


def test_it_is_told_before_anything_is_done(node: Node) -> None:
    for name in ("/usr/bin/x", "/var/x"):  # whose free space is looked at
        node.put(name)
    wanted = Config(driver=Driver(source="distribution"))
    told = [error.code.id for error in preflight.troubles(node.host, LOCKED, wanted)]
    assert "GB104" in told
    with pytest.raises(GpubootError) as caught:
        preflight.Preflight(LOCKED, wanted).check(node.host)
    assert caught.value.code.id == "GB104"


@pytest.mark.parametrize(("variable", "told"), [("\6\0\0\0\0", False), (None, True)])
def test_secure_boot_that_cannot_be_read_is_warned_of(
    node: Node, variable: str | None, *, told: bool
) -> None:
    node.put("/sys/firmware/efi/fw_platform_size", "64\n")
    node.put("/etc/gpuboot/config.yaml", "rke2: {join: none}\n", mode=0o600)
    if variable:
        node.put(EFI_VARIABLE, variable)
    found = [line for line in survey.warnings(node.host) if "Secure Boot" in line]
    assert bool(found) is told
