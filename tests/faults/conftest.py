"""What the fault tests share: migrated databases, worker processes, and the seed of what happens by chance."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgeverything import PgEverything, local
from tests import server

from .fleet import Fleet
from .sessions import Sessions

_TABLES = """
create table effects (seq bigserial, number bigint, job bigint);
create table history (seq bigserial, key text, number bigint, event text, pid bigint);
"""


def prepare(url: str) -> None:
    """Migrate a database and create the tables that the handlers write to."""
    with PgEverything(url) as pg:
        pg.migrate()
    with psycopg.connect(url) as connection:
        connection.execute(_TABLES)


@pytest.fixture(scope="package")
def template(server_url: str) -> Iterator[str]:
    """A migrated database to copy."""
    url = server.create_database(server_url)
    prepare(url)
    yield server.database_name(url)
    server.drop_database(url)


@pytest.fixture
def url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    url = server.create_database(server_url, template)
    yield url
    server.drop_database(url)


@pytest.fixture
def pg(url: str) -> Iterator[PgEverything]:
    with PgEverything(url) as pg:
        yield pg


@pytest.fixture
def new_fleet(tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    """Make fleets of worker processes; whatever they leave is ended after the test."""
    fleets: list[Fleet] = []

    def make(url: str) -> Fleet:
        directory = tmp_path / f"fleet-{len(fleets)}"
        directory.mkdir()
        fleets.append(Fleet(url, directory))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(url: str, new_fleet: Callable[[str], Fleet]) -> Fleet:
    return new_fleet(url)


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory of a server of the test's own; not under pytest's, which the server's account could not enter."""
    home = Path(tempfile.gettempdir()).resolve() / f"pgeverything-restarted-{secrets.token_hex(6)}"
    yield home
    local.stop(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def sessions(url: str) -> Iterator[Sessions]:
    with Sessions(url) as sessions:
        yield sessions


@pytest.fixture
def chance() -> random.Random:
    """Randomness that can be had again: a failing test shows the seed, ``FAULTS_SEED`` sets it."""
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)
