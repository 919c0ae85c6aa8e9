"""Typed reading of a scenario's YAML files; an error names the file and the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class ScenarioError(Exception):
    """A scenario folder says something that the rig does not understand."""


def read(file: Path) -> Table:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"{file}: does not exist") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{file}: {error}") from None
    if not isinstance(data, dict | None):
        raise ScenarioError(f"{file}: expected a mapping, found {data!r}")
    return Table(file, "", _string_keys(file, "", data or {}))


def _string_keys(file: Path, prefix: str, data: Mapping[object, object]) -> dict[str, object]:
    for key in data:
        if not isinstance(key, str):
            raise ScenarioError(f"{file}: {prefix}{key}: expected a string as key; quote it")
    return {str(key): value for key, value in data.items()}


class Table:
    """One mapping of a file, which remembers the keys that were asked for."""

    def __init__(self, file: Path, prefix: str, data: Mapping[str, object]) -> None:
        self._file = file
        self._prefix = prefix
        self._data = data
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        yield from self._data

    def place(self, key: str) -> str:
        """Where a key stands: file and full name."""
        return f"{self._file}: {self._prefix}{key}"

    def end(self) -> None:
        """Raises for a key that nobody asked for."""
        for key in self._data:
            if key not in self._asked:
                known = sorted(self._asked)
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
                raise ScenarioError(f"{self.place(key)}: unknown key; {hint}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string; one that must be there if there is no default."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._error(key, "a string", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None if the key is not there."""
        return self.text(key) if key in self else None

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.text(key, default)
        if value not in choices:
            raise self._error(key, " | ".join(choices), value)
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """true or false."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self._error(key, "true or false", value)
        return value

    def number(self, key: str) -> int | None:
        """A whole number, or None if the key is not there."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(key, "a whole number", value)
        return value

    def optional_seconds(self, key: str) -> float | None:
        """A duration in seconds, or None if the key is not there."""
        return self.seconds(key, 0.0) if key in self else None

    def seconds(self, key: str, default: float) -> float:
        """A duration such as 90s or 10m, in seconds."""
        value = self._get(key)
        if value is None:
            return default
        match = DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise self._error(key, "a duration such as 90s or 10m", value)
        return float(match[1]) * SECONDS[match[2]]

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None if the key is not there."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(key, "a list of strings", value)
        return tuple(value)

    def patterns(self, key: str) -> tuple[str, ...] | None:
        """A list of regular expressions, or None if the key is not there."""
        texts = self.texts(key)
        for text in texts or ():
            try:
                re.compile(text)
            except re.error as error:
                raise ScenarioError(
                    f"{self.place(key)}: {text!r} is no regular expression: {error}"
                ) from None
        return texts

    def mapping(self, key: str) -> Mapping[str, object]:
        """A mapping that is handed on as it is."""
        value = self._get(key)
        if not isinstance(value, dict | None):
            raise self._error(key, "a mapping", value)
        return value or {}

    def table(self, key: str) -> Table | None:
        """A mapping to read further, or None if the key is not there."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._error(key, "a mapping", value)
        return self._table(f"{self._prefix}{key}.", value)

    def rows(self, key: str) -> list[Table]:
        """A list of mappings to read further."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._error(key, "a list of mappings", value)
        return [
            self._table(f"{self._prefix}{key}[{index}].", item) for index, item in enumerate(value)
        ]

    def strings(self) -> dict[str, str]:
        """This whole mapping, every value a string."""
        return {key: self.text(key) for key in self._data}

    def _table(self, prefix: str, data: Mapping[object, object]) -> Table:
        return Table(self._file, prefix, _string_keys(self._file, prefix, data))

    def _get(self, key: str) -> object:
        self._asked.add(key)
        return self._data.get(key)

    def _error(self, key: str, expected: str, found: object) -> ScenarioError:
        if found is None:
            return ScenarioError(f"{self.place(key)}: missing; expected {expected}")
        return ScenarioError(f"{self.place(key)}: expected {expected}, found {found!r}")
