"""Scenario folders are read strictly, filled in, and compared with what was found."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rehearsal import journal, scenario, secrecy, verdict
from tests.rehearsal.table import ScenarioError

TOKEN = "K10" + "a" * 64 + "::node:hunter2hunter2+/"
VALUES = {
    "token": TOKEN,
    "server": "https://cluster.lab:9345",
    "rke2_version": "v1.35.7+rke2r1",
    "rke2_sha256": "b" * 64,
    "archive_key": "/a.gpg",
    "toolkit_key": "/t.gpg",
    "nvidia_key": "A" * 40,
    "nvidia_new_key": "B" * 40,
    "kernel": "6.1.0-56-amd64",
    "older_kernel": "6.1.0-55-amd64",
    "proxy": "http://node:secret@proxy.lab:3128",
    "rancher_command": "curl https://rancher.lab:8443/system-agent-install.sh | sh -s - --worker",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "node.yaml": "description: a test\n",
        "config.yaml": "rke2:\n  config:\n    server: '@server@'\n",
        "user-data.yaml": "#cloud-config\nx: |\n    @config@\ny: '@token@'\n",
        "expect.yaml": "state: ready\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("path", scenario.folders(), ids=lambda path: path.name)
def test_every_scenario_that_ships_can_be_read_and_filled(path: Path) -> None:
    config, user_data = scenario.fill(scenario.load(path), VALUES)
    assert user_data.startswith("#cloud-config\n")
    assert not scenario.PLACEHOLDER.search(config)


def test_a_scenario_is_found_by_name_and_by_path(folder: Path) -> None:
    assert scenario.find("default").name == "default"
    assert scenario.find(str(folder)) == folder
    with pytest.raises(ScenarioError, match=r"nowhere is no scenario: .*default"):
        scenario.find("nowhere")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [("", "bookworm"), ("driver: real\n", "bookworm-real"),
     ("driver: real\nrelease: trixie\n", "trixie-real")],
)  # fmt: skip
def test_a_real_driver_has_an_archive_and_layers_of_its_own(
    folder: Path, keys: str, kind: str
) -> None:
    (folder / "node.yaml").write_text(f"description: a\n{keys}")
    assert str(scenario.load(folder).setup.kind) == kind


def test_the_config_is_indented_like_its_placeholder(folder: Path) -> None:
    _config, user_data = scenario.fill(scenario.load(folder), VALUES)
    assert "\n    rke2:\n      config:\n        server: 'https://cluster.lab:9345'\n" in user_data
    assert f"y: '{TOKEN}'\n" in user_data


def test_an_unknown_placeholder_names_the_file(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: '@sever@'\n")
    with pytest.raises(ScenarioError, match=r"config\.yaml: unknown placeholder @sever@"):
        scenario.fill(scenario.load(folder), VALUES)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("node.yaml", "description: a\nnouveu: idle\n", "nouveu: unknown key; did you mean n"),
        ("node.yaml", "core: true\n", "description: missing; expected a string"),
        ("node.yaml", "description: a\ncore: 'yes'\n", "core: expected true or false, found 'yes'"),
        ("node.yaml", "description: a\nnouveau: gone\n", "expected absent | idle | busy"),
        ("node.yaml", "description: a\ndisk: big\n", "disk: expected a size such as 900M or 4G"),
        ("node.yaml", "description: a\nrelease: sid\n", "release: expected bookworm | trixie"),
        ("node.yaml", "description: a\ndriver: none\n", "driver: expected stand-in | real"),
        ("node.yaml", "description: a\ndeadline: 10\n", "deadline: expected a duration such as"),
        ("node.yaml", "description: a\ngpus: [1]\n", "gpus: expected a list of mappings"),
        ("node.yaml", "description: a\ngpus: [{slot: 3}]\n", "gpus[0].slot: expected a string"),
        ("node.yaml", "- a\n", "expected a mapping"),
        ("node.yaml", "a: [\n", "node.yaml: while parsing"),
        ("expect.yaml", "{}\n", "state: missing"),
        ("expect.yaml", "state: ready\nnode: {lables: {}}\n", "node.lables: unknown key; did you"),
        ("expect.yaml", "state: ready\nfiles: {/a: {mode: 600}}\n", "/a.mode: expected a string"),
        ("expect.yaml", "state: ready\nfiles: {/a: }\n", "files./a: expected a mapping"),
        ("expect.yaml", "state: ready\njournal: ['(']\n", "'(' is no regular expression"),
        ("expect.yaml", "state: ready\nboots: two\n", "boots: expected a whole number"),
        ("acts.yaml", "- {wait: 1s}\n- {wait: 1s, during: cdi}\n", "act 2 (wait): acts with"),
        ("acts.yaml", "- {wait: 1s, durning: cdi}\n", "acts[0].durning: unknown key; did you"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_file(
    folder: Path, name: str, text: str, expected: str
) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ScenarioError) as raised:
        scenario.load(folder)
    assert name in str(raised.value)
    assert expected in str(raised.value)


# -- what is found, and what was expected -------------------------------------------------------

EXPECT = """
state: ready
exit: 0
boots: 2
reboots: {spent: 1, reasons: [nouveau holds]}
steps: {cdi: ok}
gpus: 1
node: {name: n1, ready: true, labels: {a: b}, without-labels: [c], taints: ["k=v:NoSchedule"]}
files:
  /etc/drop-in: {mode: "0600", contains: [node-label], lacks: [default-runtime]}
  /gone: {absent: true}
journal: [walk]
journal-lacks: [Traceback]
requests: [readyz]
starts-within: 20s
"""
STATUS: Mapping[str, object] = {
    "state": "ready",
    "boots": 2,
    "reboots": {"spent": 1, "reasons": ["nouveau holds 0000:03:00.0"]},
    "steps": [{"name": "cdi", "state": "ok"}],
    "gpus": [{}],
}
NODE: Mapping[str, object] = {
    "metadata": {"labels": {"a": "b"}},
    "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
FIRST, SECOND = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"


def _entry(seconds: float, unit: str, job: str, result: str, message: str) -> journal.Entry:
    return journal.Entry(FIRST.replace("-", ""), seconds, "systemd", unit, job, result, message)


JOURNAL = (
    _entry(5.0, "cloud-final.service", "start", "", "Starting cloud-final.service"),
    _entry(6.0, "gpuboot.service", "start", "done", "Started gpuboot.service - the walk"),
    _entry(66.0, "cloud-final.service", "start", "done", "Finished cloud-final.service"),
    _entry(67.0, "multi-user.target", "stop", "done", "Stopped target multi-user.target"),
)


def _found(
    folder: Path,
    *,
    status: Mapping[str, object] = STATUS,
    nodes: Mapping[str, Mapping[str, object]] | None = None,
    errors: tuple[str, ...] = (),
) -> verdict.Evidence:
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/drop-in").write_text('{"node-label+": []}')
    (root / "etc/drop-in").chmod(0o600)
    return verdict.Evidence(
        name="n1",
        status=status,
        exit=0,
        boots=[FIRST, SECOND],
        rebooted=[FIRST],
        cloud_init={"status": "done", "errors": list(errors)},
        nodes={"n1": NODE} if nodes is None else nodes,
        journal=JOURNAL,
        requests="GET /v1-rke2/readyz",
        root=root,
    )


def _differences(folder: Path, found: verdict.Evidence) -> list[str]:
    (folder / "expect.yaml").write_text(EXPECT)
    return verdict.differences(scenario.load(folder).expect, found)


def test_a_node_as_expected_has_no_differences(folder: Path) -> None:
    assert _differences(folder, _found(folder)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"state": "degraded"}, "state: expected ready / found degraded"),
        ({"boots": 3}, "boots: expected 2 / found 3"),
        ({"reboots": {"spent": 0, "reasons": []}}, "reboots.spent: expected 1 / found 0"),
        ({"steps": [{"name": "cdi", "state": "failed"}]}, "step cdi: expected ok / found failed"),
        ({"gpus": []}, "gpus: expected 1 / found 0"),
    ],
)
def test_a_status_unlike_the_expected_one_is_told(
    folder: Path, changed: Mapping[str, object], expected: str
) -> None:
    assert expected in _differences(folder, _found(folder, status={**STATUS, **changed}))


def test_a_missing_node_is_told(folder: Path) -> None:
    differences = _differences(folder, _found(folder, nodes={}))
    assert differences == ["Node n1: expected on the API server / found []"]


def test_a_node_with_other_labels_and_taints_is_told(folder: Path) -> None:
    node: Mapping[str, object] = {"metadata": {"labels": {"a": "x", "c": ""}}, "spec": {}}
    assert _differences(folder, _found(folder, nodes={"n1": {**node, "status": {}}})) == [
        "Node n1: label a: expected b / found x",
        "Node n1: expected no label c / found ",
        'Node n1: taints: expected ["k=v:NoSchedule"] / found []',
        "Node n1: ready: expected true / found false",
    ]


def test_files_are_compared_by_presence_mode_and_text(folder: Path) -> None:
    found = _found(folder)
    (found.root / "gone").touch()
    (found.root / "etc/drop-in").write_text("default-runtime: nvidia")
    (found.root / "etc/drop-in").chmod(0o644)
    assert _differences(folder, found) == [
        "mode of /etc/drop-in: expected 0600 / found 0644",
        "file /etc/drop-in: expected node-label / found no such text",
        "file /etc/drop-in: expected nothing like default-runtime / found default-runtime",
        "file /gone: expected nothing / found it",
    ]


def test_errors_of_cloud_init_are_told_even_if_it_is_done(folder: Path) -> None:
    differences = _differences(folder, _found(folder, errors=("a module failed",)))
    assert differences == ['cloud-init errors: expected [] / found ["a module failed"]']


# -- the order of events --------------------------------------------------------------------------


def test_a_reboot_after_cloud_final_is_in_order() -> None:
    assert journal.early_reboots(JOURNAL, [FIRST]) == []


def test_a_reboot_before_cloud_final_has_ended_is_told() -> None:
    hasty = [*JOURNAL[:2], _entry(7.0, "multi-user.target", "stop", "done", "Stopped"), JOURNAL[2]]
    assert len(journal.early_reboots(hasty, [FIRST])) == 1
    assert len(journal.early_reboots(JOURNAL[:2], [FIRST])) == 1


def test_a_killed_cloud_init_is_not_waited_for() -> None:
    unit = "cloud-init-main.service"
    killed = _entry(9.0, unit, "", "", f"{unit}: Failed with result 'signal'.")
    assert journal.early_reboots([*JOURNAL[:2], killed], [FIRST]) == []


def test_a_walk_that_waited_for_runcmd_is_told(folder: Path) -> None:
    late = (JOURNAL[0], JOURNAL[2], _entry(66.5, "gpuboot.service", "start", "done", "Started"))
    found = _found(folder)
    slow = verdict.Evidence(**{**vars(found), "journal": late})
    assert "walk starts after runcmd: expected 20 s / found 61.5 s" in _differences(folder, slow)


def test_what_gpuboot_says_to_a_person_is_compared(folder: Path) -> None:
    told = verdict.Evidence(**{**vars(_found(folder)), "said": "waiting: no such file [GB530]"})
    (folder / "expect.yaml").write_text('state: ready\nsays: ["no such file", "gpuboot run$"]\n')
    expect = scenario.load(folder).expect
    lines = [line for line in verdict.differences(expect, told) if "says" in line]
    assert lines == ["what gpuboot says: expected gpuboot run$ / found no such text"]


@pytest.mark.parametrize(
    "argv", ["[delete, node]", "[create, node, n1]", "[delete, pod, n1]", "[]"]
)
def test_an_administrators_act_is_one_that_the_lab_knows(folder: Path, argv: str) -> None:
    (folder / "acts.yaml").write_text(f"- kubectl: {argv}\n")
    with pytest.raises(ScenarioError, match=r"acts\[0\]\.kubectl: expected"):
        scenario.load(folder)
    (folder / "acts.yaml").write_text("- kubectl: [delete, node, n1]\n")
    assert scenario.load(folder).acts[0].name == "act 1 (kubectl)"


# -- the token ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        TOKEN,
        "hunter2hunter2+/",
        "hunter2hunter2%2B%2F",
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(b"node:hunter2hunter2+/").decode(),
        base64.b64encode(b"hunter2hunter2+/").decode(),
        base64.urlsafe_b64encode(b"x:hunter2hunter2+/").decode(),
    ],
)
def test_the_token_is_found_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "log").write_text(f"before {spelling} after")
    assert secrecy.in_files(tmp_path, [tmp_path], TOKEN, set()) == [
        "token secrecy: /log holds the token"
    ]
    assert secrecy.in_text("the journal", f"x{spelling}x", TOKEN)


def test_a_node_that_is_off_is_not_searched_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_text(TOKEN)
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    assert secrecy.in_files(gone, [gone / "run"], TOKEN, set()) == []


def test_only_root_may_read_the_files_that_hold_the_token(tmp_path: Path) -> None:
    drop_in = tmp_path / secrecy.DROP_IN.lstrip("/")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(TOKEN)
    drop_in.chmod(0o600)
    assert secrecy.in_files(tmp_path, [tmp_path], TOKEN, set()) == []
    drop_in.chmod(0o640)
    assert secrecy.in_files(tmp_path, [tmp_path], TOKEN, set()) == [
        f"token secrecy: {secrecy.DROP_IN} holds the token and has mode 0640"
    ]


def test_a_file_that_user_data_writes_may_hold_the_token() -> None:
    user_data = f"#cloud-config\nwrite_files: [{{path: /etc/token, content: '{TOKEN}'}}]\n"
    assert secrecy.told_to_write(user_data, TOKEN) == {"/etc/token"}
