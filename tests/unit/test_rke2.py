"""RKE2 on the node: which one is there, where it goes, and what is adopted."""

from __future__ import annotations

import pytest

from gpuboot import rke2
from gpuboot.errors import GpubootError
from gpuboot.release import CHECKSUMS, TARBALL, Release
from gpuboot.rke2 import AGENT, AgentStarted, Rke2Installed
from gpuboot.step import Ok, Pending
from tests.unit.node import ABSENT, Node, reason
from tests.unit.test_release import checksums, tarball

VERSION, OLD = "v1.35.7+rke2r1", "v1.34.1+rke2r1"
USUAL = "/usr/local/lib/systemd/system"
ROOT_MOUNT = "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def installed(version: str | None = VERSION, channel: str | None = None) -> Rke2Installed:
    return Rke2Installed(Release(version, channel, None, "/srv/rke2", "https://channels"))


def have(node: Node, binary: str, folder: str = USUAL, version: str = VERSION) -> None:
    """An rke2 on the node, with a unit that starts it."""
    node.unit("rke2-server.service", **ABSENT)
    node.put(binary, "", mode=0o755)
    node.put(f"{folder}/{AGENT}", f"[Service]\nExecStart={binary} agent\n")
    node.answers[f"{binary} --version"] = f"rke2 version {version} (c0ffee)\ngo version go1.25\n"


@pytest.mark.parametrize(
    ("binary", "folder"),
    [
        ("/usr/local/bin/rke2", USUAL),
        ("/opt/rke2/bin/rke2", "/etc/systemd/system"),
        ("/usr/bin/rke2", "/usr/lib/systemd/system"),
        ("/usr/bin/rke2", "/lib/systemd/system"),
        ("/srv/by-hand/rke2", "/etc/systemd/system"),
    ],
)
@pytest.mark.parametrize("step", [installed(), installed(None), installed(None, "stable")])
def test_an_rke2_that_is_there_is_adopted_and_nobody_is_asked(
    node: Node, step: Rke2Installed, binary: str, folder: str
) -> None:
    have(node, binary, folder)
    assert reason(step.check(node.host), Ok) == f"RKE2 {VERSION} is installed"
    assert node.web.asked == []


def test_the_unit_that_counts_says_which_of_two_it_is(node: Node) -> None:
    have(node, "/usr/local/bin/rke2", version=OLD)
    have(node, "/opt/rke2/bin/rke2", "/etc/systemd/system")
    assert rke2.installed_version(node.host) == VERSION


def test_a_unit_whose_program_is_gone_is_no_installation(node: Node) -> None:
    have(node, "/usr/local/bin/rke2", version=OLD)
    node.put(f"/etc/systemd/system/{AGENT}", "ExecStart=/srv/gone/rke2 agent\n")
    assert reason(installed().check(node.host), Pending) == "RKE2 is not installed"


def test_a_program_without_a_unit_is_no_installation(node: Node) -> None:
    have(node, "/usr/local/bin/rke2")
    (node.root / USUAL[1:] / AGENT).unlink()
    assert rke2.installed_version(node.host) == VERSION
    assert reason(installed().check(node.host), Pending) == "RKE2 is not installed"


@pytest.mark.parametrize(
    ("binary", "folder"),
    [("/usr/bin/rke2", "/usr/lib/systemd/system"), ("/srv/by-hand/rke2", "/etc/systemd/system")],
)
def test_one_of_another_version_that_came_otherwise_is_not_unpacked_over(
    node: Node, binary: str, folder: str
) -> None:
    have(node, binary, folder, OLD)
    with pytest.raises(GpubootError) as caught:
        installed().check(node.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB507", True)
    assert caught.value.message.startswith(f"{binary} is RKE2 {OLD}")


@pytest.mark.parametrize("binary", rke2.UNPACKED)
def test_another_version_from_a_tarball_is_replaced(node: Node, binary: str) -> None:
    have(node, binary, version=OLD)
    assert "wanted is" in reason(installed().check(node.host), Pending)
    assert reason(installed(None, "latest").check(node.host), Ok)


def test_a_folder_with_another_release_is_told_as_that(node: Node) -> None:
    content = tarball()
    node.put(f"/srv/rke2/{TARBALL}", content)
    node.put(f"/srv/rke2/{CHECKSUMS}", checksums(content))
    node.answers["systemctl daemon-reload"] = ""
    node.answers["/usr/local/bin/rke2 --version"] = f"rke2 version {OLD} (c0ffee)\n"
    with pytest.raises(GpubootError) as caught:
        installed().apply(node.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB508", True)
    assert caught.value.message == f"/srv/rke2 has RKE2 {OLD} as {VERSION}"


# -- where it goes


@pytest.mark.parametrize(
    ("mounts", "prefix"),
    [
        ([], "/usr/local"),
        ([ROOT_MOUNT], "/usr/local"),
        ([ROOT_MOUNT, "30 29 8:2 / /usr/local rw,nosuid - ext4 /dev/sda2 rw"], "/opt/rke2"),
        ([ROOT_MOUNT, "30 29 8:1 /usr /usr/local ro - ext4 /dev/sda1 rw"], "/opt/rke2"),
        ([ROOT_MOUNT, "30 29 8:2 / /usr ro,relatime - squashfs /dev/sda2 ro"], "/opt/rke2"),
        ([ROOT_MOUNT, "30 29 8:2 / /usr rw,relatime - ext4 /dev/sda2 rw"], "/usr/local"),
        ([ROOT_MOUNT, "30 29 8:2 / /usr/local/share ro - ext4 /dev/sda2 rw"], "/usr/local"),
        ([ROOT_MOUNT, "30 29 8:2 / /usr ro - ext4 /dev/a rw",
          "31 29 8:2 / /usr rw master:1 - ext4 /dev/a rw"], "/usr/local"),
        (["29 1 8:1 / / rw shared:1 - ext4 /dev/sda1 ro,errors=remount-ro"], "/opt/rke2"),
    ],
)  # fmt: skip
def test_it_goes_where_rke2s_own_installer_would_put_it(
    node: Node, mounts: list[str], prefix: str
) -> None:
    node.put("/proc/self/mountinfo", "\n".join(mounts) + "\n")
    assert rke2.prefix(node.host) == prefix


def test_what_is_below_opt_stays_there(node: Node) -> None:
    have(node, "/opt/rke2/bin/rke2", "/etc/systemd/system", OLD)
    node.put("/proc/self/mountinfo", ROOT_MOUNT + "\n")
    assert rke2.prefix(node.host) == "/opt/rke2"


# -- the start


@pytest.mark.parametrize(
    ("state", "stale", "reloaded"),
    [
        ("inactive", "yes", True), ("inactive", "no", False),
        ("active", "yes", False), ("activating", "yes", False),
    ],
)  # fmt: skip
def test_a_unit_that_systemd_knows_an_older_form_of_is_read_again_unless_it_runs(
    node: Node, state: str, stale: str, *, reloaded: bool
) -> None:
    node.unit(AGENT, ActiveState=state, Job="1")
    question = f"systemctl show --property NeedDaemonReload {AGENT}"
    node.answers[question] = f"NeedDaemonReload={stale}\n"
    for verb in ("daemon-reload", "enable", "start", "reset-failed"):
        node.answers[f"systemctl {verb}"] = ""
    AgentStarted().apply(node.host)
    assert ("systemctl daemon-reload" in node.ran) == reloaded
