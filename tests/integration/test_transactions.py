"""A handler's own transaction: its writes and the end of its job commit together, or neither does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import AsyncPgEverything, JobContext, JobError, JobLost, PgEverything, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

    Database = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def effects(db: Database) -> Iterator[None]:
    db.execute("create table effects (job bigint)")
    yield
    db.execute("drop table effects")


class Handlers:
    """A `def` and an `async def` handler that do the same, told what to do inside, and after, their transaction."""

    def __init__(self, pg: PgEverything, kind: str) -> None:
        self.inside: Any = lambda context: None
        self.after: Any = lambda context: None

        @pg.task(name="blocking", retry=Retry.never())
        def blocking(context: JobContext) -> str:
            with context.transaction() as tx:
                tx.connection.execute("insert into effects values (%s)", [context.job.id])
                tx.jobs.enqueue("next", ordering_key="k")
                self.inside(context)
            self.after(context)
            return "not kept"

        @pg.task(name="awaiting", retry=Retry.never())
        async def awaiting(context: JobContext) -> str:
            async with context.transaction() as tx:
                await tx.connection.execute("insert into effects values (%s)", [context.job.id])
                await tx.jobs.enqueue("next", ordering_key="k")
                self.inside(context)
            self.after(context)
            return "not kept"

        @pg.task(name="next")
        def next_() -> None: ...

        self.pg, self.task = pg, {"blocking": blocking, "awaiting": awaiting}[kind]

    def run(self, **options: Any) -> Any:
        job = self.task.options(**options).enqueue()
        self.pg.worker().run(until_idle=True)
        return self.pg.jobs.get(job.id)


@pytest.fixture(params=["blocking", "awaiting"])
def handlers(pg: PgEverything, request: pytest.FixtureRequest) -> Handlers:
    return Handlers(pg, request.param)


def kept(db: Database) -> list[int]:
    return [row[0] for row in db.execute("select job from effects").fetchall()]


def test_all_of_it_commits_with_the_job(handlers: Handlers, pg: PgEverything, db: Database) -> None:
    inside: list[str] = []
    handlers.inside = lambda context: inside.append(pg.jobs.get(context.job.id).state)

    job = handlers.run(ordering_key="k", unique_key="u", headers={"a": "b"})
    assert (job.state, job.result, job.attempt, job.headers, job.unique_key) == ("succeeded", None, 1, {"a": "b"}, "u")
    assert inside == ["running"]
    assert kept(db) == [job.id]
    assert [each.state for each in pg.jobs.list(task="next")] == ["succeeded"]  # and its turn was passed on


def test_an_error_inside_leaves_nothing(handlers: Handlers, pg: PgEverything, db: Database) -> None:
    def fail(context: JobContext) -> None:
        raise ValueError("inside")

    handlers.inside = fail
    job = handlers.run()
    assert (job.state, job.error["message"]) == ("dead", "inside")
    assert kept(db) == []
    assert pg.jobs.list(task="next") == []


def test_an_error_afterwards_changes_nothing(
    handlers: Handlers, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(context: JobContext) -> None:
        raise ValueError("afterwards")

    handlers.after = fail
    job = handlers.run()
    assert job.state == "succeeded"
    assert kept(db) == [job.id]
    assert "raised after its transaction had completed it" in caplog.text


def test_a_job_that_was_lost_commits_nothing(handlers: Handlers, pg: PgEverything, db: Database) -> None:
    lost: list[int] = []

    def lose(context: JobContext) -> None:
        """As a rescue by another worker does."""
        if not lost:
            lost.append(context.job.id)
            db.execute(
                """with gone as (delete from pgeverything.running where job = %s returning *)
                   insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
                   select queue, 0, nextval('pgeverything.job_seq'), job, attempt - 1, crashes + 1 from gone""",
                [context.job.id],
            )

    handlers.inside = lose
    job = handlers.run()
    assert lost == [job.id]
    assert (job.state, job.attempt, job.crashes) == ("succeeded", 1, 1)
    assert kept(db) == [job.id]
    assert pg.jobs.failures(job.id) == []


def test_a_job_has_one_transaction(pg: PgEverything, db: Database) -> None:
    errors: list[JobError] = []

    @pg.task()
    def twice(context: JobContext) -> None:
        with context.transaction() as tx:
            tx.connection.execute("insert into effects values (1)")
        with pytest.raises(JobError, match="completed by its first transaction") as caught, context.transaction():
            raise AssertionError("never reached")
        errors.append(caught.value)

    job = twice.enqueue()
    pg.worker().run(until_idle=True)
    assert len(errors) == 1
    assert (pg.jobs.get(job.id).state, kept(db)) == ("succeeded", [1])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_transaction_has_no_other_within_it(pg: PgEverything, db: Database, asynchronous: bool) -> None:
    """The inner one would end the job, so that the outer one's writes are undone and nobody makes them again."""

    def within(context: JobContext) -> None:
        with context.transaction() as outer:
            outer.connection.execute("insert into effects values (1)")
            with pytest.raises(JobError, match="open already"), context.transaction():
                raise AssertionError("never reached")

    async def awithin(context: JobContext) -> None:
        async with context.transaction() as outer:
            await outer.connection.execute("insert into effects values (1)")
            with pytest.raises(JobError, match="open already"):
                async with context.transaction():
                    raise AssertionError("never reached")

    job = pg.task(name="within")(awithin if asynchronous else within).enqueue()
    pg.worker().run(until_idle=True)
    assert (pg.jobs.get(job.id).state, kept(db)) == ("succeeded", [1])


def test_a_transaction_that_failed_can_be_had_again(pg: PgEverything, db: Database) -> None:
    @pg.task()
    def again(context: JobContext) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero), context.transaction() as tx:
            tx.connection.execute("select 1 / 0")
        with context.transaction() as tx:
            tx.connection.execute("insert into effects values (2)")

    job = again.enqueue()
    pg.worker().run(until_idle=True)
    assert (pg.jobs.get(job.id).state, kept(db)) == ("succeeded", [2])


def test_what_the_handler_sees_when_its_job_was_lost(pg: PgEverything, db: Database) -> None:
    seen: list[BaseException] = []

    @pg.task()
    def lost(context: JobContext) -> None:
        try:
            with context.transaction() as tx:
                tx.connection.execute("insert into effects values (1)")
                db.execute("update pgeverything.running set token = token + 1000000")
        except JobLost as error:
            seen.append(error)
            db.execute("update pgeverything.running set token = token - 1000000")
            raise

    job = lost.options(max_attempts=1).enqueue()
    pg.worker().run(until_idle=True)
    assert "nothing was committed" in str(seen[0])
    assert (pg.jobs.get(job.id).state, kept(db)) == ("dead", [])


async def test_an_async_applications_tasks_and_worker(url: str, db: Database) -> None:
    async with AsyncPgEverything(url) as pg:

        @pg.task()
        async def work(context: JobContext, n: int) -> None:
            async with context.transaction() as tx:
                await tx.connection.execute("insert into effects values (%s)", [n])

        @pg.task()
        def blocking(n: int) -> int:
            return n

        jobs = [await work.enqueue(7), await blocking.options(priority=1).enqueue(8)]
        await pg.worker().serve(until_idle=True)
        done = [await pg.jobs.get(job.id) for job in jobs]
    assert [job.state for job in done] == ["succeeded", "succeeded"]
    assert (done[1].result, kept(db)) == (8, [7])
