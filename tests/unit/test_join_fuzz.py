"""Nothing that others say breaks joining, has it tell a secret, or keeps it busy for long.

Others are servers, the files of RKE2 and of Rancher, logs, and downloads. Whatever they say ends in
a finding or a GpubootError. A second or two in the default run; `make test-long` looks at more than
20,000 cases.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuboot import apiserver, dropin, release, rke2, status, statusview, token
from gpuboot.checkpoint import Checkpoint
from gpuboot.config import Config
from gpuboot.dropin import Rke2Config
from gpuboot.engine import Walk
from gpuboot.errors import GpubootError
from gpuboot.kubernetes import NodeJoined
from gpuboot.progress import Progress
from gpuboot.release import CHECKSUMS, TARBALL, Release
from gpuboot.secret import Secret
from gpuboot.step import Step
from gpuboot.supervisor import SupervisorAnswers
from gpuboot.web import SYSTEM, TLS_REFUSED, Answer, Proxy, RequestsWeb
from tests.conftest import Figure
from tests.unit import answers, words
from tests.unit.node import SHOWN, Node, unreachable

MANY = 2500  # cases of each kind in the long run
MOST_SECONDS = 3.0  # of computing for one case; every case that was ever too slow took minutes
SERVER = "https://cluster:9345"
LABEL, TAINT = "nvidia.com/gpu=present", "nvidia.com/gpu=present:NoSchedule"
DATA = "/var/lib/rancher/rke2"
HERE = Rke2Config({"server": SERVER}, (LABEL,), (TAINT,))
JOINED = NodeJoined(HERE, None, False, ("node-role.kubernetes.io/gpu=true",), timeout=0.0)
MIRROR = "https://mirror/v1.35.7%2Brke2r1"
WANT = Release("v1.35.7+rke2r1", None, None, "https://mirror", "https://channels")
REFUSED = GpubootError(TLS_REFUSED, "cluster:9345: certificate refused", retry=True)
# The real HTTP client, which reaches nothing but this machine: the proxy's port is closed.
ALONE = RequestsWeb(Proxy(http="http://127.0.0.1:9", https="http://127.0.0.1:9"))

Page = Answer | GpubootError


def tells(text: str) -> list[str]:
    """The spellings of secrets in a text."""
    return [spelling for spelling in answers.SPELLINGS if spelling in text]


def told(*texts: str | None) -> None:
    """Nothing in these texts is secret, and each can be written."""
    for text in filter(None, texts):
        assert not tells(text), text
        text.encode()


def walked(node: Node, step: Step) -> str:
    """Walk over one step and show how that ended, as `gpuboot status` does; the state."""
    host = node.host
    node.put("/proc/sys/kernel/random/boot_id", "boot-1\n")
    node.answers.setdefault(f"systemctl show --property {SHOWN} rke2-agent.service", "")
    record = Checkpoint("m", "i", "u", boot_id="boot-1")
    progress = Progress(host, record, Config(), (step,))
    outcome = Walk(host, record, lambda: rke2.live(host), progress.watch).run((), (step,))
    progress.end(outcome, None)
    told(host.mask(f"{outcome.reason}\n{outcome.hint}\n{outcome.evidence}"))
    found = status.look(host)
    json.dumps(found)
    told(statusview.text(found), node.text("/run/gpuboot/progress.json"))
    return outcome.state


# -- the cases: each says whether what it was given was accepted


def token_text(node: Node, text: str) -> bool:
    """A token, given in the configuration or in a file."""
    try:
        parsed = token.parse(Secret(text))
    except ValueError as error:
        told(str(error))  # also without the mask, which does not know it yet
        accepted = False
    else:
        assert parsed.password.reveal() in text
        told(repr(parsed))
        accepted = True
    node.put("/etc/token", text.encode("utf-8", "surrogatepass"), mode=0o600)
    node.web.pages = {f"{SERVER}/cacerts": Answer(200), f"{SERVER}/v1-rke2/readyz": Answer(401)}
    assert walked(node, SupervisorAnswers(SERVER, None, "/etc/token", None)) == "waiting"
    return accepted


def ca_bundle(node: Node, bundle: bytes) -> bool:
    """A CA bundle that a server shows, and whose hash is the token's."""
    found = token.ca_hash(bundle)
    assert re.fullmatch(r"[0-9a-f]{64}", found)
    text = f"K10{found}::node:{words.PASSWORD}"
    return supervisor_answers(node, (text, REFUSED, Answer(200, bundle), Answer(200)))


def supervisor_answers(node: Node, drawn: tuple[str, Page, Page, Page]) -> bool:
    """A token, and a supervisor: to whom trusts it, to whom does not, and to the token."""
    text, trusted, shown, ready = drawn
    secret = Secret(text)
    node.host.mask.add(secret)
    node.web.pages = {
        f"{SERVER}/cacerts": lambda asked: given_by(trusted if asked.trust == SYSTEM else shown),
        f"{SERVER}/v1-rke2/readyz": ready,
    }
    ended = walked(node, SupervisorAnswers(SERVER, secret, None, None))
    for asked in node.web.asked:
        if asked.auth or asked.headers:
            pem = asked.trust.ca_pem
            proven = pem is not None and text.strip().startswith(f"K10{token.ca_hash(pem)}::")
            assert proven or asked.trust == SYSTEM, asked
    return ended == "ready"


def given_by(page: Page) -> Answer:
    if isinstance(page, GpubootError):
        raise page
    return page


def own_node(node: Node, drawn: tuple[bytes, int, bytes, str, str]) -> bool:
    """A Node object, a containerd configuration, a journal and a log of the kubelet."""
    document, status_code, toml, journal, log = drawn
    node.host.mask.add(Secret(words.FULL[0]))
    for secret in answers.PASSWORDS:
        node.host.mask.add(Secret(secret))
    node.host.mask.add(Secret(words.BOOTSTRAP))
    node.put("/proc/sys/kernel/hostname", "GPU-1\n")
    node.put(f"{DATA}/agent/kubelet.kubeconfig", json.dumps(answers.KUBECONFIG))
    node.put(f"{DATA}/agent/client-kubelet.crt")
    node.put(f"{DATA}/agent/etc/containerd/config.toml", toml)
    node.put(f"{DATA}/agent/logs/kubelet.log", log)
    node.put(dropin.FILE, HERE.text(node.host), mode=0o600)
    node.put("/ca", answers.ROOT)
    node.unit("rke2-agent.service", ActiveState="active")
    node.answers["journalctl"] = journal
    node.web.pages = {
        "http://127.0.0.1:10248/healthz": Answer(200, b"ok"),
        "https://127.0.0.1:6443/api/v1/nodes/gpu-1": Answer(status_code, document),
    }
    return walked(node, JOINED) in ("ready", "degraded")


def kubeconfig(node: Node, text: bytes) -> bool:
    """The kubelet's kubeconfig; an address that nobody can be asked at is none."""
    node.put("/ca", answers.ROOT)
    try:
        found = apiserver.credentials(
            node.host, text.decode("utf-8", "replace"), "/var/lib/kubeconfig"
        )
    except GpubootError as error:
        told(error.message, error.hint, error.evidence)
        return False
    assert found.trust.client
    try:
        ALONE.get(f"{found.url.replace('6443', '9')}/api", trust=found.trust)
    except GpubootError as error:
        told(error.message, error.hint)
    return True


def drop_ins(node: Node, files: Mapping[str, bytes]) -> bool:
    """RKE2's own files, of which the drop-in is what they lack."""
    for name, content in files.items():
        node.put(name, content)
    try:
        HERE.check(node.host)
        text = HERE.text(node.host)
    except GpubootError as error:
        told(error.message, error.hint, error.evidence)
        return False
    assert not tells(text)
    assert len(text) < 10_000
    for key in ("data-dir", "node-name"):
        value = dropin.setting(node.host, key)
        assert value is None or len(value) < 100_000
    return True


class Everywhere(dict[str, Any]):
    """The same page at every address."""

    def __init__(self, page: Answer) -> None:
        super().__init__()
        self._page = page

    def get(self, _: str, __: object = None) -> Answer:
        return self._page


def channel(node: Node, drawn: tuple[int, str]) -> bool:
    """Where a channel's server redirects to."""
    status_code, location = drawn
    node.web.pages = Everywhere(Answer(status_code, b"", {"location": location}))
    try:
        found = release.lookup(node.host, replace(WANT, version=None, channel="stable"))
    except GpubootError as error:
        told(error.message, error.hint, error.evidence)
        return False
    assert re.fullmatch(r"v[0-9.]{5,20}(-rc[0-9]{1,5})?\+rke2r[0-9]{1,5}", found)
    return True


def download(node: Node, drawn: tuple[bytes, bytes]) -> bool:
    """A tarball and a list of checksums; what is unpacked stays where it belongs."""
    archive, sums = drawn
    node.web.files = {f"{MIRROR}/{TARBALL}": archive, f"{MIRROR}/{CHECKSUMS}": sums}
    node.put("/etc/passwd", "root:x:0:0::/:/bin/sh")
    before = node.files()
    try:
        release.install(node.host, WANT)
        accepted = True
    except GpubootError as error:
        told(error.message, error.hint, error.evidence)
        accepted = False
    for name in set(node.files()) - set(before):
        assert name.startswith(("/usr/local/", "/var/cache/gpuboot/rke2-v1.35.7+rke2r1")), name
        path = node.root / name.lstrip("/")
        assert path.is_file()
        assert not path.is_symlink()
        assert not path.stat().st_mode & 0o7022
        assert path.stat().st_size < 1_000_000
    assert node.text("/etc/passwd") == "root:x:0:0::/:/bin/sh"
    return accepted


def wire(node: Node, answer: bytes) -> bool:
    """Bytes that a server sends for an answer, through the real HTTP client."""
    accepted = 0
    with sending(answer) as port:
        node.host.mask.add(Secret(words.FULL[0]))
        for ask in (ALONE.get, lambda url: b"".join(ALONE.pieces(url))):
            try:
                ask(f"http://127.0.0.1:{port}/x")
                accepted += 1
            except GpubootError as error:
                told(error.message, error.hint, node.host.mask(error.evidence))
    return accepted > 0


@contextmanager
def sending(answer: bytes) -> Iterator[int]:
    """A port on which each request is answered with these bytes, and nothing follows them."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                # A client may have had enough, or keep its end open until it is collected.
                connection.settimeout(0.2)
                with connection, suppress(OSError):
                    if not connection.recv(4096):
                        return
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        """Until it hangs up: a socket that is closed first may take bytes along."""

        thread = threading.Thread(target=serve)
        thread.start()
        port = int(server.getsockname()[1])
        try:
            yield port
        finally:
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


Case = Callable[[Node, Any], bool]
PAGES = st.one_of(
    st.builds(Answer, answers.STATUSES, answers.PAGES, answers.HEADERS),
    st.just(Answer(200, answers.ROOT)), st.just(Answer(200, b"ok")),
    st.sampled_from([REFUSED, REFUSED, unreachable("cluster:9345")]),
)  # fmt: skip
SUPERVISORS = st.one_of(
    st.tuples(answers.tokens(), PAGES, PAGES, PAGES),
    # The token fits, and the server is one that only it vouches for.
    st.tuples(st.just(f"K10{hashlib.sha256(answers.ROOT).hexdigest()}::node:{answers.QUOTED}"),
              st.just(REFUSED), st.just(Answer(200, answers.ROOT)), PAGES),
)  # fmt: skip
OWN_NODES = st.tuples(
    answers.NODES, st.sampled_from([200] * 5 + [401, 403, 404, 500, 0]), answers.CONTAINERD,
    answers.JOURNALS, answers.JOURNALS,
)  # fmt: skip
DOWNLOADS = answers.ARCHIVES.flatmap(
    lambda content: st.tuples(
        st.just(content), answers.checksums(hashlib.sha256(content).hexdigest())
    )
)
CASES: dict[str, tuple[Case, st.SearchStrategy[Any]]] = {
    "tokens": (token_text, answers.tokens()),
    "CA bundles": (ca_bundle, answers.BUNDLES),
    "supervisors": (supervisor_answers, SUPERVISORS),
    "Nodes, containerd, logs": (own_node, OWN_NODES),
    "kubeconfigs": (kubeconfig, answers.KUBECONFIGS),
    "drop-ins of RKE2": (drop_ins, answers.DROP_INS),
    "channels": (channel, st.tuples(st.one_of(st.just(302), answers.STATUSES), answers.LOCATIONS)),
    "downloads": (download, DOWNLOADS),
    "bytes on the wire": (wire, answers.WIRE),
}


def explore(kind: str, examples: int) -> Counter[str]:
    """Look at that many cases of a kind; how many there were, and were accepted."""
    case, strategy = CASES[kind]
    seen: Counter[str] = Counter()

    # Most of the time goes into files, so `too_slow` says nothing.
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def look(drawn: object) -> None:
        with tempfile.TemporaryDirectory(dir=name) as root:
            begun = time.thread_time()
            accepted = case(Node(Path(root)), drawn)
            assert time.thread_time() - begun < MOST_SECONDS
        seen.update(cases=1, accepted=accepted)

    memory = Path("/dev/shm")  # noqa: S108 - only where it is; a private folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        look()
    return seen


@pytest.mark.parametrize("kind", CASES)
def test_nothing_that_others_say_breaks_joining_or_has_it_tell_a_secret(kind: str) -> None:
    seen = explore(kind, 50)
    assert 0 < seen["accepted"] < seen["cases"]


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES)
def test_nothing_of_very_much_breaks_joining_or_has_it_tell_a_secret(
    kind: str, figure: Figure
) -> None:
    start = time.monotonic()
    seen = explore(kind, MANY)
    figure(
        f"joining, {kind}: {seen['cases']} cases, {seen['accepted']} of them accepted, in"
        f" {time.monotonic() - start:.0f} s"
    )
    assert seen["cases"] >= MANY
