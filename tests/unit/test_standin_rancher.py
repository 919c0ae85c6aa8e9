"""The stand-in Rancher: the lives of tokens, plans, user-data, and its system-agent's manners."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rehearsal import cluster, rancher
from tests.rehearsal.standins.rancher import machine, server, system_agent
from tests.rehearsal.standins.rke2.server.serving import App, Part, Request, Response
from tests.rehearsal.table import ScenarioError, Table

NAME, REGISTRATION = "gpu-worker-1", "registration"
AGENT_TOKEN = "K10abc::node:joins"  # noqa: S105
VERSION = "v1.35.7+rke2r1"
DROP_IN = "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml"


class Lab:
    """Rancher over a folder, with a clock of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        rancher.begin(folder, settings, [NAME])
        made = json.loads((folder / rancher.FILE).read_text())["machines"][NAME]
        self.token, self.now = str(made["token"]), float(made["created"])
        known = server.Known(b"a CA", AGENT_TOKEN, REGISTRATION, folder, VERSION)
        self.app: App = server.app(known, folder, lambda: self.now)

    def connect(self, token: str | None = None, **headers: str) -> Response:
        bearer = {"authorization": f"Bearer {self.token if token is None else token}"}
        named = {"host": "rancher.lab:8443", "x-cattle-id": "i", **bearer}
        lower = {f"x-cattle-{key}": value for key, value in headers.items()}
        return self.app(Request("GET", "/v3/connect/agent", headers={**named, **lower}))

    def secret(self, connection: Response, body: object = None) -> dict[str, str]:
        """The plan's secret, decoded, as a registered machine reads or changes it."""
        assert isinstance(connection.body, bytes)
        info = json.loads(connection.body)
        key = yaml.safe_load(info["kubeConfig"])["users"][0]["user"]["token"]
        path = f"/k8s/clusters/local/api/v1/namespaces/{info['namespace']}/secrets/"
        request = Request(
            "GET" if body is None else "PATCH", path + info["secretName"],
            headers={"authorization": f"Bearer {key}"}, body=json.dumps(body).encode(),
        )  # fmt: skip
        answer = self.app(request)
        assert answer.status == 200
        assert isinstance(answer.body, bytes)
        data = json.loads(answer.body)["data"]
        return {name: base64.b64decode(text).decode() for name, text in data.items()}


def drop_in(secret: dict[str, str]) -> dict[str, Any]:
    file = json.loads(secret["plan"])["files"][0]
    assert file["path"] == DROP_IN
    found: dict[str, Any] = json.loads(base64.b64decode(file["content"]))
    return found


# -- tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "wrong", AGENT_TOKEN])
def test_only_a_token_of_rancher_s_opens_a_registration(tmp_path: Path, token: str) -> None:
    assert Lab(tmp_path).connect(token).status == 401


@pytest.mark.parametrize(
    ("release", "pause", "uses", "status"),
    [
        ("2.15", 1799, 1, 200),
        ("2.15", 1801, 1, 401),  # the long life, from the machine's creation
        ("2.15", 29, 4, 200),
        ("2.15", 31, 2, 401),  # the short one, from the last use
        ("2.14", 90_000, 2, 200),
    ],
)
def test_a_machine_s_token_lives_as_long_as_the_release_says(
    tmp_path: Path, release: str, pause: float, uses: int, status: int
) -> None:
    lab = Lab(tmp_path, release=release)
    answers = []
    for _ in range(uses):
        lab.now += pause
        answers.append(lab.connect().status)
    assert answers[-1] == status


def test_a_life_can_be_prolonged_while_a_node_still_asks(tmp_path: Path) -> None:
    lab = Lab(tmp_path, **{"token-lives": 1.0})
    lab.now += 5
    assert lab.connect().status == 401
    rancher.change(tmp_path, {"release": "2.14"})
    assert lab.connect().status == 200


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_always_has_the_machine_s_label_before_the_pool_s(tmp_path: Path) -> None:
    lab = Lab(tmp_path, labels=["a=b"], taints=["c=d:NoSchedule"])
    secret = lab.secret(lab.connect())
    assert secret["plan-state"] == "pending"
    assert drop_in(secret) == {
        "server": cluster.SUPERVISOR,
        "token": AGENT_TOKEN,
        "node-label": [f"rke.cattle.io/machine={server.uid(NAME)}", "a=b"],
        "node-taint": ["c=d:NoSchedule"],
    }


def test_a_custom_cluster_s_node_brings_labels_and_taints_along(tmp_path: Path) -> None:
    lab = Lab(tmp_path, **{"data-dir": "/data"})
    lab.now += 1_000_000  # its token does not expire
    headers = {"labels": "cattle.io/os=linux,x=y", "taints": "t=u:NoExecute"}
    found = drop_in(lab.secret(lab.connect(REGISTRATION, **headers)))
    assert found["node-label"][1:] == ["cattle.io/os=linux", "x=y"]
    assert found["node-taint"] == ["t=u:NoExecute"]
    assert found["data-dir"] == "/data"


def test_another_pool_makes_another_plan_and_another_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    connection = lab.connect()
    before = lab.secret(connection)
    done = base64.b64encode(b"succeeded").decode()
    assert lab.secret(connection, {"data": {"plan-state": done}})["plan-state"] == "succeeded"
    assert lab.secret(connection)["plan"] == before["plan"]
    rancher.change(tmp_path, {"taints": ["a=b:NoSchedule"]})
    after = lab.secret(connection)
    assert after["plan-state"] == "pending"
    stamps = [json.loads(secret["plan"])["instructions"][0]["env"][0] for secret in (before, after)]
    assert stamps[0] != stamps[1]


def test_a_plan_may_come_late(tmp_path: Path) -> None:
    lab = Lab(tmp_path, **{"plan-after": 60.0})
    connection = lab.connect()
    assert "plan" not in lab.secret(connection)
    lab.now += 61
    assert "plan" in lab.secret(connection)


def test_a_plan_is_for_its_own_machine_only(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.connect()
    path = f"/k8s/clusters/local/api/v1/namespaces/fleet-default/secrets/{NAME}-machine-plan"
    headers = {"authorization": f"Bearer {lab.token}"}
    assert lab.app(Request("GET", path, headers=headers)).status == 401


def test_the_installer_s_files_and_the_public_ones_can_be_had(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    (tmp_path / VERSION).mkdir()
    (tmp_path / VERSION / "a").write_text("content")
    base = "/k8s/clusters/local/images/system-agent-installer-rke2"
    found = lab.app(Request("GET", f"{base}:v1.35.7-rke2r1/a"))
    assert found.body == Part(tmp_path / VERSION / "a", 0, 7)
    for name in ("v1.35.7-rke2r1/b", "v1.35.7-rke2r1/../a", "v9-rke2r1/a"):
        assert lab.app(Request("GET", f"{base}:{name}")).status == 404
    assert lab.app(Request("GET", "/cacerts")).body == b"a CA"
    script = lab.app(Request("GET", "/system-agent-install.sh", headers={"host": "h:1"})).body
    assert isinstance(script, bytes)
    assert script.startswith(
        b'#!/usr/bin/env sh\nCATTLE_AGENT_BINARY_BASE_URL="https://h:1/assets"\n'
    )


# -- user-data ----------------------------------------------------------------------------------


def test_rancher_s_line_is_the_last_of_runcmd(tmp_path: Path) -> None:
    script = machine.script(cluster.RANCHER, "f" * 64, "secret")
    text = "#cloud-config\nruncmd:\n  - [gpuboot, run]\nwrite_files:\n  - {path: /a, content: b}\n"
    data = yaml.safe_load(machine.user_data(text, NAME, script))
    assert data["runcmd"] == [["gpuboot", "run"], "sh /usr/local/custom_script/install.sh"]
    assert data["hostname"] == NAME
    assert data["write_files"][0] == {"path": "/a", "content": "b"}
    added = data["write_files"][1]
    assert (added["path"], added["permissions"]) == (machine.INSTALL, "0644")
    assert 'CATTLE_TOKEN="secret"\n' in added["content"]
    (tmp_path / "install.sh").write_text(added["content"])
    subprocess.run(["sh", "-n", str(tmp_path / "install.sh")], check=True)


@pytest.mark.parametrize(
    "text",
    ["## template: jinja\n#cloud-config\n", "runcmd: []\n", "#cloud-config\nruncmd: ls\n"],
)
def test_what_rancher_machine_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must"):
        machine.user_data(text, NAME, "")


def test_a_scenario_s_words_for_rancher_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    found = rancher.settings(Table(file, "rancher.", {"plan-takes": "40s", "release": "2.14"}))
    assert found == {"plan-takes": 40.0, "release": "2.14"}
    for wrong in ({"plan-take": "1s"}, {"release": "2.13"}, {"labels": "a=b"}):
        with pytest.raises(ScenarioError, match=r"rancher\."):
            rancher.settings(Table(file, "rancher.", wrong))


# -- the system-agent ---------------------------------------------------------------------------


class Plan(system_agent.Rancher):
    """Rancher, as the agent sees it: what it answers, and what it was told."""

    def __init__(self, folder: Path, **data: str) -> None:
        file = {"path": str(folder / "50.yaml"), "content": base64.b64encode(b"{}").decode()}
        plan = json.dumps({"files": [file], "instructions": []})
        usual = {"plan": plan, "plan-state": "pending", "lab-release": "2.15", "lab-takes": "0"}
        self.there = {**usual, **data}
        self.told: list[dict[str, str]] = []

    def data(self) -> dict[str, bytes]:
        return {key: text.encode() for key, text in self.there.items()}

    def report(self, **data: str) -> None:
        self.told.append(data)
        self.there |= {key.replace("_", "-"): text for key, text in data.items()}


class Watched(system_agent.Agent):
    """Notes whether the interlock stands while a file is written."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        places = {"appliedPlanDirectory": "applied", "workDirectory": "work"}
        places["interlockDirectory"] = "interlock"
        super().__init__({key: str(folder / name) for key, name in places.items()}, plan)
        self.seen: list[bool] = []

    def _keep(self, path: Path, content: bytes, mode: int) -> None:
        self.seen.append(self._interlock.exists())
        super()._keep(path, content, mode)


def test_a_plan_is_applied_once_behind_an_interlock(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    found = Watched(tmp_path, plan)
    for _ in range(3):
        found.look()
    assert found.seen == [True, True]
    assert not (tmp_path / "interlock/applyinator-active").exists()
    assert (tmp_path / "50.yaml").stat().st_mode & 0o777 == 0o600
    assert [told["plan_state"] for told in plan.told] == ["in-progress", "succeeded"]


@pytest.mark.parametrize(
    ("release", "state", "again"),
    [("2.14", "succeeded", True), ("2.15", "succeeded", False), ("2.15", "in-progress", True)],
)
def test_what_a_new_start_applies_once_more_depends_on_the_release(
    tmp_path: Path, release: str, state: str, *, again: bool
) -> None:
    plan = Plan(tmp_path, **{"lab-release": release})
    Watched(tmp_path, plan).look()
    plan.there["plan-state"] = state
    plan.told.clear()
    Watched(tmp_path, plan).look()
    assert bool(plan.told) is again


def test_a_failed_plan_is_tried_again_and_leaves_no_interlock(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    (tmp_path / "50.yaml").mkdir()
    Watched(tmp_path, plan).look()
    assert plan.told[-1] == {"plan_state": "pending"}
    assert not (tmp_path / "interlock/applyinator-active").exists()
