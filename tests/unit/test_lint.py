"""RKE2's files and Rancher's manifests as data: each says where gpuboot complains, and how.

A case is one file (for RKE2 its config.yaml), or a folder that stands for /etc/rancher/rke2. Its
first comment says how such a file comes about; ` #! SEVERITY: TEXT` at a line's end says that
gpuboot complains of that line in these words, ` #!7 …` that it complains of line 7. Those are all.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpuboot import document, lint, pools, show
from gpuboot.cli import main
from gpuboot.explain import codes
from gpuboot.reader import Problem
from tests.rehearsal.standins.rke2.agent import document as standin
from tests.unit import words
from tests.unit.node import Node, as_nobody

DATA = Path(__file__).parents[1] / "data"
RKE2 = "/etc/rancher/rke2"
NODES = sorted((DATA / "rke2-files").iterdir())
MANIFESTS = sorted((DATA / "rancher").iterdir())
PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's, but secret in every case


def files(case: Path) -> dict[str, bytes]:
    """A case's files by their names below /etc/rancher/rke2."""
    if case.is_file():
        return {"config.yaml": case.read_bytes()}
    paths = sorted(path for path in case.rglob("*") if path.is_file())
    return {str(path.relative_to(case)): path.read_bytes() for path in paths}


def marked(name: str, content: bytes) -> list[str]:
    """The complaints a file is marked with: `file:line: severity: text`."""
    found = []
    for number, line in enumerate(content.decode().split("\n"), 1):
        parts = re.split(r" #!([0-9]*) (?=(?:error|warning|notice): )", line)[1:]
        for other, text in zip(parts[::2], parts[1::2], strict=True):
            found.append(f"{name}:{other or number}: {text.strip()}")
    return found


def said(problem: Problem) -> str:
    """A problem as a case is marked with it."""
    where, _, text = str(problem).partition(": ")
    return f"{where}: {problem.severity}: {text}"


def name_of(path: Path) -> str:
    return path.name.removesuffix(".yaml")


# -- the cases


def test_the_cases_are_many_and_most_are_marked() -> None:
    assert len(NODES) >= 40
    assert len(MANIFESTS) >= 50
    nodes = [case for case in NODES if not any(marked(*one) for one in files(case).items())]
    manifests = [case for case in MANIFESTS if not marked(case.name, case.read_bytes())]
    assert [name_of(case) for case in nodes] == ["fine", "label-as-text"]
    assert {name_of(case) for case in manifests} == {
        "runtime-selected", "startup-off", "userdata-service",
    }  # fmt: skip


def test_every_code_of_a_complaint_is_explained_and_each_is_met() -> None:
    met = {problem.code for case in MANIFESTS
           for problem in lint.manifests([(case.name, case.read_bytes())]).problems}  # fmt: skip
    assert met <= set(codes())
    assert {f"GB{number}" for number in (560, 561, 562, 563, 564, 566, 567, 568, 569)} <= met


def put(node: Node, case: Path) -> None:
    for file, content in files(case).items():
        node.put(f"{RKE2}/{file}", content, mode=0o600)


@pytest.mark.parametrize("case", NODES, ids=name_of)
def test_rke2s_files_are_told_with_their_places(node: Node, case: Path) -> None:
    put(node, case)
    found = lint.node(node.host)
    wanted = [mark for file, content in files(case).items()
              for mark in marked(f"{RKE2}/{file}", content)]  # fmt: skip
    assert sorted(map(said, found.problems)) == sorted(wanted)
    assert PASSWORD not in repr(found)
    assert node.ran == []


@pytest.mark.parametrize("case", MANIFESTS, ids=name_of)
def test_ranchers_manifests_are_told_with_their_places(case: Path) -> None:
    found = lint.manifests([(case.name, case.read_bytes())])
    assert sorted(map(said, found.problems)) == sorted(marked(case.name, case.read_bytes()))
    assert PASSWORD not in repr(found)


@pytest.mark.parametrize("case", MANIFESTS, ids=name_of)
def test_the_command_says_the_same_and_ends_by_it(case: Path) -> None:
    told = CliRunner().invoke(main, ["config", "check", "--rancher", str(case)])
    data = CliRunner().invoke(main, ["config", "check", "--rancher", "--json", str(case)])
    strict = CliRunner().invoke(main, ["config", "check", "--rancher", "--strict", str(case)])
    marks = " ".join(marked(case.name, case.read_bytes()))
    assert told.exit_code == data.exit_code == (78 if ": error: " in marks else 0)
    assert strict.exit_code == (78 if re.search(": (error|warning): ", marks) else 0)
    problems = [Problem(**problem) for problem in json.loads(data.output)["problems"]]
    assert sorted(map(said, problems)) == sorted(marked(str(case), case.read_bytes()))
    text = told.output
    for problem in problems:  # in this order
        line = f"{problem.line:>5} {problem.severity:<8} {str(problem).partition(': ')[2]}"
        assert line in text
        text = text.partition(line)[2]


# -- the files on a node

MAIN = f"{RKE2}/config.yaml"
FULL = f"K10{'a' * 64}::node:{PASSWORD}"


def told(node: Node) -> list[str]:
    """Everything that is said of a node's files, without what it is about."""
    return [f"{problem.file}:{problem.line}: {problem.severity}: {problem.message}"
            for problem in lint.node(node.host).problems]  # fmt: skip


def test_without_files_there_is_nothing_to_say(node: Node) -> None:
    assert lint.node(node.host) == lint.Checked((), ())


def test_both_configurations_are_told_in_the_order_they_are_read(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", "gpus: 1", mode=0o600)
    node.put(f"{RKE2}/config.yaml.d/70-b.yaml", "debug: maybe", mode=0o600)
    node.put(f"{RKE2}/config.yaml.d/10-a.yaml", "debug: maybe", mode=0o600)
    node.put(MAIN, "debug: maybe\nprofile: x", mode=0o600)
    found = lint.node(node.host)
    assert found.files == (
        "/etc/gpuboot/config.yaml", MAIN, f"{RKE2}/config.yaml.d/10-a.yaml",
        f"{RKE2}/config.yaml.d/70-b.yaml",
    )  # fmt: skip
    assert [problem.where for problem in found.problems] == [
        "/etc/gpuboot/config.yaml:1", f"{MAIN}:1", f"{MAIN}:2",
        f"{RKE2}/config.yaml.d/10-a.yaml:1", f"{RKE2}/config.yaml.d/70-b.yaml:1",
    ]  # fmt: skip


def test_gpuboots_own_labels_and_taints_are_compared_as_they_are_configured(node: Node) -> None:
    node.put(MAIN, "node-taint: ['nvidia.com/gpu=yes:NoSchedule']", mode=0o600)
    config = "rke2: {config: {node-taint: ['nvidia.com/gpu=yes:NoSchedule']}}"
    node.put("/etc/gpuboot/config.yaml", config, mode=0o600)
    assert told(node) == []
    node.put("/etc/gpuboot/config.yaml", "rke2: {join: none}", mode=0o600)
    assert told(node) == []


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_that_others_can_write_is_an_error(node: Node, mode: int) -> None:
    node.put(MAIN, "debug: true", mode=mode)
    assert told(node) == [f"{MAIN}:1: error: can be written by others (mode {mode:04o})"]


def test_a_folder_that_others_can_write_is_an_error_too(node: Node) -> None:
    node.put(f"{RKE2}/config.yaml.d/70-a.yaml", "debug: true", mode=0o600)
    folder = node.root / f"{RKE2}/config.yaml.d".lstrip("/")
    folder.chmod(0o777)
    wanted = "error: can be written by others (mode 0777)"
    assert told(node) == [f"{RKE2}/config.yaml.d:1: {wanted}"]


def test_keys_that_rancher_writes_are_not_doubted(node: Node) -> None:
    text = '{"some-newer-key": true, "node-label": ["rke.cattle.io/machine=x"]}'
    node.put(f"{RKE2}/config.yaml.d/50-rancher.yaml", text, mode=0o600)
    assert told(node) == []


def test_a_token_in_a_file_that_others_can_read_is_a_warning(node: Node) -> None:
    node.put(MAIN, f"debug: true\ntoken: {FULL}", mode=0o644)
    wanted = f"{MAIN}:2: warning: stands in a file that others can read (mode 0644)"
    assert told(node) == [wanted]
    node.put(MAIN, f"debug: true\ntoken: {FULL}", mode=0o600)
    assert told(node) == []
    node.put(MAIN, "debug: true", mode=0o644)
    assert told(node) == []


def test_gpuboots_own_file_with_a_secret_that_others_can_read_is_a_warning(node: Node) -> None:
    config = f"rke2: {{version: v1.35.7+rke2r1, config: {{server: 'https://c', token: '{FULL}'}}}}"
    node.put("/etc/gpuboot/config.yaml", config, mode=0o644)
    [line] = told(node)
    wanted = "/etc/gpuboot/config.yaml:1: warning: holds a secret and can be read by others"
    assert line.startswith(wanted)


def test_what_only_root_can_read_is_said_not_to_have_been_looked_at(node: Node) -> None:
    node.root.chmod(0o755)
    node.put(MAIN, "debug: maybe", mode=0o600)
    node.put(f"{RKE2}/config.yaml.d/70-a.yaml", "debug: maybe", mode=0o644)
    with as_nobody():
        lines = told(node)
    assert lines == [
        f"{MAIN}:1: warning: only root can read it, so it was not looked at",
        f"{RKE2}/config.yaml.d/70-a.yaml:1: error: is neither true nor false",
    ]


def test_a_folder_that_only_root_can_list_is_told_too(node: Node) -> None:
    node.root.chmod(0o755)
    node.put(f"{RKE2}/config.yaml.d/70-a.yaml", "debug: maybe", mode=0o644)
    folder = node.root / f"{RKE2}/config.yaml.d".lstrip("/")
    folder.chmod(0o700)
    with as_nobody():
        lines = told(node)
    wanted = "warning: only root can read it, so it was not looked at"
    assert lines == [f"{RKE2}/config.yaml.d:1: {wanted}"]


def test_a_dangling_link_ends_rke2_and_a_folder_does_not(node: Node) -> None:
    node.link(f"{RKE2}/config.yaml.d/70-a.yaml", "/nowhere")
    node.put(f"{RKE2}/config.yaml.d/80-b.yaml/inside", "x")
    wanted = "error: cannot be read, which ends rke2-agent"
    assert told(node) == [f"{RKE2}/config.yaml.d/70-a.yaml:1: {wanted}"]


def test_a_file_of_another_character_set_is_told(node: Node) -> None:
    node.put(MAIN, b"debug: true\n# \xff", mode=0o600)
    [line] = told(node)
    assert line.startswith(f"{MAIN}:2: error: holds bytes that are not UTF-8")


@pytest.mark.parametrize(
    "program",
    ["/usr/bin/nvidia-container-runtime", "/usr/local/nvidia/toolkit/nvidia-container-runtime",
     "/srv/rke2/bin/nvidia-container-runtime", "/opt/own/nvidia-container-runtime"],
)  # fmt: skip
def test_a_runtime_is_found_wherever_rke2_looks(node: Node, program: str) -> None:
    node.put(MAIN, "default-runtime: nvidia\ndata-dir: /srv/rke2", mode=0o600)
    node.put("/etc/default/rke2-agent", "# PATH=/opt\nPATH='/opt/own:/bin'\n")
    assert len(told(node)) == 1
    node.put(program)
    assert told(node) == []


def test_what_the_walk_has_written_itself_is_fine(node: Node) -> None:
    node.put(f"{RKE2}/config.yaml.d/50-rancher.yaml", '{"node-label": ["a=b"]}', mode=0o600)
    text = (
        '{"node-label+": ["nvidia.com/gpu=present"], "node-taint+": ["nvidia.com/gpu=x:NoExecute"]}'
    )
    node.put(f"{RKE2}/config.yaml.d/60-gpuboot.yaml", text, mode=0o600)
    assert told(node) == []


def test_a_taint_that_the_pool_got_later_is_mended_by_a_run(node: Node) -> None:
    taint = '["nvidia.com/gpu=present:NoSchedule"]'
    node.put(f"{RKE2}/config.yaml.d/50-rancher.yaml", f'{{"node-taint": {taint}}}', mode=0o600)
    node.put(f"{RKE2}/config.yaml.d/60-gpuboot.yaml", f'{{"node-taint+": {taint}}}', mode=0o600)
    [problem] = lint.node(node.host).problems
    assert problem.file.endswith("60-gpuboot.yaml")
    assert (problem.code, problem.severity) == ("GB562", "error")
    assert (problem.hint or "").endswith("then: gpuboot run")


# -- the command


def check(*argv: str, stdin: bytes = b"") -> tuple[int, str]:
    result = CliRunner().invoke(main, ["config", "check", *argv], input=io.BytesIO(stdin))
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output


def test_a_manifest_may_come_from_standard_input() -> None:
    content = (DATA / "rancher/label-node-role.yaml").read_bytes()
    code, output = check("--rancher", "-", stdin=content)
    assert code == 78
    assert output.startswith("stdin\n   14 error    machinePools[gpu].labels: ")
    assert output.endswith("\nnot valid: 2 errors in 1 file\n")


def test_a_machine_config_is_found_in_another_file(tmp_path: Path) -> None:
    cluster, _, config = (DATA / "rancher/userdata-wait.yaml").read_bytes().partition(b"---\n")
    (tmp_path / "cluster.yaml").write_bytes(cluster)
    (tmp_path / "config.yaml").write_bytes(config)
    files = [str(tmp_path / name) for name in ("cluster.yaml", "config.yaml")]
    code, output = check("--rancher", files[0])
    assert (code, "its machine config is not in these files" in output) == (0, True)
    code, output = check("--rancher", *files)
    assert (code, "its machine config is not in these files" in output) == (78, False)


def test_warnings_alone_are_valid_unless_strict() -> None:
    name = str(DATA / "rancher/drain-unset.yaml")
    code, output = check("--rancher", name)
    assert (code, output.splitlines()[-1]) == (0, "valid: 1 warning in 1 file")
    code, output = check("--rancher", "--strict", name)
    assert (code, output.splitlines()[-1]) == (78, "not valid: 1 error in 1 file")


def test_nothing_wrong_is_one_line() -> None:
    name = str(DATA / "rancher/startup-off.yaml")
    assert check("--rancher", name) == (0, f"valid: {name}\n")


def test_rancher_without_a_file_is_wrong_usage() -> None:
    code, output = check("--rancher")
    assert code == 2
    assert "--rancher needs FILES" in output


def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    for argv in (["--rancher"], []):
        code, output = check(*argv, "/proc/self/mem")  # to be opened, not to be read
        assert code == 2
        assert "/proc/self/mem cannot be read: Input/output error" in output
        code, output = check(*argv, str(tmp_path / "none.yaml"))
        assert code == 2
        assert "does not exist" in output


def test_the_data_have_files_severity_hint_and_code() -> None:
    name = str(DATA / "rancher/label-node-role.yaml")
    code, output = check("--rancher", "--json", name)
    data = json.loads(output)
    assert (code, data["schema"], data["valid"], data["files"]) == (78, 1, False, [name])
    first = data["problems"][0]
    assert first == {
        "where": f"{name}:14", "key": "machinePools[gpu].labels", "severity": "error",
        "code": "GB561", "expected": None,
        "message": "label node-role.kubernetes.io/gpu is refused by the kubelet: no node may set it"
                   " itself; the node never joins",
        "hint": "take it out; once the node has joined: kubectl label node NODE"
                " node-role.kubernetes.io/gpu=true",
    }  # fmt: skip


# -- how it looks on a terminal


def test_long_lines_are_broken_below_their_own_column() -> None:
    found = lint.manifests(
        [("c.yaml", (DATA / "rancher/label-node-role.yaml").read_bytes())]
    ).problems
    lines = [click.unstyle(line) for line in show.problems(found, width=80).splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[:4] == [
        "c.yaml",
        "   14 error    machinePools[gpu].labels: label node-role.kubernetes.io/gpu is",
        "               refused by the kubelet: no node may set it itself; the node never",
        "               joins [GB561]",
    ]
    assert "               next: take it out; once the node has joined: kubectl label node" in lines


def test_what_is_too_long_for_any_line_is_left_whole() -> None:
    long = "x" * 100
    lines = show.problems([Problem("a:1", "", long)], width=80).splitlines()
    assert any(long in line for line in lines)


# -- as yaml.v2 and Go read it


def value(text: str) -> document.Value:
    """The value of a key, as it stands in a file."""
    found = document.read("a.yaml", f"a: {text}\n")
    assert not isinstance(found, Problem)
    inside = found[0].get("a")
    assert inside
    return inside


PLAIN = [text for text in words.SCALARS if re.fullmatch(r"[\w.+-]{0,99}(?<!-)", text, re.ASCII)]


@pytest.mark.parametrize("text", [*PLAIN, "on", "N", "0123", "-0b11", "1_000", "1e3", "5.", ".5"])
def test_a_plain_scalar_is_read_as_the_stand_in_for_rke2_reads_it(text: str) -> None:
    assert value(text).printed == standin.bent(text)


@pytest.mark.parametrize("text", PLAIN)
def test_a_quoted_scalar_is_read_as_it_is(text: str) -> None:
    assert value(f'"{text}"').printed == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("90s", 90), ("100ms", 0.1), ('"0"', 0),
     ("0s", 0), (".5m", 30), ("0", None), ("600", None), ("10", None), ("10 m", None), ("", None),
     ("m", None), ("10m5", None), ("-1m", None), ("1d", None), ("[10m]", None), ("tenm", None)],
)  # fmt: skip
def test_a_duration_is_read_as_go_reads_it(text: str, seconds: float | None) -> None:
    assert pools.duration(value(text)) == seconds


def test_the_user_data_we_ship_for_rancher_is_fine() -> None:
    text = (DATA.parents[1] / "cloud-init/rancher-pool.yaml").read_text()
    body = "".join(f"  {line}\n" for line in text.splitlines())
    case = (DATA / "rancher/userdata-service.yaml").read_text()
    content = f"{case.partition('cloudConfig: |')[0]}cloudConfig: |\n{body}"
    assert lint.manifests([("c.yaml", content.encode())]).problems == ()
    wrong = content.replace("[gpuboot, run]", "[gpuboot, run, --wait]")
    assert len(lint.manifests([("c.yaml", wrong.encode())]).problems) == 1
