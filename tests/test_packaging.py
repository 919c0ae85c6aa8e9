"""The Debian package: what it holds, and that no stage of its life keeps rke2-agent from starting.

The tests marked vm install the built .deb on a Debian 12 of main packages only and boot it with
systemd-nspawn (root only). Two stand-ins are in it: rke2-agent.service, at the place of RKE2's own
unit, is a sleep; gpuboot.service runs a walk that says it is ready and then waits for ever, so that
the gate opens only when a test opens it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gpuboot import config, dkms
from gpuboot.reader import Reader
from tests.machine import Machine, call
from tests.rehearsal import packages

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "packaging"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="boots a node, which only root can")
READY = "/run/gpuboot/ready"
MOTD = "/etc/update-motd.d/90-gpuboot"
LINK = "/etc/systemd/system/multi-user.target.wants/gpuboot.service"

RKE2_AGENT = """\
[Unit]
Description=stand-in for RKE2's agent
[Service]
ExecStart=/bin/sleep infinity
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
"""
WALK = """\
import os, signal, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.signal(signal.SIGHUP, lambda *_: open("/run/woken", "w").close())
while True:
    signal.pause()
"""
STANDS_IN = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/walk.py\n"
# ds-identify reads the list with the shell, so it stands on one line and without quotes.
SEED = """\
datasource_list: [NoCloud]
datasource: {NoCloud: {meta-data: "instance-id: i-1", user-data: "#cloud-config\\n{}"}}
"""


# -- a machine to install it on -------------------------------------------------------------------


@pytest.fixture(scope="session")
def debian() -> Path:
    """Debian 12 main, with index and packages at hand for apt, so that it needs no network."""
    wanted = [*packages.DEPENDENCIES, "gpg", "kmod", "pciutils", "man-db"]
    name = hashlib.sha256(repr((packages.BASE, wanted)).encode()).hexdigest()[:16]
    folder = CACHE / f"bookworm-{name}"
    if not folder.is_dir():
        partial = CACHE / f"bookworm-{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        base = partial / "tree"
        packages.build_base(base, "bookworm")
        sources = "\n".join(packages.sources("bookworm", ["main"])) + "\n"
        (base / "etc/apt/sources.list").write_text(sources, encoding="ascii")
        options = {
            "Dir::State": base / "var/lib/apt",
            "Dir::State::status": base / "var/lib/dpkg/status",
            "Dir::Cache": base / "var/cache/apt",
            "Dir::Etc::SourceList": base / "etc/apt/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Sandbox::User": "root",
            "APT::Keep-Downloaded-Packages": "true",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        for verb in (["update"], ["install", "--download-only", "--yes", *wanted]):
            call([*apt, *verb], PATH="/usr/sbin:/usr/bin:/sbin:/bin")
        base.rename(folder)
        partial.rmdir()
    return folder


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb")
    return Path(call([str(ROOT / "packaging/build-deb"), str(out)]).strip())


@pytest.fixture(scope="session")
def installed(
    debian: Path, deb: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, ...]]:
    """The layers of a machine on which apt has installed the package; nothing was booted yet."""
    upper = tmp_path_factory.mktemp("installed") / "upper"
    machine = Machine((debian,), upper)
    machine.write("/usr/local/lib/systemd/system/rke2-agent.service", RKE2_AGENT)
    machine.write("/usr/local/lib/walk.py", WALK)
    machine.write("/etc/systemd/system/gpuboot.service.d/walk.conf", STANDS_IN)
    machine.write("/etc/cloud/cloud.cfg.d/90-seed.cfg", SEED)
    shutil.copyfile(deb, upper / "gpuboot.deb")
    machine.offline("apt-get", "-q", "install", "--yes", "./gpuboot.deb")
    machine.offline("apt-get", "-q", "install", "--yes", "--no-install-recommends", "man-db")
    machine.offline("systemctl", "enable", "rke2-agent.service")
    yield (upper, debian)
    shutil.rmtree(upper.parent)


@pytest.fixture
def machine(installed: tuple[Path, ...], tmp_path: Path) -> Iterator[Machine]:
    made = Machine(installed, tmp_path / "upper")
    yield made
    made.pull_the_plug()
    shutil.rmtree(tmp_path)


@pytest.fixture
def held(machine: Machine) -> Machine:
    """A booted machine on which gpuboot is enabled and has not opened the gate."""
    machine.offline("systemctl", "enable", "gpuboot.service")
    machine.boot()
    return machine


# -- what it is made from -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    call([sys.executable, str(ROOT / "packaging/man.py"), str(out)])
    return out


def test_example_configuration_is_valid_with_every_key_taken_in(generated: Path) -> None:
    text = (generated / "config.yaml").read_text(encoding="utf-8")
    reading = Reader()
    reading.add("config.yaml", re.sub(r"^( *)#(?=\S)", r"\1", text, flags=re.MULTILINE))
    found = reading.section(config.Config, reading.tree)
    assert reading.problems == []
    assert found == config.Config()


def test_example_configuration_is_valid_as_it_is(generated: Path) -> None:
    reading = Reader()
    reading.add("config.yaml", (generated / "config.yaml").read_text(encoding="utf-8"))
    assert reading.section(config.Config, reading.tree) == config.Config()
    assert reading.problems == []


@pytest.mark.parametrize("name", ["agent.yaml", "rancher-pool.yaml"])
def test_user_data_begins_as_rancher_demands_and_ends_with_gpuboot_run(name: str) -> None:
    text = (ROOT / "cloud-init" / name).read_text(encoding="utf-8")
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text)["runcmd"] == [["gpuboot", "run"]]


def test_agent_user_data_keeps_its_files_for_root() -> None:
    user_data = yaml.safe_load((ROOT / "cloud-init/agent.yaml").read_text(encoding="utf-8"))
    files = {file["path"]: file for file in user_data["write_files"]}
    assert {file["permissions"] for file in files.values()} == {"0600"}
    written = yaml.safe_load(files["/etc/gpuboot/config.yaml"]["content"])
    assert written["rke2"]["config"]["token-file"] in files


@pytest.mark.vm
def test_a_package_whose_changelog_has_another_version_is_not_built(tmp_path: Path) -> None:
    for part in ("gpuboot", "packaging"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "gpuboot/__init__.py").write_text('__version__ = "9.9.9"\n', encoding="ascii")
    done = subprocess.run(
        [str(tmp_path / "packaging/build-deb"), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "9.9.9" in done.stderr


@pytest.mark.vm
def test_lintian_has_nothing_to_say(deb: Path) -> None:
    call(["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)])


@pytest.mark.vm
def test_the_same_tree_gives_the_same_package(deb: Path, tmp_path: Path) -> None:
    again = Path(call([str(ROOT / "packaging/build-deb"), str(tmp_path)]).strip())
    assert again.read_bytes() == deb.read_bytes()


# -- what it does to a node -----------------------------------------------------------------------


@pytest.mark.vm
@needs_root
def test_manuals_open_without_warnings(machine: Machine) -> None:
    script = (
        'for page in /usr/share/man/man[578]/gpuboot*; do man --warnings "$page"; done 2>&1 >&3'
    )
    assert machine.offline("bash", "-c", f"exec 3>/dev/null; {script}") == ""
    assert "EXIT STATUS" in machine.offline("man", "gpuboot-run")
    assert "rke2.config.server" in machine.offline("man", "5", "gpuboot-config")
    assert "GB110: no NVIDIA GPU" in machine.offline("man", "7", "gpuboot-errors")
    assert "EXAMPLES" in machine.offline("man", "gpuboot-report")


@pytest.mark.vm
@needs_root
def test_the_page_of_codes_lies_where_explain_says(machine: Machine) -> None:
    said = machine.offline("gpuboot", "explain", "GB110").split()[-1]
    file, _, anchor = said.partition("#")
    assert f'<a id="{anchor}"></a>' in machine.offline("cat", file)


@pytest.mark.vm
@needs_root
def test_completions_lie_where_the_shells_look(machine: Machine) -> None:
    machine.offline(
        "bash", "-ec", "source /usr/share/bash-completion/completions/gpuboot; complete -p gpuboot"
    )
    first = machine.offline("head", "-1", "/usr/share/zsh/vendor-completions/_gpuboot")
    assert first == "#compdef gpuboot\n"
    machine.offline("test", "-s", "/usr/share/fish/vendor_completions.d/gpuboot.fish")
    asked = ("env", "_GPUBOOT_COMPLETE=bash_complete", "COMP_WORDS=gpuboot sta", "COMP_CWORD=1")
    assert "status" in machine.offline(*asked, "gpuboot")


@pytest.mark.vm
@needs_root
def test_cloud_init_accepts_the_user_data(machine: Machine) -> None:
    for name in ("agent.yaml", "rancher-pool.yaml"):
        example = f"/usr/share/doc/gpuboot/examples/{name}"
        assert "Valid" in machine.offline("cloud-init", "schema", "--config-file", example)


@pytest.mark.vm
@needs_root
def test_installed_but_never_enabled_changes_nothing(machine: Machine) -> None:
    machine.boot()
    assert machine.state("rke2-agent") == "active"
    assert machine.state("gpuboot") == "inactive"
    assert machine.attempt("systemctl", "is-enabled", "gpuboot").stdout == "disabled\n"
    assert machine.run("stat", "--format=%a %U", "/run/gpuboot") == "755 root"
    assert machine.run(MOTD) == ""


@pytest.mark.vm
@needs_root
def test_units_are_well_formed_and_without_a_cycle(held: Machine) -> None:
    done = held.attempt("systemd-analyze", "verify", "gpuboot.service", "rke2-agent.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # systemd finds a cycle before there is a journal, and drops one of its jobs.
    assert "ordering cycle" not in held.console.read_text(encoding="utf-8", errors="replace")
    assert (held.state("cloud-final"), held.state("gpuboot")) == ("active", "active")


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("gpuboot-monitor", 2.0),  # a root's unit with one capability
        ("gpuboot-condition", 2.0),
        # It is what installs packages and loads modules; the unit tells why each rest is left.
        ("gpuboot", 7.0),
    ],
)
def test_each_sandbox_is_as_tight_as_its_work_allows(unit: str, most: float) -> None:
    """Of 10, by systemd's own reckoning."""
    file = str(ROOT / f"systemd/{unit}.service")
    said = call(["systemd-analyze", "security", "--offline=yes", "--no-pager", file])
    level = re.search(rf"Overall exposure level for {unit}.service: ([\d.]+)", said)
    assert level is not None
    assert float(level[1]) <= most


@pytest.mark.vm
@needs_root
def test_whoever_logs_in_is_told_where_the_node_stands(held: Machine) -> None:
    assert re.fullmatch(r"gpuboot: \S.*; more: gpuboot status", held.run(MOTD))


@pytest.mark.vm
@needs_root
def test_enabled_holds_rke2_agent_until_the_gate_opens(held: Machine) -> None:
    held.run("systemctl", "restart", "rke2-agent")
    assert held.state("gpuboot") == "active"
    assert held.state("rke2-agent") == "inactive"
    assert held.show("rke2-agent", "Result") == "success"
    held.write(READY, "")
    held.run("systemctl", "start", "rke2-agent")
    held.run("systemctl", "kill", "--signal=KILL", "rke2-agent")
    held.until("systemctl", "show", "--value", "--property=NRestarts", "rke2-agent", said="1")
    held.until("systemctl", "is-active", "rke2-agent", said="active")


@pytest.mark.vm
@needs_root
def test_a_reload_wakes_the_walk(held: Machine) -> None:
    held.run("systemctl", "reload", "gpuboot")
    held.until("ls", "/run/woken", said="/run/woken")
    assert held.state("gpuboot") == "active"


@pytest.mark.vm
@needs_root
def test_a_kernel_that_is_installed_wakes_the_walk_and_is_told_of(held: Machine) -> None:
    hook = "/etc/kernel/postinst.d/zz-gpuboot"
    done = held.attempt(hook, "6.1.0-99-amd64", "/boot/vmlinuz-6.1.0-99-amd64")
    assert done.returncode == 0
    assert "gpuboot: kernel 6.1.0-99-amd64 has no NVIDIA module yet" in done.stderr
    held.until("ls", "/run/woken", said="/run/woken")
    journal = ("journalctl", "--quiet", "--identifier=gpuboot", "--grep=no NVIDIA module yet")
    held.until(*journal, "--output=cat", said="kernel 6.1.0-99-amd64 has no .*")
    held.write("/lib/modules/6.1.0-98-amd64/updates/dkms/nvidia-current.ko.xz", "")
    assert held.attempt(hook, "6.1.0-98-amd64").stderr == ""


@pytest.mark.vm
@needs_root
def test_disabled_lets_rke2_agent_start_now_and_at_the_next_boot(held: Machine) -> None:
    held.run("systemctl", "disable", "--now", "gpuboot")
    held.run("systemctl", "start", "rke2-agent")
    assert held.state("rke2-agent") == "active"
    held.reboot()
    assert held.state("rke2-agent") == "active"
    assert held.state("gpuboot") == "inactive"


@pytest.mark.vm
@needs_root
def test_removed_lets_rke2_agent_start_now_and_at_the_next_boot(held: Machine) -> None:
    held.run("apt-get", "-q", "remove", "--yes", "gpuboot")
    assert held.state("gpuboot") == "inactive"
    assert held.attempt("test", "-L", LINK).returncode == 1
    held.run("systemctl", "start", "rke2-agent")
    assert held.state("rke2-agent") == "active"
    held.reboot()
    assert held.state("rke2-agent") == "active"


@pytest.mark.vm
@needs_root
def test_installed_again_after_a_removal_is_disabled(held: Machine) -> None:
    held.run("apt-get", "-q", "remove", "--yes", "gpuboot")
    held.run("apt-get", "-q", "install", "--yes", "/gpuboot.deb")
    assert held.attempt("systemctl", "is-enabled", "gpuboot").stdout == "disabled\n"


@pytest.mark.vm
@needs_root
def test_purged_leaves_a_working_node_and_what_it_lives_on(held: Machine) -> None:
    join = {"server": "https://10.0.0.1:9345", "token-file": "/etc/gpuboot/token"}
    held.write("/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml", json.dumps(join), 0o600)
    held.write("/etc/gpuboot/token", "secret", 0o600)
    held.write("/etc/modprobe.d/gpuboot.conf", "blacklist nouveau\n")
    for ours in ("/etc/gpuboot/config.yaml", "/etc/gpuboot/config.d/1.yaml", "/etc/gpuboot/.old",
                 "/var/lib/gpuboot/checkpoint.json", "/var/cache/gpuboot/rke2.tar.gz"):  # fmt: skip
        held.write(ours, "")
    held.write(dkms.SWITCH, dkms.NOTICE)
    held.write(READY, "")
    held.run("systemctl", "start", "rke2-agent")
    agent = held.show("rke2-agent", "MainPID")

    held.run("apt-get", "-q", "purge", "--yes", "gpuboot")

    assert held.attempt("test", "-e", dkms.SWITCH).returncode == 1
    assert held.show("rke2-agent", "MainPID") == agent
    assert held.attempt("test", "-e", READY).returncode == 0
    found = held.run("find", "/etc", "/usr", "/var", "-path", "*gpuboot*", "-not", "-type", "d")
    test_own = {"/etc/systemd/system/gpuboot.service.d/walk.conf"}
    assert set(found.split()) - test_own == {
        "/etc/gpuboot/token",
        "/etc/modprobe.d/gpuboot.conf",
        "/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml",
    }
    held.reboot()
    assert held.state("rke2-agent") == "active"


@pytest.mark.vm
@needs_root
def test_purged_before_anything_was_configured_leaves_no_folder(machine: Machine) -> None:
    machine.offline("apt-get", "-q", "purge", "--yes", "gpuboot")
    assert machine.offline("find", "/etc", "/usr", "/var", "-path", "*gpuboot*") == (
        "/etc/systemd/system/gpuboot.service.d\n/etc/systemd/system/gpuboot.service.d/walk.conf\n"
    )


@pytest.mark.vm
@needs_root
@pytest.mark.parametrize("word", ["enable", "disable"])
def test_an_upgrade_neither_stops_a_walk_nor_changes_what_is_enabled(
    machine: Machine, deb: Path, tmp_path: Path, word: str
) -> None:
    newer = tmp_path / "newer"
    call(["dpkg-deb", "--raw-extract", str(deb), str(newer)])
    control = newer / "DEBIAN/control"
    control.write_text(re.sub(r"(Version: .*)", r"\1+1", control.read_text()), encoding="utf-8")
    machine.upper.mkdir()
    call(["dpkg-deb", "--build", str(newer), str(machine.upper / "newer.deb")])
    machine.offline("systemctl", word, "gpuboot.service")
    machine.write("/etc/systemd/system/gpuboot-monitor.service.d/walk.conf", STANDS_IN)
    machine.boot()
    machine.run("systemctl", "start", "gpuboot", "gpuboot-monitor")
    walk, monitor = machine.show("gpuboot", "MainPID"), machine.show("gpuboot-monitor", "MainPID")

    machine.run("apt-get", "-q", "install", "--yes", "/newer.deb")

    # The monitor goes on as the new version.
    assert machine.state("gpuboot-monitor") == "active"
    assert machine.show("gpuboot-monitor", "MainPID") != monitor
    assert machine.run("dpkg-query", "--show", "--showformat=${Version}", "gpuboot").endswith("+1")
    assert (machine.state("gpuboot"), machine.show("gpuboot", "MainPID")) == ("active", walk)
    assert machine.attempt("systemctl", "is-enabled", "gpuboot").stdout == f"{word}d\n"


@needs_root
@pytest.mark.vm
def test_the_first_boot_of_a_template_without_machine_id_leaves_it_disabled(
    machine: Machine,
) -> None:
    machine.write("/etc/machine-id", "uninitialized\n")  # then systemd applies all presets
    machine.offline("systemctl", "mask", "systemd-networkd-wait-online.service")  # no network here
    machine.boot()
    assert machine.attempt("systemctl", "is-enabled", "gpuboot.service").stdout == "disabled\n"
    assert machine.state("gpuboot.service") == "inactive"
