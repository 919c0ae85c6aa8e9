"""`python3 -m gpuboot` is `gpuboot`."""

from __future__ import annotations

from gpuboot.cli import main

main(prog_name="gpuboot")
