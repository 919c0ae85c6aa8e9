"""Whether a reboot has to wait for cloud-init (DESIGN §7: never by `cloud-init status`)."""

from __future__ import annotations

import pytest

from gpuboot import cloudinit
from tests.unit.node import ABSENT, Node

LAST = "cloud-init runs its last stage (cloud-final)"
NOT_ENDED = "cloud-init has not ended yet"
PROGRAM, RESULT = "/usr/bin/cloud-init", "/run/cloud-init/result.json"
ENABLED = "/run/cloud-init/enabled"
IDLE = {"ActiveState": "inactive", "Job": "0"}
QUEUED = {"ActiveState": "inactive", "Job": "412"}
RUNNING = {"ActiveState": "activating", "SubState": "start", "Job": "412"}
ENDED = {"ActiveState": "active", "SubState": "exited", "Job": ""}
FAILED = {"ActiveState": "failed", "SubState": "failed", "Job": "0"}


@pytest.mark.parametrize(
    ("files", "final", "why"),
    [
        # absent, switched off, or without a datasource
        ([], ABSENT, None),
        ([PROGRAM, "/etc/cloud/cloud-init.disabled"], IDLE, None),
        ([PROGRAM, "/run/cloud-init/disabled"], IDLE, None),
        ([PROGRAM], IDLE, None),
        ([PROGRAM, ENABLED], ABSENT, None),
        # before, in and after cloud-final
        ([PROGRAM, ENABLED], IDLE, NOT_ENDED),
        ([PROGRAM, ENABLED], QUEUED, LAST),
        ([PROGRAM, ENABLED], RUNNING, LAST),
        # result.json is written before cloud-final ends
        ([PROGRAM, ENABLED, RESULT], RUNNING, LAST),
        ([PROGRAM, ENABLED, RESULT], QUEUED, LAST),
        ([PROGRAM, ENABLED, RESULT], ENDED, None),
        ([PROGRAM, ENABLED, RESULT], FAILED, None),
        ([PROGRAM, ENABLED, RESULT], IDLE, None),
        ([PROGRAM, RESULT], ENDED, None),
        # installed by pip
        (["/usr/local/bin/cloud-init", ENABLED], QUEUED, LAST),
        # killed, or masked: result.json never comes
        ([PROGRAM, ENABLED], FAILED, None),
        ([PROGRAM, ENABLED], {"LoadState": "masked", "UnitFileState": "masked"}, None),
        # an error of an earlier stage is no end
        ([PROGRAM, ENABLED, "/run/cloud-init/status.json"], IDLE, NOT_ENDED),
    ],
)
def test_cloud_init_is_done_when_its_last_stage_is(
    node: Node, files: list[str], final: dict[str, str], why: str | None
) -> None:
    for name in files:
        node.put(name)
    node.unit("cloud-final.service", **final)
    node.unit("cloud-init-main.service", **ABSENT)
    assert cloudinit.unfinished(node.host) == why


@pytest.mark.parametrize(
    ("main", "left", "why"),
    [
        ({"ActiveState": "active"}, "37\n212\n", LAST),
        # runcmd's script outlives the process that has started it (KillMode=process)
        ({"ActiveState": "failed"}, "212\n", LAST),
        ({"ActiveState": "failed"}, "", None),
        ({"ActiveState": "failed"}, None, None),
    ],
)
def test_a_killed_cloud_init_is_waited_for_only_as_long_as_its_scripts_run(
    node: Node, main: dict[str, str], left: str | None, why: str | None
) -> None:
    """Tried with cloud-init 25.1 on Debian 13: cloud-final then stays activating for ever."""
    node.put(PROGRAM)
    node.put(ENABLED)
    node.unit("cloud-final.service", **RUNNING)
    node.unit("cloud-init-main.service", **main)
    if left is not None:
        node.put("/sys/fs/cgroup/system.slice/cloud-init-main.service/cgroup.procs", left)
    assert cloudinit.unfinished(node.host) == why


def test_runcmd_is_waited_for_where_only_what_waits_for_it_was_killed(node: Node) -> None:
    """From 24.3 on runcmd is a child of cloud-init-main, and cloud-final just waits for it."""
    node.put(PROGRAM)
    node.put(ENABLED)
    node.unit("cloud-final.service", **FAILED)
    node.unit("cloud-init-main.service", ActiveState="active")
    node.put("/sys/fs/cgroup/system.slice/cloud-init-main.service/cgroup.procs", "37\n212\n")
    assert cloudinit.unfinished(node.host) == NOT_ENDED


def test_a_machine_without_cloud_init_needs_no_systemd_to_say_so(node: Node) -> None:
    assert cloudinit.unfinished(node.host) is None
    assert node.ran == []


@pytest.mark.parametrize(
    ("cgroup", "inside"),
    [
        ("0::/system.slice/cloud-final.service\n", True),
        ("0::/system.slice/cloud-config.service\n", True),
        ("0::/system.slice/cloud-init.service/sub\n", True),
        ("0::/system.slice/cloud-init-main.service\n", True),
        ("12:pids:/system.slice/cloud-final.service\n0::/x\n", True),
        ("0::/user.slice/user-0.slice/session-1.scope\n", False),
        ("0::/system.slice/gpuboot.service\n", False),
        ("0::/system.slice/not-cloud-final.service\n", False),
        ("", False),
    ],
)
def test_a_process_knows_by_its_cgroup_whether_cloud_init_started_it(
    node: Node, cgroup: str, *, inside: bool
) -> None:
    node.put("/proc/self/cgroup", cgroup)
    assert cloudinit.inside(node.host) is inside


def test_the_instance_id_is_empty_without_cloud_init(node: Node) -> None:
    assert cloudinit.instance_id(node.host) == ""
    node.put(cloudinit.INSTANCE, "i-1\n")
    assert cloudinit.instance_id(node.host) == "i-1"
