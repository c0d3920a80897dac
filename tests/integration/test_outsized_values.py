"""What jsonb holds and Python has no place for, as anybody may write it with psql: it hides no other row."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from pgeverything import PgEverything
from pgeverything.cli import main

from .carriers import Face
from .consuming import consume, data
from .trail import told

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]

DIGITS = "9" * 5000
BEYOND = "1" + "0" * 400 + ".5"
DEEP = "[" * 5000 + "]" * 5000


def cut(levels: int) -> Any:
    """Return what is read of DEEP, so many levels of it as lists and the rest as text."""
    value: Any = DEEP[levels:-levels]
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture(params=[DIGITS, BEYOND, DEEP], ids=["digits", "beyond-floats", "deep"])
def text(request: pytest.FixtureRequest) -> str:
    """Each value in turn, as JSON."""
    return str(request.param)


@pytest.fixture
def read(text: str) -> Any:
    """The value as it is read."""
    return cut(100) if text == DEEP else Decimal(text)


@pytest.fixture
def inside(text: str) -> Any:
    """The value as it is read within an object."""
    return cut(99) if text == DEEP else Decimal(text)


def enqueue(db: Database, text: str) -> int:
    row = db.execute("select id from pgeverything.enqueue('t', jsonb_build_object('a', %s::jsonb))", [text]).fetchone()
    assert row is not None
    return int(row[0])


def publish(db: Database, text: str) -> None:
    db.execute("select pgeverything.publish('t', %s)", [text])


def test_jobs_can_be_listed(pg: PgEverything, db: Database, text: str, inside: Any) -> None:
    first = pg.jobs.enqueue("t", {"a": 1}).id
    second = enqueue(db, text)
    third = pg.jobs.enqueue("t", {"a": 3}).id
    listed = [(job.id, job.args) for job in pg.jobs.list()]
    assert listed == [(third, {"a": 3}), (second, {"a": inside}), (first, {"a": 1})]
    assert pg.jobs.get(second).args == {"a": inside}


def test_a_worker_rejects_the_job_and_goes_on(pg: PgEverything, db: Database, text: str, inside: Any) -> None:
    seen: list[Any] = []

    @pg.task()
    def t(a: Any) -> None:
        seen.append(a)

    rejected = enqueue(db, text)
    t.enqueue(2)
    pg.worker().run(until_idle=True)
    assert seen == [2]
    [dead] = pg.dead_letters.list()
    assert (dead.id, dead.args, dead.reason) == (  # type: ignore[union-attr]
        rejected,
        {"a": inside},
        "its arguments do not fit the task any more",
    )


def test_events_are_read_and_delivered(pg: PgEverything, db: Database, text: str, read: Any) -> None:
    pg.events.append("t", 1)
    publish(db, text)
    pg.events.append("t", 2)
    assert data(pg.events.read()) == [1, read, 2]  # type: ignore[arg-type]
    face = Face(pg, None, lambda value: value)
    assert data(consume(face, "t", name="s", start="earliest")) == [1, read, 2]


def test_dead_messages_can_be_listed(pg: PgEverything, db: Database, text: str, read: Any) -> None:
    pg.events.append("t", 1)
    publish(db, text)

    @pg.subscriber("t", name="s", start="earliest", max_deliveries=1)
    def fail(message: Any) -> None:
        raise ValueError

    pg.worker().run(until_idle=True)
    dead = pg.dead_letters.list(subscription="s")
    assert sorted(repr(letter.event.data) for letter in dead) == sorted(["1", repr(read)])  # type: ignore[union-attr]


def test_the_trail_is_read_exactly(pg: PgEverything, db: Database, account: str, text: str, inside: Any) -> None:
    db.execute("alter table account add more jsonb")
    pg.audit.track("account", exclude=["changed", "ssn", "email", "owner"])
    db.execute("insert into account (id, balance, more) values (1, 123456789012345678.12, %s)", [text])
    db.execute("insert into account (id, balance) values (2, 0.5)")
    assert told(pg, "account") == [
        ("insert", 1, None, {"id": 1, "balance": Decimal("123456789012345678.12"), "more": inside}),
        ("insert", 2, None, {"id": 2, "balance": 0.5, "more": None}),
    ]


@pytest.mark.usefixtures("_nothing_left")
def test_the_command_line_shows_them(
    pg: PgEverything, db: Database, url: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    job = enqueue(db, text)
    publish(db, text)
    pg.cache.set("k", None, ttl=None)
    db.execute("update pgeverything.cache set value = %s", [text])
    db.execute("create table typed (id numeric primary key)")
    pg.audit.track("typed")
    db.execute("insert into typed values (%s)", [BEYOND if text == DEEP else text])
    audit = ["audit", "history", "typed"]
    for command in (["jobs", "list"], ["jobs", "show", str(job)], ["events", "read"], ["cache", "get", "k"], audit):
        for form in ([], ["--json"]):
            result = CliRunner().invoke(main, [*command, *form])
            assert result.exit_code == 0, result.output
            assert text[200:-200] in result.output or (command, form) == (["jobs", "list"], []) or command is audit
