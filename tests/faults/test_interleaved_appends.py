"""Publishers in chosen orders: topics, keys, versions, idempotency keys, and who is notified.

Nothing sleeps; the server says who waits for whom.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgeverything import Event, PgEverything, WrongVersion

from .accounts import fetch
from .sessions import Session, Sessions, append

# Topics and keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_new_topic_in_an_open_transaction_makes_nobody_wait(
    url: str, sessions: Sessions, pg: PgEverything, end: str
) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    append(slow, 1)
    append(fast, 2)
    append(fast, 3)
    getattr(slow, end)()
    append(slow, 4)
    expected = [1, 2, 3, 4] if end == "commit" else [2, 3, 4]
    assert [event.data for event in pg.events.read("t")] == expected
    assert [event.data for event in pg.events.read(">")] == expected
    assert [(topic.name, topic.events) for topic in pg.events.topics()] == [("t", len(expected))]
    assert fetch(url, "select count(*) from pgeverything.topics") == [(2 if end == "commit" else 1,)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_of_two_that_expect_the_same_version_one_appends(
    sessions: Sessions, pg: PgEverything, version: int, end: str, many: bool
) -> None:
    """What `ON CONFLICT DO NOTHING` gets wrong: it drops the event of the second and says nothing."""
    first, second, _ = sessions.three()
    for number in range(version):
        append(first, number, key="k")

    def attempt(session: Session, value: int) -> Any:
        if many:
            return session.tx.events.append_many("t", [value], key="k", expected_version=version)
        return append(session, value, key="k", expected_version=version)

    first.begin()
    attempt(first, 10)
    late = second.waiting(attempt, second, 20)
    getattr(first, end)()
    if end == "commit":
        with pytest.raises(WrongVersion) as caught:
            late.result()
        assert (caught.value.expected, caught.value.actual) == (version, version + 1)
    else:
        late.result()
    read = [(event.data, event.version) for event in pg.events.read(key="k")]
    assert read[version:] == [(10 if end == "commit" else 20, version + 1)]


def test_batches_of_the_same_keys_in_other_orders_do_not_deadlock(sessions: Sessions, pg: PgEverything) -> None:
    first, second, _ = sessions.three()
    first.begin()
    first.tx.events.append_many("t", [1, 2, 3], key=["a", "b", "c"])
    late = second.waiting(second.tx.events.append_many, "t", [4, 5, 6], key=["c", "a", "b"])
    first.commit()
    late.result()
    assert [(event.key, event.version) for event in pg.events.read()] == [
        *(("a", 1), ("b", 1), ("c", 1)),
        *(("c", 2), ("a", 2), ("b", 2)),
    ]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_second_append_under_an_idempotency_key_waits_for_the_first(
    sessions: Sessions, pg: PgEverything, end: str, many: bool
) -> None:
    first, second, _ = sessions.three()

    def attempt(session: Session, value: int) -> list[Event]:
        if many:
            return session.tx.events.append_many("t", [value, value], key="k", idempotency_key="i")
        return [append(session, value, key="k", idempotency_key="i")]

    first.begin()
    mine = attempt(first, 1)
    late = second.waiting(attempt, second, 2)
    getattr(first, end)()
    assert (late.result() == mine) is (end == "commit")
    assert list(pg.events.read()) == late.result()
    assert pg.events.version("t", "k") == len(mine)


def test_an_append_in_an_older_snapshot_fails_and_loses_nothing(sessions: Sessions, pg: PgEverything) -> None:
    """Under REPEATABLE READ a version that has moved on is a serialization failure, to be tried again by the caller."""
    old, fast, _ = sessions.three()
    append(fast, 1, key="k", idempotency_key="i")
    old.begin("repeatable read")
    old.sql("select 1")
    append(fast, 2, key="k", idempotency_key="j")
    append(old, 3)
    for options in ({"key": "k"}, {"key": "k", "expected_version": 1}, {"idempotency_key": "j"}):
        old.sql("savepoint s")
        with pytest.raises(psycopg.errors.SerializationFailure):
            append(old, "not", **options)
        old.sql("rollback to s")
    old.commit()
    assert [event.data for event in pg.events.read()] == [1, 2, 3]


# Hints ---------------------------------------------------------------------------------------------------------------


def test_publishers_notify_when_somebody_sleeps_and_only_then(url: str, sessions: Sessions) -> None:
    publisher, sleeper, listener = sessions.three()
    listener.sql("listen pgeverything")
    arrived: list[str] = []
    listener.connection.add_notify_handler(lambda notify: arrived.append(notify.payload))

    def heard() -> list[str]:
        listener.sql("select 1")  # what was notified before it arrives with its answer
        news, arrived[:] = arrived[:], []
        return news

    append(publisher, 1)
    publisher.tx.events.append_many("t", [1, 2])
    assert heard() == []
    sleeper.events("sleep", id=1, seconds=60.0)
    sleeper.events("sleep", id=1, seconds=60.0)
    publisher.begin()
    append(publisher, 1)
    publisher.tx.events.append_many("t", [1, 2])
    publisher.commit()
    assert heard() == ["\tevents:"]  # one for the transaction
    sleeper.sql("update pgeverything.event_sleepers set expires_at = now() - interval '1 s'")
    append(publisher, 1)
    sleeper.events("sleep", id=1, seconds=60.0)
    sleeper.events("awake", id=1)
    append(publisher, 1)
    assert heard() == []
