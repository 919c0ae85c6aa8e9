"""Headers for the kernels that need a module, and what is done where the archive has none."""

from __future__ import annotations

import pytest

from gpuboot import headers
from gpuboot.errors import GpubootError
from gpuboot.headers import KernelHeaders
from gpuboot.process import Command, Result
from gpuboot.step import Ok, Pending, Reboot
from tests.unit.node import KERNEL, Node, module_text, reason

NEWER = "6.1.0-56-amd64"
GRUB_CFG = "set default={default}\n{entries}"
ENTRY = "menuentry 'Linux {release}' {{\n linux /boot/vmlinuz-{release} ro\n}}\n"


class Debian:
    """A node whose apt installs kernels and headers; GRUB boots the newest unless it is pinned."""

    def __init__(self, node: Node, kernel: str = KERNEL) -> None:
        self.node = node
        self.installed: set[str] = set()
        self.archive: set[str] = set()
        self.newest = NEWER
        self.pinned: str | None = None
        self.updates = 0
        self.kernels: list[str] = []
        self.run(kernel)
        self.add(kernel)
        node.answers |= {
            "dpkg-query": self.query, "apt-cache": self.policy, "apt-get": self.get,
            "modinfo": lambda command: Result(0, module_text(command.argv[1].split("/")[-4])),
        }  # fmt: skip

    def run(self, kernel: str) -> None:
        self.node.put("/proc/sys/kernel/osrelease", kernel + "\n")

    def add(self, kernel: str) -> None:
        """A kernel is installed, and update-grub has seen it."""
        self.kernels = [kernel, *self.kernels]
        self.node.put(f"/boot/vmlinuz-{kernel}")
        entries = "".join(ENTRY.format(release=one) for one in self.kernels)
        default = self.kernels.index(self.pinned) if self.pinned else 0
        self.node.put("/boot/grub/grub.cfg", GRUB_CFG.format(default=default, entries=entries))

    def build(self, kernel: str) -> None:
        self.node.put(f"/lib/modules/{kernel}/updates/dkms/nvidia-current.ko", kernel)

    def query(self, command: Command) -> Result:
        found = [name for name in command.argv[4:] if name in self.installed]
        return Result(0, "".join(f"{name}\tinstalled\t1\n" for name in found))

    def policy(self, command: Command) -> Result:
        known = self.archive | self.installed
        names = command.argv[command.argv.index("policy") + 1 :]
        found = [name for name in names if name in known]
        return Result(0, "".join(f"{name}:\n  Candidate: 1\n" for name in found))

    def get(self, command: Command) -> Result:
        if command.argv[-1] == "update":
            self.updates += 1
            return Result(0)
        for name in command.argv[command.argv.index("install") + 1 :]:
            assert name in self.archive
            self.installed.add(name)
            if name.startswith("linux-image-"):
                if self.newest not in self.kernels:
                    self.add(self.newest)
            else:
                self.installed.add(f"linux-headers-{self.newest}")
        return Result(0)

    def has_metas(self, flavour: str = "amd64") -> None:
        """The archive has the newest kernel, and its headers."""
        self.archive |= {f"linux-image-{flavour}", f"linux-headers-{flavour}"}
        self.archive.add(f"linux-headers-{self.newest}")


@pytest.fixture
def debian(node: Node) -> Debian:
    return Debian(node)


def check(debian: Debian) -> Ok | Pending:
    found = KernelHeaders().check(debian.node.host)
    assert isinstance(found, (Ok, Pending))
    return found


def apply(debian: Debian) -> Reboot | None:
    return KernelHeaders().apply(debian.node.host)


# -- a node that has what it needs


def test_a_node_whose_modules_exist_needs_no_headers_and_asks_no_archive(debian: Debian) -> None:
    debian.build(KERNEL)
    assert reason(check(debian), Ok) == "every kernel that needs headers has them"
    assert [line.split()[0] for line in debian.node.ran] == ["modinfo"]


def test_a_node_whose_headers_are_installed_asks_no_archive(debian: Debian) -> None:
    debian.installed.add(f"linux-headers-{KERNEL}")
    assert reason(check(debian), Ok)
    assert [line.split()[0] for line in debian.node.ran] == ["dpkg-query"]


def test_headers_that_are_to_be_had_come_with_the_driver(debian: Debian) -> None:
    debian.archive.add(f"linux-headers-{KERNEL}")
    assert reason(check(debian), Pending) == f"no headers are installed for kernel {KERNEL}"
    assert apply(debian) is None
    found = reason(check(debian), Ok)
    assert found == f"the headers for kernel {KERNEL} are to be had"
    assert debian.installed == set()
    assert headers.wanted(debian.node.host) == (f"linux-headers-{KERNEL}", "linux-headers-amd64")


def test_a_newer_kernel_that_is_installed_gets_headers_too(debian: Debian) -> None:
    debian.add(NEWER)
    assert headers.wanted(debian.node.host) == (
        f"linux-headers-{KERNEL}", "linux-headers-amd64", f"linux-headers-{NEWER}",
    )  # fmt: skip
    debian.build(KERNEL)
    assert headers.wanted(debian.node.host) == (f"linux-headers-{NEWER}", "linux-headers-amd64")


# -- headers that are gone


def test_a_templates_old_lists_are_not_believed(debian: Debian) -> None:
    """They know of the headers, which the archive has dropped since."""
    debian.archive.add(f"linux-headers-{KERNEL}")
    assert reason(check(debian), Pending)
    assert not [line for line in debian.node.ran if line.startswith("apt")]

    def get(command: Command) -> Result:
        if command.argv[-1] == "update":
            debian.archive.clear()
            debian.has_metas()
        return debian.get(command)

    debian.node.answers["apt-get"] = get
    assert isinstance(apply(debian), Reboot)


def test_gone_headers_are_answered_by_one_upgrade_of_the_kernel_and_one_reboot(
    debian: Debian,
) -> None:
    debian.has_metas()
    found = check(debian)
    assert reason(found, Pending) == f"no headers are installed for kernel {KERNEL}"
    why = f"the archive has no headers for {KERNEL} any more; {NEWER} boots next"
    assert apply(debian) == Reboot(why)
    assert debian.installed >= {"linux-image-amd64", "linux-headers-amd64"}
    assert apply(debian) == Reboot(why), "the same reason after a power cut before the reboot"
    assert sum("install" in line.split() for line in debian.node.ran) == 1
    debian.run(NEWER)
    assert reason(check(debian), Ok)
    assert headers.wanted(debian.node.host) == (f"linux-headers-{NEWER}", "linux-headers-amd64")


def test_a_newer_kernel_that_is_there_is_booted_without_any_upgrade(debian: Debian) -> None:
    debian.add(NEWER)
    debian.archive.add(f"linux-headers-{NEWER}")
    assert isinstance(apply(debian), Reboot)
    assert not [line for line in debian.node.ran if "install" in line.split()]


@pytest.mark.parametrize(
    ("kernel", "flavour"),
    [
        ("6.1.0-44-cloud-amd64", "cloud-amd64"),
        ("6.12.41+deb13-amd64", "amd64"),
        ("6.12.41+deb13-cloud-amd64", "cloud-amd64"),
        ("6.1.0-0.deb11.5-cloud-amd64", "cloud-amd64"),
    ],
)
def test_the_kernel_is_upgraded_within_its_flavour(node: Node, kernel: str, flavour: str) -> None:
    debian = Debian(node, kernel)
    debian.newest = NEWER.replace("amd64", flavour)
    debian.has_metas(flavour)
    assert isinstance(apply(debian), Reboot)
    assert debian.installed >= {f"linux-image-{flavour}", f"linux-headers-{flavour}"}


def test_a_kernel_that_grub_does_not_boot_is_an_error_and_no_loop_of_reboots(
    debian: Debian,
) -> None:
    debian.has_metas()
    debian.pinned = KERNEL
    for _ in range(2):
        with pytest.raises(GpubootError) as caught:
            apply(debian)
        error = caught.value
        assert (error.code.id, error.retry) == ("GB321", True)
        assert error.message == (
            f"there are no headers for kernel {KERNEL}, and it boots next (GRUB's choice),"
            f" not {NEWER}, which is installed"
        )
        assert "GRUB_DEFAULT=0" in error.hint
    debian.pinned = None
    debian.add(NEWER)
    assert isinstance(apply(debian), Reboot)


def test_an_archive_that_has_neither_headers_nor_a_newer_kernel_is_told(debian: Debian) -> None:
    debian.newest = KERNEL
    debian.has_metas()
    debian.archive.remove(f"linux-headers-{KERNEL}")
    debian.node.answers["apt-get"] = ""
    with pytest.raises(GpubootError, match="the archive has no newer kernel either") as caught:
        apply(debian)
    assert (caught.value.code.id, caught.value.retry) == ("GB320", True)


@pytest.mark.parametrize("kernel", ["6.1.0-custom", "5.15.0-9-generic"])
def test_a_kernel_of_somebody_elses_is_not_replaced(node: Node, kernel: str) -> None:
    debian = Debian(node, kernel)
    debian.has_metas()
    with pytest.raises(GpubootError, match=f"no headers for kernel {kernel}; no source") as caught:
        apply(debian)
    assert caught.value.code.id == "GB320"
    assert debian.installed == set()


def test_a_next_kernel_whose_headers_are_gone_is_replaced_without_a_reboot(debian: Debian) -> None:
    debian.build(KERNEL)
    debian.add("6.1.0-52-amd64")
    debian.has_metas()
    found = reason(check(debian), Pending)
    assert found == "no headers are installed for kernel 6.1.0-52-amd64"
    assert apply(debian) is None
    assert reason(check(debian), Ok)


def test_a_difference_on_a_live_node_names_the_command(debian: Debian) -> None:
    debian.build(KERNEL)
    debian.add(NEWER)
    found = check(debian)
    assert isinstance(found, Pending)
    assert found.code is headers.NO_HEADERS
    assert found.hint == f"apt-get install linux-headers-{NEWER}"


@pytest.mark.parametrize("running", [True, False])
def test_a_realtime_kernel_is_told_before_anything_is_built(node: Node, *, running: bool) -> None:
    realtime = "6.1.0-56-rt-amd64"
    debian = Debian(node, realtime if running else KERNEL)
    if not running:
        debian.build(KERNEL)
        debian.add(realtime)
    with pytest.raises(GpubootError, match="realtime kernel") as caught:
        check(debian)
    assert caught.value.code.id == "GB322"


def test_two_steps_of_a_walk_read_the_sources_once(debian: Debian) -> None:
    debian.archive.add(f"linux-headers-{KERNEL}")
    apply(debian)
    apply(debian)
    assert debian.updates == 1
    debian.node.clock.seconds += 400
    apply(debian)
    assert debian.updates == 2


# -- names


@pytest.mark.parametrize(
    ("kernel", "meta"),
    [
        ("6.1.0-50-amd64", "linux-headers-amd64"),
        ("6.1.0-50-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-50-rt-amd64", "linux-headers-rt-amd64"),
        ("6.12.117+deb13-amd64", "linux-headers-amd64"),
        ("6.12.117+deb13-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-0.deb11.5-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-50-arm64", "linux-headers-arm64"),
        ("6.1.0", "linux-headers-amd64"),
    ],
)
def test_headers_are_the_kernels_and_the_meta_package_of_its_flavour(
    node: Node, kernel: str, meta: str
) -> None:
    assert headers.packages(node.host, kernel) == (f"linux-headers-{kernel}", meta)
    image = meta.replace("headers", "image")
    assert {image, meta, f"linux-image-{kernel}", f"linux-headers-{kernel}"} <= set(
        headers.kernel_packages(node.host, kernel)
    )
