"""The same tables as SQLAlchemy Core knows them, for your own queries, and for Alembic to leave alone.

The migrations make the tables; nothing here creates or changes one. A test compares the two, column by column.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    Interval,
    MetaData,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

Timestamp = DateTime(timezone=True)


def metadata(schema: str = "pgeverything") -> MetaData:
    """Return the tables, and the view `all_jobs`, as they are in that schema.

    ```python
    tables = metadata().tables
    jobs = tables["pgeverything.all_jobs"]
    session.execute(select(jobs.c.id).where(jobs.c.state == "dead", jobs.c.args["order"].as_integer() == 42))
    ```

    Read what you like. Write through the library: one job is rows in several tables.

    Alembic compares only your default schema unless `include_schemas=True`; with it, leave ours out in `env.py`:

    ```python
    def include_name(name, type_, parent_names):
        return type_ != "schema" or name != "pgeverything"
    ```

    Args:
        schema: the Postgres schema that holds them.
    """
    tables = MetaData(schema=schema)
    _settings(tables)
    _jobs(tables)
    _places(tables)
    _ordering_keys(tables)
    _workers(tables)
    _history(tables)
    _all_jobs(tables)
    return tables


_BYTEWISE = Text(
    collation="C"
)  # in indexes that are written with every job: a fraction of the cost of a language's order


def _needed(name: str, kind: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, **options)


def _count(name: str) -> Column[Any]:
    return _needed(name, Integer, server_default=text("0"))


def _flag(name: str) -> Column[Any]:
    return _needed(name, Boolean, server_default=text("false"))


def _settings(tables: MetaData) -> None:
    Table(
        "migrations",
        tables,
        Column("version", Integer, primary_key=True, autoincrement=False),
        _needed("name", Text),
        _flag("breaking"),
        _needed("applied_at", Timestamp, server_default=func.now()),
    )
    Table(
        "queues",
        tables,
        Column("name", Text, primary_key=True),
        _flag("paused"),
        Column("max_depth", BigInteger),
        _needed("on_full", Text, server_default=text("'raise'::text")),
        Column("concurrency", Integer),
        _needed("per_key", Integer, server_default=text("1")),
    )


def _jobs(tables: MetaData) -> None:
    jobs = Table(
        "jobs",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        _needed("queue", Text),
        _needed("task", Text),
        _needed("priority", Integer),
        _needed("args", JSONB),
        Column("headers", JSONB),
        Column("max_attempts", Integer),
        Column("timeout", Interval),
        Column("expires_at", Timestamp),
        Column("unique_key", Text),
        Column("ordering_key", Text),
        _needed("created_at", Timestamp),
        _flag("dead"),
        Column("died_at", Timestamp),
        Column("reason", Text),
        Column("fingerprint", Text),
        Column("error", JSONB),
        Column("attempt", Integer),
        Column("crashes", Integer),
        _count("redriven"),
        Column("origin", Text),
    )
    unfinished = text("((unique_key IS NOT NULL) AND (NOT dead))")
    Index("jobs_unique_key", jobs.c.task, jobs.c.unique_key, unique=True, postgresql_where=unfinished)
    Index("jobs_dead", jobs.c.died_at, jobs.c.id, postgresql_where=text("dead"))


def _places(tables: MetaData) -> None:
    """The table a job's small row is in is the state of the job."""
    ready = Table(
        "ready",
        tables,
        Column("queue", _BYTEWISE, primary_key=True),
        Column("priority", Integer, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        _needed("job", BigInteger),
        _count("attempt"),
        _count("crashes"),
    )
    Index("ready_moved", ready.c.job, postgresql_where=text("(job <> seq)"))
    running = Table(
        "running",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        _needed("token", BigInteger),
        _needed("worker", BigInteger),
        _needed("queue", Text),
        _needed("attempt", Integer),
        _needed("crashes", Integer),
        _needed("started_at", Timestamp),
        _flag("limited"),
        Column("progress", REAL),
        Column("note", Text),
    )
    Index("running_limited", running.c.queue, postgresql_where=text("limited"))
    Table(
        "cancellations",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        _needed("reason", Text),
    )
    scheduled = Table(
        "scheduled",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        _needed("due_at", Timestamp),
        _needed("queue", Text),
        _needed("priority", Integer),
        _count("attempt"),
        _count("crashes"),
        Column("ordering_key", Text),
        _flag("holds"),
    )
    Index("scheduled_due", scheduled.c.due_at)


def _ordering_keys(tables: MetaData) -> None:
    waiting = Table(
        "waiting",
        tables,
        Column("queue", _BYTEWISE, primary_key=True),
        Column("ordering_key", _BYTEWISE, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        _needed("job", BigInteger),
        _needed("priority", Integer),
        _count("attempt"),
        _count("crashes"),
    )
    Index("waiting_job", waiting.c.job, unique=True)
    Table(
        "turns",
        tables,
        Column("queue", _BYTEWISE, primary_key=True),
        Column("ordering_key", _BYTEWISE, primary_key=True),
        _needed("held", Integer),
    )
    Table(
        "turn_notes",
        tables,
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        _needed("queue", _BYTEWISE),
        _needed("ordering_key", _BYTEWISE),
        _needed("given_back", Integer),
    )


def _workers(tables: MetaData) -> None:
    Table(
        "workers",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        _needed("name", Text),
        _needed("queues", ARRAY(Text)),
        _needed("concurrency", Integer),
        _needed("started_at", Timestamp),
        _needed("heartbeat_at", Timestamp),
        _needed("lease", Interval),
        _flag("asleep"),
        *(_needed(name, BigInteger, server_default=text("0")) for name in ("finished", "failed", "refused")),
    )
    Table(
        "sweeps",
        tables,
        Column("name", Text, primary_key=True),
        _needed("swept_at", Timestamp),
        _needed("next_at", Timestamp),
    )


def _history(tables: MetaData) -> None:
    """Daily partitions, which come and go: query the parents."""
    finished = Table(
        "finished",
        tables,
        _needed("id", BigInteger),
        _needed("queue", Text),
        _needed("task", Text),
        _needed("state", Text),
        _needed("priority", Integer),
        _needed("args", JSONB),
        Column("headers", JSONB),
        Column("unique_key", Text),
        Column("ordering_key", Text),
        Column("max_attempts", Integer),
        Column("timeout", Interval),
        Column("expires_at", Timestamp),
        _needed("created_at", Timestamp),
        Column("started_at", Timestamp),
        _needed("finished_at", Timestamp),
        _needed("attempt", Integer),
        _needed("crashes", Integer),
        _count("redriven"),
        Column("origin", Text),
        Column("worker", BigInteger),
        Column("reason", Text),
        Column("result", JSONB),
        postgresql_partition_by="RANGE (finished_at)",
    )
    Index("finished_id", finished.c.id)
    failures = Table(
        "failures",
        tables,
        _needed("job", BigInteger),
        _needed("at", Timestamp),
        _needed("attempt", Integer),
        Column("worker", BigInteger),
        _needed("error", JSONB),
        postgresql_partition_by="RANGE (at)",
    )
    Index("failures_job", failures.c.job)


def _all_jobs(tables: MetaData) -> None:
    """The view of live and finished jobs, with the state each is in."""
    Table(
        "all_jobs",
        tables,
        Column("id", BigInteger),
        *(Column(name, Text) for name in ("queue", "task", "state")),
        Column("priority", Integer),
        *(Column(name, JSONB) for name in ("args", "headers")),
        *(Column(name, Text) for name in ("unique_key", "ordering_key")),
        Column("max_attempts", Integer),
        Column("timeout", Interval),
        *(Column(name, Timestamp) for name in ("expires_at", "created_at", "run_at", "started_at", "finished_at")),
        *(Column(name, Integer) for name in ("attempt", "crashes", "redriven")),
        Column("origin", Text),
        Column("worker", BigInteger),
        Column("progress", REAL),
        *(Column(name, Text) for name in ("note", "reason", "fingerprint")),
        *(Column(name, JSONB) for name in ("error", "result")),
        info={"is_view": True},
    )
