"""Writes the manuals and the example configuration from the program itself: man.py OUTDIR.

A command's page is its help; a paragraph of its help or epilog that begins with one of TITLES and
a colon ("Exit status: 0 ready, 1 failed.") becomes that section. gpuboot-config(5) and the example
are the configuration's table, gpuboot-errors(7) and errors.md the catalogue of codes.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpuboot import __version__, cli, explain, reader  # from the tree this file stands in
from gpuboot.config import Config
from gpuboot.errors import Code, Elsewhere

TITLES = ("examples", "environment", "exit status", "files", "notes", "see also")

Rows = Sequence[tuple[str, str]]

FILES: Rows = (
    ("/etc/gpuboot/config.yaml", "The configuration, see gpuboot-config(5)."),
    ("/etc/gpuboot/config.d/*.yaml", "More of it, in name order: maps merge, the rest replaces."),
    ("/var/lib/gpuboot/checkpoint.json", "Attempts, timings and reboots spent; no secrets."),
    ("/run/gpuboot/ready", "The gate: rke2-agent may start in this boot. Leave it alone."),
    ("/run/gpuboot/lock", "Held while a walk is under way."),
    ("/run/gpuboot/progress.json", "What `gpuboot status` reads before it looks."),
    ("/run/gpuboot/health.json", "What gpuboot-monitor.service saw last."),
    ("/run/gpuboot/condition.json", "What it wants the cluster to be told."),
    ("/run/gpuboot/node.json", "What labels and taints the own Node lacked last."),
    ("/usr/lib/systemd/system/rke2-agent.service.d/10-gpuboot.conf", "The hold on rke2-agent."),
    ("/etc/rancher/rke2/config.yaml.d/60-gpuboot.yaml", "What RKE2 is told by gpuboot."),
    ("/etc/rancher/rke2/gpuboot-proxy.env", "The proxy of rke2-agent, if there is one."),
)

REMOVAL = """`systemctl disable --now gpuboot` lifts the hold on rke2-agent at once; removing the
package does the same. Purging it also removes /etc/gpuboot, /var/lib/gpuboot and
/var/cache/gpuboot, but leaves what the node lives on: the driver, its apt sources, keys and holds,
gpuboot.conf in /etc/modprobe.d, /etc/modules-load.d and systemd-modules-load.service.d, RKE2 with
60-gpuboot.yaml and its proxy, and any file that RKE2's configuration names.
/usr/share/doc/gpuboot/README.Debian has the list."""


class Command(NamedTuple):
    """A command of the CLI in its context."""

    name: str
    itself: click.Command
    context: click.Context


# -- roff ---------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Text that means itself, wherever on a line it stands."""
    for mark, name in (("\\", r"\e"), ("-", r"\-"), ("'", r"\(aq"), ("`", r"\(ga"),
                       ("^", r"\(ha"), ("~", r"\(ti")):  # fmt: skip
        text = text.replace(mark, name)
    return r"\&" + text if text.startswith(".") else text


def prose(text: str) -> str:
    """One paragraph on one line; what stands in `backquotes` is bold."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    bold = (rf"\fB{literal(part)}\fR" for part in parts[1::2])
    plain = (literal(part).removeprefix(r"\&") for part in parts[::2])
    line = "".join(piece for pair in zip(plain, [*bold, ""]) for piece in pair)  # noqa: B905
    return r"\&" + line if line.startswith(".") else line


def section(title: str) -> str:
    return f".SH {literal(title.upper())}"


def terms(rows: Rows) -> Iterator[str]:
    for term, meaning in rows:
        yield from (".TP", rf"\fB{literal(term)}\fR", prose(meaning))


def paragraphs(text: str) -> Iterator[str]:
    """Help text as click reads it: a paragraph under \\b keeps its lines."""
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(literal, paragraph.splitlines()[1:]), ".fi")
        else:
            yield prose(paragraph)


def page(title: str, number: int, summary: str, body: Sequence[str]) -> str:
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), timezone.utc)
    day = f"{made:%Y-%m-%d}" if made.year > 1970 else ""
    head = [
        rf".\" Generated from gpuboot {__version__} by packaging/man.py.",
        f'.TH {literal(title.upper())} {number} "{day}" "gpuboot {__version__}" "gpuboot"',
        ".nh",  # words here are paths and options: they must not be cut
        ".ad l",
        section("name"),
        rf"{literal(title)} \- {prose(summary)}",
    ]
    return "\n".join([*head, *body]) + "\n"


# -- the commands -------------------------------------------------------------------------------


def below(command: Command) -> list[Command]:
    """The commands of a group that are not hidden; none of anything else."""
    group, context = command.itself, command.context
    if not isinstance(group, click.Group):
        return []
    found = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return [
        Command(name, itself, click.Context(itself, info_name=name, parent=context))
        for name, itself in found
        if itself is not None and not itself.hidden
    ]


def summary(command: Command) -> str:
    text = command.itself.get_short_help_str(limit=300).rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def synopsis(command: Command) -> str:
    pieces = " ".join(command.itself.collect_usage_pieces(command.context))
    return rf"\fB{literal(command.context.command_path)}\fR {literal(pieces)}"


def options(command: Command) -> Rows:
    records = (
        param.get_help_record(command.context)
        for param in command.itself.get_params(command.context)
    )
    return [record for record in records if record and record[1]]


def texts(command: Command) -> tuple[str, dict[str, str]]:
    """A command's description, and the sections its help and epilog bring along."""
    plain: list[str] = []
    titled: dict[str, str] = {}
    written = (command.itself.help or "").partition("\f")[0], command.itself.epilog or ""
    for paragraph in "\n\n".join(filter(None, map(inspect.cleandoc, written))).split("\n\n"):
        lines = paragraph.removeprefix("\b\n").split("\n")
        title, colon, rest = lines[0].partition(":")
        if colon and title.lower() in TITLES:
            kept = "\b\n" if paragraph.startswith("\b") and not rest.strip() else ""
            titled[title.lower()] = kept + "\n".join([rest, *lines[1:]]).strip("\n")
        else:
            plain.append(paragraph)
    return "\n\n".join(plain), titled


def described(command: Command) -> Iterator[str]:
    """One command below a group, inside the group's page."""
    text, titled = texts(command)
    yield f".SS {literal(command.context.command_path)}"
    yield from (synopsis(command), ".PP", *paragraphs(text), *terms(options(command)))
    for title, extra in titled.items():
        yield from (".PP", rf"\fB{literal(title.capitalize())}\fR:", ".br", *paragraphs(extra))


def command_page(command: Command, others: Sequence[str]) -> str:
    text, titled = texts(command)
    body = [section("synopsis"), synopsis(command), section("description"), *paragraphs(text)]
    if len(command.context.command_path.split()) == 1:
        body += [section("commands"), *terms([(sub.name, summary(sub)) for sub in below(command)])]
    body += [section("options"), *terms(options(command))]
    if len(command.context.command_path.split()) > 1 and below(command):
        body += [section("commands")]
        body += [line for sub in below(command) for line in described(sub)]
    for title, extra in titled.items():
        body += [section(title), *paragraphs(extra)]
    if command.name == "gpuboot":
        body += [section("files"), *terms(FILES), section("removal"), *paragraphs(REMOVAL)]
    body += [section("see also"), ", ".join(_reference(name) for name in others)]
    return page(command.context.command_path.replace(" ", "-"), 8, summary(command), body)


def _reference(name: str) -> str:
    title, _, number = name.rpartition(".")
    return rf"\fB{literal(title)}\fR({number})"


def command_pages(root: click.Command) -> dict[str, str]:
    """File name to page, for the program and each of its commands."""
    top = Command("gpuboot", root, click.Context(root, info_name="gpuboot"))
    names = {f"gpuboot-{sub.name}.8": sub for sub in below(top)}
    foreign = ["systemctl.1", "cloud-init.1"]
    others = ["gpuboot-config.5", "gpuboot-errors.7", *names, *foreign]
    pages = {"gpuboot.8": command_page(top, others)}
    for name, sub in names.items():
        pages[name] = command_page(sub, ["gpuboot.8", "gpuboot-config.5"])
    return pages


# -- the configuration --------------------------------------------------------------------------

ABOUT = """gpuboot reads /etc/gpuboot/config.yaml, then /etc/gpuboot/config.d/*.yaml in name order:
maps merge, everything else replaces. Every key has a default, and an empty file is right for a
node that Rancher manages. Unknown keys, keys given twice and wrong values are errors that name
the file and line; `gpuboot config check` shows all of them at once, `gpuboot config show` the
whole configuration as it is in force.

Root must own the files, and no one else may write to them. A file that holds a token or a proxy's
password should be readable by root only.

A dot below stands for one more level of YAML. A default of - is none."""

EXAMPLE_HEAD = """\
# To the operator: every key of /etc/gpuboot/config.yaml with its default. Nothing here is in
# force, and an empty file is right for a node that Rancher manages. Copy what you need, take the
# mark off, and let `gpuboot config check` look at it. "-" is none. See gpuboot-config(5).
"""


def table() -> Iterator[tuple[str, str, str, str]]:
    """The rows of the configuration; a default stands there as one would write it."""
    for key, expected, default, meaning in reader.documentation(Config):
        automatic = default == "-" and expected.endswith(", or auto")
        yield key, expected, "auto" if automatic else default, meaning


def config_page() -> str:
    body = [section("description"), *paragraphs(ABOUT), section("keys")]
    for key, expected, default, meaning in table():
        body += terms([(key, f"{meaning} Expected: {expected}. Default: {default}")])
    example = [
        "rke2:", "  version: v1.35.7+rke2r1", "  config:",
        "    server: https://rke2.example.com:9345", "    token-file: /etc/gpuboot/token",
    ]  # fmt: skip
    body += [section("examples"), "A node that joins by itself:", ".PP"]
    body += [".nf", *map(literal, example), ".fi"]
    body += [section("see also"), ", ".join(map(_reference, ["gpuboot.8", "gpuboot-run.8"]))]
    return page("gpuboot-config", 5, "the configuration of gpuboot", body)


def example_config() -> str:
    """Every key with its default, commented out: the mark stands right before the key."""
    lines: list[str] = [EXAMPLE_HEAD]
    place: tuple[str, ...] = ()
    for key, _, default, meaning in table():
        *parents, name = key.split(".")
        for level, parent in enumerate(parents):
            if place[: level + 1] != tuple(parents[: level + 1]):
                lines.append(f"{'  ' * level}{parent}:")
        place = tuple(parents)
        value = '"-"' if default == "-" else default
        setting = f"{'  ' * len(parents)}#{name}: {value}"
        lines += [f"{'  ' * len(parents)}# {meaning}", setting]
    return "\n".join(lines) + "\n"


# -- the codes ----------------------------------------------------------------------------------

CODES = """Each trouble that gpuboot tells of has a code. It stands in brackets behind the sentence,
in the output of every command and in the journal, whose entries have it as a field of their own:
`journalctl -u gpuboot GPUBOOT_CODE=GB110`. `gpuboot explain GB110` says on the node what stands
here. A code never changes its meaning."""


def errors_page() -> str:
    body = [section("description"), *paragraphs(CODES), section("codes")]
    for code in explain.codes().values():
        body += [f".SS {literal(f'{code.id}: {code.title}')}", prose(" ".join(code.causes)), ".PP"]
        body += [prose(f"Looked at: {code.evidence}."), ".PP", "Next:", ".RS", ".nf"]
        body += [*map(literal, code.commands), ".fi", ".RE"]
    body += [section("see also"), ", ".join(map(_reference, ["gpuboot.8", "gpuboot-explain.8"]))]
    return page("gpuboot-errors", 7, "what gpuboot's error codes mean", body)


def errors_markdown() -> str:
    """The same for whoever reads it elsewhere; each code can be linked to: errors.md#gb110."""
    head = ["# What gpuboot's error codes mean", "", *_flowed(CODES), ""]
    return "\n".join([*head, *(line for code in explain.codes().values() for line in _code(code))])


def _code(code: Code) -> Iterator[str]:
    yield from (f'<a id="{code.id.lower()}"></a>', "", f"## {code.id}: {code.title}", "")
    yield from (f"- {cause}" for cause in code.causes)
    yield from ("", f"Looked at: {code.evidence}.", "", "Next:", "")
    for command in code.commands:
        yield f"- {command}" if isinstance(command, Elsewhere) else f"- `{command}`"
    yield ""


def _flowed(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def main(folder: Path) -> None:
    pages = {**command_pages(cli.main), "gpuboot-config.5": config_page()}
    pages["gpuboot-errors.7"] = errors_page()
    (folder / "man").mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / "man" / name).write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(example_config(), encoding="utf-8")
    (folder / "errors.md").write_text(errors_markdown(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: packaging/man.py OUTDIR")
    main(Path(sys.argv[1]))
