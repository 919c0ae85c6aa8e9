"""A node that Rancher manages: its traces, its plan, its system-agent, and giving way to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from gpuboot import cloudinit, dropin, labels, rke2, status, systemd
from gpuboot.config import FILE as CONFIG_FILE
from gpuboot.errors import Code, Elsewhere, GpubootError
from gpuboot.reader import Loader, Problem
from gpuboot.secret import Secret, redact
from gpuboot.settings import SERVER
from gpuboot.step import Finding, Ok, Pending, Waiting

if TYPE_CHECKING:
    from gpuboot.config import Config
    from gpuboot.host import Host

# All paths and manners: facts/rke2.md section 6.
SYSTEM_AGENT = "rancher-system-agent.service"
SCRIPT = "/usr/local/custom_script/install.sh"  # rancher-machine's line in runcmd calls it
SETTINGS = "/etc/rancher/agent/config.yaml"
FOLDER = "/var/lib/rancher/agent"
CONNECTION = f"{FOLDER}/rancher2_connection_info.json"
INTERLOCK = f"{FOLDER}/interlock/applyinator-active"
DROP_IN = dropin.RANCHER

PATIENCE = 600.0  # seconds a plan may take without anything being written
GLANCE = 5.0  # seconds between two looks for news while a walk is waited for
STOP = 60.0  # seconds the system-agent may take to end

NO_PLAN = Code(
    "GB520",
    "Rancher has not set this node up yet",
    (
        "Rancher's own line in cloud-init, or its registration command, has not run.",
        "Rancher's system-agent still applies its plan, or cannot reach Rancher.",
    ),
    (
        "systemctl status rancher-system-agent",
        "journalctl -u rancher-system-agent -n 50",
        "cloud-init status --long",
    ),
    evidence="Rancher's files below /etc/rancher/agent and /var/lib/rancher/agent, and its units",
)
TOKEN_REFUSED = Code(
    "GB521",
    "Rancher refuses the registration token of this machine",
    (
        "It has expired: in Rancher 2.15 it lives 30 minutes, and 30 seconds from its first use.",
        "Something before Rancher's line in runcmd took too long, or the line was run once more.",
        "The cluster or its registration token was deleted in Rancher.",
    ),
    (
        Elsewhere("in Rancher, delete this machine: its pool makes another one"),
        Elsewhere("in a custom cluster: run the registration command of the cluster's page"),
        "tail -5 /var/log/cloud-init-output.log",
    ),
    evidence="the last try of Rancher's line in cloud-init's output",
)
INTERLOCK_STUCK = Code(
    "GB522",
    "Rancher's system-agent does not come to the end of its plan",
    (
        "An instruction of the plan hangs, such as the download of RKE2's installer.",
        "The system-agent was killed while it applied a plan, and its interlock was left behind.",
    ),
    (
        "journalctl -u rancher-system-agent -n 50",
        "systemctl stop rancher-system-agent",
        f"rm -f {INTERLOCK}",
        "systemctl start rancher-system-agent",
    ),
    evidence="the interlock file, and how long nothing was written",
)

# What Rancher's install.sh says when it has to try again. Only such lines are ever quoted: the
# others may hold what it was called with.
_TRIED = re.compile(
    r"(?P<status>\d{3}) received while downloading (?P<what>Rancher connection information"
    r"|the CA certificate|the rancher-system-agent binary)"
    r"|There was an? (?:fatal )?error downloading [\w -]+"
    r"|Configured cacerts checksum \(\w+\) does not match given --ca-checksum \(\w+\)"
)
_TOKEN = re.compile(r"CATTLE_TOKEN=[\"']?([^\"'\s]+)")


def traces(host: Host) -> list[str]:
    """What on this node only Rancher leaves there."""
    unit = f"/etc/systemd/system/{SYSTEM_AGENT}"
    return [name for name in (SCRIPT, SETTINGS, DROP_IN, unit) if host.exists(name)]


def contradiction(host: Host, config: Config) -> Problem | None:
    """That the configuration says one kind of node and the machine is of the other. GB510."""
    found = traces(host)
    if config.mode == "agent" and found:
        return Problem(
            CONFIG_FILE, SERVER,
            f"means agent mode, and this node is managed by Rancher: {found[0]} is there",
            f"no {SERVER} (Rancher's plan is waited for), or a node without Rancher",
        )  # fmt: skip
    if config.mode != "rancher" or found:
        return None
    others = [*dropin.earlier_files(host), *dropin.later_files(host)]
    if "server" not in dropin.merged(host, others).values:
        return None
    return Problem(
        CONFIG_FILE, SERVER,
        "is not set, which means rancher mode; nothing here is Rancher's, and RKE2's own"
        " configuration names a server",
        f"{SERVER} with token-file, or a node that Rancher manages",
    )  # fmt: skip


# -- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RancherPlan:
    """Rancher has written RKE2's configuration; nothing of ours to do."""

    name: ClassVar[str] = "rancher-plan"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        _hide_tokens(host)
        if rke2.live(host):
            return Ok("rke2-agent runs, set up by Rancher")
        if host.exists(DROP_IN):
            if _content(host, DROP_IN):
                return Ok("Rancher has configured RKE2")
            # The system-agent does not write it at once.
            return Waiting(f"{DROP_IN} is not whole yet", NO_PLAN)
        if not traces(host):
            return Waiting(
                "there is no trace of Rancher on this node", NO_PLAN,
                "run the registration command of the cluster's page in Rancher, or for a node"
                f" that joins by itself set {SERVER} in {CONFIG_FILE}",
            )  # fmt: skip
        return _unregistered(host) or _without_plan(host)

    def apply(self, host: Host) -> None:
        """Never called: only Rancher can act."""


def _unregistered(host: Host) -> Waiting | None:
    """Which step of the registration is due, as Rancher's install.sh takes them; None: all done."""
    if _content(host, CONNECTION).get("kubeConfig"):
        return None
    tried = _tried(host)
    if tried and (tried["status"], (tried["what"] or "")[:7]) == ("401", "Rancher"):
        return Waiting(
            "Rancher refuses this machine's registration token (401)", TOKEN_REFUSED,
            evidence=tried[0],
        )  # fmt: skip
    if tried:
        return Waiting(
            "this machine cannot register with Rancher", NO_PLAN,
            "tail -5 /var/log/cloud-init-output.log", evidence=tried[0],
        )  # fmt: skip
    begun = host.exists(SETTINGS)
    if not begun and (blocker := cloudinit.unfinished(host)):
        return Waiting(f"Rancher's line has not run yet: {blocker}", NO_PLAN)
    if not begun and host.exists(SCRIPT):
        return Waiting(
            "Rancher's line in cloud-init has not run, or has failed", NO_PLAN,
            f"tail -20 /var/log/cloud-init-output.log; by hand: sh {SCRIPT}",
        )  # fmt: skip
    return Waiting(
        "the registration with Rancher has begun and not succeeded", NO_PLAN,
        "tail -5 /var/log/cloud-init-output.log",
    )  # fmt: skip


def _without_plan(host: Host) -> Waiting:
    """Why a registered node has no configuration of Rancher's."""
    unit = systemd.unit(host, SYSTEM_AGENT)
    if not unit.exists:
        return Waiting("rancher-system-agent is not installed yet", NO_PLAN)
    if not unit.live:
        return Waiting(
            f"rancher-system-agent is {unit.active}", NO_PLAN,
            "systemctl start rancher-system-agent",
            evidence=redact(systemd.journal(host, SYSTEM_AGENT, lines=5)),
        )  # fmt: skip
    return _at_work(host) or Waiting(
        "rancher-system-agent has got no plan from Rancher yet", NO_PLAN,
        "journalctl -u rancher-system-agent -n 50",
    )  # fmt: skip


def _at_work(host: Host) -> Waiting | None:
    """That the system-agent applies its plan, or is stuck with it."""
    state = interlock(host)
    if state == "stuck":
        return Waiting(_STUCK, INTERLOCK_STUCK, _REMEDY)
    if state == "applying":
        return Waiting(APPLYING, NO_PLAN, "journalctl -u rancher-system-agent -n 50")
    return None


APPLYING = "Rancher's system-agent is applying its plan"
_STUCK = f"{APPLYING}, and nothing has come of it for {PATIENCE / 60:.0f} minutes"
_REMEDY = (
    f"systemctl stop rancher-system-agent; rm -f {INTERLOCK}; systemctl start rancher-system-agent"
)


def _tried(host: Host) -> re.Match[str] | None:
    """The last failed try of Rancher's install.sh, as cloud-init has noted it."""
    tries = list(_TRIED.finditer(cloudinit.said(host)))
    return tries[-1] if tries else None


def _hide_tokens(host: Host) -> None:
    """From now on Rancher's tokens are masked in whatever is quoted."""
    tokens = _TOKEN.findall(host.read(SCRIPT) or "")
    tokens.append(str(_content(host, DROP_IN).get("token") or ""))
    for token in tokens:
        host.mask.add(Secret(token))


def _content(host: Host, name: str) -> dict[str, Any]:
    """A file's mapping, JSON or YAML; empty for one that is missing or not whole."""
    try:
        content = yaml.load(host.read(name) or "", Loader=Loader)  # noqa: S506 - a safe one
    except dropin.UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def rest(host: Host, seconds: float) -> None:
    """Wait between two walks, or less: when woken, or when Rancher has got on with this node.

    Its restart of rke2-agent must find the gate open, and comes soon after its file. Raises
    Stopped.
    """
    if _content(host, status.PROGRESS).get("mode") != "rancher":
        host.rest(seconds)
        return
    before, end = _news(host), host.clock.boottime() + seconds
    while not host.woken and _news(host) == before:
        left = end - host.clock.boottime()
        if left <= 0:
            break
        host.sleep(min(left, GLANCE))
    host.rest(0)


def _news(host: Host) -> tuple[object, ...]:
    """What changes when a step of the registration or of the plan is done."""
    registered = bool(_content(host, CONNECTION).get("kubeConfig"))
    places = (SETTINGS, INTERLOCK, f"{rke2.WANTS}/{rke2.AGENT}")
    return registered, _changed(host, DROP_IN), *map(host.exists, places)


# -- the start of rke2-agent --------------------------------------------------------------------


@dataclass(frozen=True)
class AgentStarted:
    """The gate is open, and rke2-agent runs: restarted by Rancher's plan, or started after it."""

    name: ClassVar[str] = "agent-started"
    disruptive: ClassVar[bool] = False

    def check(self, host: Host) -> Finding:
        if not host.exists(rke2.GATE):
            return Pending("the gate is closed")
        unit = systemd.unit(host, rke2.AGENT)
        if unit.live or unit.job:
            return Ok("the gate is open and rke2-agent runs")
        return unfinished(host) or Pending(f"rke2-agent is {unit.active or 'not there'}")

    def apply(self, host: Host) -> None:
        """Open the gate; start the agent only where no plan is under way that would do so."""
        rke2.open_gate(host)
        if not rke2.live(host) and unfinished(host) is None:
            rke2.start(host)


def unfinished(host: Host) -> Waiting | None:
    """What of Rancher's plan is to come before rke2-agent can be started. Raises GB510.

    A node that was registered once does not wait for a plan that is applied again at its boot:
    without gpuboot systemd would have started it as well.
    """
    joined = dropin.registered(host, dropin.data_dir(host))
    if not joined and (waiting := _at_work(host)):
        return waiting
    if not rke2.has_unit(host):
        return Waiting("Rancher has not installed RKE2 yet", NO_PLAN)
    if not systemd.enabled(host, rke2.AGENT):
        return Waiting("Rancher has not enabled rke2-agent yet", NO_PLAN)
    return None


# -- the system-agent and a reboot --------------------------------------------------------------


def interlock(host: Host) -> str | None:
    """What the system-agent's interlock means: applying, stuck, left (nobody applies); None: free.

    One that was killed at it leaves the interlock behind, and the next one does not clear it away
    (system-agent issue 403). Newer ones note in it in which boot it was written.
    """
    written = _changed(host, INTERLOCK)
    if written is None:
        return None
    boot = re.search(r"^boot=(\S+)$", host.read(INTERLOCK) or "", re.MULTILINE)
    ours = (host.read("/proc/sys/kernel/random/boot_id") or "").strip()
    if (boot and boot[1] != ours) or not systemd.unit(host, SYSTEM_AGENT).live:
        return "left"
    places = (f"{FOLDER}/work", f"{FOLDER}/applied", DROP_IN, *rke2.BINARIES)
    latest = max(written, *(_changed(host, name) or 0.0 for name in places))
    return "stuck" if host.clock.now().timestamp() - latest > PATIENCE else "applying"


def _changed(host: Host, name: str) -> float | None:
    """When a file or folder was last written, in seconds of the wall clock; None: not there."""
    try:
        return host.path(name).stat().st_mtime
    except OSError:
        return None


def blocker(host: Host) -> str | None:
    """What of Rancher's a reboot would cut off. Raises GB522 where that has lasted too long."""
    state = interlock(host)
    if state == "stuck":
        raise GpubootError(INTERLOCK_STUCK, f"a reboot is due; {_STUCK}", hint=_REMEDY, retry=True)
    return APPLYING if state == "applying" else None


def pause(host: Host) -> bool:
    """Stop the system-agent, so that a reboot cuts off no plan; whether nothing was cut off.

    It is enabled, so it comes back in the next boot. One that had just begun with a plan is
    started again, and begins it anew. Raises GB011 if it does not end.
    """
    if not host.exists(SETTINGS) or not systemd.unit(host, SYSTEM_AGENT).live:
        return True
    before = _changed(host, INTERLOCK)
    try:
        systemd.stop(host, SYSTEM_AGENT, timeout=STOP)
    except GpubootError:
        resume(host)
        raise
    if _changed(host, INTERLOCK) in (None, before):
        return True
    resume(host)
    return False


def resume(host: Host) -> None:
    """Start the system-agent again: the reboot it was stopped for does not come."""
    if host.exists(SETTINGS):
        systemd.start(host, SYSTEM_AGENT)


# -- giving way ---------------------------------------------------------------------------------


def give_way(host: Host) -> list[str]:
    """Take out of our drop-in what RKE2's other files say by now; what was taken. Raises GB510.

    rke2-agent's unit has this done before each start. Rancher may give a pool the label or taint
    that stands in our drop-in and restart rke2-agent, long after gpuboot has ended, and RKE2 dies
    of a taint that is given twice. Nothing is ever added, and gpuboot's configuration is not
    needed. Whether a taint has another value in the other file does not matter to RKE2.
    """
    ours = _content(host, dropin.FILE)
    others = dropin.merged(host, [*dropin.earlier_files(host), *dropin.later_files(host)])
    taints = {_place(text) for text in others.values.get("node-taint", [])}
    given = {
        "node-label+": [text for text in _texts(ours, "node-label+")
                        if text in others.values.get("node-label", [])],
        "node-taint+": [text for text in _texts(ours, "node-taint+") if _place(text) in taints],
    }  # fmt: skip
    taken = [text for texts in given.values() for text in texts]
    if taken:
        for key, texts in given.items():
            left = [text for text in _texts(ours, key) if text not in texts]
            ours.pop(key, None)
            ours |= {key: left} if left else {}
        host.write(dropin.FILE, dropin.as_yaml(ours), mode=0o600)
    return taken


def _texts(content: dict[str, Any], key: str) -> Sequence[str]:
    found = content.get(key)
    return [str(text) for text in found] if isinstance(found, list) else ()


def _place(text: str) -> tuple[str, str] | None:
    """The key and effect of a taint, of which RKE2 takes each once; None for what is no taint."""
    try:
        taint = labels.taint(text)
    except ValueError:
        return None
    return taint.key, taint.effect
