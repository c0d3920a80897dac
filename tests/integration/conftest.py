"""A migrated database for each test module, emptied before each test, and every carrier on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import PgEverything
from tests import server

from . import carriers

if TYPE_CHECKING:
    from collections.abc import Iterator

_EMPTY = """
    delete from pgeverything.jobs; delete from pgeverything.ready; delete from pgeverything.running;
    delete from pgeverything.scheduled; delete from pgeverything.waiting; delete from pgeverything.turns;
    delete from pgeverything.turn_notes; delete from pgeverything.cancellations; delete from pgeverything.queues;
    delete from pgeverything.workers; delete from pgeverything.finished; delete from pgeverything.failures;
"""


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database, to be copied."""
    url = server.create_database(server_url)
    with PgEverything(url) as pg:
        pg.migrate()
    yield server.database_name(url)
    server.drop_database(url)


@pytest.fixture(scope="module")
def url(server_url: str, template: str) -> Iterator[str]:
    """The URL of this module's own migrated database."""
    copy = server.create_database(server_url, template=template)
    yield copy
    server.drop_database(copy)


@pytest.fixture(scope="module")
def _inspector(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def db(_inspector: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection of the test's own, in autocommit, to a database without jobs."""
    _inspector.execute(_EMPTY)
    return _inspector


@pytest.fixture
def pg(url: str, db: psycopg.Connection[Any]) -> Iterator[PgEverything]:
    """An application over an empty database."""
    with PgEverything(url) as application:
        yield application


@pytest.fixture(scope="module", params=carriers.CARRIERS)
def _opened(request: pytest.FixtureRequest, url: str) -> Iterator[carriers.Face]:
    with carriers.opened(request.param, url) as face:
        yield face


@pytest.fixture
def on(_opened: carriers.Face, db: psycopg.Connection[Any]) -> Iterator[carriers.Face]:
    """Each carrier in turn, over an empty database."""
    yield _opened
    _opened.rollback()


@pytest.fixture(scope="module", params=carriers.JOINED)
def _joined(request: pytest.FixtureRequest, url: str) -> Iterator[carriers.Face]:
    with carriers.opened(request.param, url) as face:
        yield face


@pytest.fixture
def tx(_joined: carriers.Face, db: psycopg.Connection[Any]) -> Iterator[carriers.Face]:
    """Each carrier that joins a transaction of the caller's, in turn."""
    yield _joined
    _joined.rollback()
