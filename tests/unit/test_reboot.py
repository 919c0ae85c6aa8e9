"""When a reboot may be asked for, and that its record comes first."""

from __future__ import annotations

import json

import pytest

from gpuboot import checkpoint, reboot
from gpuboot.checkpoint import Checkpoint, Spent
from gpuboot.config import Reboot
from gpuboot.errors import GpubootError, Stopped
from gpuboot.process import Command, Result
from tests.unit.node import ABSENT, SHOWN, Node

STEP, WHY = "driver-loaded", "nouveau holds 0000:03:00.0"
NOW = "boot-3"


def record(*spent: tuple[str, str], surcharge: int = 0, ready_at: str | None = None) -> Checkpoint:
    """A checkpoint in boot-3; `spent` are boots and reasons."""
    return Checkpoint(
        "m", "i", "u", boot_id=NOW, surcharge=surcharge, ready_at=ready_at,
        reboots=[Spent(boot, STEP, why) for boot, why in spent],
    )  # fmt: skip


PERMITTED = [
    (record(), Reboot(budget=1)),
    (record(("boot-1", "other"), ("boot-2", "another")), Reboot(budget=3)),
    # Another reason came between: the reboot for this one did help then.
    (record(("boot-1", WHY), ("boot-2", "other")), Reboot(budget=3)),
    # Asked in this very boot, and not followed by a reboot yet.
    (record((NOW, WHY)), Reboot(budget=1)),
    (record(("boot-2", "other"), (NOW, WHY)), Reboot(budget=2)),
    (record(surcharge=2), Reboot(budget=3)),
    # The last one did help, until something undid it.
    (Checkpoint("m", "i", "u", boot_id=NOW, reboots=[Spent("boot-2", STEP, WHY, helped=True)]),
     Reboot(budget=2)),
]  # fmt: skip
REFUSED = [
    (record(("boot-2", WHY)), Reboot(budget=3), "GB021", False),
    (record(("boot-2", WHY), (NOW, WHY)), Reboot(budget=3), "GB021", False),
    (record(("boot-2", WHY)), Reboot(allow=False, budget=3), "GB021", False),
    (record(), Reboot(budget=0), "GB022", False),
    (record(("boot-1", "a"), ("boot-2", "b")), Reboot(budget=2), "GB022", False),
    (record(("boot-2", "a"), surcharge=2), Reboot(budget=3), "GB022", False),
    (record(), Reboot(allow=False), "GB023", True),
    (record((NOW, WHY)), Reboot(allow=False), "GB023", True),
]


@pytest.mark.parametrize(("now", "settings"), PERMITTED)
def test_a_reboot_is_permitted(now: Checkpoint, settings: Reboot) -> None:
    reboot.permit(now, settings, STEP, WHY)


@pytest.mark.parametrize(("now", "settings", "code", "retry"), REFUSED)
def test_a_reboot_is_refused(now: Checkpoint, settings: Reboot, code: str, *, retry: bool) -> None:
    with pytest.raises(GpubootError, match="reboot") as caught:
        reboot.permit(now, settings, STEP, WHY)
    assert (caught.value.code.id, caught.value.retry) == (code, retry)
    assert WHY in caught.value.message


@pytest.mark.parametrize(
    "spent", [[("boot-0", "a"), ("boot-1", "b"), ("boot-2", "c")], [("boot-2", WHY)]], ids=str
)
def test_reboots_from_before_the_node_was_ready_do_not_count(spent: list[tuple[str, str]]) -> None:
    now = record(*spent, ready_at="2026-01-01T00:00:00Z")
    reboot.permit(now, Reboot(budget=3), STEP, WHY)


# -- the record


def test_the_record_is_written_before_the_reboot_is_asked_for(node: Node) -> None:
    found = []

    def systemctl(_: Command) -> Result:
        found.append(json.loads(node.text(checkpoint.FILE) or "")["reboots"])
        return Result(0)

    node.unit("rke2-agent.service")
    node.answers["systemctl reboot"] = systemctl
    told: list[str] = []
    reboot.reboot(node.host, record(), STEP, WHY, told.append, lambda: None)
    assert found == [[{"boot_id": NOW, "step": STEP, "reason": WHY, "helped": False}]]
    assert told == [WHY]


def test_a_reboot_asked_twice_in_one_boot_is_spent_once(node: Node) -> None:
    now = record(("boot-2", "other"))
    reboot.spend(node.host, now, STEP, "first")
    reboot.spend(node.host, now, STEP, WHY)
    assert now.reboots == [Spent("boot-2", STEP, "other"), Spent(NOW, STEP, WHY)]


def test_the_first_reboot_after_the_node_was_ready_begins_a_new_road(node: Node) -> None:
    now = record(("boot-1", "a"), ("boot-2", "b"), ready_at="2026-01-01T00:00:00Z")
    reboot.spend(node.host, now, STEP, WHY)
    assert now.reboots == [Spent(NOW, STEP, WHY)]
    assert now.ready_at is None


def test_a_record_that_cannot_be_written_stops_the_reboot(node: Node) -> None:
    node.put("/var/lib/gpuboot")  # a file where the folder must be
    node.unit("rke2-agent.service")
    node.answers["systemctl reboot"] = ""
    with pytest.raises(GpubootError) as caught:
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: None, lambda: None)
    assert caught.value.code.id == "GB012"
    assert "systemctl reboot" not in node.ran


def test_a_record_that_is_lost_stops_the_reboot(node: Node) -> None:
    class Forgetful(Checkpoint):
        def save(self, host: object) -> None:
            """A disk that says yes and keeps nothing."""

    node.put(checkpoint.FILE, '{"schema": 1, "reboots": []}')
    now = Forgetful("m", "i", "u", boot_id=NOW)
    with pytest.raises(GpubootError) as caught:
        reboot.spend(node.host, now, STEP, WHY)
    assert caught.value.code is reboot.NOT_RECORDED


# -- cloud-init comes first


def test_a_reboot_waits_until_cloud_init_is_done(node: Node) -> None:
    node.put("/usr/bin/cloud-init")
    node.put("/run/cloud-init/enabled")
    node.unit("rke2-agent.service")
    states = ["inactive", "activating", "activating", "active"]

    def show(_: Command) -> Result:
        state = states.pop(0)
        if state == "active":
            node.put("/run/cloud-init/result.json")
        return Result(0, f"LoadState=loaded\nActiveState={state}\nJob=0\n")

    node.answers[f"systemctl show --property {SHOWN} cloud-final.service"] = show
    node.unit("cloud-init-main.service", **ABSENT)
    node.answers["systemctl reboot"] = ""
    told: list[str] = []
    reboot.reboot(node.host, record(), STEP, WHY, told.append, lambda: None)
    assert states == []
    assert node.ran[-1] == "systemctl reboot"
    assert told == [
        f"{WHY}; the reboot waits: cloud-init has not ended yet",
        f"{WHY}; the reboot waits: cloud-init runs its last stage (cloud-final)",
        WHY,
    ]


def test_being_stopped_while_cloud_init_runs_spends_nothing(node: Node) -> None:
    node.put("/usr/bin/cloud-init")
    node.unit("cloud-final.service", ActiveState="activating")
    node.unit("cloud-init-main.service", **ABSENT)
    with pytest.raises(Stopped):
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: node.host.stop(), lambda: None)
    assert node.text(checkpoint.FILE) is None


# -- what else comes first


def refused(node: Node) -> GpubootError:
    """Why a reboot that the walk asked for does not happen, and is not recorded."""
    node.answers["systemctl reboot"] = ""
    with pytest.raises(GpubootError) as caught:
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: None, lambda: None)
    assert "systemctl reboot" not in node.ran
    assert node.text(checkpoint.FILE) is None
    return caught.value


def test_a_wake_ends_the_waiting_for_cloud_init_so_that_the_configuration_is_read(
    node: Node,
) -> None:
    node.put("/usr/bin/cloud-init")
    node.unit("cloud-final.service", ActiveState="activating")
    node.unit("cloud-init-main.service", **ABSENT)
    node.host.wake()
    error = refused(node)
    assert (error.code, error.retry) == (reboot.NOT_YET, True)


def test_a_node_that_became_live_while_the_reboot_waited_is_not_rebooted(node: Node) -> None:
    node.unit("rke2-agent.service", ActiveState="active")
    error = refused(node)
    assert (error.code, error.retry) == (reboot.NOT_YET, True)
    assert error.hint == "drain the node, then reboot"


def test_a_reboot_waits_for_a_plan_that_rancher_applies(node: Node) -> None:
    node.put("/var/lib/rancher/agent/interlock/applyinator-active")
    node.unit("rke2-agent.service")
    node.unit("rancher-system-agent.service", ActiveState="active")
    node.answers["systemctl reboot"] = ""
    told: list[str] = []

    def watch(text: str) -> None:
        told.append(text)
        # Stopped: what it was at is over, though the interlock is left behind.
        node.unit("rancher-system-agent.service", ActiveState="inactive")

    reboot.reboot(node.host, record(), STEP, WHY, watch, lambda: None)
    assert told == [f"{WHY}; the reboot waits: Rancher's system-agent is applying its plan", WHY]


def managed(node: Node, **answers: str | Result) -> None:
    """A node of Rancher's whose system-agent runs."""
    node.put("/etc/rancher/agent/config.yaml")
    node.unit("rke2-agent.service")
    node.unit("rancher-system-agent.service", ActiveState="active")
    node.answers |= {"systemctl stop": "", "systemctl start": "", "systemctl reset-failed": ""}
    node.answers |= {"systemctl reboot": "", **answers}


def asked(node: Node) -> list[str]:
    """The systemctl verbs that change something, in order."""
    verbs = [command.split()[1] for command in node.ran if command.startswith("systemctl")]
    return [verb for verb in verbs if verb in ("stop", "start", "reboot")]


def test_rancher_s_system_agent_is_stopped_before_the_reboot(node: Node) -> None:
    managed(node)
    reboot.reboot(node.host, record(), STEP, WHY, lambda _: None, lambda: None)
    assert asked(node) == ["stop", "reboot"]


def test_a_system_agent_that_was_stopped_for_nothing_is_started_again(node: Node) -> None:
    managed(node)
    node.put("/var/lib/gpuboot")  # a file where the folder must be
    with pytest.raises(GpubootError):
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: None, lambda: None)
    assert asked(node) == ["stop", "start"]


def test_a_reboot_that_systemd_refuses_leaves_the_system_agent_running(node: Node) -> None:
    managed(node)
    node.answers["systemctl reboot"] = Result(1, err="Call to Reboot failed")
    with pytest.raises(GpubootError) as caught:
        reboot.reboot(node.host, record(), STEP, WHY, lambda _: None, lambda: None)
    assert caught.value.code.id == "GB010"
    assert asked(node) == ["stop", "reboot", "start"]


def test_a_system_agent_is_not_stopped_for_a_node_that_is_live(node: Node) -> None:
    managed(node)
    node.unit("rke2-agent.service", ActiveState="active")
    assert refused(node).code == reboot.NOT_YET
    assert asked(node) == []


def test_a_plan_that_had_just_begun_is_waited_for_once_more(node: Node) -> None:
    managed(node)
    interlock = "/var/lib/rancher/agent/interlock/applyinator-active"
    stops: list[int] = []

    def stop(_: Command) -> Result:
        stops.append(1)
        if len(stops) == 1:
            node.put(interlock)
        return Result(0)

    def watch(text: str) -> None:
        if "applying its plan" in text:
            node.host.remove(interlock)

    node.answers["systemctl stop"] = stop
    reboot.reboot(node.host, record(), STEP, WHY, watch, lambda: None)
    assert asked(node) == ["stop", "start", "stop", "reboot"]


DISK = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
MOUNTS = [
    ("", None),
    (DISK, None),
    (f"{DISK}30 22 0:30 / /var rw - tmpfs tmpfs rw,size=1g\n", "tmpfs"),
    (f"{DISK}30 22 0:30 / /var/lib rw shared:9 master:1 - ramfs none rw\n", "ramfs"),
    (f"{DISK}30 22 0:30 / /var/lib/gpu rw - tmpfs tmpfs rw\n", None),
    (f"{DISK}30 22 0:30 / /var rw - tmpfs tmpfs rw\n31 30 8:2 / /var/lib rw - xfs /dev/b rw\n",
     None),
    ("22 1 0:2 / / rw - tmpfs tmpfs rw\n23 1 8:1 / / rw - ext4 /dev/sda1 rw\n", None),
    (("22 1 0:9 / / rw - overlay over rw,lowerdir=/r,upperdir=/rw/up,workdir=/rw/work\n"
     "23 22 0:8 / /rw rw - tmpfs tmpfs rw\n"), "tmpfs"),
    # A container's upper folder is where its host has it.
    (("22 1 0:9 / / rw - overlay over rw,lowerdir=/r,upperdir=/tmp/up\n"
     "23 22 0:8 / /tmp rw - tmpfs tmpfs rw\n"), None),
]  # fmt: skip


@pytest.mark.parametrize(("mounts", "kind"), MOUNTS)
def test_a_file_system_in_memory_is_known(node: Node, mounts: str, kind: str | None) -> None:
    node.put("/rw/up/file")
    node.put("/proc/self/mountinfo", mounts)
    assert reboot.volatile(node.host, checkpoint.FILE) == kind


def test_where_no_record_lasts_no_reboot_is_asked_for(node: Node) -> None:
    node.put("/proc/self/mountinfo", "22 1 0:2 / / rw - tmpfs tmpfs rw\n")
    error = refused(node)
    assert (error.code, error.retry) == (reboot.NOT_RECORDED, False)
    assert error.message == f"{checkpoint.FILE} is on tmpfs: no record of a reboot would last"
