"""`gpuboot preflight` finds every trouble at once, and only looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuboot import survey
from gpuboot.process import Result
from gpuboot.survey import Trouble
from gpuboot.web import Answer
from tests.model.cluster import TOKEN
from tests.model.life import CONFIG, fresh, live, offline, prepare
from tests.model.machine import Machine
from tests.unit.node import as_nobody

DEBIAN = "http://archive/debian/dists/bookworm/InRelease"
TOOLKIT = "http://archive/toolkit/InRelease"
TIME = "systemd-timesyncd.service"


class Names(Machine):
    """A machine that resolves every name but those in `unknown`, of which `slow` take for ever."""

    unknown: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    apt_config = ""

    def _getent(self, argv: list[str]) -> Result:
        if argv[1] in self.slow:
            raise TimeoutError
        return Result(2 if argv[1] in self.unknown else 0)

    def _apt_config(self, argv: list[str]) -> Result:
        return Result(0, self.apt_config)


def good(folder: Path, *unknown: str) -> Names:
    """A fresh machine that lacks nothing, but for names that do not resolve."""
    machine = prepare(folder / "node", fresh)
    machine.boot()
    machine.cluster.pages |= {DEBIAN: Answer(200), TOOLKIT: Answer(200)}
    machine.__class__ = Names
    assert isinstance(machine, Names)
    machine.unknown = unknown
    return machine


def configure(machine: Machine, text: str) -> None:
    machine.put("/etc/gpuboot/config.yaml", text)
    machine.path("/etc/gpuboot/config.yaml").chmod(0o600)


def troubles(machine: Machine, *, root: bool = True) -> list[Trouble]:
    return survey.survey(machine.host(), root=root)


def codes(machine: Machine, *, root: bool = True) -> list[str]:
    return [trouble.code for trouble in troubles(machine, root=root)]


def test_a_good_machine_has_no_trouble_and_is_not_changed(folder: Path) -> None:
    machine = good(folder)
    before = machine.persistent()
    assert troubles(machine) == []
    assert machine.persistent() == before


def test_every_trouble_is_found_at_once(folder: Path) -> None:
    machine = good(folder, "archive", "releases", "supervisor")
    machine.gpu = False
    machine.put("/etc/os-release", "ID=fedora\nVERSION_ID=42\n")
    machine.put("/proc/meminfo", "MemTotal:        1000000 kB\n")
    machine.put("/usr/lib/systemd/ntp-units.d/80-timesync.list", f"# one\n{TIME}\n")
    machine.active.add(TIME)
    machine.clock.true = False
    machine.put("/etc/rancher/rke2/config.yaml", 'node-label: ["nvidia.com/gpu=no"]\n')
    machine.path("/usr/lib/systemd/system/rke2-agent.service.d/10-gpuboot.conf").unlink()
    assert codes(machine) == [
        "GB101", "GB106", "GB107", "GB501", "GB110", "GB510", "GB108", "GB108", "GB108",
    ]  # fmt: skip


def test_a_name_server_that_does_not_answer_is_one_trouble_among_the_others(folder: Path) -> None:
    machine = good(folder)
    machine.slow = ("releases",)
    machine.put("/proc/meminfo", "MemTotal:        1000000 kB\n")
    assert codes(machine) == ["GB106", "GB108"]


def test_what_apt_asks_its_own_proxy_for_is_not_asked_for_without(folder: Path) -> None:
    machine = good(folder, "archive")
    machine.apt_config = 'Acquire::http::Proxy "http://me:open-sesame@proxy:3128";\n'
    assert codes(machine) == []
    machine.apt_config = 'Acquire::http::Proxy "DIRECT";\nAcquire::https::Proxy "";\n'
    assert codes(machine) == ["GB108"]


# -- configuration


def test_a_folder_of_drop_ins_for_root_alone_is_one_trouble(folder: Path) -> None:
    machine = good(folder)
    machine.path("/etc/gpuboot/config.d").mkdir(mode=0o700)
    with as_nobody():
        found = troubles(machine, root=False)
    assert [trouble.code for trouble in found] == ["GB105"]


def test_a_wrong_configuration_hides_no_trouble_of_the_machine(folder: Path) -> None:
    machine = good(folder)
    machine.gpu = False
    machine.put("/proc/meminfo", "MemTotal:        1000000 kB\n")
    configure(machine, f"gpu: {{cuont: 1}}\ndriver: {{source: {TOKEN}}}\n")
    found = troubles(machine)
    assert [trouble.code for trouble in found] == ["GB001", "GB001", "GB106", "GB110"]
    assert "correct-horse" not in str(found)


def test_a_driver_that_the_release_has_not_is_a_trouble(folder: Path) -> None:
    machine = good(folder)
    configure(machine, CONFIG.replace("distribution", "nvidia, branch: '470'"))
    assert codes(machine) == ["GB122"]


def test_without_root_that_is_said_and_the_rest_is_looked_at(folder: Path) -> None:
    machine = good(folder)
    machine.gpu = False
    assert codes(machine, root=False) == ["GB105", "GB110"]


def test_a_configuration_for_root_alone_is_one_trouble(folder: Path) -> None:
    machine = good(folder)
    machine.path("/etc/gpuboot/config.yaml").chmod(0)
    with as_nobody():
        found = troubles(machine, root=False)
    assert [trouble.code for trouble in found] == ["GB105"]
    assert found[0].message == "/etc/gpuboot/config.yaml can only be read by root"


# -- time


@pytest.mark.parametrize(
    ("runs", "true", "found"), [(True, False, ["GB107"]), (True, True, []), (False, False, [])]
)
def test_a_clock_counts_as_unset_only_where_a_time_service_runs(
    folder: Path, found: list[str], *, runs: bool, true: bool
) -> None:
    machine = good(folder)
    machine.put("/usr/lib/systemd/ntp-units.d/80-timesync.list", f"{TIME}\n")
    machine.clock.true = true
    if runs:
        machine.active.add(TIME)
    assert codes(machine) == found


@pytest.mark.parametrize(
    ("date", "found"),
    [
        ("Thu, 01 Jan 2026 00:04:00 GMT", []),
        ("Thu, 01 Jan 2026 01:00:00 GMT", ["GB107"]),
        ("Wed, 31 Dec 2025 00:00:00 GMT", []),  # an old copy, from a cache
        ("yesterday", []),
    ],
)
def test_a_clock_that_is_slow_is_told_by_a_servers_date(
    folder: Path, date: str, found: list[str]
) -> None:
    machine = good(folder)
    machine.cluster.pages[DEBIAN] = Answer(200, headers={"date": date})
    assert codes(machine) == found


# -- servers


def test_a_source_that_lacks_its_signature_is_told(folder: Path) -> None:
    machine = good(folder)
    pages = machine.cluster.pages
    pages[DEBIAN] = pages[DEBIAN.replace("InRelease", "Release")] = Answer(404)
    [found] = troubles(machine)
    assert (found.code, found.message) == ("GB403", f"{DEBIAN} answered 404")
    pages[DEBIAN.replace("InRelease", "Release")] = Answer(200)
    assert troubles(machine) == []


def test_a_server_that_is_away_is_told_once(folder: Path) -> None:
    machine = good(folder)
    machine.cluster.pages.clear()
    [found] = troubles(machine)
    assert (found.code, found.hint) == ("GB401", f"curl -v {DEBIAN}")


def test_a_release_that_is_not_to_be_had_is_told(folder: Path) -> None:
    machine = good(folder)
    configure(machine, CONFIG.replace("version: v1.35.7+rke2r1", "channel: stable"))
    channel = "https://update.rke2.io/v1-release/channels/stable"
    machine.cluster.pages[channel] = Answer(404)
    assert codes(machine) == ["GB504"]
    location = {"location": "https://github.com/rancher/rke2/releases/tag/v1.35.7%2Brke2r1"}
    machine.cluster.pages[channel] = Answer(302, headers=location)
    assert codes(machine) == []


def test_a_local_source_needs_its_files_and_no_server(folder: Path) -> None:
    machine = good(folder, "archive")
    configure(machine, CONFIG.replace("http://archive/", "/srv/"))
    assert codes(machine) == ["GB202", "GB202"]
    machine.put("/srv/debian/dists/bookworm/InRelease", "")
    machine.put("/srv/toolkit/Release", "")
    assert codes(machine) == []


def test_a_cloud_images_first_mirror_is_asked(folder: Path) -> None:
    class Mirrors(Names):
        def _apt_get(self, argv: list[str]) -> Result:
            assert argv[0] == "indextargets"
            return Result(
                0, "mirror+file:/etc/apt/mirrors/debian.list bookworm main Packages x:1\n"
            )

    machine = good(folder)
    machine.__class__ = Mirrors
    machine.put(
        "/etc/apt/mirrors/debian.list", "# mirrors\nhttps://deb.example/debian/\nhttps://b\n"
    )
    text = CONFIG.replace("  apt: {url: http://archive/debian, key: /keys/archive.gpg}\n", "")
    configure(machine, text)
    [found] = troubles(machine)
    assert found.hint == "curl -v https://deb.example/debian/dists/bookworm/InRelease"


def test_a_name_behind_a_proxy_is_the_proxys_to_resolve(folder: Path) -> None:
    machine = good(folder, "archive", "releases")
    proxies = "proxy: {http: 'http://p:1', https: 'http://p:1', no-proxy: [%s]}\n"
    configure(machine, CONFIG + proxies % "")
    assert codes(machine) == []
    configure(machine, CONFIG + proxies % "archive")
    assert codes(machine) == ["GB108"]


def test_a_node_that_has_all_needs_no_server(folder: Path) -> None:
    machine = prepare(folder / "node", fresh)
    assert live(machine) == 0
    machine.__class__ = Names
    assert troubles(machine) == []
    machine.put("/usr/local/bin/rke2", "v1.34.1+rke2r1\n")
    assert troubles(machine) == []  # another release is to be had; no archive is asked


# -- image archives, the node's password, a channel

IMAGES = "rke2-images.linux-amd64.tar.zst"


def test_images_that_the_release_does_not_list_are_a_trouble(folder: Path) -> None:
    machine = good(folder)
    configure(machine, CONFIG.replace("  config:", f"  images: [{IMAGES}]\n  config:"))
    found = troubles(machine)
    assert [trouble.code for trouble in found] == ["GB504"]
    assert f"has no line for {IMAGES}" in found[0].message


def test_images_in_a_local_folder_are_looked_for_there(folder: Path) -> None:
    machine = good(folder)
    offline(machine)
    assert codes(machine) == []
    machine.path(f"/srv/rke2/{IMAGES}").unlink()
    found = troubles(machine)
    assert [(trouble.code, trouble.hint) for trouble in found] == [("GB504", "ls /srv/rke2")]


def test_a_joined_node_misses_no_source(folder: Path) -> None:
    machine = prepare(folder / "node", offline)
    assert live(machine) == 0
    for name in ("rke2.linux-amd64.tar.gz", "sha256sum-amd64.txt", IMAGES):
        machine.path(f"/srv/rke2/{name}").unlink()
    machine.__class__ = Names
    assert codes(machine) == []


def test_a_password_file_that_is_not_there_is_a_trouble(folder: Path) -> None:
    machine = good(folder)
    configure(machine, CONFIG.replace("  config:", "  node-password-file: /no\n  config:"))
    assert codes(machine) == ["GB509"]


def test_a_channel_alone_is_a_warning_and_no_trouble(folder: Path) -> None:
    machine = good(folder)
    configure(machine, CONFIG.replace("version: v1.35.7+rke2r1", "channel: stable"))
    there = {"location": "https://github.com/rancher/rke2/releases/tag/v1.35.7%2Brke2r1"}
    machine.cluster.pages["https://update.rke2.io/v1-release/channels/stable"] = Answer(
        302, b"", there
    )
    assert codes(machine) == []
    assert survey.warnings(machine.host())[0].startswith("rke2.channel: stable may stand for")
    configure(machine, "gpus: 1\n")
    assert survey.warnings(machine.host()) == []
