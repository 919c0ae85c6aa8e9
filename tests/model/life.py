"""How a stand-in node's life begins, and what it is until the agent ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from gpuboot import agent, status
from tests.model.cluster import TOKEN, Cluster
from tests.model.disk import PowerCut
from tests.model.machine import MODULE, Machine, tarball

CONFIG = f"""\
driver: {{source: distribution}}
rke2:
  version: v1.35.7+rke2r1
  config: {{server: "https://supervisor:9345", token: "{TOKEN}"}}
sources:
  apt: {{url: http://archive/debian, key: /keys/archive.gpg}}
  toolkit: {{url: http://archive/toolkit, key: /keys/archive.gpg}}
  rke2: {{url: https://releases}}
"""
IMAGES = "rke2-images.linux-amd64.tar.zst"
OFFLINE = (
    CONFIG.replace("https://releases", "/srv/rke2").replace(
        "  config:", f"  images: [{IMAGES}]\n  node-password: staple-staple-staple\n  config:"
    )
    + "proxy: {http: 'http://me:paperclip@proxy:3128', no-proxy: [.lan]}\n"
)
MOST_BOOTS = 8
RELEASE = tarball()


def fresh(machine: Machine) -> None:
    """Nothing of ours was done yet; no nouveau."""


def busy(machine: Machine) -> None:
    """nouveau holds the card and cannot be unloaded."""
    machine.nouveau = "busy"


def idle(machine: Machine) -> None:
    """nouveau holds the card and lets go of it."""
    machine.nouveau = "idle"


def interrupted(machine: Machine) -> None:
    """Somebody's dpkg was cut off, one package unpacked and one half of it."""
    machine.nouveau = "busy"
    cut_off = {"nvidia-kernel-dkms": "unpacked", "nvidia-smi": "messed"}
    machine.save("packages", {**machine.packages, **cut_off})


def baked(machine: Machine) -> None:
    """A template that has the driver's packages and module already."""
    names = ("nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-modprobe")
    machine.save("packages", {**machine.packages, **dict.fromkeys(names, "installed")})
    machine.put(MODULE, "built")


def cloned(machine: Machine) -> None:
    """The checkpoint of another machine, which had spent all its reboots."""
    machine.nouveau = "busy"
    spent = [{"boot_id": "theirs", "step": "driver-loaded", "reason": f"{n}"} for n in range(3)]
    content = {"schema": 1, "machine_id": "other", "instance_id": "", "product_uuid": ""}
    record = {**content, "reboots": spent, "steps": {}}
    machine.put("/var/lib/gpuboot/checkpoint.json", json.dumps(record))


def corrupt(machine: Machine) -> None:
    """A checkpoint that cannot be read; one reboot is left."""
    machine.nouveau = "busy"
    machine.put("/var/lib/gpuboot/checkpoint.json", '{"schema": 1, "rebo')


def older_rke2(machine: Machine) -> None:
    """Another release of RKE2 is installed."""
    machine.put("/usr/local/bin/rke2", "v1.34.1+rke2r1\n")
    machine.put("/usr/local/lib/systemd/system/rke2-agent.service", "[Service]\n")


def offline(machine: Machine) -> None:
    """The release and its images in a folder on the node; a proxy, and a password of its own."""
    files = {"rke2.linux-amd64.tar.gz": RELEASE, IMAGES: b"images"}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    for name, content in {**files, "sha256sum-amd64.txt": "".join(lines).encode()}.items():
        path = machine.path(f"/srv/rke2/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    machine.put("/etc/gpuboot/config.yaml", OFFLINE)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)


STARTS = [fresh, busy, idle, interrupted, baked, cloned, corrupt, older_rke2, offline]


def prepare(root: Path, start: Callable[[Machine], None]) -> Machine:
    machine = Machine(root, Cluster(RELEASE))
    machine.make()
    machine.put("/etc/gpuboot/config.yaml", CONFIG)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)
    start(machine)
    return machine


def live(machine: Machine, *, boots: int = MOST_BOOTS) -> int:
    """Boot and walk until the agent ends without asking for a reboot; its exit status."""
    for _ in range(boots):
        machine.boot()
        try:
            result = agent.live_forever(machine.host())
        except PowerCut:
            continue
        if not machine.rebooting:
            return result
    raise AssertionError(f"not converged after {boots} boots: {machine.commands[-20:]}")


def uncut(root: Path, start: Callable[[Machine], None]) -> Machine:
    machine = prepare(root, start)
    assert live(machine) == 0
    assert status.look(machine.host())["state"] == "ready"
    return machine
