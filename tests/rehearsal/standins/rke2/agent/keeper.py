"""The kubelet's keeper: writes its configuration, starts it, starts it again when it dies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from . import log
from .identity import Identity
from .node import Json
from .settings import Settings

_RESPAWN = 5.0  # seconds


def start(settings: Settings, me: Identity, taints: Sequence[Json]) -> None:
    """Write the kubelet's defaults and keep one running from now on.

    The taints go into registerWithTaints, and so take effect only when the Node is created.
    """
    folder = settings.agent / "etc/kubelet.conf.d"
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "registerWithTaints": list(taints),
    }
    (folder / "00-rke2-defaults.conf").write_text(json.dumps(defaults, indent=2) + "\n")
    flags = [
        f"--config-dir={folder}",
        f"--hostname-override={me.name}",
        f"--kubeconfig={settings.agent}/kubelet.kubeconfig",
        f"--node-ip={me.address}",
        f"--node-labels={','.join(settings.list('node-label'))}",
    ]
    if settings.booleans.get("protect-kernel-defaults"):
        flags.append("--protect-kernel-defaults=true")
    flags += [f"--{argument.lstrip('-')}" for argument in settings.list("kubelet-arg")]
    # A child dies with the thread that started it (PDEATHSIG): this one lives as long as we do.
    threading.Thread(target=_keep, args=(settings, flags), daemon=True).start()


def _keep(settings: Settings, flags: Sequence[str]) -> None:
    file = settings.agent / "logs/kubelet.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    log.info(f"Logging kubelet to {file}")
    while True:
        log.info("Running kubelet " + " ".join(flags))
        with file.open("ab") as output:
            # Its name in the process list is what the unit's ExecStopPost looks for.
            child = subprocess.Popen(
                ["kubelet", sys.argv[0], "kubelet", *flags],
                executable=sys.executable,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        code = child.wait()
        how = f"exit status {code}" if code > 0 else f"signal: {-code}"
        log.error(f"Kubelet exited: {how}")
        time.sleep(_RESPAWN)
