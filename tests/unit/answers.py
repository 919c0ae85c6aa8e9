"""What servers and files that are not ours may say, for the fuzzing of everything that joins.

Each strategy mixes what is right with what is nearly right and with what nobody would write; the
secrets of tests/unit/words.py stand where a server echoes them or a person pastes them.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.unit import words

# A token's password may hold any printable character, so also those that JSON and repr() escape.
QUOTED = 'pa"ss\\w/ord-horse'
FOREIGN = "pässwörd-\u0142-horse"
PASSWORDS = [words.PASSWORD, words.ODD_PASSWORD, QUOTED, FOREIGN]
SPELLINGS = [
    *words.SPELLINGS,
    *(spelling for word in (QUOTED, FOREIGN)
      for spelling in (word, json.dumps(word)[1:-1], repr(word)[1:-1],
                       base64.b64encode(word.encode()).decode())),
]  # fmt: skip

ODD = ["", " ", "\n", "\0", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\ud800", "😀", "٣", "x" * 300,
       "../..", "/", "%00", "%", "{}", "{0}", "a\nb", "-", "True", "nvidia"]  # fmt: skip
SECRETS = [*words.TOKENS, *PASSWORDS, *words.ADDRESSES]
TEXTS = st.one_of(
    st.sampled_from(ODD), st.sampled_from(SECRETS), st.text(st.characters(), max_size=8)
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), TEXTS,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip
DEEP = 20_000  # more than Python's parsers go down


class Long(bytes):
    """Many bytes, of which a failing example shows the first ones."""

    def __repr__(self) -> str:
        return f"{self[:40]!r}... {len(self)} bytes"


@st.composite
def bent(draw: st.DrawFn, right: Any) -> Any:  # noqa: ANN401 - any tree
    """A tree of maps and lists with up to three of its places replaced or taken away."""
    tree = [deepcopy(right)]
    for _ in range(draw(st.integers(0, 3))):
        place: Any = tree
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 4)):
                place = place[key]
                continue
            if isinstance(place, dict) and draw(st.booleans()):
                del place[key]
            else:
                place[key] = draw(JUNK)
            break
    return tree[0]


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with up to three changes."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        piece = draw(st.one_of(st.sampled_from(words.PIECES), st.binary(max_size=4)))
        kept = at + draw(st.integers(0, 12))
        content = content[:at] + piece + content[kept:] if draw(st.integers(0, 5)) else content[:at]
    return content


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# -- tokens

USERS = ["", "node:", "server:", ":", "node::", "a b:", "::"]
HEADS = ["", f"K10{words.HASH}::", f"K10{words.HASH}:", "K10::", "K10", f"K10{words.HASH}",
         f"K10{words.HASH.upper()}::", f"K10{words.HASH[1:]}::", f"k10{words.HASH}::",
         f"K10{words.HASH}::K10{words.HASH}::"]  # fmt: skip
ENDS = ["", "\n", "\r\n", " ", "\n\n", "\0", "\nK10", "\u2028", "\x85", " x", "#"]
BODIES = st.one_of(st.sampled_from([*PASSWORDS, words.BOOTSTRAP]), TEXTS)


@st.composite
def tokens(draw: st.DrawFn) -> str:
    """A token in one of its forms, or what became of one by copying it."""
    parts = [draw(st.sampled_from(one)) for one in (["", "\n", "\ufeff"], HEADS, USERS)]
    return "".join(parts) + draw(BODIES) + draw(st.sampled_from(ENDS))


# -- CA bundles

# A root, another root, and a certificate that the first one signed; only to be read.
ROOT, OTHER, BELOW = (
    (Path(__file__).parents[1] / f"data/certificates/{name}.pem").read_bytes()
    for name in ("root", "other", "below")
)
CERTIFICATES = [ROOT, OTHER, BELOW]
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
DERS = [base64.b64decode(b"".join(pem.splitlines()[1:-1])) for pem in CERTIFICATES] + [
    b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\xff" + b"\xff" * 127,
    b"\x30\x02\x30\x00", b"\x30\x82\x40\x04\x30\x82\x40\x00" + b"\x30\x00" * 8192,
]  # fmt: skip


@st.composite
def _pem(draw: st.DrawFn) -> bytes:
    body = base64.encodebytes(draw(st.sampled_from(DERS).flatmap(torn)))
    gap = draw(st.sampled_from([b"\n", b"\r\n", b"", b" ", b"\n\n", b"\n" * 4000]))
    return BEGIN + gap + body + gap + draw(st.sampled_from([END, END, END, b""])) + b"\n"


BUNDLES = st.lists(
    st.one_of(
        st.sampled_from(CERTIFICATES), st.sampled_from(CERTIFICATES), _pem(),
        st.sampled_from([b"", b"# words\n", b"\xff\xfe", BEGIN, END, (BEGIN + b"\n") * 4000,
                         BEGIN + b" " * 4000, (BEGIN + b"\nA\n") * 2000 + END,
                         b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
                         *(_encoded(secret) for secret in SECRETS)]),
        st.binary(max_size=20),
    ),
    max_size=4,
).map(lambda parts: Long(b"".join(parts)))  # fmt: skip


# -- HTTP

STATUSES = st.one_of(
    st.sampled_from([200, 200, 301, 302, 400, 401, 403, 404, 429, 500, 502, 503]),
    st.integers(0, 999),
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "date", "location", "content-type", "server",
                     "www-authenticate"]),
    st.one_of(
        st.sampled_from(["0", "1", "30", "-1", "1e9", "9" * 400, "nan", "٣", "text/html",
                         "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 9999 07:28:00 GMT",
                         "Mon, 01 Jan 0001 00:00:00 +2359", "Wed, 21 Oct 2026 07:28:00",
                         "Wed, 99 Oct 2026 07:28:00 GMT"]),
        TEXTS,
        st.sampled_from(words.TOKENS).map(lambda text: f"Wed, 21 Oct 2020 07:28:00 GMT {text}"),
    ),
    max_size=3,
)  # fmt: skip
PAGES = st.one_of(
    BUNDLES, st.sampled_from([b"ok", b"", b"<html>", b"runtime core not ready\n", b"\xff" * 9]),
    TEXTS.map(_encoded), st.sampled_from(SECRETS).map(lambda text: _encoded(f"not {text}\n")),
)  # fmt: skip

# What stands on the wire; requests, urllib3 and http.client each have errors of their own for it.
LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 429 Too Many Requests", b"HTTP/1.0 302 Found", b"HTTP/9 200",
    b"HTTP/1.1 99999 x", b"HTTP/1.1", b"", b"\xff\xfe", b"HTTP/1.1 -1 x", b"ICY 200 OK",
    b"HTTP/1.1 200 " + b"x" * 70_000, b"HTTP/1.1 101 Switching", b"HTTP/1.1 204 No",
]  # fmt: skip
FIELDS = [b"Content-Length: 4", b"Content-Length: -1", b"Content-Length: x", b"Content-Length: 99",
          b"Content-Length: 4, 4", b"Content-Length: 4\r\nContent-Length: 5",
          b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Encoding: deflate",
          b"Content-Encoding: br, gzip", b"Content-Encoding: x", b"Retry-After: 5",
          b"Location: https://[", b"Location: ", b"Location: //\xff", b"Location: http://a:b:c/",
          b"Set-Cookie: \xff=\xff; expires=x", b"X: " + b"x" * 70_000, b": x", b"x", b" folded",
          b"Content-Type: text/html; charset=none", b"Connection: close", b"Date: \xff",
          _encoded(f"X-Echo: {words.TOKENS[0]}")]  # fmt: skip
ZIPPED = gzip.compress(b"body", mtime=0)
ENTITIES = [b"", b"body", b"4\r\nbody\r\n0\r\n\r\n", b"zz\r\nbody", b"-4\r\nbody",
            b"ffffffffff\r\nx", ZIPPED, ZIPPED[:12], b"\x1f\x8b\x08", b"\0" * 50,
            _encoded(words.TOKENS[0])]  # fmt: skip
WIRE = st.builds(
    lambda line, fields, entity: b"\r\n".join([line, *fields, b"", entity]),
    st.sampled_from(LINES),
    st.lists(st.sampled_from(FIELDS), max_size=3),
    st.sampled_from(ENTITIES),
).flatmap(torn)


# -- Node objects and kubeconfigs

NODE = {
    "apiVersion": "v1", "kind": "Node",
    "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu": "present", "a": ""},
                 "annotations": {"rke2.io/node-args": '["agent","--token","********"]'}},
    "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
                        {"key": "a", "effect": "NoExecute"}]},
    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                               "message": "kubelet is posting ready status"}],
               "allocatable": {"nvidia.com/gpu": "1"},
               "nodeInfo": {"kubeletVersion": "v1.35.7+rke2r1"}},
}  # fmt: skip
NOT_READY = deepcopy(NODE) | {"status": {"conditions": [
    {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "cni: \x1b[0m"},
]}}  # fmt: skip


def _json(tree: Any) -> bytes:  # noqa: ANN401 - any tree
    return _encoded(json.dumps(tree, ensure_ascii=True))


NODES = st.one_of(
    bent(NODE).map(_json), bent(NODE).map(_json), bent(NOT_READY).map(_json), JUNK.map(_json),
    torn(_json(NODE)),
    st.sampled_from([Long(b"[" * DEEP), Long(b'{"a":' * DEEP), Long(b"9" * 5000), b"", b"null",
                     b"\xef\xbb\xbf{}"]),
)  # fmt: skip
KUBECONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "clusters": [{"name": "local", "cluster": {
        "server": "https://127.0.0.1:6443", "certificate-authority": "/ca"}}],
    "users": [{"name": "user", "user": {
        "client-certificate": "/crt", "client-key": "/key", "token": words.PASSWORD}}],
}  # fmt: skip
INLINE = deepcopy(KUBECONFIG)
INLINE["clusters"][0]["cluster"] = {
    "server": "https://127.0.0.1:6443",
    "certificate-authority-data": base64.b64encode(ROOT).decode(),
}
SERVERS = ["https://[", "https://a]b", "", "ftp://a", "https://me:correct-horse-battery@a", "a b",
           "https://a:99999", "https://a:x", "//", "https://", 5]  # fmt: skip
# What PyYAML's own constructors stumble over (every one of these raised something else than a
# YAMLError), and what it would be long about.
STUMBLES = [
    "!!int ''", "!!float ''", "!!timestamp x", "!!bool x", "2001-99-99", "!!binary ü",
    "2001-12-14 21:59:43.10 -99:99", f"0x{'f' * 5000}", "1_", "0b", "0x", "1:60:", "9" * 5000,
    "[" * 3000, "&a [*a]", "!!python/object:os.system x", "? [a]\n: b", "? {a: b}\n: c",
    "!!set {a}", "!!omap [a]", "!!pairs x", "<<: 1", "=", "\"\\ud800\"",
    "0001-01-01 00:00:00 +23:59",
]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 8)}]\n" for n in range(9)
)


def _yaml(tree: Any) -> bytes:  # noqa: ANN401 - any tree
    return _encoded(yaml.safe_dump(tree, allow_unicode=True))


def _stumbling(right: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A right file with a value, of a key it has or of another, that stumbles."""
    return st.builds(
        lambda key, value: _encoded(f"{key}: {value}\n") + _yaml({
            name: below for name, below in right.items() if name != key
        }),
        st.sampled_from([*right, "other"]), st.sampled_from(STUMBLES),
    )  # fmt: skip


KUBECONFIGS = st.one_of(
    bent(KUBECONFIG).map(_yaml), bent(INLINE).map(_yaml), torn(_yaml(KUBECONFIG)),
    st.sampled_from(SERVERS).map(lambda server: _yaml({**KUBECONFIG, "clusters": [
        {"cluster": {"server": server, "certificate-authority": "/ca"}}]})),
    _stumbling(KUBECONFIG), JUNK.map(_yaml),
)  # fmt: skip


# -- files on the node

DROP_IN: dict[str, Any] = {
    "server": "https://cluster:9345", "token": words.FULL[0], "node-name": "gpu-1",
    "node-label": ["nvidia.com/gpu=present", "rke.cattle.io/machine=1"],
    "node-label+": ["a=b"], "node-taint": ["nvidia.com/gpu=present:NoSchedule"],
    "data-dir": "/data", "with-node-id": True, "kubelet-arg": ["max-pods=250"],
}  # fmt: skip
MISPLACED = st.builds(
    lambda key, value, more: _yaml({**DROP_IN, key: [value] if more else value}),
    st.sampled_from(list(DROP_IN)),
    st.one_of(
        st.sampled_from(SECRETS), st.sampled_from(words.TOKENS).map(lambda text: f"a={text}"),
        st.sampled_from(words.TOKENS).map(lambda text: f"a={text}:NoSchedule"), TEXTS,
        st.sampled_from(["nvidia.com/gpu", "nvidia.com/gpu=other", "nvidia.com/gpu:NoSchedule",
                         *(f"nvidia.com/gpu={text}" for text in words.TOKENS)]),
    ),
    st.booleans(),
)  # fmt: skip
DROP_INS = st.dictionaries(
    st.sampled_from(["/etc/rancher/rke2/config.yaml"] + [
        f"/etc/rancher/rke2/config.yaml.d/{name}"
        for name in ("50-rancher.yaml", ".hidden.yml", "90-last.YAML", "60-gpuboot.yaml")
    ]),
    st.one_of(
        bent(DROP_IN).map(_yaml), MISPLACED, _stumbling(DROP_IN), torn(_yaml(DROP_IN)),
        JUNK.map(_yaml), st.just(_encoded(BOMB + "node-label: *i\n")),
    ),
    max_size=3,
)  # fmt: skip
TOML = b"""\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia'.options]
  BinaryName = "/usr/bin/nvidia-container-runtime"
  SystemdCgroup = true
"""
CONTAINERD = st.one_of(
    torn(TOML), st.binary(max_size=40), TEXTS.map(_encoded),
    st.sampled_from([Long(b"[" * DEEP), Long(b"[plugins.'" * 2000), Long(b"\n" * DEEP)]),
)  # fmt: skip
JOURNALS = st.lists(
    st.one_of(
        st.sampled_from([
            "Kubelet exited: exit status 1", "Node password rejected, duplicate hostname",
            'level=fatal msg="failed to parse node taints"', "starting containerd",
            "E1124 server.go:1] \"command failed\" err=\"unknown 'kubernetes.io' labels\"",
            "token CA hash does not match the Cluster CA certificate hash",
        ]),
        st.sampled_from(SECRETS).map(lambda text: f"error: --token={text} is invalid"), TEXTS,
    ),
    max_size=6,
).map(lambda lines: "\n".join(lines).encode("utf-8", "replace").decode())  # fmt: skip


# -- releases

VERSION = "v1.35.7+rke2r1"
LOCATIONS = st.one_of(
    st.just(f"https://github.com/rancher/rke2/releases/tag/{VERSION}"),
    st.builds(
        lambda head, version: head + version,
        st.sampled_from(["https://github.com/rancher/rke2/releases/tag/", "/", "", "//", "http://a/",
                         "https://[", "https://a]b/", "https://channels/again/"]),
        st.sampled_from([VERSION, "v1.35.7%2Brke2r1", "v1.35.7+rke2r1/", "v1.35.7-rc1+rke2r2",
                         "v٣.٣.٣+rke2r٣", f"v{'9' * 300}.1.1+rke2r1", "v1.35.7+rke2r1%0a", "latest",
                         "..%2f..%2fetc", "v1.35.7+rke2r1%00", "%ff", "%", *words.TOKENS]),
    ),
    TEXTS,
)  # fmt: skip
TARBALL = "rke2.linux-amd64.tar.gz"


@st.composite
def checksums(draw: st.DrawFn, digest: str) -> bytes:
    """A release's list of checksums: with the right line, or with what is none."""
    right = f"{digest}  {TARBALL}\n"
    others = [
        f"{digest} *{TARBALL}\n", f"{digest}\t{TARBALL}\n", f"{digest}  {TARBALL}\r\n",
        f"{digest.upper()}  {TARBALL}\n", f"{digest[1:]}  {TARBALL}\n", f"{digest}  ../{TARBALL}\n",
        f"{'٣' * 64}  {TARBALL}\n", f"{'0' * 64}  other\n", f"{TARBALL}\n", digest, "<html>\n",
        "\0\n", "\n", " " * 3000,
    ]  # fmt: skip
    lines = draw(st.lists(st.sampled_from([right, *others]), max_size=3))
    return draw(torn(_encoded("".join(lines)))) if draw(st.booleans()) else _encoded(right)


NAMES = ["bin/rke2", "bin/rke2-killall.sh", "lib/systemd/system/rke2-agent.service", "bin/rke2/x",
         "lib/systemd/system/rke2-agent.env", "../x", "/etc/passwd", "bin/../../x", "bin", ".", "",
         "a" * 200, "a/" * 90 + "b", "x" * 3000, "\udcff", "\n", "bin/\x1b[31m", "bin//rke2", "./a",
         "share/rke2/LICENSE.txt", "..", "bin/..", "~", "a\\b"]  # fmt: skip
KINDS = [tarfile.REGTYPE] * 6 + [
    tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
    tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z",
]  # fmt: skip
PAX = [{}, {}, {}, {"path": "a\0b"}, {"path": "../../x"}, {"size": "-1"}, {"size": "x"},
       {"mtime": "nan"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
       {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bin/rke2",
        "GNU.sparse.realsize": "8000000000000"},
       {"GNU.sparse.map": "0,1,8000000000,1", "GNU.sparse.size": "8000000000000"},
       {"GNU.sparse.map": "x", "GNU.sparse.size": "1"}, {"path": "bin/rke2"},
       {"hdrcharset": "BINARY", "path": "ü"}, {"path": ""}]  # fmt: skip


@st.composite
def _members(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw(st.sampled_from([0, 1, 2]))) as archive:
        for _ in range(draw(st.integers(0, 5))):
            member = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
            member.type = draw(st.sampled_from(KINDS))
            member.mode = draw(st.sampled_from([0o755, 0o644, 0o6777, 0, 0o1777]))
            member.linkname = draw(st.sampled_from(["", "/etc/passwd", "bin/rke2", "../x"]))
            member.pax_headers = dict(draw(st.sampled_from(PAX)))
            member.size = size = draw(st.sampled_from([0, 3, 700]))
            try:
                archive.addfile(member, io.BytesIO(b"x" * size))
            except ValueError:  # an old format has no room for such a name
                continue
    return buffer.getvalue()


def _sparse() -> bytes:
    """An old GNU sparse file: some bytes of archive for 64 GB of file."""
    member = tarfile.TarInfo("bin/rke2")
    member.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (0, 0)
    head[482] = 0
    head[483:495] = b"%011o\0" % (1 << 33 - 1)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + b"\0" * 1024


PACKERS: list[Callable[[bytes], bytes]] = [
    lambda content: gzip.compress(content, 1, mtime=0),
    lambda content: gzip.compress(content, 1, mtime=0),
    lambda content: content,
    lambda content: gzip.compress(content, 1, mtime=0)[: len(content) // 9],
    lambda content: gzip.compress(content, 1, mtime=0)[:-6] + b"\0" * 6,
]
ARCHIVES = st.builds(
    lambda members, pack: pack(members),
    st.one_of(_members(), _members().flatmap(torn), st.just(_sparse()), st.binary(max_size=30)),
    st.sampled_from(PACKERS),
).flatmap(lambda content: st.one_of(st.just(content), torn(content)))  # fmt: skip
