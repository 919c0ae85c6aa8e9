"""RKE2's files as RKE2 merges them (facts/rke2.md §1), and the one that is ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboot import dropin
from gpuboot.dropin import FILE, FOLDER, MAIN, Rke2Config
from gpuboot.errors import GpubootError
from gpuboot.secret import Secret
from gpuboot.step import Ok, Pending
from tests.rehearsal import pki
from tests.rehearsal.standins.rke2.agent import document
from tests.unit.node import Node, reason, settled

LABEL, TAINT = "nvidia.com/gpu=present", "nvidia.com/gpu=present:NoSchedule"
BOTH = {"node-label+": [LABEL], "node-taint+": [TAINT]}


def step(**settings: object) -> Rke2Config:
    return Rke2Config(settings, (LABEL,), (TAINT,))


def content(node: Node, wanted: Rke2Config | None = None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((wanted or step()).text(node.host))
    return found


def refused(node: Node, *, retry: bool = False) -> GpubootError:
    with pytest.raises(GpubootError) as caught:
        step().text(node.host)
    assert caught.value.code.id == "GB510"
    assert caught.value.retry is retry
    return caught.value


# -- what RKE2 makes of its files

MERGES = [
    ({MAIN: "node-label: [a=1]"}, {"node-label": ["a=1"]}),
    ({MAIN: "node-label: a=1"}, {"node-label": ["a=1"]}),
    ({MAIN: "node-label: [a=1]", "10.yaml": "node-label: [b=1]"}, {"node-label": ["b=1"]}),
    ({MAIN: "node-label: [a=1]", "10.yaml": "node-label+: [b=1]"}, {"node-label": ["a=1", "b=1"]}),
    ({"10.yaml": "node-label+: [b=1]"}, {"node-label": ["b=1"]}),
    ({"10.yaml": "node-label+: [b=1]", "20.yml": "node-label: []"}, {"node-label": []}),
    ({MAIN: "debug: true", "10.yaml": "debug: false"}, {"debug": ["false"]}),
    ({MAIN: "data-dir: /a", "10.yaml": "data-dir+: /b"}, {"data-dir": ["/a", "/b"]}),
    ({"20.yaml": "x: 2", "10.yaml": "x: 1"}, {"x": ["2"]}),
    ({".10.yaml": "x: 1", "A.YAML": "x: 2", "a.YmL": "x: 3"}, {"x": ["3"]}),
    ({"10.yaml.tmp": "x: 1", "10.json": "x: 1", "yaml": "x: 1"}, {}),
    ({"Z.yaml": "x: 1", "a.yaml": "x: 2", "é.yaml": "x: 3"}, {"x": ["3"]}),
    ({MAIN: "", "10.yaml": "# nothing\n", "20.yaml": '{"lb-server-port": 7000}'},
     {"lb-server-port": ["7000"]}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "values"), MERGES, ids=str)
def test_files_are_merged_as_rke2_merges_them(
    node: Node, files: Mapping[str, str], values: Mapping[str, list[str]]
) -> None:
    for name, text in files.items():
        node.put(name if name == MAIN else f"{FOLDER}/{name}", text)
    host = node.host
    found = dropin.merged(host, [*dropin.earlier_files(host), *dropin.later_files(host)])
    assert found.values == values


def test_ours_is_neither_among_the_earlier_nor_the_later_files(node: Node) -> None:
    for name in ("50-rancher.yaml", "60-gpuboot.yaml", "60-h.yaml", ".70.yaml", "99.yml"):
        node.put(f"{FOLDER}/{name}")
    assert dropin.earlier_files(node.host) == [f"{FOLDER}/.70.yaml", f"{FOLDER}/50-rancher.yaml"]
    assert dropin.later_files(node.host) == [f"{FOLDER}/60-h.yaml", f"{FOLDER}/99.yml"]


@pytest.mark.parametrize(
    ("text", "line"), [("a: [1", 1), ("a: 1\nb: c: d\n", 2), ("- a\n", 1), ("just words", 1)]
)
def test_a_file_that_ends_rke2_is_told_with_its_line(node: Node, text: str, line: int) -> None:
    node.put(f"{FOLDER}/50-x.yaml", text)
    assert refused(node).message.startswith(f"{FOLDER}/50-x.yaml:{line}: ")


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ({}, "/var/lib/rancher/rke2"),
        ({MAIN: "data-dir: /a"}, "/a"),
        ({MAIN: "data-dir: /a", f"{FOLDER}/90.yaml": "data-dir: /b"}, "/b"),
        ({MAIN: "data-dir:\n"}, "/var/lib/rancher/rke2"),
    ],
)  # fmt: skip
def test_the_data_folder_is_where_rke2_will_have_it(
    node: Node, files: Mapping[str, str], folder: str
) -> None:
    for name, text in files.items():
        node.put(name, text)
    assert dropin.data_dir(node.host) == folder


# -- ours


def test_it_adds_labels_and_taints_beside_the_settings(node: Node) -> None:
    found = settled(node, step(server="https://s:9345", token=Secret("horse"), debug=True))
    assert reason(found, Ok)
    assert json.loads(node.text(FILE) or "") == {
        "server": "https://s:9345", "token": "horse", "debug": True, **BOTH,
    }  # fmt: skip
    assert node.host.mode(FILE) == 0o600


@pytest.mark.parametrize(
    ("name", "text", "added"),
    [
        (MAIN, f"node-label: [{LABEL}]", {"node-taint+": [TAINT]}),
        (MAIN, f"node-label: {LABEL}\nnode-taint: ['{TAINT}']", {}),
        ("50-rancher.yaml", f'{{"node-taint": ["a=b:NoSchedule", "{TAINT}"]}}',
         {"node-label+": [LABEL]}),
        (".hidden.yaml", f"node-taint+: ['{TAINT}']", {"node-label+": [LABEL]}),
        ("50-x.yaml", "node-taint: ['nvidia.com/gpu=present:NoExecute']", BOTH),
        ("50-x.yaml", "node-label: [nvidia.com/gpu.present=true]", BOTH),
        ("90-later.yaml", "node-label+: [a=b]\nserver: x", BOTH),
    ],
)  # fmt: skip
def test_it_adds_only_what_the_files_before_it_lack(
    node: Node, name: str, text: str, added: Mapping[str, object]
) -> None:
    node.put(name if name == MAIN else f"{FOLDER}/{name}", text)
    assert content(node) == added


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("node-label: [nvidia.com/gpu=absent]", "node-label nvidia.com/gpu=absent contradicts"),
        ("node-taint: ['nvidia.com/gpu=x:NoSchedule']", "node-taint nvidia.com/gpu=x:NoSchedule"),
        ("node-taint: ['nvidia.com/gpu:NoSchedule']", "node-taint nvidia.com/gpu:NoSchedule"),
    ],
)
def test_another_value_of_ours_is_an_error_that_names_both_files(
    node: Node, text: str, theirs: str
) -> None:
    node.put(MAIN, text)
    message = refused(node).message
    assert message.startswith(f"{MAIN}: {theirs}")
    assert message.endswith("in /etc/gpuboot/config.yaml")


@pytest.mark.parametrize(("name", "retry"), [("40-x.yaml", False), ("50-rancher.yaml", True)])
def test_only_what_rancher_says_may_change_without_anybody_at_this_node(
    node: Node, name: str, *, retry: bool
) -> None:
    for text in (
        "{",
        "node-label: [nvidia.com/gpu=x]",
        "node-taint: ['nvidia.com/gpu=x:NoSchedule']",
        "node-taint: [broken]",
    ):
        node.put(f"{FOLDER}/{name}", text)
        refused(node, retry=retry)


@pytest.mark.parametrize("label", ["nvidia.com/gpu=absent", LABEL])
def test_a_node_that_had_joined_is_kept_out_by_no_other_value(node: Node, label: str) -> None:
    """The pool was changed in Rancher meanwhile; what differs is drift, told by node-joined."""
    node.put(f"{dropin.DATA}/agent/client-kubelet.crt")
    theirs = {"node-label": [label], "node-taint": ["nvidia.com/gpu=x:NoSchedule"]}
    node.put(f"{FOLDER}/50-rancher.yaml", json.dumps(theirs))
    assert content(node) == {}
    assert isinstance(settled(node, step()), Ok)


@pytest.mark.parametrize(
    "value", ["0x" + "f" * 5000, "[[a]]", "{a: b}", "2001-12-14", "1.5", "!!binary YQ=="], ids=str
)
def test_a_value_that_is_no_text_is_no_fault(node: Node, value: str) -> None:
    node.put(MAIN, f"other: {value}\n{'9' * 400}: x\n")
    assert content(node) == BOTH


@pytest.mark.parametrize(
    "value",
    ["!!int ''", "!!timestamp x", "!!bool x", "2001-99-99", "9" * 5000, "[" * 3000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_value_that_pyyaml_stumbles_over_is_told(node: Node, value: str) -> None:
    node.put(MAIN, f"other: {value}\n")
    assert refused(node).message.startswith(f"{MAIN}:")


def test_a_page_of_aliases_fills_no_memory(node: Node) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    node.put(MAIN, "\n".join([*lines, "node-label: *a11"]))
    assert content(node) == BOTH


def test_a_label_without_its_sign_is_another_value(node: Node) -> None:
    node.put(MAIN, "node-label: [nvidia.com/gpu]\n")
    assert f"{MAIN}: node-label nvidia.com/gpu= contradicts {LABEL}" in refused(node).message


def test_a_token_that_stands_where_a_label_belongs_is_not_told(node: Node) -> None:
    node.put(MAIN, f"node-label: ['nvidia.com/gpu=K10{'a' * 64}::node:correct-horse']\n")
    assert "correct-horse" not in refused(node).message


def test_the_file_that_holds_the_other_value_is_named_not_the_last_one(node: Node) -> None:
    node.put(MAIN, "node-taint: ['nvidia.com/gpu=x:NoSchedule']")
    node.put(f"{FOLDER}/50-rancher.yaml", "node-taint+: ['other:NoExecute']")
    assert refused(node).message.startswith(f"{MAIN}: ")


def test_a_taint_that_rke2_cannot_read_is_told(node: Node) -> None:
    node.put(MAIN, "node-taint: [broken]")
    assert "which ends rke2-agent" in refused(node).message


@pytest.mark.parametrize("key", ["node-label", "node-taint"])
def test_a_later_file_that_replaces_ours_is_an_error(node: Node, key: str) -> None:
    node.put(f"{FOLDER}/90-x.yaml", f"{key}: []")
    error = refused(node)
    assert error.message == f"{FOLDER}/90-x.yaml: {key} without '+' replaces what {FILE} adds"
    assert f"{key}+" in error.hint


@pytest.mark.parametrize("taint", [TAINT, "nvidia.com/gpu=other:NoSchedule"])
def test_a_taint_that_a_later_file_adds_is_not_given_twice(node: Node, taint: str) -> None:
    node.put(f"{FOLDER}/90-x.yaml", f"node-taint+: ['{taint}']")
    try:
        added = content(node).get("node-taint+", [])
    except GpubootError:
        return  # told, which is as good
    assert TAINT not in added


# -- RKE2's own parser reads what was meant

NASTY = [
    "0123", "1e3", "yes", "no", "y", "off", "~", "null", "1_000", "0x1f", "0b11", "0o17", "1:30",
    "-.inf", ".nan", "580.10", "2026-01-01", "2026-01-01T00:00:00Z", "<<", "=", "!tag", "&a", "*a",
    "# no comment", "a # b", "a: b", "key: value", "- item", "[1, 2]", "{a: b}", "'", '"', '\\"',
    "\\", "\\n", "\\u0041", "%", "@", "`", "|", ">", "?", "a=b,c", " blank ", "-", "---", "...",
    "größe", "\u65e5\u672c", "\U0001f600", "\ufeffbom", "\ufffe", "\uffff", "\U0010fffd",
    "\u00a0", "\x85", "\u2028",
]  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def read_again(text: str) -> list[dict[str, object]]:
    """The file as three parsers have it: yaml.v2's stand-in, PyYAML's YAML 1.1, and JSON."""
    return [dict(document.pairs(text)), yaml.safe_load(text), json.loads(text)]


@pytest.mark.parametrize("value", NASTY, ids=ascii)
def test_no_text_is_bent_by_yaml_1_1(node: Node, value: str) -> None:
    text = step(**{"pause-image": value, "kubelet-arg": (value, value)}).text(node.host)
    for found in read_again(text):
        assert (found["pause-image"], found["kubelet-arg"]) == (value, [value, value])


@given(st.lists(ANY_TEXT, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, database=None)
def test_no_text_at_all_is_bent_by_yaml_1_1(values: list[str]) -> None:
    for found in read_again(dropin.as_yaml({"kubelet-arg": values, "node-name": values[0]})):
        assert found == {"kubelet-arg": values, "node-name": values[0]}


@pytest.mark.parametrize("value", ["", *NASTY], ids=ascii)
def test_a_secret_is_not_bent_either(node: Node, value: str) -> None:
    for found in read_again(step(token=Secret(value)).text(node.host)):
        assert found["token"] == value


def test_numbers_and_booleans_are_what_rke2_takes_for_flags(node: Node) -> None:
    text = step(**{"lb-server-port": 7000, "debug": False, "selinux": True}).text(node.host)
    found = dict(document.pairs(text))
    assert (found["lb-server-port"], found["debug"], found["selinux"]) == ("7000", "false", "true")


def test_no_half_of_a_character_is_written(node: Node) -> None:
    text = step(**{"pause-image": "\U0001f600"}).text(node.host)
    assert not re.search(r"\\u[dD][89a-fA-F]", text)  # yaml.v2 refuses it, and RKE2 ends


# -- whose word counts


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ({}, "/ours"),
        ({MAIN: "data-dir: /theirs"}, "/ours"),
        ({f"{FOLDER}/90-x.yaml": "data-dir: /theirs"}, "/theirs"),
    ],
)
def test_the_last_file_that_names_a_data_folder_counts(
    node: Node, files: Mapping[str, str], folder: str
) -> None:
    for name, text in files.items():
        node.put(name, text)
    assert step(**{"data-dir": "/ours"}).data_dir(node.host) == folder


def test_the_certificate_tells_the_nodes_name(node: Node) -> None:
    data = "/var/lib/rancher/rke2"
    assert dropin.registered_name(node.host, data) is None
    node.put(f"{data}/agent/client-kubelet.crt", "certificate\n")
    assert dropin.registered_name(node.host, data) is None
    authority = pki.authority("rke2-client-ca@lab")
    leaf = pki.leaf(authority, "system:node:gpu-1-0badcafe", ())
    node.put(f"{data}/agent/client-kubelet.crt", leaf.certificate + authority.certificate)
    assert dropin.registered_name(node.host, data) == "gpu-1-0badcafe"


# -- whether it holds


def test_a_missing_a_changed_and_an_open_file_are_put_right(node: Node) -> None:
    assert reason(step().check(node.host), Pending) == f"{FILE} is not written"
    settled(node, step())
    node.host.path(FILE).chmod(0o644)
    assert reason(step().check(node.host), Pending) == f"{FILE} can be read by others"
    assert reason(settled(node, step()), Ok)
    node.put(FILE, "{}", mode=0o600)
    assert reason(step().check(node.host), Pending) == f"{FILE} differs"
    assert reason(settled(node, step()), Ok)


@pytest.mark.parametrize(
    ("folder", "kind"), [(None, Pending), ("/var/lib/rancher/rke2", Ok), ("/elsewhere", Pending)]
)
def test_without_its_taints_it_holds_only_once_the_node_was_registered(
    node: Node, folder: str | None, kind: type[Ok | Pending]
) -> None:
    node.put(FILE, step().text(node.host, without_taints=True), mode=0o600)
    assert "node-taint+" not in (node.text(FILE) or "")
    if folder:
        node.put(f"{folder}/agent/client-kubelet.crt")
    assert reason(step().check(node.host), kind)


def test_a_configured_data_folder_is_where_registration_is_looked_for(node: Node) -> None:
    wanted = Rke2Config({"data-dir": "/data"}, (LABEL,), (TAINT,))
    node.put("/data/agent/client-kubelet.crt")
    node.put(FILE, wanted.text(node.host, without_taints=True), mode=0o600)
    assert reason(wanted.check(node.host), Ok)
