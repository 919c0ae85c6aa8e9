"""The driver's module for every kernel that runs or boots next, and why there is none."""

from __future__ import annotations

import pytest

from gpuboot import dkms, makelog
from gpuboot.dkms import DriverBuilt
from gpuboot.errors import GpubootError
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending
from tests.unit.node import DATA, KERNEL, Node, module_text, reason, settled

# What a real dkms 3.0.10 printed on a full and on a read-only disk (Debian 12, 2026-11-25).
FULL = f"""\
 - Installation
   - Installing to /lib/modules/{KERNEL}/updates/dkms/
cp: error writing '/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko': No space left on device
depmod...
"""
READ_ONLY = """\
rm: cannot remove '/var/lib/dkms/nvidia-current/535.309.01/build': Read-only file system
Error! Bad return status for module build on kernel: 6.1.0-50-amd64 (x86_64)
"""
FULL_LOG = """\
DKMS make.log for nvidia-current-535.309.01 for kernel 6.1.0-50-amd64 (x86_64)
/tmp/cchrlmGG.s: Fatal error: can't fill 256 bytes in section .data: 'No space left on device'
"""
# dkms 3.0.10 and 3.2.2 say the same, with exit status 1 and 21 (2026-11-26).
HEADERS = f"""\
Error! Your kernel headers for kernel {KERNEL} cannot be found at /lib/modules/{KERNEL}/build or \
/lib/modules/{KERNEL}/source.
Please install the linux-headers-{KERNEL} package or use the --kernelsourcedir option to tell DKMS \
where it's located.
"""
# 3.2.2 without openssl (2026-11-26).
UNSIGNED = """\
Certificate or key are missing, generating self signed certificate for MOK...
openssl not found, can't generate key and certificate.
"""
BAD_STATUS = Result(10, err=f"Error! Bad return status for module build on kernel: {KERNEL}\n")
TREE = "/var/lib/dkms/nvidia-current"
MODULE = "nvidia-current/535.309.01"
OPEN = "nvidia-current-open/550.163.01"
LOG = "/var/lib/dkms/{}/build/make.log"
LOGS = DATA / "make-logs"  # of real builds that failed (2026-11-26); conftest's lines are left out

NEXT = "6.1.0-56-amd64"


def place(kernel: str) -> str:
    return f"/lib/modules/{kernel}/updates/dkms/nvidia-current.ko"


def source(node: Node, module: str = MODULE) -> None:
    node.put(f"/usr/src/{module.replace('/', '-')}/dkms.conf", "AUTOINSTALL=yes\n")


@pytest.fixture
def built(node: Node) -> Node:
    """A node whose DKMS builds whatever it is asked for; modinfo tells the folder's kernel."""

    def modinfo(command: Command) -> Result:
        kernel = command.argv[-1].partition("/lib/modules/")[2].partition("/")[0]
        return Result(0, module_text(kernel))

    def install(command: Command) -> Result:
        node.put(place(command.argv[command.argv.index("-k") + 1]))
        return Result(0)

    node.put("/proc/sys/kernel/osrelease", KERNEL)
    source(node)
    node.answers |= {"modinfo": modinfo, "dkms install": install}
    return node


def failed(node: Node, log: str = "", module: str = MODULE) -> GpubootError:
    """What comes of a build whose make said this."""
    if log:
        node.put(LOG.format(module), log)
    with pytest.raises(GpubootError) as caught:
        DriverBuilt().apply(node.host)
    return caught.value


def line(log: str, words: str) -> str:
    """The first line of a recorded log with these words."""
    return next(line for line in (LOGS / log).read_text().splitlines() if words in line)


def of_dkms(node: Node) -> list[str]:
    return [line for line in node.ran if line.startswith("dkms ")]


def test_a_module_for_every_kernel_is_needed(built: Node) -> None:
    step = DriverBuilt()
    built.put(f"/boot/vmlinuz-{NEXT}")
    built.put(place(KERNEL))
    assert reason(step.check(built.host), Pending) == f"there is no NVIDIA module for kernel {NEXT}"
    assert reason(settled(built, step), Ok) == (
        f"NVIDIA module 535.309.01 for {KERNEL}, 535.309.01 for {NEXT}"
    )
    assert of_dkms(built) == [f"dkms install {MODULE} -k {NEXT}"]


def test_other_kernels_that_are_installed_get_no_module(built: Node) -> None:
    built.put("/lib/modules/6.1.0-48-amd64/build/Makefile")
    built.put("/lib/modules/6.1.0-49-amd64/build/Makefile")
    assert reason(settled(built, DriverBuilt()), Ok)
    assert of_dkms(built) == [f"dkms install {MODULE} -k {KERNEL}"]


def test_what_is_built_is_not_built_again(built: Node) -> None:
    built.put(place(KERNEL))
    DriverBuilt().apply(built.host)
    assert of_dkms(built) == []


def test_only_nvidias_modules_are_built(built: Node) -> None:
    source(built, "wireguard/1.0")
    built.put("/usr/src/nvidia-leftover-1.0/README")
    DriverBuilt().apply(built.host)
    assert of_dkms(built) == [f"dkms install {MODULE} -k {KERNEL}"]


# A binary installation that failed is logged by Google's installer, which then ends with 0
# (GoogleCloudPlatform/compute-gpu-installation, facts: peers).
@pytest.mark.parametrize("status", [0, 10, 1, 21, 77])
def test_dkms_is_judged_by_the_module_and_not_by_its_status(built: Node, status: int) -> None:
    built.answers["dkms install"] = Result(status, "", "Error! I have no idea")
    error = failed(built)
    assert error.message == f"DKMS has built no NVIDIA module for kernel {KERNEL}"
    assert (error.code.id, error.retry) == ("GB301", False)
    assert error.evidence == "Error! I have no idea"


def test_a_module_of_another_kernel_is_no_module(built: Node) -> None:
    def install(_: Command) -> Result:
        built.put(place(KERNEL))
        return Result(0)

    built.answers |= {"dkms install": install, "modinfo": f"{NEXT} SMP preempt\n"}
    assert failed(built).code.id == "GB301"


def test_a_dkms_that_failed_and_still_built_is_good(built: Node) -> None:
    def install(_: Command) -> Result:
        built.put(place(KERNEL))
        return Result(11, err="Error! One or more modules failed to install during autoinstall.")

    built.answers["dkms install"] = install
    assert reason(settled(built, DriverBuilt()), Ok)


def test_an_old_driver_is_told_with_the_compilers_first_error_and_the_remedy(built: Node) -> None:
    source(built, OPEN)
    built.answers["dkms install"] = BAD_STATUS
    error = failed(built, (LOGS / "open-550-on-6.12.118.log").read_text(), OPEN)
    assert (error.code.id, error.retry) == ("GB301", False)
    told = line("open-550-on-6.12.118.log", "nv-pci.c:237:9: error: too few arguments")
    short = told.removeprefix(f"/var/lib/dkms/{OPEN}/build/")
    assert short.startswith("nvidia/nv-pci.c:237:9: error: ")
    assert error.message == f"DKMS has built no NVIDIA module for kernel {KERNEL}: {short}"
    lines = error.evidence.splitlines()
    assert "nv-pci.c: In function" in lines[0]
    assert lines[1:3] == [
        told, "  237 |     r = pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size);",
    ]  # fmt: skip
    assert any(line.endswith("note: declared here") for line in lines)
    assert lines[-1].startswith("make[4]: *** [")
    assert lines[-1].endswith("nv-pci.o] Error 1")
    assert "exit code" not in error.evidence
    assert error.hint.startswith("set driver.kernel-module-type: proprietary")


def test_a_proprietary_module_that_does_not_compile_needs_a_newer_driver(built: Node) -> None:
    built.answers["dkms install"] = BAD_STATUS
    error = failed(built, (LOGS / "open-550-on-6.12.118.log").read_text())
    assert "boot an older kernel" in error.hint
    assert "newer driver" in error.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("killed.log",
         "x86_64-linux-gnu-gcc-14: fatal error: Killed signal terminated program cc1"),
        ("exhausted.log", "virtual memory exhausted: Cannot allocate memory"),
    ],
)  # fmt: skip
def test_want_of_memory_is_tried_with_one_job_and_then_waited_out(
    built: Node, name: str, said: str
) -> None:
    built.answers["dkms install"] = BAD_STATUS
    error = failed(built, (LOGS / name).read_text())
    assert (error.code.id, error.retry) == ("GB330", True)
    assert said in error.evidence.splitlines()
    assert of_dkms(built) == [
        f"dkms install {MODULE} -k {KERNEL}", f"dkms install {MODULE} -k {KERNEL} -j 1",
    ]  # fmt: skip


def test_with_one_job_the_memory_may_suffice(built: Node) -> None:
    install = built.answers["dkms install"]
    built.put(LOG.format(MODULE), (LOGS / "killed.log").read_text())
    built.answers |= {
        "dkms install": BAD_STATUS,
        f"dkms install {MODULE} -k {KERNEL} -j 1": install,
    }
    assert reason(settled(built, DriverBuilt()), Ok)


@pytest.mark.parametrize("status", [1, 21])
def test_missing_headers_are_named(built: Node, status: int) -> None:
    built.answers["dkms install"] = Result(status, err=HEADERS)
    error = failed(built, (LOGS / "killed.log").read_text())  # of an older build
    assert error.code.id == "GB331"
    assert error.message == f"DKMS finds no headers of kernel {KERNEL}"
    assert f"linux-headers-{KERNEL}" in error.hint


def test_a_compiler_that_does_not_know_the_kernels_options_is_named(built: Node) -> None:
    built.answers["dkms install"] = BAD_STATUS
    error = failed(built, (LOGS / "gcc-11-on-6.1.0-56.log").read_text())
    assert error.code.id == "GB332"
    told = line("gcc-11-on-6.1.0-56.log", "gcc-11: error: unrecognized command-line option")
    assert error.message == f"the compiler does not suit kernel {KERNEL}: {told}"
    assert told in error.evidence.splitlines()


def test_a_driver_without_its_source_is_told(built: Node) -> None:
    (built.root / f"usr/src/{MODULE.replace('/', '-')}/dkms.conf").unlink()
    assert failed(built).message == (
        f"DKMS has built no NVIDIA module for kernel {KERNEL}: none has its source below /usr/src"
    )


def test_a_module_that_could_not_be_signed_is_a_module(
    built: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def install(_: Command) -> Result:
        built.put(place(KERNEL))
        return Result(0, UNSIGNED)

    built.answers["dkms install"] = install
    with caplog.at_level("INFO"):
        assert reason(settled(built, DriverBuilt()), Ok)
    assert "dkms: openssl not found, can't generate key and certificate." in caplog.messages


def test_without_an_error_makes_complaints_are_shown_and_else_the_last_lines() -> None:
    said = "make[2]: *** No rule to make target 'x'.  Stop.\nmake: *** [a: b] Error 2\n"
    assert makelog.excerpt(f"one\n{said}two\n") == said.strip()
    lines = [str(number) for number in range(40)]
    assert makelog.excerpt("\n".join(lines)).splitlines() == lines[-15:]


@pytest.mark.parametrize(
    "told",
    [
        "nv-linux.h:29:10: fatal error: asm/kmap_types.h: No such file or directory",
        "ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol 'rcu_read_lock'",
        "x86_64-linux-gnu-ld: cannot find nv-kernel.o: No such file or directory",
    ],
)
def test_the_first_error_may_be_the_compilers_modposts_or_the_linkers(told: str) -> None:
    harmless = (
        "make -C /usr/src CFLAGS=-Werror=strict-prototypes modules\n"
        "ld: warning: nv.o: missing .note.GNU-stack section\nnv.c:1:1: warning: unused\n"
    )
    assert makelog.first_error(f"{harmless}{told}\nmake: *** [x] Error 1\n") == told


def test_a_line_of_kilobytes_is_cut() -> None:
    told = f"nv.c:1:1: error: {'x' * 5000}"
    assert len(makelog.excerpt(told)) == makelog.LONGEST


def torn(built: Node) -> None:
    """What a power cut leaves soon after DKMS was done: it counts as installed, and is half."""
    built.put(f"{TREE}/535.309.01/{KERNEL}/x86_64/module/nvidia-current.ko", "half")
    built.link(f"{TREE}/kernel-{KERNEL}-x86_64", f"535.309.01/{KERNEL}/x86_64")
    built.put("/var/lib/dkms/dkms_dbversion", "2.0.0")
    built.put(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko", "half")

    def modinfo(_: Command) -> Result:
        if built.text(f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko") == "half":
            return Result(1, err="modinfo: ERROR: could not get modinfo: Invalid argument")
        return Result(0, module_text(KERNEL))

    built.answers |= {"modinfo": modinfo, "dkms install": ""}


def test_a_module_that_a_power_cut_tore_is_built_anew(built: Node) -> None:
    torn(built)
    tree = f"{TREE}/535.309.01/{KERNEL}/x86_64/module/nvidia-current.ko"

    def build(_: Command) -> Result:
        built.put(tree, "whole")
        return Result(0)

    def install(_: Command) -> Result:
        built.put(place(KERNEL), built.text(tree) or "")
        return Result(0)

    built.answers[f"dkms build --force {MODULE} -k {KERNEL}"] = build
    built.answers[f"dkms install --force {MODULE} -k {KERNEL}"] = install
    assert reason(settled(built, DriverBuilt()), Ok) == f"NVIDIA module 535.309.01 for {KERNEL}"


def test_a_build_that_fails_is_not_tried_again_by_the_installation(built: Node) -> None:
    torn(built)
    built.answers["dkms build"] = BAD_STATUS
    assert failed(built).code.id == "GB301"
    assert of_dkms(built) == [f"dkms build --force {MODULE} -k {KERNEL}"]


@pytest.mark.parametrize(
    ("result", "log", "said"),
    [
        (Result(0, FULL), "", FULL.splitlines()[2]),
        (Result(11, err=READ_ONLY), "", READ_ONLY.splitlines()[0]),
        (Result(11, err=READ_ONLY.splitlines()[1]), FULL_LOG, FULL_LOG.splitlines()[1]),
    ],
    ids=["full, and no failure", "read-only", "full while compiling"],
)
def test_a_disk_that_takes_no_module_is_worth_another_try(
    built: Node, result: Result, log: str, said: str
) -> None:
    built.answers["dkms install"] = result
    error = failed(built, log)
    assert (error.code.id, error.retry) == ("GB012", True)
    assert error.message == f"dkms: {said}"


# -- DKMS while packages are installed ---------------------------------------------------------


def test_inside_no_package_builds_and_after_it_all_do_again(node: Node) -> None:
    with dkms.deferred(node.host):
        assert node.text("/etc/dkms/no-autoinstall") == dkms.NOTICE
        assert dkms.left(node.host)
    assert not node.host.exists("/etc/dkms/no-autoinstall")
    assert not dkms.left(node.host)


def test_an_installation_that_fails_switches_dkms_on_again(node: Node) -> None:
    with pytest.raises(GpubootError), dkms.deferred(node.host):
        raise GpubootError(dkms.BUILD_FAILED, "apt failed")
    assert not node.host.exists("/etc/dkms/no-autoinstall")


def test_an_administrators_own_switch_is_left_alone(node: Node) -> None:
    node.put("/etc/dkms/no-autoinstall", "")
    with dkms.deferred(node.host):
        pass
    assert node.text("/etc/dkms/no-autoinstall") == ""
    assert not dkms.left(node.host)


def test_modules_of_others_are_built_for_a_kernel_that_came_along(built: Node) -> None:
    built.put("/var/lib/dkms/mok.key", "")
    built.put("/var/lib/dkms/nvidia-current/535.309.01/source/dkms.conf", "")
    with dkms.deferred(built.host):
        pass
    assert of_dkms(built) == []
    built.put("/var/lib/dkms/zfs/2.1/source/dkms.conf", "")
    built.answers["dkms autoinstall"] = Result(11, err="Error! zfs does not build")
    with dkms.deferred(built.host):
        built.put(f"/boot/vmlinuz-{NEXT}")
    assert of_dkms(built) == [f"dkms autoinstall -k {KERNEL}", f"dkms autoinstall -k {NEXT}"]
