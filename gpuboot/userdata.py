"""The user-data of a machine pool: what would keep Rancher's line, or gpuboot, from running.

Rancher appends its own line to runcmd and its own file to write_files. A `#!` script loses its
first line and is put in front of Rancher's, and sh runs both (rancher/machine commands/create.go).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gpuboot import agentrules, config, document, dropin
from gpuboot.document import Value
from gpuboot.errors import Code
from gpuboot.reader import Problem, Reader

CLOUD_INIT = Code(
    "GB568",
    "a pool's cloud-init keeps Rancher or gpuboot from running",
    (
        "Its first line is not exactly #cloud-config or #!, or runcmd is no list.",
        "It reboots, exits or hangs before Rancher's own line, which is then lost for ever.",
        "It does not say gpuboot run, or says it with --wait, which cloud-init cannot wait for.",
    ),
    ("cloud-init schema --config-file FILE", "cloud-init status --long"),
    evidence="the user-data, as cloud-init takes it",
)
HEADER = "#cloud-config or #!/bin/sh as the very first line"
RUN = "[gpuboot, run] in runcmd"
NO_REBOOT = "take it out: gpuboot reboots by itself, when it is safe"

_REBOOT = re.compile(
    r"(?:^|[;&|({\n]|\b(?:then|do|else|sudo|nohup|exec)\s)\s*(?:\S*/)?"
    r"(?:reboot|poweroff|halt|shutdown(?!\s+-c)|(?:tel)?init\s+[06]"
    r"|systemctl\s+(?:-\S+\s+)*(?:reboot|poweroff|halt|kexec|soft-reboot))(?![\w./-])"
)
_RUN = re.compile(r"(?:^|[\s/;&|('\"])gpuboot\s+run(?![\w-])([^;&|\n]*)")
_SERVICE = re.compile(r"systemctl\s+(?:-\S+\s+)*(?:re)?(?:start|enable)\s[^;&|\n]*gpuboot")
_ENDS = (
    (re.compile(r"set\s+(?:-[a-zA-Z]*e|-\w+\s+-e|-o\s+errexit)"), "a line that fails"),
    (re.compile(r"(?:^|[;&|]\s*|\b(?:then|do|else)\s+)exit\b"), "exit"),
    (re.compile(r"(?:^|[;&|]\s*|\b(?:then|do|else)\s+)exec\s+(?![0-9]*[<>])"), "exec"),
)
_SHELL = re.compile(r"#!\s*(?:/\S*/)?(?:env\s+)?(?:ba|da|a|k|z)?sh\b")


def check(value: Value, *, gpu: bool) -> Iterator[Problem]:
    """What is wrong with this user-data; in a pool with GPUs it has to start gpuboot."""
    text = value.text
    if text is None:
        yield value.problem(CLOUD_INIT, f"is {value.what}, no text", "a text: cloudConfig: |")
    elif text.startswith("#!"):
        yield from _script(value, text, gpu=gpu)
    elif text.partition("\n")[0].rstrip() == "#cloud-config":
        yield from _cloud_config(value, gpu=gpu)
    elif text.strip():
        yield _headless(value, text)
    elif gpu:
        yield no_run(value)


def _headless(value: Value, text: str) -> Problem:
    message = "begins with neither #cloud-config nor #!"
    if text.startswith("## template:"):
        message = "begins with a template's header, which Rancher does not take"
    elif text.lstrip("\ufeff \t\n").startswith("#cloud-config"):
        message = "does not have #cloud-config, and only that, in its very first line"
    return _at(value, 1).problem(
        CLOUD_INIT, f"{message}: Rancher refuses to make the machine", HEADER
    )


def _at(value: Value, line: int) -> Value:
    """The place of a line in a text, where the text has lines of its own."""
    first = document.body_line(value)
    return value if first is None else replace(value, line=first + line - 1)


# -- cloud-config -------------------------------------------------------------------------------


def _cloud_config(value: Value, *, gpu: bool) -> Iterator[Problem]:
    found = document.inner(value)
    if isinstance(found, Problem):
        yield replace(found, key=value.key, code=CLOUD_INIT.id)
        return
    for top in found[:1]:
        if top.kind != "map":
            yield top.problem(CLOUD_INIT, "is no map, so cloud-init does nothing", "key: value")
        yield from _lists(top)
        yield from _reboots(top)
        yield from _same_name(top)
        yield from _files(top)
    runcmd = found[0].get("runcmd") if found else None
    items = (runcmd.items() or [runcmd]) if runcmd else []
    yield from _runs(value, [(item, _command(item)) for item in items], gpu=gpu)


def _lists(top: Value) -> Iterator[Problem]:
    for name in ("runcmd", "write_files", "bootcmd"):
        value = top.get(name)
        if value and value.kind not in ("list", "null"):
            why = "" if name == "bootcmd" else ": Rancher cannot append its own line"
            yield value.problem(CLOUD_INIT, f"is {value.what}{why}", "a list")


def _command(item: Value) -> str:
    """A command of runcmd as a shell line."""
    if item.kind != "list":
        return item.text or ""
    words = [word.text or "" for word in item.items()]
    if len(words) > 2 and re.fullmatch(r"(/\S*/)?(ba|da)?sh", words[0]) and "c" in words[1]:
        return words[2]
    # Only the first word is a command; the others are hidden from the patterns for commands.
    return " ".join([*words[:1], *(re.sub(r"[;&|({\n]", " ", word) for word in words[1:])])


def _reboots(top: Value) -> Iterator[Problem]:
    for name in ("bootcmd", "runcmd"):
        value = top.get(name)
        for item in value.items() if value else []:
            if _REBOOT.search(_command(item)):
                yield item.problem(
                    CLOUD_INIT,
                    "reboots or stops the machine: Rancher's own line, which comes later, is lost"
                    " for ever",
                    hint=NO_REBOOT,
                )
    if value := top.get("power_state"):
        yield value.problem(
            CLOUD_INIT,
            "stops or reboots the machine while Rancher sets it up",
            severity="warning",
            hint=NO_REBOOT,
        )
    value = top.get("package_reboot_if_required")
    if value and value.printed == "true":
        yield value.problem(
            CLOUD_INIT,
            "may reboot the machine before Rancher's own line has run",
            severity="warning",
            hint=NO_REBOOT,
        )


def _same_name(top: Value) -> Iterator[Problem]:
    for name in ("hostname", "fqdn"):
        if value := top.get(name):
            yield value.problem(
                CLOUD_INIT,
                "gives every machine of the pool the same name: the second one's node password is"
                " rejected",
                severity="warning",
                hint="take it out: Rancher sets each machine's own name",
            )


def _runs(value: Value, commands: Sequence[tuple[Value, str]], *, gpu: bool) -> Iterator[Problem]:
    """Whether gpuboot is started, and in a way that lets cloud-init go on."""
    found = [(place, match[1]) for place, text in commands for match in _RUN.finditer(text)]
    for place, options in found:
        for option in ("--wait", "--foreground"):
            if option in options.split():
                yield place.problem(
                    CLOUD_INIT,
                    f"gpuboot run {option} does not return, so Rancher's line never comes"
                    if option == "--foreground"
                    else "gpuboot refuses --wait inside cloud-init, so it never starts",
                    "gpuboot run",
                )
    if gpu and not found and not any(_SERVICE.search(text) for _, text in commands):
        yield no_run(value)


def no_run(value: Value) -> Problem:
    """The user-data of a pool with GPUs that does not start gpuboot."""
    return value.problem(
        CLOUD_INIT,
        "does not start gpuboot, so RKE2 does not wait for a working GPU",
        RUN,
        severity="warning",
    )


# -- the files it writes ------------------------------------------------------------------------


def _files(top: Value) -> Iterator[Problem]:
    """gpuboot's and RKE2's own configuration among the files."""
    reading = Reader()
    contents = []
    files = top.get("write_files")
    for file in files.items() if files else []:
        path, content = file.get("path"), file.get("content")
        if not path or not content or content.text is None or file.get("encoding"):
            continue
        name = path.text or ""
        if name == config.FILE or name.startswith(f"{config.FOLDER}/"):
            contents.append(content)
            reading.add(content.file, _padded(content))
        elif name == dropin.MAIN or name.startswith(f"{dropin.FOLDER}/"):
            yield from _settings(content)
    if contents:
        config.parse(reading)
        exact = all(document.body_line(content) for content in contents)
        place = f"{contents[0].file}:{contents[0].line}"
        for one in reading.problems:
            yield one if exact and one.line else replace(one, where=place)


def _padded(content: Value) -> str:
    """A text with so many empty lines before it that its lines are those of the outer file."""
    return "\n" * ((document.body_line(content) or 1) - 1) + (content.text or "")


def _settings(content: Value) -> Iterator[Problem]:
    found = document.inner(content)
    if isinstance(found, Problem):
        message = f"{found.message}, so RKE2 cannot parse this file and rke2-agent ends"
        yield replace(found, message=message, code=agentrules.UNREADABLE.id)
    else:
        yield from agentrules.check(
            [replace(one, key="") for one in found[:1] if one.kind == "map"]
        )


# -- scripts ------------------------------------------------------------------------------------


def _script(value: Value, text: str, *, gpu: bool) -> Iterator[Problem]:
    if not _SHELL.match(text):
        yield _at(value, 1).problem(
            CLOUD_INIT,
            "is no shell script: Rancher drops this line, and sh runs what follows",
            "#!/bin/sh",
        )
        return
    lines = [(_at(value, number), line) for number, line in _lines(text)]
    for place, line in lines:
        if _REBOOT.search(line.strip()):
            yield place.problem(
                CLOUD_INIT,
                "reboots or stops the machine: Rancher's part, which follows, is lost for ever",
                hint=NO_REBOOT,
            )
        for pattern, what in _ENDS:
            if pattern.search(line.strip()):
                always = not line[0].isspace() and pattern.match(line)
                yield place.problem(
                    CLOUD_INIT,
                    f"{what} ends the script, and Rancher's part, which follows in the same file,"
                    " with it",
                    "a script that runs to its last line",
                    severity="error" if always else "warning",
                )
    yield from _runs(value, lines, gpu=gpu)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a shell script that are commands, with their numbers from 1."""
    end: str | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if end is not None:
            end = None if line.strip() == end else end
            continue
        line = re.sub(r"(^|\s)#.*", "", line)
        if line.strip():
            yield number, line
            document_here = re.search(r"<<-?\s*(['\"]?)(\w+)\1", line)
            end = document_here[2] if document_here else None
