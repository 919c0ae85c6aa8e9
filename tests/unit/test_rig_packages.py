"""Where the rehearsal's nodes get their real packages from."""

from __future__ import annotations

import pytest

from tests.rehearsal import packages

# REPO_URI, RELEASE, COMPONENT and ORIGIN, as apt-get indextargets lists them on Debian 12.
OWN = """\
http://deb/debian/ bookworm main Debian
http://deb/debian/ bookworm contrib Debian
http://deb/debian/ bookworm-updates main Debian
http://sec/debian-security/ bookworm-security main Debian
http://vendor/apt/ bookworm main Vendor
http://vendor/flat/ /
"""
TRIXIE = "http://new/debian/ trixie main Debian\n"


def line(place: str) -> str:
    return f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {place} main contrib"


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_every_release_is_at_the_addresses_of_the_machines_own(release: str) -> None:
    assert packages.derive(OWN, release, ["main", "contrib"]) == [
        line(f"http://deb/debian/ {release}"),
        line(f"http://deb/debian/ {release}-updates"),
        line(f"http://sec/debian-security/ {release}-security"),
    ]


def test_an_archive_that_the_machine_lists_for_the_release_comes_first() -> None:
    assert packages.derive(OWN + TRIXIE, "trixie", ["main", "contrib"]) == [
        line("http://new/debian/ trixie")
    ]


def test_before_the_first_update_there_is_none() -> None:
    assert packages.derive("", "trixie", ["main"]) == []
