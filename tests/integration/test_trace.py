"""What one transaction did, in all modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from pgeverything import JobContext, PgEverything, Retry
from pgeverything.trace import Trace

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]


def test_a_transaction_is_traced_through_all_modules(tx: Face, pg: PgEverything, db: Database) -> None:
    db.execute("drop table if exists traced; create table traced (id integer primary key)")
    pg.audit.track("traced")
    pg.jobs.enqueue("other")
    pg.events.append("other", 1)
    number = tx.transaction_id()
    tx.audit.context(actor="ada")
    tx.execute("insert into traced values (1)")
    tx.audit.record("export", "traced")
    tx.execute("savepoint s")
    event = tx.events.append("orders", {"total": 990})
    job = tx.jobs.enqueue("ship", {"order": 42})
    ids = tx.jobs.enqueue_many("mail", [{"n": 1}, {"n": 2}], delay="1h")
    tx.execute("release s")
    assert tx.transaction_id() == number
    assert pg.trace(number) == Trace(number, (), (), ())
    tx.commit()

    found = tx.run(tx.pg.trace(number))
    assert [(entry.action, entry.actor, entry.transaction_id) for entry in found.entries] == [
        ("insert", "ada", number),
        ("export", "ada", number),
    ]
    assert found.events == (event,)
    assert [each.id for each in found.jobs] == [job.id, *ids]
    assert found.jobs[0] == pg.jobs.get(job.id)


def test_jobs_are_found_when_they_have_ended(pg: PgEverything, db: Database) -> None:
    @pg.task()
    def work() -> int:
        return 7

    @pg.task(retry=Retry.never())
    def fail() -> None:
        raise RuntimeError("no")

    @pg.task()
    def together(context: JobContext) -> None:
        with context.transaction():
            pass

    with pg.transaction() as tx:
        number = tx.transaction_id()
        jobs = [each.on(tx).enqueue() for each in (work, together)]
        dead = fail.on(tx).enqueue()
        cancelled = tx.jobs.enqueue("later", delay="1h")
    pg.jobs.cancel(cancelled.id)
    pg.worker().run(until_idle=True)
    states = {job.id: job.state for job in pg.trace(number).jobs}
    expected = dict.fromkeys((job.id for job in jobs), "succeeded")
    assert states == expected | {cancelled.id: "cancelled", dead.id: "dead"}
