"""What examples/monitoring gives to Prometheus and Grafana, tried with Prometheus' own tool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gpuboot import exposition
from gpuboot.xids import ACTIONS

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/monitoring"
TOOL = ROOT / ".cache/promtool"
STATUS = {
    "gpuboot": "0.1.0", "state": "degraded", "boots": 2, "seconds_to_ready": 211.4,
    "reboots": {"spent": 1}, "steps": [{"name": "packages", "seconds": 90.5, "attempts": 1}],
}  # fmt: skip
HEALTH = {
    "expected": 2, "state": "unhealthy", "timestamp": 1796096670.905,
    "gpus": [{"pci": "0000:03:00.0", "uuid": "GPU-1", "temperature_c": 37, "memory_used_mib": 448,
              "memory_mib": 15360, "power_w": 9.3, "persistence": True}],
    "faults": [{"check": 'a "quoted"\nreason', "about": "gpu", "action": "drain and reboot"}],
    "gpu": {"state": "unhealthy"},
    "blind": {"kernel log": "x"}, "xids": [{"pci": "0000:03:00", "xid": 79, "count": 1}],
}  # fmt: skip
METRIC = re.compile(r"\bgpuboot_\w+")


@pytest.fixture(scope="module")
def promtool() -> Path:
    """From Debian's package, unpacked beside the tests: installed, it would start a server."""
    program = TOOL / "usr/bin/promtool"
    if not program.is_file():
        TOOL.mkdir(parents=True, exist_ok=True)
        fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
        if subprocess.run(fetch, cwd=TOOL, check=False).returncode != 0:
            subprocess.run(["apt-get", "-qq", "update"], check=True)
            subprocess.run(fetch, cwd=TOOL, check=True)
        package = next(TOOL.glob("prometheus_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, TOOL], check=True)
        package.unlink()
    return program


def run(*argv: str | Path, given: str | None = None) -> str:
    done = subprocess.run(argv, input=given, cwd=EXAMPLES, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written() -> str:
    return exposition.text(HEALTH, STATUS)


def test_the_textfile_is_as_prometheus_wants_it(promtool: Path) -> None:
    assert run(promtool, "check", "metrics", given=written()) == ""


def test_so_is_what_is_written_before_there_is_a_monitor(promtool: Path) -> None:
    assert run(promtool, "check", "metrics", given=exposition.text(None, STATUS)) == ""


def test_the_rules_are_well_formed_and_do_what_they_say(promtool: Path) -> None:
    assert "11 rules found" in run(promtool, "check", "rules", "rules.yaml")
    assert "SUCCESS" in run(promtool, "test", "rules", "rules-test.yaml")


def test_each_alert_is_tried() -> None:
    rules = yaml.safe_load((EXAMPLES / "rules.yaml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((EXAMPLES / "rules-test.yaml").read_text(encoding="utf-8"))["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"]
             if one["exp_alerts"]}  # fmt: skip
    assert fired == alerts


@pytest.mark.parametrize("name", ["rules.yaml", "rules-test.yaml", "dashboard.json"])
def test_only_metrics_that_there_are_are_asked_for(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert set(METRIC.findall(text)) <= set(METRIC.findall(written()))
    asked = set(re.findall(r'action="([^"]*)"', text))
    assert asked <= set(ACTIONS)


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads((EXAMPLES / "dashboard.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    known = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels))) <= known
    places = [
        (at["x"] + dx, at["y"] + dy)
        for at in (panel["gridPos"] for panel in panels)
        for dx in range(at["w"])
        for dy in range(at["h"])
    ]
    assert len(set(places)) == len(places)  # no two overlap
    assert max(x for x, _ in places) < 24


def test_dcgms_exporter_is_told_to_leave_out_what_is_told_already() -> None:
    values = yaml.safe_load((EXAMPLES / "dcgm-values.yaml").read_text(encoding="utf-8"))
    fields = {line.partition(",")[0] for line in values["customMetrics"].splitlines()}
    doubled = ("TEMP", "FB_USED", "POWER", "ECC", "XID")
    assert not [field for field in fields if any(word in field for word in doubled)]
