"""The tables of the job queue, its workers and its history."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, Interval, MetaData, Table, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

from .columns import BYTEWISE, Timestamp, count, flag, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    _settings(tables)
    _jobs(tables)
    _places(tables)
    _ordering_keys(tables)
    _workers(tables)
    _history(tables)
    _all_jobs(tables)


def _settings(tables: MetaData) -> None:
    Table(
        "migrations",
        tables,
        Column("version", Integer, primary_key=True, autoincrement=False),
        needed("name", Text),
        flag("breaking"),
        needed("applied_at", Timestamp, server_default=func.now()),
    )
    Table(
        "queues",
        tables,
        Column("name", Text, primary_key=True),
        flag("paused"),
        Column("max_depth", BigInteger),
        needed("on_full", Text, server_default=text("'raise'::text")),
        Column("concurrency", Integer),
        needed("per_key", Integer, server_default=text("1")),
    )


def _jobs(tables: MetaData) -> None:
    jobs = Table(
        "jobs",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        needed("queue", Text),
        needed("task", Text),
        needed("priority", Integer),
        needed("args", JSONB),
        Column("headers", JSONB),
        Column("max_attempts", Integer),
        Column("timeout", Interval),
        Column("expires_at", Timestamp),
        Column("unique_key", Text),
        Column("ordering_key", Text),
        needed("created_at", Timestamp),
        flag("dead"),
        Column("died_at", Timestamp),
        Column("reason", Text),
        Column("fingerprint", Text),
        Column("error", JSONB),
        Column("attempt", Integer),
        Column("crashes", Integer),
        count("redriven"),
        Column("origin", Text),
        Column("transaction_id", BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint")),
    )
    unfinished = text("((unique_key IS NOT NULL) AND (NOT dead))")
    Index("jobs_unique_key", jobs.c.task, jobs.c.unique_key, unique=True, postgresql_where=unfinished)
    Index("jobs_dead", jobs.c.died_at, jobs.c.id, postgresql_where=text("dead"))
    Index("jobs_transaction", jobs.c.transaction_id, postgresql_using="brin")


def _places(tables: MetaData) -> None:
    """The table a job's small row is in is the state of the job."""
    ready = Table(
        "ready",
        tables,
        Column("queue", BYTEWISE, primary_key=True),
        Column("priority", Integer, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        needed("job", BigInteger),
        count("attempt"),
        count("crashes"),
    )
    Index("ready_moved", ready.c.job, postgresql_where=text("(job <> seq)"))
    running = Table(
        "running",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        needed("token", BigInteger),
        needed("worker", BigInteger),
        needed("queue", Text),
        needed("attempt", Integer),
        needed("crashes", Integer),
        needed("started_at", Timestamp),
        flag("limited"),
        Column("progress", REAL),
        Column("note", Text),
    )
    Index("running_limited", running.c.queue, postgresql_where=text("limited"))
    Table(
        "cancellations",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        needed("reason", Text),
    )
    scheduled = Table(
        "scheduled",
        tables,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        needed("due_at", Timestamp),
        needed("queue", Text),
        needed("priority", Integer),
        count("attempt"),
        count("crashes"),
        Column("ordering_key", Text),
        flag("holds"),
    )
    Index("scheduled_due", scheduled.c.due_at)


def _ordering_keys(tables: MetaData) -> None:
    waiting = Table(
        "waiting",
        tables,
        Column("queue", BYTEWISE, primary_key=True),
        Column("ordering_key", BYTEWISE, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        needed("job", BigInteger),
        needed("priority", Integer),
        count("attempt"),
        count("crashes"),
    )
    Index("waiting_job", waiting.c.job, unique=True)
    Table(
        "turns",
        tables,
        Column("queue", BYTEWISE, primary_key=True),
        Column("ordering_key", BYTEWISE, primary_key=True),
        needed("held", Integer),
    )
    Table(
        "turn_notes",
        tables,
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        needed("queue", BYTEWISE),
        needed("ordering_key", BYTEWISE),
        needed("given_back", Integer),
    )


def _workers(tables: MetaData) -> None:
    Table(
        "workers",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        needed("name", Text),
        needed("queues", ARRAY(Text)),
        needed("concurrency", Integer),
        needed("started_at", Timestamp),
        needed("heartbeat_at", Timestamp),
        needed("lease", Interval),
        flag("asleep"),
        *(needed(name, BigInteger, server_default=text("0")) for name in ("finished", "failed", "refused")),
    )
    Table(
        "sweeps",
        tables,
        Column("name", Text, primary_key=True),
        needed("swept_at", Timestamp),
        needed("next_at", Timestamp),
    )


def _history(tables: MetaData) -> None:
    """Daily partitions, which come and go: query the parents."""
    finished = Table(
        "finished",
        tables,
        needed("id", BigInteger),
        needed("queue", Text),
        needed("task", Text),
        needed("state", Text),
        needed("priority", Integer),
        needed("args", JSONB),
        Column("headers", JSONB),
        Column("unique_key", Text),
        Column("ordering_key", Text),
        Column("max_attempts", Integer),
        Column("timeout", Interval),
        Column("expires_at", Timestamp),
        needed("created_at", Timestamp),
        Column("started_at", Timestamp),
        needed("finished_at", Timestamp),
        needed("attempt", Integer),
        needed("crashes", Integer),
        count("redriven"),
        Column("origin", Text),
        Column("worker", BigInteger),
        Column("reason", Text),
        Column("result", JSONB),
        Column("transaction_id", BigInteger),
        postgresql_partition_by="RANGE (finished_at)",
    )
    Index("finished_id", finished.c.id)
    Index("finished_transaction", finished.c.transaction_id, postgresql_using="brin")
    failures = Table(
        "failures",
        tables,
        needed("job", BigInteger),
        needed("at", Timestamp),
        needed("attempt", Integer),
        Column("worker", BigInteger),
        needed("error", JSONB),
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
