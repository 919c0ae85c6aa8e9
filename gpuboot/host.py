"""Every effect on the machine: commands, files, HTTP and time, below one root folder."""

from __future__ import annotations

import os
import re
import shlex
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from gpuboot.clock import Clock, SystemClock
from gpuboot.errors import Code, GpubootError, Stopped
from gpuboot.process import STOP_POLL, Command, Result, Runner, run_process
from gpuboot.secret import Mask

if TYPE_CHECKING:
    from gpuboot.web import Web

COMMAND_FAILED = Code(
    "GB010",
    "a command failed",
    (
        "The command's own last lines, shown as evidence, say why.",
        "A file system that is full or read-only makes unrelated commands fail.",
    ),
    ("journalctl -u gpuboot -n 50", "df -h /", "gpuboot status"),
    evidence="the command, its exit status and its last lines",
)
COMMAND_TIMEOUT = Code(
    "GB011",
    "a command did not end in time and was stopped",
    ("The machine is overloaded, or the command waits for something that does not come.",),
    ("journalctl -u gpuboot -n 50", "gpuboot status"),
    evidence="the command, and how long it was waited for",
)
WRITE_FAILED = Code(
    "GB012",
    "a file could not be written",
    ("The disk is full.", "The file system is read-only, often after a disk error."),
    ("df -h /", "findmnt -no OPTIONS /", "journalctl -k -p err -n 20"),
    evidence="what the system said when the file was written (errno)",
)

# What programs say, in whatever words around it, when a file system takes nothing (errno(3)).
UNWRITABLE = re.compile(
    r"^.*(?:No space left on device|Read-only file system|Disk quota exceeded).*$", re.MULTILINE
)


class Host:
    """The machine. Paths are absolute names on the node; `root` is put in front of them."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        runner: Runner = run_process,
        clock: Clock | None = None,
        web: Web | None = None,
        owner: int = 0,
    ) -> None:
        self.root = root
        self.owner = owner  # the user id that must own what we trust: root's
        self.clock: Clock = clock or SystemClock()
        self._web = web
        self.mask = Mask()
        self.woken = False  # somebody wants us to look again at once
        self.waited = 0.0  # seconds this walk has waited for apt's locks
        # What a step says while it is applied, for whoever watches; "" for no more.
        self.tell: Callable[[str], None] = lambda _: None
        # Each command and how it ended, for whoever debugs. Commands that only look need no
        # logging, whose import would cost them more than what they do.
        self.trace: Callable[[str], None] = lambda _: None
        self.memory: dict[object, object] = {}  # what was dear to find out, by what it holds for
        self._runner = runner
        self._stopping = False
        self._fetching = threading.Lock()

    @property
    def web(self) -> Web:
        """HTTP. Its import is dear, and who only looks at the machine needs none."""
        if self._web is None:
            from gpuboot.web import RequestsWeb

            self._web = RequestsWeb()
        return self._web

    @web.setter
    def web(self, web: Web) -> None:
        self._web = web

    # -- stopping and waking ------------------------------------------------------------------

    def stop(self) -> None:
        """From now on start nothing new; what runs is waited for. Safe in a signal handler."""
        self._stopping = True
        self.clock.wake()

    def proceed(self) -> None:
        """Raise Stopped if we were asked to stop."""
        if self._stopping:
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait, or less when woken. Raises Stopped."""
        self.proceed()
        self.clock.sleep(seconds)
        self.proceed()

    def wake(self) -> None:
        """Look again at once, with the configuration read anew. Safe in a signal handler."""
        self.woken = True
        self.clock.wake()

    def rest(self, seconds: float) -> None:
        """Wait between two walks, or less when woken, be it in the walk before. Raises Stopped."""
        self.sleep(0 if self.woken else seconds)
        self.woken = False
        self.waited = 0.0

    # -- beside each other --------------------------------------------------------------------

    def beside(self, work: Callable[[], None]) -> None:
        """Do some work in a thread of its own. It ends with the process, wherever it is then."""
        threading.Thread(target=work, name="beside", daemon=True).start()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Whoever fetches a file is alone with it: the other one then finds it. Raises Stopped."""
        while not self._fetching.acquire(timeout=STOP_POLL):
            self.proceed()
        try:
            yield
        finally:
            self._fetching.release()

    # -- commands ---------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - subprocess's own word for it
        patient: bool = False,
    ) -> Result:
        """Run a command whatever its exit status; secrets in its output are masked.

        Raises GB011 if it took longer than `timeout` seconds, Stopped if nothing may start.
        """
        self.proceed()
        command = Command(
            tuple(argv), timeout, env or {}, input, patient, stopping=lambda: self._stopping
        )
        self.trace(f"run: {self.mask(str(command))}")
        try:
            result = self._runner(command)
        except TimeoutError:
            raise GpubootError(
                COMMAND_TIMEOUT,
                self.mask(f"{command} took longer than {timeout:g} s"),
                retry=True,
            ) from None
        result = Result(result.code, self.mask(result.out), self.mask(result.err))
        self.trace(f"run: exit {result.code}: {result.said}")
        return result

    def must(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in run
        patient: bool = False,
    ) -> str:
        """Run a command that has to succeed; its output. Raises GB010 with what it said.

        Raises GB012 instead where it says that it could not write.
        """
        result = self.run(argv, timeout=timeout, env=env, input=input, patient=patient)
        if result.code == 0:
            return result.out
        message = self.mask(f"{shlex.join(argv)} ended with status {result.code}")
        code = COMMAND_FAILED
        if line := unwritable(f"{result.err}\n{result.out}"):
            message, code = f"{argv[0]}: {line}", WRITE_FAILED
        raise GpubootError(code, message, evidence=result.said, retry=True)

    # -- looking at files -------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where the node's absolute name lies below our root."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """A file's text, undecodable bytes replaced; None if there is no such file."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            # sysfs and procfs have files that refuse to be read (EIO, ENODEV, EINVAL).
            return None

    def read_bytes(self, name: str) -> bytes | None:
        """A file's content as it is; None if there is no such file or it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return None

    def tail(self, name: str, size: int) -> str:
        """The last lines of a file, at most so many bytes; empty if it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(max(0, length - size))
                text = file.read(size).decode("utf-8", "replace")
        except OSError:
            return ""
        return text if length <= size else text.partition("\n")[2]

    def forbidden(self, name: str) -> bool:
        """Whether a file is there that this user may not read."""
        try:
            self.path(name).open("rb").close()
        except PermissionError:
            return True
        except OSError:
            pass
        return False

    def exists(self, name: str) -> bool:
        """Whether something is there; a dangling link counts."""
        return os.path.lexists(self.path(name))

    def names(self, name: str) -> list[str]:
        """The sorted names in a folder; none if there is no such folder."""
        try:
            return sorted(entry.name for entry in self.path(name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def link(self, name: str) -> str | None:
        """What a symbolic link says, unresolved; None if there is none."""
        try:
            return str(self.path(name).readlink())
        except OSError:
            return None

    def device(self, name: str) -> str | None:
        """A character device's MAJOR:MINOR; None if there is no such device."""
        try:
            found = self.path(name).stat()
        except OSError:
            return None
        numbers = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return numbers if stat.S_ISCHR(found.st_mode) else None

    def mode(self, name: str) -> int | None:
        """Permission bits; None if there is no such file."""
        try:
            return stat.S_IMODE(self.path(name).stat().st_mode)
        except OSError:
            return None

    def changed(self, name: str) -> datetime | None:
        """When content, mode or name were changed last; None if there is no such file."""
        try:
            found = self.path(name).stat()
        except OSError:
            return None
        return datetime.fromtimestamp(max(found.st_mtime, found.st_ctime), timezone.utc)

    def stamp(self, name: str) -> tuple[int, ...]:
        """What is another one once the file's content is; empty if there is no such file."""
        try:
            found = self.path(name).stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def free(self, name: str) -> int:
        """Free bytes on the file system that holds this folder."""
        found = os.statvfs(self.path(name))
        return found.f_bavail * found.f_frsize

    # -- changing files ---------------------------------------------------------------------

    def write(self, name: str, data: str | bytes, *, mode: int = 0o644) -> None:
        """Replace a file at once and durably: after a power cut it is the old or the new one.

        Missing folders are made (0755). Raises GB012.
        """
        self.write_stream(name, iter([data.encode() if isinstance(data, str) else data]), mode=mode)

    def write_stream(self, name: str, chunks: Iterator[bytes], *, mode: int = 0o644) -> None:
        """Like `write`, for content too large to hold in memory."""
        self.proceed()
        target = self.path(name)
        # Always the same name beside the target: what a power cut leaves is used again. It must
        # not end in .yaml, .conf or .sources: RKE2, modprobe and apt read every such file.
        scratch = target.with_name(f".{target.name}.gpuboot-new")
        try:
            _make_folders(target.parent)
            scratch.unlink(missing_ok=True)
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            scratch.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise write_failed(name, error) from error
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file durably; no error if it is gone already. Raises GB012."""
        self.proceed()
        target = self.path(name)
        try:
            target.unlink(missing_ok=True)
            if target.parent.is_dir():
                _sync_folder(target.parent)
        except OSError as error:
            raise write_failed(name, error) from error


def write_failed(name: str, error: OSError) -> GpubootError:
    """What an OSError at a write means: the disk, which may have room again later."""
    return GpubootError(WRITE_FAILED, f"{name}: {error.strerror or error}", retry=True)


def unwritable(said: str) -> str | None:
    """The first line in which a program says that a file system takes nothing."""
    match = UNWRITABLE.search(said)
    return match[0].strip() if match else None


def _make_folders(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o755, exist_ok=True)
        _sync_folder(parent.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
