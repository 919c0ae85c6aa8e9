"""A node that Rancher manages: what is waited for, when the agent is started, giving way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuboot import config, dropin, preflight, rancher, rke2, status, survey
from gpuboot.config import ConfigError
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.reader import Reader
from gpuboot.step import Ok, Pending, Waiting
from tests.model.machine import FakeClock
from tests.unit.node import ABSENT, Node, code, facts, reason

UID = "rke.cattle.io/machine=7d1f"
POOL = {"server": "https://s:9345", "token": "K10abc::node:hunter2", "node-label": [UID]}
LABEL, TAINT = "nvidia.com/gpu=present", "nvidia.com/gpu=present:NoSchedule"
UNIT = "/etc/systemd/system/rancher-system-agent.service"
LOG = "/var/log/cloud-init-output.log"
TOKEN = "bootstrap-secret-of-the-machine"  # noqa: S105
SCRIPT = f'#!/usr/bin/env sh\nCATTLE_TOKEN="{TOKEN}"\n'


def registered(node: Node) -> None:
    """Rancher's install.sh has come to its end."""
    node.put(rancher.SCRIPT, SCRIPT)
    node.put(rancher.SETTINGS, "remoteEnabled: true\n")
    node.put(rancher.CONNECTION, json.dumps({"kubeConfig": "a"}))
    node.put(UNIT)
    node.unit(rancher.SYSTEM_AGENT, ActiveState="active")
    node.unit(rke2.AGENT, **ABSENT)


def planned(node: Node, **changes: object) -> None:
    """Rancher's plan has written RKE2's configuration."""
    registered(node)
    node.put(rancher.DROP_IN, json.dumps({**POOL, **changes}), mode=0o600)


def installed(node: Node, **unit: str) -> None:
    """Rancher's plan has come to its end."""
    planned(node)
    node.put(f"/usr/local/lib/systemd/system/{rke2.AGENT}")
    node.unit(rke2.AGENT, **unit)


def locked(node: Node, *, age: float = 0.0, content: str = "Wed Nov 25 23:00:00 UTC 2026") -> None:
    """The interlock stands, and nothing else was written since."""
    node.put(rancher.INTERLOCK, content)
    now = node.clock.now().timestamp()
    for path in [*node.root.rglob("*"), node.root]:
        os.utime(path, (now - age, now - age))


def plan(node: Node) -> Waiting:
    found = rancher.RancherPlan().check(node.host)
    assert isinstance(found, Waiting), found
    return found


# -- what is waited for -------------------------------------------------------------------------


def test_without_a_trace_of_rancher_both_ways_out_are_named(node: Node) -> None:
    node.unit(rke2.AGENT, **ABSENT)
    found = plan(node)
    assert (found.code, found.reason) == (
        rancher.NO_PLAN, "there is no trace of Rancher on this node",
    )  # fmt: skip
    assert "registration command" in str(found.hint)
    assert "rke2.config.server" in str(found.hint)


def test_rancher_s_line_that_has_not_run_is_waited_for_as_long_as_cloud_init_runs(
    node: Node,
) -> None:
    node.put(rancher.SCRIPT, SCRIPT)
    node.put("/usr/bin/cloud-init")
    node.unit(rke2.AGENT, **ABSENT)
    node.unit("cloud-final.service", ActiveState="activating")
    node.unit("cloud-init-main.service", **ABSENT)
    assert plan(node).reason.startswith("Rancher's line has not run yet: cloud-init runs")
    node.unit("cloud-final.service", ActiveState="active")
    node.put("/run/cloud-init/result.json", "{}")
    found = plan(node)
    assert (found.code, found.reason) == (
        rancher.NO_PLAN, "Rancher's line in cloud-init has not run, or has failed",
    )  # fmt: skip
    assert rancher.SCRIPT in str(found.hint)


TRIES = [
    ("[INFO]  401 received while downloading Rancher connection information. Sleeping",
     "GB521", "refuses this machine's registration token"),
    ("[ERROR]  401 received while downloading Rancher connection information. Sleeping",
     "GB521", "refuses this machine's registration token"),
    ("[INFO]  503 received while downloading Rancher connection information. Sleeping",
     "GB520", "cannot register with Rancher"),
    ("[INFO]  401 received while downloading the rancher-system-agent binary. Sleeping",
     "GB520", "cannot register with Rancher"),
    ("[FATAL]  There was an error downloading CA certificate from Rancher",
     "GB520", "cannot register with Rancher"),
    ("[ERROR]  Configured cacerts checksum (ab) does not match given --ca-checksum (cd)",
     "GB520", "cannot register with Rancher"),
    ("[INFO]  Using default agent var directory /var/lib/rancher/agent",
     "GB520", "the registration with Rancher has begun and not succeeded"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "wanted", "told"), TRIES)
def test_what_install_sh_said_last_is_the_evidence(
    node: Node, line: str, wanted: str, told: str
) -> None:
    node.put(rancher.SCRIPT, SCRIPT)
    node.put(rancher.SETTINGS)
    node.put(rancher.CONNECTION, '{"message": "unauthorized"}')  # curl -o keeps the refusal too
    node.unit(rke2.AGENT, **ABSENT)
    node.put(LOG, f"[INFO]  502 received while downloading Rancher connection information\n"
                  f"curl --token {TOKEN}\n{line}\nanother --token {TOKEN}\n")  # fmt: skip
    if "var directory" in line:
        node.put(LOG, line)
    found = plan(node)
    assert found.code.id == wanted
    assert told in found.reason
    assert TOKEN not in f"{found}"
    assert found.evidence in line


def test_a_line_in_the_journal_does_where_cloud_init_keeps_no_log(node: Node) -> None:
    node.put(rancher.SETTINGS)
    node.unit(rke2.AGENT, **ABSENT)
    node.answers["journalctl"] = TRIES[0][0]
    assert plan(node).code is rancher.TOKEN_REFUSED


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (ABSENT, "rancher-system-agent is not installed yet"),
        ({"ActiveState": "failed"}, "rancher-system-agent is failed"),
        ({"ActiveState": "active"}, "rancher-system-agent has got no plan from Rancher yet"),
    ],
)
def test_a_registered_node_waits_for_the_system_agent(
    node: Node, unit: dict[str, str], told: str
) -> None:
    registered(node)
    node.unit(rancher.SYSTEM_AGENT, **unit)
    node.answers["journalctl"] = ""
    found = plan(node)
    assert (found.code, found.reason) == (rancher.NO_PLAN, told)


def test_a_system_agent_that_failed_shows_its_log_without_its_tokens(node: Node) -> None:
    registered(node)
    node.unit(rancher.SYSTEM_AGENT, ActiveState="failed")
    node.answers["journalctl"] = f"fatal: {TOKEN} K10{'a' * 64}::node:hunter2\n"
    assert plan(node).evidence == "fatal: <secret> <secret>\n"


@pytest.mark.parametrize(
    ("age", "wanted"), [(0, rancher.NO_PLAN), (599, rancher.NO_PLAN),
                        (601, rancher.INTERLOCK_STUCK)],
)  # fmt: skip
def test_a_plan_of_which_nothing_comes_for_ten_minutes_is_stuck(
    node: Node, age: float, wanted: object
) -> None:
    registered(node)
    locked(node, age=age)
    found = plan(node)
    assert found.code is wanted
    assert rancher.INTERLOCK in str(found.hint) or wanted is rancher.NO_PLAN


def test_what_the_plan_writes_is_progress(node: Node) -> None:
    registered(node)
    node.put("/usr/local/bin/rke2")
    locked(node, age=700)
    assert rancher.interlock(node.host) == "stuck"
    now = node.clock.now().timestamp()
    os.utime(node.root / "usr/local/bin/rke2", (now, now))
    assert rancher.interlock(node.host) == "applying"


def test_an_interlock_that_nobody_holds_is_left_behind(node: Node) -> None:
    registered(node)
    assert rancher.interlock(node.host) is None
    locked(node)
    assert rancher.interlock(node.host) == "applying"
    node.unit(rancher.SYSTEM_AGENT, ActiveState="inactive")
    assert rancher.interlock(node.host) == "left"


@pytest.mark.parametrize(("boot", "state"), [("boot-1", "applying"), ("boot-0", "left")])
def test_an_interlock_of_another_boot_is_left_behind(node: Node, boot: str, state: str) -> None:
    registered(node)
    node.put("/proc/sys/kernel/random/boot_id", "boot-1\n")
    locked(node, content=f"pid=1\nboot={boot}\nstart=7\n")
    assert rancher.interlock(node.host) == state


def test_a_half_written_drop_in_is_waited_for(node: Node) -> None:
    planned(node)
    for part in ("", "{", '{"node-label": ["rke', "- a\n"):
        node.put(rancher.DROP_IN, part)
        assert plan(node).reason == f"{rancher.DROP_IN} is not whole yet"
    planned(node)
    assert reason(rancher.RancherPlan().check(node.host), Ok) == "Rancher has configured RKE2"


def test_rancher_s_tokens_are_masked_from_the_first_look_on(node: Node) -> None:
    planned(node)
    rancher.RancherPlan().check(node.host)
    said = node.host.mask(f"{TOKEN} {POOL['token']}")
    assert said == "<secret> <secret>"


NEWS: dict[str, Callable[[Node], None]] = {
    "begun": lambda node: node.put(rancher.SETTINGS),
    "registered": lambda node: node.put(rancher.CONNECTION, '{"kubeConfig": "a"}'),
    "configured": lambda node: node.put(rancher.DROP_IN, "{}"),
    "enabled": lambda node: node.put(f"{rke2.WANTS}/{rke2.AGENT}"),
    "applied": lambda node: node.host.remove(rancher.INTERLOCK),
    "woken": lambda node: node.host.wake(),
    "refused": lambda node: node.put(rancher.CONNECTION, '{"message": "unauthorized"}'),
}


@dataclass
class Naps(FakeClock):
    """A clock that notes what was slept; something happens in the second nap."""

    event: Callable[[], None] = lambda: None
    taken: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.taken.append(seconds)
        if len(self.taken) == 2:
            self.event()


@pytest.mark.parametrize(
    ("event", "slept"),
    [*((name, 10) for name in NEWS if name != "refused"), ("refused", 300)],
)
def test_the_next_walk_begins_when_rancher_has_got_on(node: Node, event: str, slept: int) -> None:
    node.put(status.PROGRESS, '{"mode": "rancher"}')
    node.put(rancher.INTERLOCK)
    node.put(rancher.CONNECTION, "{}")
    clock = node.host.clock = Naps(event=lambda: NEWS[event](node))
    rancher.rest(node.host, 300)
    assert sum(clock.taken) == pytest.approx(slept, abs=1.5)
    assert not node.host.woken


@pytest.mark.parametrize("mode", ["agent", "none"])
def test_a_node_without_rancher_sleeps_in_one_piece(node: Node, mode: str) -> None:
    node.put(status.PROGRESS, json.dumps({"mode": mode}))
    clock = node.host.clock = Naps()
    rancher.rest(node.host, 300)
    assert clock.taken == [300]


WORDS = ("node-taint", "node-label", "token", "server", "kubeConfig", ": ", "- ", "{", "}", "[",
         "\n", '"', "!!int x", "!!bool x", "2026-13-45", "&a ", "*a", "<<", "+", TAINT, LABEL,
         "\0", "%")  # fmt: skip
FILES = (rancher.SCRIPT, rancher.SETTINGS, rancher.CONNECTION, rancher.DROP_IN, rancher.INTERLOCK,
         dropin.FILE, dropin.MAIN, LOG)  # fmt: skip


@given(files=st.dictionaries(
    st.sampled_from(FILES),
    st.one_of(st.binary(max_size=30), st.lists(st.sampled_from(WORDS), max_size=9).map("".join)),
))  # fmt: skip
def test_whatever_stands_in_rancher_s_files_no_traceback_comes_of_it(
    files: dict[str, bytes | str],
) -> None:
    with TemporaryDirectory() as folder:
        node = Node(Path(folder), {"systemctl": "", "journalctl": ""})
        for name, content in files.items():
            node.put(name, content)
        node.unit(rancher.SYSTEM_AGENT, ActiveState="active")
        for look in (
            lambda: rancher.RancherPlan().check(node.host),
            lambda: rancher.AgentStarted().check(node.host),
            lambda: rancher.contradiction(node.host, wanted(AGENT)),
            lambda: rancher.contradiction(node.host, wanted(RANCHER)),
            lambda: rancher.give_way(node.host),
            lambda: rancher.rest(node.host, 1),
        ):
            with suppress(GpubootError):
                look()


# -- who starts the agent -----------------------------------------------------------------------


def start(node: Node) -> rancher.AgentStarted:
    node.answers["systemctl reset-failed"] = ""

    def started(_: Command) -> Result:
        node.unit(rke2.AGENT, ActiveState="activating")
        return Result(0)

    node.answers["systemctl start --no-block rke2-agent.service"] = started
    step = rancher.AgentStarted()
    assert reason(step.check(node.host), Pending) == "the gate is closed"
    step.apply(node.host)
    assert node.text(rke2.GATE) == ""
    return step


def test_an_agent_whose_start_was_held_is_started_by_us(node: Node) -> None:
    installed(node)
    step = start(node)
    assert isinstance(step.check(node.host), Ok)
    assert not any("systemctl enable" in command for command in node.ran)


def test_an_agent_that_rancher_is_about_to_restart_is_left_to_rancher(node: Node) -> None:
    installed(node)
    locked(node)
    step = start(node)
    found = step.check(node.host)
    assert reason(found, Waiting) == rancher.APPLYING
    assert not any(command.startswith("systemctl start") for command in node.ran)
    node.unit(rke2.AGENT, ActiveState="activating")
    assert isinstance(step.check(node.host), Ok)


def test_an_interlock_that_was_left_behind_holds_up_nothing(node: Node) -> None:
    installed(node)
    locked(node)
    node.unit(rancher.SYSTEM_AGENT, ActiveState="failed")
    assert isinstance(start(node).check(node.host), Ok)


def test_a_stuck_plan_is_told_with_its_remedy(node: Node) -> None:
    installed(node)
    locked(node, age=601)
    found = start(node).check(node.host)
    assert code(found) is rancher.INTERLOCK_STUCK


def test_a_node_that_had_joined_waits_for_no_plan_at_its_next_boot(node: Node) -> None:
    installed(node)
    planned(node, **{"data-dir": "/data/rke2", "server": "https://moved:9345"})
    node.unit(rke2.AGENT)
    node.put("/data/rke2/agent/client-kubelet.crt")
    locked(node, age=3600)
    assert isinstance(start(node).check(node.host), Ok)


@pytest.mark.parametrize(
    ("has_unit", "told"),
    [(False, "Rancher has not installed RKE2 yet"), (True, "Rancher has not enabled rke2-agent")],
)
def test_what_the_plan_has_not_done_yet_is_waited_for_with_the_gate_open(
    node: Node, *, has_unit: bool, told: str
) -> None:
    planned(node)
    if has_unit:
        installed(node, UnitFileState="disabled")
    found = start(node).check(node.host)
    assert reason(found, Waiting).startswith(told)
    assert code(found) is rancher.NO_PLAN


# -- the other kind of node ---------------------------------------------------------------------

AGENT = "driver: {source: distribution}\nrke2: {version: v1.35.7+rke2r1, config: {server: 'https://s:9345', token-file: /t}}\n"  # noqa: E501
RANCHER = "driver: {source: distribution}\n"


def wanted(text: str) -> config.Config:
    reading = Reader()
    reading.add("config.yaml", text.encode())
    found = config.parse(reading)
    assert reading.problems == []
    return found


@pytest.mark.parametrize("name", [rancher.SCRIPT, rancher.SETTINGS, rancher.DROP_IN, UNIT])
def test_agent_mode_on_a_node_of_rancher_s_is_a_wrong_configuration(node: Node, name: str) -> None:
    node.put("/usr/bin/nvidia-smi")
    for folder in ("/usr", "/var"):
        (node.root / folder.lstrip("/")).mkdir(exist_ok=True)
    step = preflight.Preflight(facts(), wanted(AGENT))
    assert isinstance(step.check(node.host), Ok)
    node.put(name)
    with pytest.raises(ConfigError) as caught:
        step.check(node.host)
    assert caught.value.code.id == "GB001"
    assert f"managed by Rancher: {name} is there" in caught.value.message
    assert rancher.contradiction(node.host, wanted(RANCHER)) is None


def test_rancher_mode_on_a_node_that_joins_by_itself_is_a_wrong_configuration(node: Node) -> None:
    node.put(dropin.FILE, '{"server": "https://s:9345"}')  # our own of another day
    assert rancher.contradiction(node.host, wanted(RANCHER)) is None
    node.put(dropin.MAIN, "server: https://s:9345\n")
    found = rancher.contradiction(node.host, wanted(RANCHER))
    assert found
    assert "nothing here is Rancher's" in str(found)
    node.put(rancher.SETTINGS)
    assert rancher.contradiction(node.host, wanted(RANCHER)) is None


def test_preflight_tells_it_beside_everything_else(node: Node) -> None:
    node.put(rancher.SETTINGS)
    node.put("/etc/gpuboot/config.yaml", AGENT, mode=0o600)
    for folder in ("usr", "var"):
        (node.root / folder).mkdir(exist_ok=True)
    node.answers |= {"systemctl": "", "dpkg": "amd64\n", "lspci": "", "getent": ""}
    told = [trouble.message for trouble in survey.survey(node.host, root=True)]
    assert any("managed by Rancher" in message for message in told)
    assert len(told) > 1


# -- a reboot -----------------------------------------------------------------------------------


def test_the_system_agent_is_stopped_for_a_reboot(node: Node) -> None:
    registered(node)
    node.answers["systemctl stop rancher-system-agent.service"] = ""
    assert rancher.pause(node.host)
    assert node.ran[-1] == "systemctl stop rancher-system-agent.service"


@pytest.mark.parametrize("there", [False, True])
def test_where_no_system_agent_runs_nothing_is_stopped(node: Node, *, there: bool) -> None:
    if there:
        registered(node)
        node.unit(rancher.SYSTEM_AGENT, ActiveState="inactive")
    assert rancher.pause(node.host)
    assert not any("stop" in command for command in node.ran)


def test_a_plan_that_had_just_begun_is_begun_anew(node: Node) -> None:
    registered(node)
    node.answers |= {"systemctl reset-failed": "", "systemctl start": ""}

    def cut_off(_: Command) -> Result:
        node.put(rancher.INTERLOCK, "now")
        return Result(0)

    node.answers["systemctl stop rancher-system-agent.service"] = cut_off
    assert not rancher.pause(node.host)
    assert node.ran[-1] == "systemctl start --no-block rancher-system-agent.service"


def test_an_old_interlock_does_not_look_like_a_plan_that_has_begun(node: Node) -> None:
    registered(node)
    node.put("/proc/sys/kernel/random/boot_id", "boot-2\n")
    locked(node, content="pid=1\nboot=boot-1\n")
    node.answers["systemctl stop rancher-system-agent.service"] = ""
    assert rancher.blocker(node.host) is None
    assert rancher.pause(node.host)


def test_a_system_agent_that_does_not_end_goes_on(node: Node) -> None:
    registered(node)
    node.answers |= {"systemctl reset-failed": "", "systemctl start": ""}

    def hangs(_: Command) -> Result:
        raise TimeoutError

    node.answers["systemctl stop rancher-system-agent.service"] = hangs
    with pytest.raises(GpubootError) as caught:
        rancher.pause(node.host)
    assert (caught.value.code.id, caught.value.retry) == ("GB011", True)
    assert node.ran[-1] == "systemctl start --no-block rancher-system-agent.service"


def test_a_stuck_plan_is_no_endless_wait_for_a_reboot(node: Node) -> None:
    registered(node)
    locked(node, age=601)
    with pytest.raises(GpubootError) as caught:
        rancher.blocker(node.host)
    assert (caught.value.code, caught.value.retry) == (rancher.INTERLOCK_STUCK, True)


# -- giving way ---------------------------------------------------------------------------------

OURS = {"server": "https://s", "node-label+": [LABEL, "a=b"],
        "node-taint+": [TAINT, "other:NoExecute"]}  # fmt: skip
GIVEN = [
    ({}, {}, []),
    ({"node-taint": [TAINT]}, {"node-taint+": ["other:NoExecute"]}, [TAINT]),
    # RKE2 looks at key and effect alone.
    ({"node-taint": ["nvidia.com/gpu:NoSchedule"]}, {"node-taint+": ["other:NoExecute"]}, [TAINT]),
    ({"node-taint": ["nvidia.com/gpu=present:NoExecute", "no taint"]}, {}, []),
    ({"node-taint": ["other:NoExecute", TAINT]}, {"node-taint+": None},
     [TAINT, "other:NoExecute"]),
    ({"node-label": [UID, LABEL, "a=c"]}, {"node-label+": ["a=b"]}, [LABEL]),
    ({"node-label": ["a=b", LABEL], "node-taint": [TAINT]},
     {"node-label+": None, "node-taint+": ["other:NoExecute"]}, ["a=b", LABEL, TAINT]),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "changes", "taken"), GIVEN)
def test_our_drop_in_gives_way_to_what_others_say(
    node: Node, theirs: dict[str, list[str]], changes: dict[str, object], taken: list[str]
) -> None:
    node.put(rancher.DROP_IN, json.dumps({**POOL, **theirs}))
    before = json.dumps(OURS, indent=2) + "\n"
    node.put(dropin.FILE, before, mode=0o600)
    assert sorted(rancher.give_way(node.host)) == sorted(taken)
    after = json.loads(node.text(dropin.FILE) or "")
    expected = {key: value for key, value in {**OURS, **changes}.items() if value is not None}
    assert after == expected
    assert node.host.mode(dropin.FILE) == 0o600
    assert rancher.give_way(node.host) == []


def test_what_gave_way_is_what_the_walk_would_write(node: Node) -> None:
    node.put(dropin.FILE, '{"node-label+": ["nvidia.com/gpu=present"], "node-taint+": ["'
             f'{TAINT}"]}}')  # fmt: skip
    node.put(rancher.DROP_IN, json.dumps({**POOL, "node-taint": [TAINT]}))
    rancher.give_way(node.host)
    step = dropin.Rke2Config({}, (LABEL,), (TAINT,))
    assert isinstance(step.check(node.host), Ok)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"node-taint+": "text"}'])
def test_where_there_is_nothing_of_ours_nothing_is_written(node: Node, text: str | None) -> None:
    node.put(rancher.DROP_IN, json.dumps({**POOL, "node-taint": [TAINT]}))
    if text is not None:
        node.put(dropin.FILE, text)
    assert rancher.give_way(node.host) == []
    assert node.text(dropin.FILE) == text


def test_the_shipped_drop_in_has_it_done_before_each_start_and_never_minds_the_outcome() -> None:
    unit = Path(__file__).parents[2] / "systemd/rke2-agent.service.d/10-gpuboot.conf"
    lines = unit.read_text().splitlines()
    assert "ExecStartPre=-/usr/bin/timeout 30 /usr/bin/gpuboot give-way" in lines
