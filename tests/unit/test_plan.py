"""The table of contents: which steps bring a node into its cluster, and with what settings."""

from __future__ import annotations

import pytest

from gpuboot import config, plan
from gpuboot.dropin import Rke2Config
from gpuboot.packages import Packages
from gpuboot.reader import Reader
from gpuboot.step import Step
from tests.unit.node import facts

AGENT = "server: https://cluster.lan:9345, token-file: /t"


def read(rke2: str, more: str = "") -> config.Config:
    reading = Reader()
    reading.add("config.yaml", f"rke2: {{{rke2}}}\n{more}")
    found = config.parse(reading)
    assert reading.problems == []
    return found


def join(rke2: str) -> list[str]:
    return [step.name for step in plan.build(read(rke2), facts()).join]


def settings(steps: tuple[Step, ...]) -> dict[str, object]:
    return dict(next(step for step in steps if isinstance(step, Rke2Config)).settings)


def test_an_agent_has_everything_in_place_before_it_is_started() -> None:
    wanted = "images: [a.tar.zst], node-password-file: /p"
    assert join(f"{wanted}, config: {{{AGENT}}}") == [
        "rke2-installed", "rke2-images", "rke2-config", "node-password", "rke2-proxy",
        "supervisor-answers", "agent-started", "node-joined",
    ]  # fmt: skip


def test_what_is_not_wanted_is_no_step() -> None:
    assert set(join(f"config: {{{AGENT}}}")).isdisjoint({"rke2-images", "node-password"})
    assert join("join: none") == []


def test_in_rancher_mode_rke2_and_its_proxy_are_ranchers_business() -> None:
    assert join("join: rancher")[-2:] == ["agent-started", "node-joined"]
    assert set(join("join: rancher")).isdisjoint({"rke2-installed", "rke2-proxy"})


@pytest.mark.parametrize(
    ("asked", "wanted", "unwanted"),
    [
        ("auto", "nvidia-kernel-dkms", "nvidia-open-kernel-dkms"),
        ("proprietary", "nvidia-kernel-dkms", "nvidia-open-kernel-dkms"),
        ("open", "nvidia-open-kernel-dkms", "nvidia-kernel-dkms"),
    ],
)
def test_one_kind_of_module_is_installed_and_the_other_goes(
    asked: str, wanted: str, unwanted: str
) -> None:
    config = read(
        f"config: {{{AGENT}}}", f"driver: {{source: distribution, kernel-module-type: {asked}}}"
    )
    found = next(s for s in plan.build(config, facts()).prepare if isinstance(s, Packages))
    assert wanted in found.driver
    assert unwanted in found.unwanted
    assert set(found.driver).isdisjoint(found.unwanted)


@pytest.mark.parametrize("given", ["", "cluster.lan, "])
def test_the_server_is_asked_directly_as_rke2_will_do(given: str) -> None:
    wanted = read(
        f"config: {{{AGENT}}}", f"proxy: {{https: 'http://p:1', no-proxy: [{given}.lan]}}"
    )
    assert sorted(plan.proxy(wanted).no_proxy) == [".lan", "cluster.lan"]
    assert not plan.proxy(wanted).covers("https://cluster.lan:9345/cacerts")


def test_a_node_that_joins_without_its_gpu_has_no_runtime_that_may_not_be_there() -> None:
    wanted = read(f"config: {{{AGENT}, default-runtime: nvidia, debug: true}}")
    assert settings(plan.build(wanted, facts()).join)["default-runtime"] == "nvidia"
    assert set(settings(plan.bare(wanted))) == {"server", "token-file", "debug"}
