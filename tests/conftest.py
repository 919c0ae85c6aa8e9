"""What the whole suite shares: hypothesis' profiles, and figures that are printed at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

# Derandomised: what is tested hangs on the commit alone. `search` looks elsewhere every time.
settings.register_profile("unit", derandomize=True, deadline=None, database=None, max_examples=100)
LONG = settings(settings.get_profile("unit"), max_examples=7000)
settings.register_profile("long", LONG)
settings.register_profile("search", LONG, derandomize=False)
settings.load_profile("unit")

Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """A line of figures for people, printed at the end of the run."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that passed tests have noted."""
    lines = [
        str(value)
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "figure"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in sorted(lines):
            terminalreporter.write_line(line)
