"""`python -m tests.vm`: boot the virtual machine and watch it become a GPU worker."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.rehearsal import cache, lab, runs, scenario, stage, template, tree
from tests.rehearsal.report import RigError, Watch, say
from tests.vm import card, disk, guest, story

DEADLINE = 45 * 60.0  # seconds; a few minutes on two idle cores
ARTIFACTS = stage.LAST / "vm"
STORY = "default"  # the scenario whose configuration, user-data and Node these are
POLL = 1.0


def outside() -> int:
    """Gets what comes from the network, and tells the story in a lab of its own."""
    say("A virtual machine with Debian's kernel and an emulated T4: this takes some ten minutes.")
    runs.fetch(disk.KIND)
    with cache.building():
        library, debs = card.build(), disk.fetch()
    with runs.folder("vm", keep=False) as place:
        arguments = ["inside", str(library), str(debs), str(place)]
        return runs.result(lab.enter(arguments, module="tests.vm"), place)


def inside(library: Path, debs: Path, place: Path) -> int:
    """The story itself, first process of the lab; 0 if all was as it must be."""
    watch = Watch()
    lab.furnish()
    with cache.building():
        ground = tree.prepare(disk.KIND)
        layers = [disk.prepare(ground, debs), ground.base]
    servers = place / "servers"
    shutil.copytree(ground.identity, servers)
    chosen = scenario.load(scenario.find(STORY))
    with lab.overlay(layers, place / "written", place / "tree") as root:
        _, user_data = scenario.fill(chosen, ground.values())
        seed = template.Seed(story.NAME, guest.ADDRESS, user_data, guest.GATEWAY, port="en*")
        template.plant(root, seed)
        disk.write_image(root, place / "disk.img")
    say(_line(watch, "the machine is switched on"))
    with (
        lab.servers(servers, ground.archive, ground.releases),
        guest.started(place / "disk.img", library, place) as machine,
    ):
        nodes = place / "nodes.json"
        try:
            _follow(machine, watch, lambda: shutil.copy(servers / "nodes.json", nodes))
        finally:
            _keep(machine.console, machine.looks, nodes, servers / "servers.log")
    assert chosen.expect.node is not None
    seen = story.evidence(machine.console, machine.looks, nodes)
    found = list(story.findings(seen, chosen.expect.node))
    for line in found:
        say(f"  {line}")
    end = "passed" if not found else f"FAILED, {len(found)} differences"
    say(f"vm: {end} in {watch.seconds:.0f} s; the console is in {ARTIFACTS}/console.log")
    return 1 if found else 0


def _follow(machine: guest.Guest, watch: Watch, at_the_end: Callable[[], object]) -> None:
    """Until the machine has switched itself off; tells what of the story has happened.

    `at_the_end` is called while it is still on: a Node does not stay Ready without its machine.
    """
    told, ended = 0, False
    while not machine.wait(POLL):
        text = machine.console.read_text(encoding="utf-8", errors="replace")
        for happened in story.happened(text)[told:]:
            say(_line(watch, happened))
            told += 1
        if machine.told("end") and not ended:
            ended = True
            at_the_end()
        if watch.seconds > DEADLINE:
            raise RigError(f"not done after {DEADLINE:.0f} s; the console's end:\n{machine.tail()}")


def _line(watch: Watch, text: str) -> str:
    return f"{watch.seconds:6.1f} s  {text}"


def _keep(*files: Path) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.is_file():
            shutil.copy(file, ARTIFACTS)


def main() -> int:
    """The command line; 0 passed, 1 not, 2 the machine could not be made or did not end."""
    try:
        if sys.argv[1:2] == ["inside"]:
            return inside(*map(Path, sys.argv[2:5]))
        return outside()
    except RigError as error:
        print(f"the virtual machine cannot go on: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the machine and the servers are gone", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
