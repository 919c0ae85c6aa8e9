"""Effects on the machine: commands that end, files that are old or new, and stopping."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuboot.errors import GpubootError, Stopped
from gpuboot.host import Host
from gpuboot.process import NOT_FOUND, Command, Result, run_process
from gpuboot.secret import Secret
from tests.unit.node import Node


def sh(script: str, *, timeout: float = 20.0, patient: bool = False, **env: str) -> Result:
    return run_process(Command(("sh", "-c", script), timeout, env, None, patient))


# -- commands


def test_output_and_errors_are_kept_apart() -> None:
    assert sh("echo out; echo err >&2; exit 3") == Result(3, "out\n", "err\n")


def test_undecodable_output_is_replaced() -> None:
    assert sh(r"printf 'a\377b'").out == "a\ufffdb"


def test_a_program_that_is_not_there_is_status_127() -> None:
    result = run_process(Command(("/nowhere/program",), 1))
    assert (result.code, result.said) == (NOT_FOUND, "/nowhere/program: command not found")


@pytest.mark.parametrize(("content", "mode"), [("echo hello", 0o644), ("\0garbage", 0o755)])
def test_a_program_that_cannot_be_executed_has_a_status_too(
    tmp_path: Path, content: str, mode: int
) -> None:
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(mode)
    assert run_process(Command((str(program),), 1)).code != 0


def test_a_command_sees_only_our_environment_and_its_own() -> None:
    names = sh("env | cut -d= -f1 | sort | tr '\\n' ' '", EXTRA="1").out.split()
    assert set(names) - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "LANG", "LC_ALL", "HOME", "EXTRA",
    }  # fmt: skip


def test_a_command_reads_what_it_is_given_and_nothing_else() -> None:
    assert run_process(Command(("cat",), 20, input="words")).out == "words"
    assert run_process(Command(("cat",), 20)).out == ""


def test_a_command_that_takes_too_long_ends_with_its_grandchildren(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(TimeoutError):
        sh(f"sleep 60 & echo $! > {pid}; wait", timeout=0.4)
    assert ends(int(pid.read_text()), within=10)


def ends(pid: int, *, within: float) -> bool:
    """Whether a process has ended, or does so within these seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within)[0])
    finally:
        os.close(process)


def test_a_child_that_left_the_group_does_not_hold_us_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(TimeoutError):
        sh(f"setsid sh -c 'echo $$ > {pid}; exec sleep 60' & exec sleep 60", timeout=0.4)
    child = int(pid.read_text())
    assert not ends(child, within=0)  # we are back, and it still holds our pipes
    os.kill(child, signal.SIGKILL)


def test_a_patient_command_is_waited_for() -> None:
    assert sh("sleep 0.1; echo done", timeout=0.01, patient=True).out == "done\n"


@pytest.mark.parametrize(
    ("name", "seconds", "out"), [("apt-get", 60, "asked to end\n"), ("dpkg", 1.2, "done\n")]
)
def test_only_apt_is_asked_to_end_when_we_are_stopped(
    tmp_path: Path, name: str, seconds: float, out: str
) -> None:
    """dpkg dies of SIGINT in the middle of unpacking; apt-get ignores it while dpkg runs."""
    program = tmp_path / name
    program.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(print('asked to end')))\n"
        f"time.sleep({seconds})\nprint('done')\n"
    )
    program.chmod(0o755)
    command = Command((name,), 10, {"PATH": f"{tmp_path}:/usr/bin:/bin"}, patient=True,
                      stopping=lambda: True)  # fmt: skip
    assert run_process(command).out == out


def test_a_timeout_is_an_error_worth_another_try(tmp_path: Path) -> None:
    def runner(_: Command) -> Result:
        raise TimeoutError

    host = Host(tmp_path, runner=runner)
    host.mask.add(Secret("open-sesame"))
    with pytest.raises(GpubootError, match="program <secret> took longer than 5 s") as caught:
        host.run(["program", "open-sesame"], timeout=5)
    assert (caught.value.code.id, caught.value.retry) == ("GB011", True)


def test_output_is_masked_where_it_becomes_text(node: Node) -> None:
    node.answers["program"] = Result(0, "out open-sesame", "err open-sesame")
    node.host.mask.add(Secret("open-sesame"))
    assert node.host.run(["program"]) == Result(0, "out <secret>", "err <secret>")


def test_a_failed_command_tells_what_it_said_without_secrets(node: Node) -> None:
    node.answers["program"] = Result(4, "not this", "it was open-sesame\n")
    node.host.mask.add(Secret("open-sesame"))
    with pytest.raises(GpubootError) as caught:
        node.host.must(["program", "open-sesame"])
    error = caught.value
    # shlex quotes a word that holds the mask's brackets only if it is masked first.
    assert error.message == "program <secret> ended with status 4"
    assert (error.code.id, error.evidence, error.retry) == ("GB010", "it was <secret>", True)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Result(0, " out \n"), "out"),
        (Result(0, "out", "err"), "err"),
        (Result(0, "a" * 3000), "a" * 2000),
    ],
)
def test_what_a_command_said_is_its_errors_or_its_output(result: Result, said: str) -> None:
    assert result.said == said


# -- stopping


def test_after_stop_nothing_new_is_started_or_changed(node: Node) -> None:
    node.put("/old", "old")
    node.answers["program"] = ""
    node.host.stop()
    for act in (
        lambda: node.host.run(["program"]),
        lambda: node.host.write("/new", ""),
        lambda: node.host.remove("/old"),
        lambda: node.host.sleep(1),
        node.host.proceed,
    ):
        with pytest.raises(Stopped):
            act()
    assert node.ran == []
    assert node.files() == ["/old"]
    assert node.host.read("/old") == "old"


def test_being_stopped_in_a_sleep_ends_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.clock.wake()
    host.sleep(60)  # woken before: returns at once
    host.stop()
    with pytest.raises(Stopped):
        host.sleep(60)


def test_a_wake_is_kept_for_the_next_rest_whatever_is_slept_before_it(node: Node) -> None:
    node.host.wake()
    node.host.sleep(5)
    before = node.clock.seconds
    node.host.rest(300)
    assert node.clock.seconds == before
    node.host.rest(300)
    assert node.clock.seconds == before + 300


# -- looking


def test_looking_at_what_is_not_there_is_no_error(node: Node) -> None:
    node.put("/file", "text")
    host = node.host
    for name in ("/nowhere", "/file/below", "/no/folder/file"):
        assert host.read(name) is None
        assert host.names(name) == []
        assert host.link(name) is None
        assert host.mode(name) is None
        assert not host.exists(name)


def test_a_dangling_link_exists_and_has_a_target(node: Node) -> None:
    node.link("/link", "/nowhere")
    assert node.host.exists("/link")
    assert node.host.link("/link") == "/nowhere"
    assert node.host.read("/link") is None


def test_undecodable_bytes_are_replaced(node: Node) -> None:
    node.put("/file", b"a\xffb")
    assert node.host.read("/file") == "a\ufffdb"


def test_names_are_sorted(node: Node) -> None:
    for name in ("b", "a", ".c"):
        node.put(f"/folder/{name}")
    assert node.host.names("/folder") == [".c", "a", "b"]


# -- changing files


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_file_has_its_mode_whatever_the_umask_and_the_old_mode(
    node: Node, mode: int, umask: int
) -> None:
    node.put("/folder/file", "old", mode=0o666)
    before = os.umask(umask)
    try:
        node.host.write("/folder/file", "new", mode=mode)
    finally:
        os.umask(before)
    assert node.host.mode("/folder/file") == mode
    assert node.text("/folder/file") == "new"


def test_a_secret_file_is_never_open_to_others_while_it_is_written(node: Node) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        for scratch in node.host.path("/folder").iterdir():
            seen.append(stat.S_IMODE(scratch.stat().st_mode))
        yield b"new"

    node.host.write_stream("/folder/file", chunks(), mode=0o644)
    assert seen == [0o600]


def test_missing_folders_are_made_for_everyone_to_read(node: Node) -> None:
    node.host.write("/a/b/c/file", "x")
    assert [node.host.mode(name) for name in ("/a", "/a/b", "/a/b/c")] == [0o755] * 3


def test_a_scratch_file_that_a_power_cut_left_is_replaced(node: Node) -> None:
    node.put("/folder/.file.gpuboot-new", "half", mode=0o444)
    node.host.write("/folder/file", "whole")
    assert node.files() == ["/folder/file"]
    assert node.text("/folder/file") == "whole"


def test_no_program_that_reads_folders_takes_the_scratch_file_for_a_whole_one(node: Node) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        seen.extend(node.host.names("/d"))
        yield b""

    for name in ("60-gpuboot.yaml", "gpuboot.conf", "gpuboot-x.sources"):
        node.host.write_stream(f"/d/{name}", chunks())
    assert not any(name.endswith((".yaml", ".yml", ".conf", ".sources", ".list"))
                   for name in seen if name.startswith("."))  # fmt: skip


def test_a_content_that_breaks_off_leaves_the_old_file_and_no_other(node: Node) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("broken off")

    node.put("/folder/file", "old")
    with pytest.raises(ValueError, match="broken off"):
        node.host.write_stream("/folder/file", chunks())
    assert node.files() == ["/folder/file"]
    assert node.text("/folder/file") == "old"


def test_a_link_is_replaced_and_its_target_left_alone(node: Node) -> None:
    node.put("/target", "theirs")
    node.link("/link", "target")
    node.host.write("/link", "ours")
    assert node.text("/link") == "ours"
    assert node.text("/target") == "theirs"


def test_a_file_where_a_folder_must_be_is_told(node: Node) -> None:
    node.put("/file", "")
    with pytest.raises(GpubootError, match=r"/file/below: Not a directory") as caught:
        node.host.write("/file/below", "x")
    assert (caught.value.code.id, caught.value.retry) == ("GB012", True)


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    node = Node(tmp_path)

    def chunks() -> Iterator[bytes]:
        # The real error of a real device; the scratch file itself is on a disk with room.
        with (tmp_path / "full").open("wb", buffering=0) as full:
            full.write(b"x")
        yield b""

    node.put("/file", "old")
    with pytest.raises(GpubootError, match="No space left on device"):
        node.host.write_stream("/file", chunks())
    assert node.text("/file") == "old"


@pytest.mark.parametrize(
    "said",
    [
        ('Failed to enable unit, file "/etc/systemd/system/multi-user.target.wants/x.service":'
         " Read-only file system"),
        "unable to fill /var/lib/dpkg/updates/tmp.i with padding: No space left on device",
    ],
)  # fmt: skip
def test_a_command_that_cannot_write_is_told_as_that(node: Node, said: str) -> None:
    node.answers["tool"] = Result(2, err=f"tool: aborting:\n {said}\nfailed")
    with pytest.raises(GpubootError) as caught:
        node.host.must(["tool", "now"])
    assert (caught.value.code.id, caught.value.retry) == ("GB012", True)
    assert caught.value.message == f"tool: {said}"
    assert "aborting" in caught.value.evidence


def test_removing_is_done_once_or_twice(node: Node) -> None:
    node.put("/folder/file")
    node.host.remove("/folder/file")
    node.host.remove("/folder/file")
    node.host.remove("/nowhere/file")
    assert node.files() == []


def test_what_cannot_be_removed_is_told(node: Node) -> None:
    node.put("/folder/file")
    with pytest.raises(GpubootError, match="/folder: ") as caught:
        node.host.remove("/folder")
    assert caught.value.code.id == "GB012"


@pytest.mark.parametrize(
    ("content", "size", "found"),
    [("", 10, ""), ("one\ntwo\n", 100, "one\ntwo\n"), ("one\ntwo\n", 6, "two\n"), ("long", 2, "")],
)
def test_the_end_of_a_file_is_whole_lines(node: Node, content: str, size: int, found: str) -> None:
    node.put("/log", content)
    assert node.host.tail("/log", size) == found
    assert node.host.tail("/none", size) == ""


def test_a_change_is_seen_that_keeps_the_time_of_the_content(node: Node) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    node.put("/file", "a")
    os.utime(node.root / "file", (0, 0))
    changed = node.host.changed("/file")
    assert changed is not None
    assert before < changed < before + timedelta(minutes=1)
    assert node.host.changed("/none") is None
