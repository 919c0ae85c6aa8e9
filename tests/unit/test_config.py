"""The configuration: what it takes, what it refuses, and that it shows what it took."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboot import config, kinds, reader
from gpuboot.config import Config, ConfigError
from gpuboot.reader import Reader
from gpuboot.secret import Secret
from gpuboot.settings import given as given_settings
from tests.unit.node import Node

HASH = "a" * 64
PASSWORD = "correct-horse-battery"  # noqa: S105 - nobody's
JOIN = f"K10{HASH}::node:{PASSWORD}"
SERVER = "https://cluster:9345"
AGENT = f'server: "{SERVER}", token: "{JOIN}"'


def read(*texts: str) -> tuple[Config, list[str]]:
    """What texts say, as files a.yaml, b.yaml …, and what is wrong with them."""
    reading = Reader()
    for name, text in zip("abcdef", texts, strict=False):
        reading.add(f"{name}.yaml", text)
    found = config.parse(reading)
    return found, [str(problem) for problem in reading.problems]


def good(*texts: str) -> Config:
    found, problems = read(*texts)
    assert problems == []
    return found


def test_an_empty_file_is_a_rancher_node_with_every_default() -> None:
    found = good("")
    assert found == Config()
    assert found.mode == "rancher"
    assert found.rke2.config.node_taint == ("nvidia.com/gpu=present:NoSchedule",)
    assert (found.gpu.wait, found.deadline, found.reboot.budget) == (900.0, 2700.0, 3)


@pytest.mark.parametrize("text", ["---\n", "---\n# nothing yet\n", "---\n...\n", "# a\n\n", "~"])
def test_a_file_without_any_key_is_an_empty_one(text: str) -> None:
    assert good(text) == Config()


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (f"rke2: {{config: {{{AGENT}}}}}", "agent"),
        (f"rke2: {{join: agent, config: {{{AGENT}}}}}", "agent"),
        ("rke2: {join: rancher}", "rancher"),
        ("rke2: {join: none}", "none"),
        (f"rke2: {{join: none, config: {{{AGENT}}}}}", "none"),
    ],
)
def test_the_mode_follows_join_and_server(text: str, mode: str) -> None:
    assert good(text).mode == mode


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("driver: {branch: 580.10}", "580.10"),
        ("driver: {branch: 580}", "580"),
        ('driver: {branch: "535"}', "535"),
        ("driver: {branch: 580.178.04}", "580.178.04"),
        ("driver: {branch: auto}", None),
    ],
)
def test_a_number_stays_the_text_that_was_written(text: str, branch: str | None) -> None:
    assert good(text).driver.branch == branch


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("15m", 900.0), ("1h", 3600.0), ("0s", 0.0)]
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert good(f"gpu: {{wait: {text}}}").gpu.wait == seconds


@pytest.mark.parametrize(
    "text", ["15", "15 m", "1.5h", "-1s", "15M", "1d", "", "1h30m", "9999999s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    _, problems = read(f'gpu: {{wait: "{text}"}}')
    assert problems == [
        (
            f"a.yaml:1: gpu.wait: {text!r} is not a duration;"
            " expected a duration such as 90s, 15m or 1h"
        )
    ]


@pytest.mark.parametrize("text", ["0s", "121s", "3m", "1h"])
def test_an_interval_that_the_monitors_watchdog_would_not_wait_for_is_refused(text: str) -> None:
    _, problems = read(f"monitor: {{interval: {text}}}")
    wrong = "short" if text == "0s" else "long"
    told = "expected a duration between 1s and 2m, such as 15s"
    assert problems == [f"a.yaml:1: monitor.interval: {text!r} is too {wrong}; {told}"]
    unit = (Path(__file__).parents[2] / "systemd/gpuboot-monitor.service").read_text()
    watchdog = re.search(r"^WatchdogSec=(\d+)min$", unit, re.MULTILINE)
    assert watchdog
    assert int(watchdog[1]) * 60 > 2 * kinds.LONGEST


@pytest.mark.parametrize("word", ["yes", "no", "on", "True", "1", "~"])
def test_only_true_and_false_are_booleans(word: str) -> None:
    assert len(read(f"reboot: {{allow: {word}}}")[1]) == 1


# -- several files


def test_a_later_file_merges_maps_and_replaces_everything_else() -> None:
    found = good(
        "reboot: {allow: false, budget: 1}\nproxy: {no-proxy: [a, b]}\ngpu: {count: 2}\n",
        "reboot: {budget: 2}\nproxy: {no-proxy: [c]}\n",
        "gpu: {model: T4}\n",
    )
    assert found.reboot == config.Reboot(allow=False, budget=2)
    assert found.proxy.no_proxy == ("c",)
    assert found.gpu == config.Gpu(count=2, model="T4")


def test_a_problem_names_the_file_whose_value_counts() -> None:
    _, problems = read("gpu:\n  count: 2\n", "# later\ngpu:\n\n  count: many\n")
    assert problems[0].startswith("b.yaml:4: gpu.count: 'many'")


def test_a_map_over_a_value_and_a_value_over_a_map_are_problems() -> None:
    assert read("gpu: 1", "gpu: {count: 1}")[0].gpu.count == 1
    assert read("gpu: {count: 1}", "gpu: 1")[1] == [
        "b.yaml:1: gpu: is no map; expected keys below it"
    ]


def test_what_a_later_file_replaces_is_no_longer_given() -> None:
    first = f"rke2: {{join: agent, config: {{{AGENT}}}}}"
    assert read(first, "rke2: {config: ~}")[1] == [
        "b.yaml:1: rke2.config.server: is not set; expected the supervisor, https://HOST:9345",
        "b.yaml:1: rke2.config: has neither token-file nor token; expected one of the two",
    ]


# -- what is refused, and how it is said

PROBLEMS = [
    ("gpus: {}", ":1: gpus: unknown key, did you mean gpu?"),
    ("\n\ngpu:\n  cuont: 1", ":4: gpu.cuont: unknown key, did you mean count?"),
    ("toolkit: {colour: red}", ":1: toolkit.colour: unknown key; expected version"),
    ("rke2: {config: {node-lable: []}}", "unknown key, did you mean node-label?"),
    ("gpu: {count: 1}\ngpu: {model: T4}", ":2: gpu: stands twice in this file"),
    ("gpu: {count: 1, count: 2}", ":1: gpu.count: stands twice in this file"),
    ("a: &x {}\ngpu: *x", ":2: aliases (*name) are not allowed"),
    ("gpu:\n  count: [1, 2", ":2: "),
    ("gpu:\n\t- x", ":2: found character '\\t' that cannot start any token"),
    ("- a\n- b", ":1: is no map; expected key: value"),
    ("just words", ":1: is no map"),
    ("? [a]\n: b", ":1: a key must be a word"),
    ("gpu: {}\n'': 1", ":2: a key must be a word"),
    ("gpu: \x07", ":1: special characters are not allowed; expected YAML"),
    ("gpu:\n  model: [a,\n", "a.yaml:2: expected the node content"),
    ('gpu: "\n\n', "a.yaml:2: found unexpected end of stream"),
    ("gpu: 1\r\x85\x00", "a.yaml:3: special characters are not allowed"),
    ('"": 1', "a.yaml:1: a key must be a word"),
    ('"a\\n\\e\\ud800": 1', r"a.yaml:1: a\n\x1b\ud800: unknown key"),
    ("gpu: 3", ":1: gpu: is no map; expected keys below it"),
    ("gpu: [a]", ":1: gpu: is no map"),
    ("gpu: {count: {a: 1}}", ":1: gpu.count: is a map; expected a whole number from 1 to 16"),
    ("gpu: {count: [1]}", ":1: gpu.count: is a list"),
    ("gpu: {count: 0}", "gpu.count: '0' is not in range"),
    ("gpu: {count: 17}", "gpu.count: '17' is not in range"),
    ("gpu: {count: 0x2}", "gpu.count: '0x2' is not in range"),
    ("gpu: {count: 1.0}", "gpu.count: '1.0' is not in range"),
    ('gpu: {model: ""}', "gpu.model: is empty or holds a control character or line break"),
    ('gpu: {model: "a\\nb"}', "gpu.model: is empty or holds a control character or line break"),
    ("driver: {source: nvidai}", "unknown value 'nvidai', did you mean nvidia?"),
    ("driver: {branch: newest}", "driver.branch: 'newest' does not fit"),
    ("toolkit: {version: 1.20}", "toolkit.version: '1.20' does not fit"),
    ("proxy: {no-proxy: host}", "proxy.no-proxy: is no list; expected a list of: a text"),
    ("proxy: {no-proxy: [{a: b}]}", "proxy.no-proxy: has an item that is no single value"),
    ("rke2: {version: 1.35.7}", "rke2.version: '1.35.7' does not fit"),
    ("rke2: {join: agent, config: {server: http://a, token: abcd}}", "no https address"),
    ("sources: {apt: {url: ftp://a/b}}", "sources.apt.url: 'ftp://a/b' is no https or http"),
    ("sources: {apt: {url: debian}}", "sources.apt.url: 'debian' is no https or http address"),
    ("sources: {apt: {key: 1234}}", "is neither 40 hex digits nor an absolute path"),
    ("monitor: {textfile: here}", "monitor.textfile: 'here' is no absolute path"),
    ("proxy: {http: '  '}", "proxy.http: is empty"),
    (
        "rke2: {config: {node-label: [node-role.kubernetes.io/gpu=true]}}",
        "is refused by the kubelet: no node may set it itself; list it under rke2.admin-labels",
    ),
    ("rke2: {config: {node-taint: ['a=b:Never']}}", "has none of the effects NoSchedule,"),
    ("rke2: {join: none, config: {node-name: a_b}}", "'a_b' is no valid node name"),
]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    _, problems = read(text)
    assert any(message in problem for problem in problems), problems
    assert all(problem.startswith("a.yaml:") for problem in problems), problems


RULES = [
    ("rke2: {join: agent}", "rke2.config.server: is not set"),
    ("rke2: {join: agent}", "rke2.config: has neither token-file nor token"),
    (f"rke2: {{config: {{{AGENT}, token-file: /t}}}}", "rke2.config.token: stands beside token-f"),
    (
        f"rke2: {{config: {{{AGENT}, node-external-ip: [10.0.0.1], cloud-provider-name: x}}}}",
        "rke2.config.node-external-ip: cannot stand beside a cloud provider",
    ),
    ("rke2: {version: v1.35.7+rke2r1}", "rke2.version: belongs to agent mode: Rancher installs"),
    ("rke2: {channel: stable}", "rke2.channel: belongs to agent mode"),
    (f"rke2: {{sha256: {HASH}}}", "rke2.sha256: belongs to agent mode"),
    ("rke2: {config: {debug: true}}", "rke2.config.debug: belongs to agent mode: in rancher mode"),
    (f'rke2: {{config: {{token: "{JOIN}"}}}}', "rke2.config.token: belongs to agent mode"),
    (
        f"rke2: {{version: v1.35.7+rke2r1, channel: stable, config: {{{AGENT}}}}}",
        "rke2.channel: stands beside rke2.version; expected one of the two",
    ),
    (f"rke2: {{sha256: {HASH}, config: {{{AGENT}}}}}", "rke2.sha256: pins a tarball but rke2.ver"),
    (
        "rke2: {config: {node-taint: ['a=b:NoExecute', 'a=c:NoExecute']}}",
        "taint a:NoExecute stands twice, which ends rke2-agent",
    ),
    ("rke2: {config: {node-label: [a=b, a=c]}}", "rke2.config.node-label: label a stands twice"),
]


@pytest.mark.parametrize(("text", "message"), RULES)
def test_keys_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    _, problems = read(text)
    assert any(message in problem for problem in problems), problems


def test_the_same_taint_with_two_effects_is_allowed() -> None:
    taints = ("a=b:NoExecute", "a=b:NoSchedule")
    assert (
        good(f"rke2: {{config: {{node-taint: {list(taints)}}}}}").rke2.config.node_taint == taints
    )


def test_every_problem_is_told_at_once() -> None:
    _, problems = read("gpus: 1\ndriver: {branch: x}\nrke2: {join: agent}\n", "- a")
    assert len(problems) == 5


@pytest.mark.parametrize(
    "text",
    ['rke2: {config: {server: "https://[", token-file: /t}}', 'sources: {apt: {url: "https://a]b"}}',
     'gpu: {model: "\\UFFFFFFFF"}', 'gpu: {model: "\\U00110000"}'],
)  # fmt: skip
def test_an_address_or_escape_that_python_chokes_on_is_a_problem(text: str) -> None:
    assert len(read(text)[1]) == 1


# What no file, command or address can hold.
IMPOSSIBLE = [r"\0", r"\e", r"\n", r"\x9b", r"\L", r"\ud800"]
ONE_LINE = ["gpu: {{model: '{}'}}", "monitor: {{textfile: '/a{}b'}}", "proxy: {{http: 'a{}b'}}",
            "sources: {{apt: {{url: '/a{}b'}}}}", "sources: {{apt: {{url: 'https://a/{}b'}}}}",
            "sources: {{apt: {{key: '/a{}b'}}}}",
            "rke2: {{join: none, config: {{token: 'a{}b'}}}}"]  # fmt: skip


@pytest.mark.parametrize("form", ONE_LINE)
@pytest.mark.parametrize("char", IMPOSSIBLE)
def test_a_text_that_no_line_can_hold_is_refused(form: str, char: str) -> None:
    assert len(read(form.replace("'", '"').format(char))[1]) == 1


def test_only_plain_digits_are_a_version() -> None:
    assert len(read("toolkit: {version: \u0661.20.0}")[1]) == 1


@pytest.mark.parametrize(("content", "line"), [(b"#\v\xff", 1), (b"#\r\n\n\xff\n", 3)])
def test_a_byte_that_is_no_utf_8_is_told_with_its_line(content: bytes, line: int) -> None:
    reading = Reader()
    reading.add("a.yaml", content)
    assert [problem.where for problem in reading.problems] == [f"a.yaml:{line}"]


WORDS = ["gpu", "rke2", "config", "node-label", "count", "wait", "proxy", "sources", "apt", "url"]
VALUES = st.one_of(
    st.sampled_from(["auto", "-", "15m", "true", "1", "/a", "K10::", "a=b", "a:NoSchedule", ""]),
    st.text(max_size=8),
)
DOCUMENTS = st.recursive(
    VALUES,
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.sampled_from(WORDS), below, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(alphabet=st.characters(exclude_characters="\\"), max_size=60))
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    read(text)


@settings(max_examples=50, deadline=None, database=None)
@given(DOCUMENTS)
def test_no_document_at_all_breaks_the_reader(document: object) -> None:
    _, problems = read(json.dumps(document))
    assert all(":" in problem for problem in problems)


# -- shown again

EXAMPLES = [
    "",
    "gpu: {count: 2, model: 10de:1eb8, wait: 90s}\ndriver: {branch: 580.10, source: nvidia}",
    "rke2: {join: none}\nreboot: {allow: false, budget: 0}\ndeadline: 5400s",
    "sources: {apt: {url: http://mirror/debian/, key: /k.gpg}, rke2: {url: /srv/rke2}}",
    "sources: {apt: {url: /}}",
    (
        f"rke2: {{channel: v1.35, config: {{server: '{SERVER}', token-file: /etc/t, debug: false,"
        " lb-server-port: 7000, node-ip: [10.0.0.1], kubelet-arg: ['max-pods=50'], profile: cis}}"
    ),
    (
        "rke2: {images: [a.tar.zst, b.tar.gz], node-password-file: /p, config: {token-file: /t,"
        f" server: '{SERVER}', data-dir: /data/, with-node-id: true, default-runtime: nvidia,"
        " kube-proxy-extra-mount: ['/a:/b:ro'], kube-proxy-extra-env: [A=b], node-ip: [10.0.0.1,"
        " 'fd00::1'], control-plane-resource-limits: [kube-proxy-cpu=1]}}"
    ),
    "toolkit: {version: 1.20.0-1}\nmonitor: {interval: 1m, textfile: /t.prom}",
    "rke2: {admin-labels: [node-role.kubernetes.io/gpu=true]}\nproxy: {no-proxy: [.lan, 10/8]}",
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_effective_configuration_says_the_same_when_read_again(text: str) -> None:
    found = good(text)
    assert good(yaml.safe_dump(config.effective(found))) == found


@pytest.mark.parametrize("name", ["node-label", "node-taint"])
def test_a_list_that_was_emptied_is_shown_as_empty(name: str) -> None:
    found = good(f"rke2: {{config: {{{name}: []}}}}")
    assert good(yaml.safe_dump(config.effective(found))) == found


def test_the_effective_configuration_hides_secrets() -> None:
    text = f"rke2: {{config: {{{AGENT}}}}}\nproxy: {{https: 'http://me:{PASSWORD}@proxy:3128'}}"
    shown = json.dumps(config.effective(good(text)))
    assert PASSWORD not in shown
    assert shown.count("<secret>") == 2


def test_given_are_the_settings_that_are_no_defaults() -> None:
    agent = good(f"rke2: {{config: {{{AGENT}, node-label: [a=b]}}}}").rke2.config
    assert given_settings(agent) == {
        "server": SERVER, "token": Secret(JOIN), "node-label": ("a=b",),
    }  # fmt: skip


# -- the schema

SCHEMA: Mapping[str, Any] = reader.schema(Config)


def valid(document: object) -> bool:
    return not list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("text", [text for text in EXAMPLES if text])
def test_what_the_reader_takes_the_schema_takes(text: str) -> None:
    assert valid(yaml.safe_load(text))
    assert valid(config.effective(good(text)))


@pytest.mark.parametrize(
    "document",
    [
        {"gpus": {}}, {"gpu": 1}, {"gpu": {"count": 0}}, {"gpu": {"count": "many"}},
        {"gpu": {"wait": "soon"}}, {"driver": {"branch": "newest"}}, {"driver": {"source": "x"}},
        {"reboot": {"allow": "yes"}}, {"rke2": {"config": {"node-label": "a=b"}}},
        {"rke2": {"config": {"server": "http://a"}}}, {"monitor": {"textfile": "x"}}, [],
    ],
    ids=str,
)  # fmt: skip
def test_what_the_reader_refuses_the_schema_refuses(document: object) -> None:
    assert not valid(document)
    assert read(json.dumps(document))[1]


def test_every_key_is_documented_with_its_default() -> None:
    rows = {key: (expected, default) for key, expected, default, _ in reader.documentation(Config)}
    assert rows["gpu.wait"] == ("a duration such as 90s, 15m or 1h", "15m")
    assert rows["gpu.count"] == ("a whole number from 1 to 16, or auto", "auto")
    assert rows["reboot.allow"] == ("true or false", "true")
    assert rows["rke2.config.node-label"][1] == "[nvidia.com/gpu=present]"
    assert rows["proxy.http"][1] == "-"
    assert all(meaning for *_, meaning in reader.documentation(Config))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (90, "90s"), (900, "15m"), (3600, "1h"), (5400, "90m")]
)
def test_a_duration_is_shown_in_its_largest_unit(seconds: float, text: str) -> None:
    assert reader.duration(seconds) == text


# -- secrets

WRONG_PLACES = [
    "gpu: {{count: '{0}'}}", "gpu: {{wait: '{0}'}}", "driver: {{source: '{0}'}}", "'{0}': 1",
    "rke2: {{config: {{node-label: ['{0}']}}}}", "rke2: {{config: {{node-name: '{0}'}}}}",
    "rke2: {{config: {{server: '{0}'}}}}", "rke2: {{version: '{0}'}}", "'{0}'",
    "sources: {{apt: {{key: '{0}'}}}}", "monitor: {{textfile: '{0}'}}",
    "rke2: {{config: {{node-taint: ['{0}']}}}}", "gpu: {{model: '{0}'}}", "gpu: {{count: '{0} x'}}",
    "sources: {{apt: {{url: 'https://[{0}]'}}}}", "proxy: {{no-proxy: ['{0}']}}",
    "rke2: {{config: {{resolv-conf: /etc/{0}}}}}",
]  # fmt: skip


ODD = [
    f"K10{HASH}::node:a'{PASSWORD}", f"K10{HASH}::node: {PASSWORD}", f"K10{HASH}:node:{PASSWORD}",
    f"K10...::{PASSWORD}", f"https://me:a/{PASSWORD}@b", f"https://me:a@{PASSWORD}@b",
    f"https://:{PASSWORD}@b", f"me:a {PASSWORD}@b",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("form", ["gpu: {{count: {0}}}", "{0}: 1"])
def test_a_secret_of_an_odd_form_under_a_wrong_key_is_not_quoted(form: str, text: str) -> None:
    _, problems = read(form.format(json.dumps(text)))
    assert len(problems) == 1
    assert PASSWORD not in problems[0]


def test_an_exclamation_mark_in_a_password_without_quotes_tells_no_part_of_it() -> None:
    _, problems = read(f"rke2: {{config: {{token: !{PASSWORD}!x y}}}}")
    assert problems == ["a.yaml:1: found undefined tag; expected YAML"]


@pytest.mark.parametrize("form", WRONG_PLACES)
def test_a_token_under_a_wrong_key_is_not_quoted(form: str) -> None:
    _, problems = read(form.format(JOIN))
    assert problems
    assert PASSWORD not in "\n".join(problems)


def test_a_bootstrap_token_under_a_wrong_key_is_not_quoted() -> None:
    for text in ("abcdef.0123456789abcdef", '"\\tabcdef.0123456789abcdef"'):
        _, problems = read(f"driver: {{source: {text}}}")
        assert "0123456789abcdef" not in problems[0]


@pytest.mark.parametrize(
    "text", [f"K10abc::node:{PASSWORD}", f"K10{HASH}:node:{PASSWORD}", f"{PASSWORD} {PASSWORD}", ""]
)
def test_a_malformed_token_is_refused_without_being_quoted(text: str) -> None:
    _, problems = read(f"rke2: {{config: {{server: '{SERVER}', token: '{text}'}}}}")
    assert len(problems) >= 1
    assert PASSWORD not in "\n".join(problems)


def test_a_password_that_yaml_takes_for_a_tag_is_not_quoted() -> None:
    _, problems = read("proxy:\n  http: !correct!horse\n")
    assert problems == ["a.yaml:2: found undefined tag; expected YAML"]


@pytest.mark.parametrize("brackets", ["[" * 3000, "{a: " * 3000, "[" * 101 + "]" * 101])
def test_brackets_nested_without_end_are_told_with_their_line(brackets: str) -> None:
    _, problems = read(f"node:\n  labels: {brackets}\n")
    assert problems == ["a.yaml:2: brackets are nested more than 100 deep; expected YAML"]


def test_a_password_in_an_address_is_refused_without_being_quoted() -> None:
    _, problems = read(f"sources: {{apt: {{url: 'https://me:{PASSWORD}@mirror/debian'}}}}")
    assert problems == [
        (
            "a.yaml:1: sources.apt.url: holds a user or password, which belong elsewhere;"
            " expected an https or http address, or a local folder, or -"
        )
    ]


def test_a_token_written_as_a_block_loses_its_line_break() -> None:
    found = good(f"rke2:\n  config:\n    server: {SERVER}\n    token: |\n      {JOIN}\n")
    assert found.rke2.config.token == Secret(JOIN)


# -- on the node


def problems_of(node: Node) -> Sequence[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(node.host)
    assert caught.value.code.id == "GB001"
    return [str(problem) for problem in caught.value.problems]


def test_without_a_file_the_defaults_hold(node: Node) -> None:
    assert config.load(node.host) == Config()
    assert config.files(node.host) == []


def test_drop_ins_are_read_after_the_file_in_the_order_of_their_names(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", "gpu: {count: 1, model: A}", mode=0o600)
    node.put("/etc/gpuboot/config.d/20.yaml", "gpu: {count: 3}", mode=0o600)
    node.put("/etc/gpuboot/config.d/10.yaml", "gpu: {count: 2, wait: 1s}", mode=0o600)
    node.put("/etc/gpuboot/config.d/30.yaml.bak", "gpu: {count: 4}")
    assert config.load(node.host).gpu == config.Gpu(count=3, model="A", wait=1.0)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(node: Node, mode: int) -> None:
    node.put("/etc/gpuboot/config.d/x.yaml", "", mode=mode)
    assert problems_of(node) == [
        f"/etc/gpuboot/config.d/x.yaml:1: can be written by others (mode {mode:04o}); expected 0600"
    ]


def test_a_file_that_root_does_not_own_is_refused(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", "", mode=0o600)
    node.host.owner += 1
    assert "belongs to user id" in problems_of(node)[0]


def test_secrets_are_masked_from_then_on_even_if_the_file_is_wrong(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", f"gpus: 1\nrke2: {{config: {{{AGENT}}}}}", mode=0o600)
    problems_of(node)
    assert node.host.mask(f"password {PASSWORD}") == "password <secret>"


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_a_secret_that_others_can_read_is_warned_of(node: Node, mode: int, count: int) -> None:
    node.put("/etc/gpuboot/config.yaml", f"rke2: {{config: {{{AGENT}}}}}", mode=mode)
    assert len(config.warnings(node.host, config.load(node.host))) == count


def test_without_a_secret_nothing_is_warned_of(node: Node) -> None:
    node.put("/etc/gpuboot/config.yaml", "gpu: {count: 1}", mode=0o644)
    assert config.warnings(node.host, config.load(node.host)) == []


@pytest.mark.parametrize(
    ("rke2", "unwise"),
    [
        (f"channel: stable, config: {{{AGENT}}}", True),
        (f"version: v1.35.7+rke2r1, config: {{{AGENT}}}", False),
        (f"config: {{{AGENT}}}", False),
        ("join: none, channel: stable", False),
    ],
)
def test_a_channel_alone_is_unwise(rke2: str, *, unwise: bool) -> None:
    found = config.unwise(good(f"rke2: {{{rke2}}}"))
    assert [text.startswith("rke2.channel: stable may stand for") for text in found] == (
        [True] * unwise
    )


def test_a_node_password_is_masked_wherever_it_comes_from(node: Node) -> None:
    node.put("/secret", f"{PASSWORD}\n", mode=0o600)
    text = f"rke2: {{node-password-file: /secret, config: {{server: {SERVER}, token-file: /t}}}}"
    node.put("/etc/gpuboot/config.yaml", text, mode=0o600)
    config.load(node.host)
    assert node.host.mask(f"a {PASSWORD} b") == "a <secret> b"
    inline = good(text.replace("node-password-file: /secret", f"node-password: {PASSWORD}"))
    assert Secret(PASSWORD) in inline.secrets()
    assert PASSWORD not in json.dumps(config.effective(inline)) + repr(inline)


def test_a_dangling_link_is_a_problem(node: Node) -> None:
    node.link("/etc/gpuboot/config.yaml", "/nowhere")
    assert "/etc/gpuboot/config.yaml:1" in problems_of(node)[0]


def test_a_file_that_cannot_be_read_is_a_problem(node: Node) -> None:
    (node.root / "etc/gpuboot/config.d/x.yaml").mkdir(parents=True)
    assert "x.yaml" in problems_of(node)[0]
