"""`schema/tables.py` says the same as the migrations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, make_url, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from pgeverything import PgEverything
from pgeverything.schema.tables import metadata

OURS = metadata()
TABLES = [table for table in OURS.sorted_tables if not table.info.get("is_view")]
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def migrated(engine: Engine) -> MetaData:
    """The tables as the database describes them."""
    found = MetaData(schema="pgeverything")
    found.reflect(engine, views=True)
    return found


def columns(table: Table) -> list[tuple[Any, ...]]:
    return [
        (
            column.name,
            column.type.compile(DIALECT),
            column.nullable,
            default(column.server_default),
        )
        for column in table.columns
    ]


def default(value: Any) -> str | None:
    return None if value is None else str(value.arg)


def indexes(table: Table) -> set[str]:
    return {str(CreateIndex(index).compile(dialect=DIALECT)) for index in table.indexes}


def test_the_same_tables(migrated: MetaData, engine: Engine) -> None:
    with engine.connect() as connection:
        partitions = connection.exec_driver_sql("select inhrelid::regclass::text from pg_inherits").scalars().all()

    assert set(OURS.tables) == set(migrated.tables) - set(partitions)


@pytest.mark.parametrize("table", OURS.sorted_tables, ids=lambda table: table.name)
def test_the_same_columns(table: Table, migrated: MetaData) -> None:
    assert columns(table) == columns(migrated.tables[table.fullname])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_same_keys_and_indexes(table: Table, migrated: MetaData) -> None:
    other = migrated.tables[table.fullname]

    assert [column.name for column in table.primary_key] == [column.name for column in other.primary_key]
    assert indexes(table) == indexes(other)


def test_a_query_over_the_tables_of_a_schema_of_another_name(engine: Engine, url: str) -> None:
    with PgEverything(url, schema="Cell 1%") as pg:
        pg.migrate()
        job = pg.jobs.enqueue("ship", {"order": 42})

    jobs = metadata("Cell 1%").tables["Cell 1%.all_jobs"]
    with engine.connect() as connection:
        found = connection.execute(select(jobs.c.id).where(jobs.c.args["order"].as_integer() == 42))
        assert found.scalars().all() == [job.id]
