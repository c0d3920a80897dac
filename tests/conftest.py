"""The server of a test run, and databases on it for each test.

``$PGEVERYTHING_TEST_URL`` names a server; without it Docker provides one if it answers, else a private local
server is started. ``PGEVERYTHING_TEST_REQUIRE=docker`` or ``=url`` refuses to run on anything else.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from pgeverything import local

from . import server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long an example takes depends on who else uses the machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_SOURCE = pytest.StashKey[server.Source]()
_OWNER = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[_SOURCE] = server.choose_source()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    # With pytest-xdist this process is the first, and its workers inherit the choice.
    config.stash[_OWNER] = server.name_local_servers()
    # A run that a CI system or `timeout` ends must not leave its server behind; pytest knows only Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell without job control ignores Ctrl-C for what it starts in the background; the programs under test must not.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_OWNER, False):
        server.remove_local_servers()


def pytest_report_header(config: pytest.Config) -> str:
    names = {
        "url": f"${server.URL_VARIABLE}",
        "docker": "a Docker container",
        "local": "a private local server (no Docker daemon answers)",
    }
    return f"PostgreSQL for the tests: {names[config.stash[_SOURCE]]}"


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of the test run's server, as a role that may create databases."""
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    tell = terminal.write_line if terminal is not None else print
    with server.running_server(pytestconfig.stash[_SOURCE], tell) as url:
        yield url


@pytest.fixture
def new_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Create empty databases; each call returns the URL of another one. They are dropped after the test."""
    urls: list[str] = []

    def create() -> str:
        urls.append(server.create_database(server_url))
        return urls[-1]

    yield create
    for url in urls:
        server.drop_database(url)


@pytest.fixture
def new_home() -> Iterator[Callable[[], Path]]:
    """Name directories for a local server, none of which exists yet; stop and delete them after the test.

    Not under pytest's own directory: as root the server's account could not enter it.
    """
    homes: list[Path] = []

    def name() -> Path:
        homes.append(Path(tempfile.gettempdir()).resolve() / f"pgeverything-home-{secrets.token_hex(6)}")
        return homes[-1]

    yield name
    for home in homes:
        if home.is_dir() and home.stat().st_uid == os.geteuid():
            local.stop(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home(new_home: Callable[[], Path]) -> Path:
    return new_home()
