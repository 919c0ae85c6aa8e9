"""A walk that differs from its plan is noticed, in either direction; so is a plan that changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal import planned
from tests.rehearsal.probes import plan as probe

MODPROBE = "/etc/modprobe.d/gpuboot.conf"
KEY = "/etc/apt/keyrings/gpuboot-toolkit.asc"
UNIT = "/etc/systemd/system/multi-user.target.wants/rke2-agent.service"
OLD_LOG = "2026-01-01 00:00:00 install base-files:amd64 <none> 12\n"
BLACKLIST = "# by gpuboot\nblacklist nouveau\n"
PLAN: dict[str, Any] = {
    "packages": [
        {"name": "dkms", "action": "upgrade", "version": "1:3.0"},
        {"name": "old-runtime", "action": "remove", "version": None},
    ],
    "held": ["dkms"],
    "files": [
        {"name": MODPROBE, "diff": f"--- {MODPROBE}\n+++ {MODPROBE}\n@@ -0,0 +1,2 @@\n"
                                   "+# by gpuboot\n+blacklist nouveau\n"},
        {"name": KEY, "diff": None},
    ],
    "units": ["rke2-agent.service"],
    "reboot": {"answer": "maybe"},
}  # fmt: skip


@dataclass
class Walked:
    """A node's folder after a walk that did just what PLAN says; tests then change something."""

    root: Path
    plan: dict[str, Any] | None = field(default_factory=lambda: json.loads(json.dumps(PLAN)))
    exit: int = 0
    changed: list[str] = field(default_factory=list)
    surveyed: list[str] = field(default_factory=list)
    log: str = (
        "2026-01-01 00:00:01 upgrade dkms:all 1:2.8 1:3.0\n"
        "2026-01-01 00:00:01 status installed dkms:all 1:3.0\n"
        "2026-01-01 00:00:02 remove old-runtime:amd64 1.0 <none>\n"
    )

    def __post_init__(self) -> None:
        self.put("/var/lib/dpkg/status", "Package: dkms\nStatus: hold ok installed\nVersion: 3\n")
        self.put("/var/lib/dpkg/info/gpuboot.list", "/etc/gpuboot\n/etc/init.d/gpuboot\n")
        self.put("/etc/init.d/gpuboot", "of the package")
        self.put("/etc/gpuboot/config.yaml", "the operator's, for gpuboot")
        self.put("/etc/cloud/seed.cfg", "runcmd: gpuboot run")
        self.put("/etc/hosts", "127.0.0.1 localhost")
        self.put(MODPROBE, BLACKLIST)
        self.put(KEY, "a key")
        self.link(UNIT, "/usr/local/lib/systemd/system/rke2-agent.service")

    def put(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def link(self, name: str, target: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def remove(self, name: str) -> None:
        (self.root / name.lstrip("/")).unlink()

    def findings(
        self, *, ready: bool = True, rebooted: int = 0, corrected: bool = False
    ) -> list[str]:
        self.put("/var/log/dpkg.log", OLD_LOG + self.log)
        seed = hashlib.sha256(b"runcmd: gpuboot run").hexdigest()
        before = {"etc": {"/etc/cloud/seed.cfg": seed}, "held": [], "dpkg_log": len(OLD_LOG)}
        probed = {
            "exit": self.exit, "plan": self.plan, "stderr": "said", "changed": self.changed,
            "preflight": {"changed": self.surveyed}, "before": before,
        }  # fmt: skip
        self.put(planned.RESULT, json.dumps(probed))
        return planned.findings(self.root, ready=ready, rebooted=rebooted, corrected=corrected)


@pytest.fixture
def walked(tmp_path: Path) -> Walked:
    return Walked(tmp_path)


def test_a_walk_that_did_what_was_planned_has_no_findings(walked: Walked) -> None:
    assert walked.findings() == []
    assert walked.findings(ready=False) == []


def test_a_node_that_was_never_asked_is_a_finding(tmp_path: Path) -> None:
    assert planned.findings(tmp_path, ready=True, rebooted=0) == [
        "gpuboot plan: expected /var/lib/lab/plan.json / found nothing"
    ]


def test_what_the_plan_itself_changed_is_a_finding_whatever_came_later(walked: Walked) -> None:
    walked.changed, walked.surveyed = ["/etc/hosts: ctime"], ["unit x: appeared"]
    assert walked.findings(corrected=True) == [
        "gpuboot plan: expected no change / found /etc/hosts: ctime",
        "gpuboot preflight: expected no change / found unit x: appeared",
    ]


# -- done and not planned


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("install gcc:amd64 <none> 12", "package gcc: expected nothing, as planned / found 12"),
        ("upgrade dkms:all 1:3.0 1:3.1",
         "package dkms: expected 1:3.0, as planned / found 1:3.1"),
        ("remove gcc:amd64 12 <none>",
         "package gcc: expected nothing, as planned / found removed"),
    ],
)  # fmt: skip
def test_a_package_that_was_not_planned_is_a_finding(
    walked: Walked, line: str, found: str, *, ready: bool
) -> None:
    walked.log += f"2026-01-01 00:00:03 {line}\n"
    assert walked.findings(ready=ready) == [found]


def test_a_file_that_was_not_planned_is_a_finding(walked: Walked) -> None:
    walked.put("/etc/apt/sources.list.d/gpuboot-x.sources", "")
    walked.put("/etc/default/grub.d/x.cfg", "# Written by gpuboot")
    walked.put("/etc/cloud/seed.cfg", "runcmd: gpuboot run again")
    assert walked.findings(ready=False) == [
        f"file /etc/{name}: expected nothing, as planned / found it"
        for name in ("apt/sources.list.d/gpuboot-x.sources", "cloud/seed.cfg",
                     "default/grub.d/x.cfg")
    ]  # fmt: skip


def test_a_hold_that_was_not_planned_is_a_finding(walked: Walked) -> None:
    walked.put("/var/lib/dpkg/status", "".join(
        f"Package: {name}\nStatus: hold ok installed\n\n" for name in ("dkms", "linux-image")
    ))  # fmt: skip
    assert walked.findings() == ["hold on linux-image: expected nothing, as planned / found it"]


@pytest.mark.parametrize(
    ("answer", "rebooted", "found"),
    [
        ("no", 0, []), ("maybe", 0, []), ("maybe", 1, []), ("yes", 1, []),
        ("no", 1, ["reboots: expected none, as planned / found 1"]),
        ("yes", 0, ["reboots: expected one, as planned / found none"]),
    ],
)  # fmt: skip
def test_reboots_are_as_planned(
    walked: Walked, answer: str, rebooted: int, found: list[str]
) -> None:
    assert walked.plan
    walked.plan["reboot"]["answer"] = answer
    assert walked.findings(rebooted=rebooted) == found


# -- planned and not done


def test_what_was_planned_and_not_done_is_a_finding_once_the_node_is_ready(walked: Walked) -> None:
    walked.log = ""
    walked.put("/var/lib/dpkg/status", "")
    for name in (MODPROBE, KEY, UNIT):
        walked.remove(name)
    assert walked.findings(ready=False) == []
    assert walked.findings() == [
        f"{what}: expected as planned / found nothing done"
        for what in ("package dkms", "package old-runtime", f"file {KEY}", f"file {MODPROBE}",
                     "hold on dkms", "enabled unit rke2-agent.service")
    ]  # fmt: skip


def test_a_file_with_another_content_than_planned_is_a_finding(walked: Walked) -> None:
    walked.put(MODPROBE, "# by gpuboot\n")
    assert walked.findings() == [
        f"file {MODPROBE}: expected blacklist nouveau, as planned / found no such line"
    ]


def test_a_masked_line_cannot_be_compared(walked: Walked) -> None:
    assert walked.plan
    walked.plan["files"][0]["diff"] += "+password: <secret>\n"
    assert walked.findings() == []


def test_the_taints_leave_rke2s_drop_in_after_the_join(walked: Walked) -> None:
    assert walked.plan
    walked.put(planned.DROP_IN, "{}\n")
    walked.plan["files"].append({"name": planned.DROP_IN, "diff": '+  "node-taint+": [\n'})
    assert walked.findings() == []


# -- plans that do not tell all


def test_a_plan_of_names_only_knows_no_dependencies(walked: Walked) -> None:
    assert walked.plan
    walked.plan["packages"][0] |= {"action": "install", "version": None}
    walked.log += "2026-01-01 00:00:03 install gcc:amd64 <none> 12\n"
    assert walked.findings() == []
    walked.log = walked.log.replace("dkms", "make")
    assert walked.findings() == ["package dkms: expected as planned / found nothing done"]


def test_a_plan_that_ended_with_an_error_plans_nothing(walked: Walked) -> None:
    walked.plan, walked.exit = None, 78
    found = walked.findings(ready=False, rebooted=1)
    assert [line.partition(":")[0] for line in found] == [
        "package dkms", "package old-runtime", f"file {KEY}", f"file {MODPROBE}", "hold on dkms",
        "reboots",
    ]  # fmt: skip
    assert walked.findings(rebooted=1, corrected=True) == []


def test_a_plan_that_succeeds_without_an_answer_is_a_finding(walked: Walked) -> None:
    walked.plan = None
    assert walked.findings(ready=False)[0] == "gpuboot plan: expected JSON / found said"


# -- the probe


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def use_for_a_moment(path: Path) -> None:
    write(path, "")
    path.unlink()


def lead(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


CHANGES: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda place: write(place / "a", "y"), "/a", "content"),
    (lambda place: write(place / "a", "longer"), "/a", "size"),
    (lambda place: write(place / "a", "x"), "/a", "mtime"),
    (lambda place: (place / "a").chmod(0o600), "/a", "mode"),
    (lambda place: (place / "a").unlink(), "/a", "vanished"),
    (lambda place: write(place / "b", ""), "/b", "appeared"),
    (lambda place: use_for_a_moment(place / "lock"), "", "mtime"),
    (lambda place: lead(place / "link", "c"), "/link", "content"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "name", "what"), CHANGES)
def test_the_probe_sees_every_change(
    tmp_path: Path, change: Callable[[Path], object], name: str, what: str
) -> None:
    place = tmp_path / "etc"
    place.mkdir()
    write(place / "a", "x")
    (place / "link").symlink_to("b")
    for path in (place / "a", place):
        os.utime(path, ns=(1, 1))

    def seen() -> probe.Seen:
        return dict(probe.files(str(tmp_path), read=str(place)))

    before = seen()
    assert list(probe.differences(before, seen())) == []
    change(place)
    told = dict(line.split(": ") for line in probe.differences(before, seen()))
    assert what in told[f"{place}{name}"]
