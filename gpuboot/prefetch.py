"""RKE2's files, fetched by a thread while apt and DKMS are at work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuboot.errors import GpubootError, Stopped
from gpuboot.images import ImagesPlaced
from gpuboot.rke2 import Rke2Installed

if TYPE_CHECKING:
    from gpuboot.host import Host
    from gpuboot.step import Step

log = logging.getLogger(__name__)


def begin(host: Host, steps: Sequence[Step]) -> None:
    """Fetch beside the walk what these steps will want; returns at once.

    A step believes none of it: it looks whether the file is there and is what the checksum says,
    and fetches what is not. So nothing that goes wrong here has to be told twice.
    """
    wanted = [one for one in steps if isinstance(one, (Rke2Installed, ImagesPlaced))]
    ahead = [one for one in wanted if not one.want.local]
    if ahead:
        host.beside(lambda: _fetch(host, ahead))


def _fetch(host: Host, ahead: Sequence[Rke2Installed | ImagesPlaced]) -> None:
    for step in ahead:
        try:
            step.fetch(host)
        except (GpubootError, OSError, Stopped) as error:
            log.info("%s: not fetched ahead: %s", step.name, host.mask(str(error)))
            return
        log.debug("%s: fetched ahead", step.name)
