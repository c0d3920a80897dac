"""A migrated database for each test module, emptied before each test; every carrier on it; the roles of the docs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgeverything import PgEverything
from pgeverything.schema.tables import metadata
from pgeverything.worker.fetch import Fetcher
from tests import pgbouncer, server

from . import carriers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if pgbouncer.EVERYWHERE:
    pgbouncer.prepare_nothing()

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "roles.md"
NAMES = ("app", "producer", "tracker", "auditor")
APART = [name for name in carriers.CARRIERS if name not in carriers.JOINED]

_KEPT = {"migrations", "sweeps", "event_retention", "audit_sealing"}
_EMPTY = "; ".join(
    f"delete from {table.fullname}"
    for table in metadata().sorted_tables
    if table.name not in _KEPT and not table.info.get("is_view")
)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database, to be copied."""
    url = server.create_database(server_url)
    with PgEverything(url) as pg:
        pg.migrate()
    yield server.database_name(url)
    server.drop_database(url)


@pytest.fixture(scope="session")
def through(server_url: str) -> Iterator[Callable[[str], str]]:
    """Turn the URL of a database into the one that goes through PgBouncer."""
    if pgbouncer.PROGRAM is None:
        pytest.fail("pgbouncer is not installed") if pgbouncer.EVERYWHERE else pytest.skip("no pgbouncer is installed")
    with pgbouncer.pgbouncer(pgbouncer.PROGRAM, server_url) as through:
        yield through


@pytest.fixture(scope="module")
def direct_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of this module's own migrated database, without a pooler."""
    copy = server.create_database(server_url, template=template)
    yield copy
    server.drop_database(copy)


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, direct_url: str) -> str:
    """The URL of this module's own migrated database."""
    return request.getfixturevalue("through")(direct_url) if pgbouncer.EVERYWHERE else direct_url


@pytest.fixture(scope="module")
def _inspector(direct_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(direct_url, autocommit=True) as connection:
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


@pytest.fixture(scope="module", params=APART)
def _apart(request: pytest.FixtureRequest, url: str) -> Iterator[carriers.Face]:
    with carriers.opened(request.param, url) as face:
        yield face


@pytest.fixture
def apart(_apart: carriers.Face, db: psycopg.Connection[Any]) -> carriers.Face:
    """Each carrier that is no caller's transaction, in turn, over an empty database."""
    return _apart


@pytest.fixture
def _nothing_left(db: psycopg.Connection[Any]) -> None:
    """Drop the last test's tables, which a carrier may have held until it was over."""
    db.execute("set lock_timeout = '10s'")
    db.execute("drop view if exists seen; drop table if exists account, customer, parts, keyless, typed")


@pytest.fixture
def account(_nothing_left: None, db: psycopg.Connection[Any]) -> str:
    """A table, and what the trail calls it."""
    db.execute(
        "create table account (id integer primary key, owner text, ssn text, email text, balance numeric(20, 2),"
        " changed timestamptz default now())"
    )
    return "public.account"


@pytest.fixture(scope="module")
def roles(server_url: str, url: str) -> Iterator[dict[str, str]]:
    """The roles of the page, with the rights it gives them in this module's database; what each is really called."""
    real = {name: f"pgeverything_test_{name}_{os.getpid()}" for name in NAMES}
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    grants = re.sub(
        rf"(\bto |\bfrom |audit_protect\(')({'|'.join(NAMES)})(?=[;'])",
        lambda found: found[1] + real[found[2]],
        "".join(blocks),
    )
    assert all(role in grants for role in real.values())
    with psycopg.connect(url, autocommit=True) as connection:
        for role in real.values():
            connection.execute(f"create role {role}")  # type: ignore[arg-type]
        connection.execute(grants)  # type: ignore[arg-type]
        yield real
        for role in real.values():
            connection.execute(f"drop owned by {role}; drop role {role}")  # type: ignore[arg-type]


@pytest.fixture
def app(direct_url: str, db: psycopg.Connection[object], roles: dict[str, str]) -> Iterator[PgEverything]:
    with PgEverything(make_conninfo(direct_url, options=f"-c role={roles['app']}")) as pg:
        yield pg


@pytest.fixture
def producer(direct_url: str, db: psycopg.Connection[object], roles: dict[str, str]) -> Iterator[PgEverything]:
    with PgEverything(make_conninfo(direct_url, options=f"-c role={roles['producer']}")) as pg:
        yield pg


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> set[Fetcher]:
    """The workers that sleep until something wakes them; idle ones do not look again on their own."""
    found: set[Fetcher] = set()
    nap = Fetcher._nap

    async def noted(fetcher: Fetcher, length: float) -> bool:
        if length > 60:
            found.add(fetcher)
        try:
            return await nap(fetcher, length)
        finally:
            found.discard(fetcher)

    monkeypatch.setattr("pgeverything.worker.fetch._DROWSY", 3600.0)
    monkeypatch.setattr(Fetcher, "_nap", noted)
    return found
