"""The stand-in cluster: status codes, NodeRestriction, downloads, faults and its request log."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal import cluster, pki
from tests.rehearsal.standins.rke2.agent import node
from tests.rehearsal.standins.rke2.server import admission, apiserver, files, supervisor
from tests.rehearsal.standins.rke2.server.controllers import Controllers
from tests.rehearsal.standins.rke2.server.faults import Faults
from tests.rehearsal.standins.rke2.server.serving import App, Part, Request, Response
from tests.rehearsal.standins.rke2.server.store import Store

VERSION = "v1.35.7+rke2r1"


PASSWORD = "right"  # noqa: S105


@pytest.fixture(scope="module")
def shared() -> supervisor.Cluster:
    return supervisor.Cluster(
        server_ca=pki.authority("server"), client_ca=pki.authority("client"),
        password=PASSWORD, address="127.0.0.1", api_port=6443, port=9345,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "faults.json")


@pytest.fixture
def ask(shared: supervisor.Cluster, store: Store, faults: Faults) -> App:
    return supervisor.app(shared, store, faults)


@pytest.fixture
def api(store: Store, faults: Faults) -> App:
    return apiserver.app(store, "admin-token", faults)


def _basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _readyz(headers: dict[str, str]) -> Request:
    return Request("GET", "/v1-rke2/readyz", headers=headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (_basic("node", "right"), 200),
        (_basic("node", "wrong"), 401),
        (_basic("server", "right"), 401),
        ({"authorization": "Bearer abcdef.0123456789abcdef"}, 401),
        ({}, 403),
    ],
)
def test_the_supervisor_tells_wrong_from_missing(
    ask: App, headers: dict[str, str], status: int
) -> None:
    assert ask(_readyz(headers)).status == status


def test_cacerts_and_ping_are_for_everybody(ask: App, shared: supervisor.Cluster) -> None:
    assert ask(Request("GET", "/cacerts")).body == shared.server_ca.certificate
    assert ask(Request("GET", "/ping")).body == b"pong"


@pytest.mark.parametrize(
    ("fault", "status"), [("ready503", 503), ("token401", 401), ("token403", 403)]
)
def test_ordered_faults_are_obeyed_at_once(
    ask: App, tmp_path: Path, fault: str, status: int
) -> None:
    assert ask(_readyz(_basic("node", "right"))).status == 200
    (tmp_path / "faults.json").write_text(json.dumps({fault: True}))
    assert ask(_readyz(_basic("node", "right"))).status == status


@pytest.mark.parametrize(("life", "status"), [(60, 200), (0, 401)])
def test_a_bootstrap_token_lives_as_long_as_was_ordered(
    ask: App, tmp_path: Path, life: float, status: int
) -> None:
    token = "abcdef.0123456789abcdef"  # noqa: S105
    (tmp_path / "faults.json").write_text(json.dumps({"bootstrap": {token: life}}))
    assert ask(_readyz({"authorization": f"Bearer {token}"})).status == status


def test_a_node_sees_its_network_plugins_pod_unless_none_comes(api: App, tmp_path: Path) -> None:
    def pods(name: str) -> Response:
        query = f"fieldSelector=spec.nodeName={name}"
        request = Request("GET", "/api/v1/pods", query, name="system:node:n", group="system:nodes")
        return api(request)

    assert len(_json(pods("n"))["items"]) == 1
    assert pods("other").status == 403
    (tmp_path / "faults.json").write_text('{"no-cni": true, "server-version": "v1.34.1+rke2r1"}')
    assert _json(pods("n"))["items"] == []
    version = _json(_admin(api, "GET", "/version"))
    assert (version["minor"], version["gitVersion"]) == ("34", "v1.34.1+rke2r1")


def test_throttling_turns_away_the_first_requests(ask: App, tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('{"throttle": 2}')
    answers = [ask(_readyz(_basic("node", "right"))).status for _ in range(4)]
    assert answers == [429, 429, 200, 200]


def test_only_so_many_requests_are_served_at_once(ask: App, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('{"in-flight": 4}')
    with contextlib.ExitStack() as others:
        free = [others.enter_context(faults.place(read=True)) for _ in range(5)]
        assert free == [True, True, True, True, False]
        refused = ask(_readyz(_basic("node", "right")))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert ask(_readyz(_basic("node", "wrong"))).status == 401  # who is unknown takes no place
        assert ask(Request("GET", "/cacerts")).status == 200
        assert (
            ask(_kubelet_csr("one")).status == 400
        )  # accepted: half as many others, for themselves
        free = [others.enter_context(faults.place(read=False)) for _ in range(3)]
        assert free == [True, True, False]
        assert ask(_kubelet_csr("one")).status == 429
    assert ask(_readyz(_basic("node", "right"))).status == 200


def test_a_busy_supervisor_takes_its_time_with_each_request(
    shared: supervisor.Cluster, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "faults.json").write_text('{"busy": 0.5}')
    slept: list[float] = []
    ask = supervisor.app(shared, store, Faults(tmp_path / "faults.json", slept.append))
    assert [ask(_readyz(_basic("node", word))).status for word in ("right", "wrong")] == [200, 401]
    assert slept == [0.5]


def _kubelet_csr(password: str) -> Request:
    headers = {"rke2-node-name": "n", "rke2-node-password": password, **_basic("node", "right")}
    return Request("POST", "/v1-rke2/client-kubelet.crt", headers=headers, body=b"no request")


def test_the_first_password_of_a_name_is_the_only_one_until_the_node_is_deleted(
    ask: App, api: App, store: Store
) -> None:
    assert ask(_kubelet_csr("one")).status == 400  # accepted; only the request is no request
    assert ask(_kubelet_csr("two")).status == 403
    store.create({"metadata": {"name": "n"}})
    assert _admin(api, "DELETE", "/api/v1/nodes/n").status == 200
    assert ask(_kubelet_csr("two")).status == 400


def test_the_certificate_of_a_deleted_node_is_not_authorized(ask: App, store: Store) -> None:
    request = Request("GET", "/v1-rke2/config", name="system:node:n", group="system:nodes")
    assert ask(request).status == 401
    store.create({"metadata": {"name": "n"}})
    assert ask(request).status == 200


def _admin(api: App, method: str, path: str, body: object = None, kind: str = "") -> Response:
    headers = {"authorization": "Bearer admin-token", "content-type": kind}
    return api(Request(method, path, headers=headers, body=json.dumps(body).encode()))


def _own(api: App, method: str, path: str, body: object = None) -> Response:
    return api(
        Request(
            method, path, headers={"content-type": admission.MERGE},
            body=json.dumps(body).encode(), name="system:node:n", group="system:nodes",
        )
    )  # fmt: skip


def _json(response: Response) -> dict[str, Any]:
    assert isinstance(response.body, bytes)
    content: dict[str, Any] = json.loads(response.body)
    return content


@pytest.fixture
def registered(api: App) -> App:
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    made = _own(api, "POST", "/api/v1/nodes", node.new("n", "10.0.0.1", {"a": "1"}, taints))
    assert made.status == 201
    return api


def test_a_node_registers_with_its_taints_once(registered: App, store: Store) -> None:
    taints = (store.node("n") or {})["spec"]["taints"]
    assert {taint["key"] for taint in taints} == {
        "nvidia.com/gpu", node.UNINITIALIZED, admission.NOT_READY,
    }  # fmt: skip
    again = _own(registered, "POST", "/api/v1/nodes", {"metadata": {"name": "n"}})
    assert (again.status, _json(again)["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ({"metadata": {"labels": {"nvidia.com/gpu": "present"}}}, 200),
        ({"metadata": {"annotations": {"gpuboot.io/driver": "x"}}}, 200),
        ({"metadata": {"labels": {"node-role.kubernetes.io/gpu": "true"}}}, 403),
        ({"metadata": {"labels": {"a": "not a value"}}}, 422),
        ({"spec": {"taints": []}}, 403),
    ],
)
def test_what_a_node_may_change_of_itself(
    registered: App, patch: dict[str, Any], status: int
) -> None:
    assert _own(registered, "PATCH", "/api/v1/nodes/n", patch).status == status


def test_an_administrator_may_change_taints_and_role_labels(registered: App) -> None:
    patch = {
        "metadata": {"labels": {"node-role.kubernetes.io/gpu": "true"}},
        "spec": {"taints": []},
    }
    changed = _admin(registered, "PATCH", "/api/v1/nodes/n", patch, admission.MERGE)
    assert changed.status == 200
    assert _json(changed)["spec"]["taints"] == []


def test_conditions_merge_by_type_in_a_strategic_patch() -> None:
    old = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]}}
    patch = {"status": {"conditions": [
        {"type": "GPUReady", "status": "True"}, {"type": "Ready", "status": "False"},
    ]}}  # fmt: skip
    new = admission.patched(old, patch, admission.STRATEGIC)
    assert [(one["type"], one["status"]) for one in new["status"]["conditions"]] == [
        ("Ready", "False"), ("GPUReady", "True"),
    ]  # fmt: skip
    assert new["status"]["conditions"][0]["reason"] == "r"


def test_other_nodes_are_hidden_and_nobody_else_is_let_in(registered: App) -> None:
    assert _own(registered, "GET", "/api/v1/nodes/n").status == 200
    assert _own(registered, "GET", "/api/v1/nodes/other").status == 403
    assert _own(registered, "GET", "/api/v1/nodes").status == 403
    assert _own(registered, "DELETE", "/api/v1/nodes/n").status == 403
    assert registered(Request("GET", "/api/v1/nodes/n")).status == 401


def test_a_ready_node_loses_the_clusters_own_taints(
    registered: App, store: Store, faults: Faults
) -> None:
    status = {"status": node.status("n", "10.0.0.1", VERSION, ready=True)}
    assert _own(registered, "PATCH", "/api/v1/nodes/n/status", status).status == 200
    rounds = Controllers(store, faults, clock=iter((0.0, 0.0, 2.0, 2.0)).__next__)
    rounds.round()
    rounds.round()
    taints = (store.node("n") or {})["spec"]["taints"]
    assert [taint["key"] for taint in taints] == ["nvidia.com/gpu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    (made / VERSION).mkdir(parents=True)
    (made / "v1.36.4-rc1+rke2r1").mkdir()
    (made / VERSION / "file").write_bytes(b"0123456789")
    os.utime(made / VERSION / "file", (1_700_000_000, 1_700_000_000))
    return made


def test_a_channel_redirects_to_the_latest_release(folder: Path) -> None:
    app = files.releases(folder)
    answer = app(Request("GET", "/v1-release/channels/stable", headers={"host": "releases.lab"}))
    assert answer.status == 302
    assert answer.headers["Location"].endswith("/releases/tag/v1.35.7%2Brke2r1")
    assert app(Request("GET", "/v1-release/channels/v1.36")).status == 404
    listed = _json(app(Request("GET", "/v1-release/channels")))["data"]
    assert {one["id"]: one["latest"] for one in listed}["testing"] == "v1.36.4-rc1+rke2r1"


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("mirror.lab", f"/artifacts/rancher/rke2/{VERSION}/file", 200),
        ("mirror.lab", f"/rke2/{VERSION}/file", 404),
        ("mirror.lab", "/v1-release/channels", 404),
        ("releases.lab", f"/rke2/{VERSION}/file", 200),
        ("releases.lab", f"/artifacts/rancher/rke2/{VERSION}/file", 404),
    ],
)
def test_a_mirror_is_reached_by_its_name_alone(
    tmp_path: Path, host: str, path: str, status: int
) -> None:
    (tmp_path / "releases" / VERSION).mkdir(parents=True)
    (tmp_path / "releases" / VERSION / "file").write_text("x")
    request = Request("GET", path, headers={"host": host})
    assert files.releases(tmp_path / "releases")(request).status == status
    faults = Faults(tmp_path / "faults.json")
    plain = files.plain(tmp_path / "archive", tmp_path / "releases", faults)(request).status
    assert plain == (status if host == "mirror.lab" else 404)


def test_an_archive_that_has_got_something_newer_serves_it_in_the_same_place(
    tmp_path: Path, faults: Faults
) -> None:
    for folder in ("debian", "later"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Release").write_text(folder)
    app = files.plain(tmp_path, tmp_path, faults)

    def served(path: str) -> str:
        part = app(Request("GET", path, headers={"host": "archive.lab"})).body
        assert isinstance(part, Part)
        return part.path.read_text()

    assert served("/debian/Release") == "debian"
    (tmp_path / "faults.json").write_text('{"moved": {"/debian/": "/later/"}}')
    assert (served("/debian/Release"), served("/later/Release")) == ("later", "later")


@pytest.mark.parametrize(
    ("headers", "status", "offset", "length"),
    [
        ({}, 200, 0, 10),
        ({"range": "bytes=4-"}, 206, 4, 6),
        ({"range": "bytes=4-5"}, 206, 4, 2),
        ({"range": "bytes=-3"}, 206, 7, 3),
        ({"range": "bytes=4-", "if-range": "Mon, 01 Jan 2001 00:00:00 GMT"}, 200, 0, 10),
    ],
)
def test_downloads_can_be_continued(
    folder: Path, headers: dict[str, str], status: int, offset: int, length: int
) -> None:
    answer = files.archive(folder)(Request("GET", f"/{VERSION}/file", headers=headers))
    assert answer.status == status
    assert answer.body == Part((folder / VERSION / "file").resolve(), offset, length)


def test_downloads_say_what_is_unchanged_beyond_the_end_or_outside(folder: Path) -> None:
    app, path = files.archive(folder), f"/{VERSION}/file"
    since = {"if-modified-since": "Tue, 14 Nov 2023 22:13:20 GMT"}
    assert app(Request("GET", path, headers=since)).status == 304
    assert app(Request("GET", path, headers={"range": "bytes=10-"})).status == 416
    (folder.parent / "secret").touch()
    assert app(Request("GET", "/../secret")).status == 404


def test_over_the_wire_downloads_are_logged_and_ports_can_go_down(folder: Path) -> None:
    state = folder.parent / "state"
    identity = cluster.prepare(state)
    made = cluster.Cluster(state, "127.0.0.1", folder, folder, dict.fromkeys(cluster.PORTS, 0))
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        trust = ssl.create_default_context(cafile=str(identity.web_ca))
        assert _get(made.ports["releases"], "/rke2/v1.35.7%2Brke2r1/file", trust) == b"0123456789"
        (state / "faults.json").write_text('{"down": ["443"], "corrupt": ["/v1.35"]}')
        assert _get(made.ports["archive"], "/v1.35.7%2Brke2r1/file") == b"1123456789"
        with pytest.raises(OSError):  # noqa: PT011
            _get(made.ports["releases"], "/rke2/", trust)
    finally:
        made.stop()
        thread.join()
    logged = [json.loads(line) for line in (state / "requests.log").read_text().splitlines()]
    assert [(one["server"], one["status"], one["client"]) for one in logged] == [
        ("releases", 200, "127.0.0.1"), ("archive", 200, "127.0.0.1"),
    ]  # fmt: skip
    assert cluster.prepare(state) == identity
    assert identity.ca_hash == pki.ca_hash((state / "pki/server-ca.crt").read_bytes())


def _get(port: int, path: str, trust: ssl.SSLContext | None = None) -> bytes:
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=trust)
        if trust
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
