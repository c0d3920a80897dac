"""Invalidations and computations under unlucky interleavings: nothing is stored that was computed from older data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything
from pgeverything.cache.compute import SQL
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, same
from tests.waiting import PATIENCE

from .accounts import fetch
from .sessions import Session, Sessions

COMPUTED = {"ttl": 3600.0, "stale": None, "took": 0.1, "error": None, "error_ttl": None, "data": None}


def lease(session: Session, number: int, key: str = "k", tags: list[str] | None = None) -> tuple[str, list[int] | None]:
    """Ask for the lease of a key; return the answer and the numbers of the tags."""
    params = {"key": key, "lease": number, "hold": 3600.0, "stale": 0.0, "refresh": False, "tags": tags}
    rows = PsycopgCarrier(session.connection, "pgeverything").execute(Query(SQL["lease"], params, same))
    return rows[0][0], rows[0][4]


def fill(session: Session, number: int, value: str, generations: list[int] | None = None) -> bool | None:
    """Store what was computed under a lease; return whether that was done, None where a transaction is in the way."""
    params = {"key": "k", "lease": number, "value": value, "generations": generations} | COMPUTED
    rows = PsycopgCarrier(session.connection, "pgeverything").execute(Query(SQL["settle"], params, same))
    return rows[0][0]  # type: ignore[no-any-return]


@pytest.fixture
def accounts(url: str) -> str:
    """A table whose only row is cached."""
    with psycopg.connect(url) as connection:
        connection.execute("create table account as select 1 as balance")
    return url


def balance(session: Session) -> str:
    """Read what is to be cached, as the session sees it."""
    return str(session.sql("select balance from account")[0][0])


def change(session: Session, *keys: str, tags: list[str] | None = None) -> None:
    """Begin to change the data, and invalidate what was computed from it."""
    session.begin()
    session.sql("update account set balance = balance + 1")
    session.tx.cache.invalidate(*keys, tags=tags or [])


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_fill_that_meets_an_open_invalidation(accounts: str, sessions: Sessions, end: str) -> None:
    """It does not wait for long, and what it brings is stored only when the invalidation never was."""
    reader, writer, _ = sessions.three()
    assert lease(reader, 1)[0] == "taken"
    old = balance(reader)
    change(writer, "k")
    assert fill(reader, 1, old) is None
    getattr(writer, end)()
    assert fill(reader, 1, old) is (end == "rollback")
    assert reader.tx.cache.get("k") == (1 if end == "rollback" else None)


def test_a_fill_after_an_invalidation_stores_nothing(accounts: str, sessions: Sessions) -> None:
    reader, writer, _ = sessions.three()
    assert lease(reader, 1)[0] == "taken"
    old = balance(reader)
    change(writer, "k")
    writer.commit()
    assert fill(reader, 1, old) is False
    assert reader.tx.cache.get("k") is None


def test_a_fill_after_an_invalidation_and_another_lease_stores_nothing(accounts: str, sessions: Sessions) -> None:
    reader, writer, other = sessions.three()
    lease(reader, 1)
    old = balance(reader)
    change(writer, "k")
    writer.commit()
    assert lease(other, 2)[0] == "taken"
    assert fill(reader, 1, old) is False
    assert fill(other, 2, balance(other)) is True
    assert fill(reader, 1, old) is False
    assert reader.tx.cache.get("k") == 2


@pytest.mark.parametrize("known", [True, False], ids=["expired", "absent"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_no_lease_is_given_while_an_invalidation_is_open(
    accounts: str, sessions: Sessions, end: str, known: bool
) -> None:
    """The case that a mere delete leaves open: there is no row yet that could be locked."""
    reader, writer, _ = sessions.three()
    if known:
        reader.tx.cache.set("k", "expired")
        reader.sql("update pgeverything.cache set expires_at = now()")
    change(writer, "k")
    assert lease(reader, 1)[0] == "busy"
    getattr(writer, end)()
    assert lease(reader, 1)[0] == "taken"
    assert fill(reader, 1, balance(reader)) is True
    assert reader.tx.cache.get("k") == (2 if end == "commit" else 1)


def test_readers_do_not_wait_for_an_open_invalidation(accounts: str, sessions: Sessions) -> None:
    reader, writer, _ = sessions.three()
    reader.tx.cache.set("k", 1, tags=["t"])
    change(writer, "k", tags=["t"])
    assert reader.tx.cache.get("k") == 1
    assert reader.tx.cache.get_many(["k"]) == {"k": 1}
    writer.commit()
    assert reader.tx.cache.get("k") is None


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_tag_that_is_invalidated_while_a_value_is_computed(accounts: str, sessions: Sessions, end: str) -> None:
    """Nobody waits: the value carries the tag's number from before, which is no longer its number after the commit."""
    reader, writer, _ = sessions.three()
    reader.tx.cache.set("other", 1, tags=["t"])
    change(writer, tags=["t"])
    state, generations = lease(reader, 1, tags=["t"])
    assert state == "taken"
    assert fill(reader, 1, balance(reader), generations=generations) is True
    assert reader.tx.cache.get("k") == 1  # rightly: nothing has changed yet
    getattr(writer, end)()
    assert reader.tx.cache.get("k") == (None if end == "commit" else 1)


def test_a_tag_that_is_invalidated_before_anybody_has_used_it(accounts: str, sessions: Sessions) -> None:
    reader, writer, _ = sessions.three()
    change(writer, tags=["t"])
    assert lease(reader, 1, tags=["t"])[0] == "busy"
    writer.commit()
    state, generations = lease(reader, 1, tags=["t"])
    assert state == "taken"
    assert fill(reader, 1, balance(reader), generations=generations) is True
    assert reader.tx.cache.get("k") == 2


def test_a_tag_that_is_invalidated_between_lease_and_fill(accounts: str, sessions: Sessions) -> None:
    reader, writer, _ = sessions.three()
    _, generations = lease(reader, 1, tags=["t", "u"])
    old = balance(reader)
    change(writer, tags=["u"])
    writer.commit()
    assert fill(reader, 1, old, generations=generations) is True
    assert reader.tx.cache.get("k") is None
    assert lease(reader, 2)[0] == "taken"


def test_a_value_that_is_written_by_a_transaction_is_the_last_word(accounts: str, sessions: Sessions) -> None:
    """Write-through: the row and its cached form appear together, and no computation from before replaces it."""
    reader, writer, _ = sessions.three()
    lease(reader, 1)
    old = balance(reader)
    writer.begin()
    writer.sql("update account set balance = 2")
    writer.tx.cache.set("k", 2)
    assert fill(reader, 1, old) is None
    assert lease(reader, 3, "other")[0] == "taken"
    writer.commit()
    assert fill(reader, 1, old) is False
    assert reader.tx.cache.get("k") == 2


def test_a_plain_set_waits_for_an_open_invalidation_and_is_the_callers_word(accounts: str, sessions: Sessions) -> None:
    reader, writer, _ = sessions.three()
    change(writer, "k")
    setting = reader.waiting(reader.tx.cache.set, "k", "mine")
    writer.commit()
    setting.result(PATIENCE)
    assert reader.tx.cache.get("k") == "mine"


def test_invalidations_in_opposite_orders_do_not_deadlock(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    keys, tags = ["a", "b", "c"], ["t", "u", "v"]
    one.begin()
    one.tx.cache.invalidate(*keys, tags=tags)
    other = two.waiting(two.tx.cache.invalidate, *reversed(keys), tags=list(reversed(tags)))
    one.tx.cache.set_many(dict.fromkeys(reversed(keys), 1), tags=reversed(tags))
    one.commit()
    other.result(PATIENCE)
    assert two.tx.cache.get_many(keys) == {}


def test_writing_with_a_new_tag_and_invalidating_it_do_not_deadlock(sessions: Sessions) -> None:
    """Both take tags before keys: the writer has its tag when it waits for a key."""
    one, two, holder = sessions.three()
    two.tx.cache.set_many({"a": 0, "b": 0})
    holder.begin()
    holder.tx.cache.set("a", 1)
    written = one.waiting(one.tx.cache.set_many, {"a": 2, "b": 2}, tags=["new"])
    invalidated = two.waiting(two.tx.cache.invalidate, "b", tags=["new"])
    holder.commit()
    written.result(PATIENCE)
    invalidated.result(PATIENCE)
    assert two.tx.cache.get_many(["a", "b"]) == {}


def test_two_that_ask_at_once_do_not_both_get_the_lease(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    assert lease(one, 1)[0] == "taken"
    assert lease(two, 2)[0] == "busy"
    one.commit()
    assert lease(two, 2)[0] == "held"
    one.begin()
    assert fill(one, 1, "1") is True
    assert two.tx.cache.get("k") is None
    assert lease(two, 2)[0] == "busy"
    one.commit()
    assert lease(two, 2)[0] == "hit"


def test_a_lease_whose_time_is_over_passes_on(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    lease(one, 1)
    assert lease(two, 2)[0] == "held"
    one.sql("update pgeverything.cache set lease_until = now()")
    assert lease(two, 2)[0] == "taken"
    assert fill(one, 1, "1") is False
    assert fill(two, 2, "2") is True


def test_add_and_increment_count_every_caller_once(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    assert one.tx.cache.add("k", 1)
    assert one.tx.cache.increment("n") == 1
    added = two.waiting(two.tx.cache.add, "k", 2)
    one.commit()
    assert added.result(PATIENCE) is False
    one.begin()
    assert one.tx.cache.increment("n", 10) == 11
    counted = two.waiting(two.tx.cache.increment, "n")
    one.commit()
    assert counted.result(PATIENCE) == 12


@pytest.mark.parametrize("before", ["nothing", "expired", "invalidated"])
@pytest.mark.parametrize("tags", [[], ["t"]], ids=["untagged", "tagged"])
def test_add_and_increment_see_what_they_have_waited_for(sessions: Sessions, before: str, tags: list[str]) -> None:
    """When a value was written says nothing about when it was committed."""
    one, two, _ = sessions.three()
    if before != "nothing":
        one.tx.cache.set_many({"k": 1, "n": 1}, tags=["t"])
        if before == "expired":
            one.sql("update pgeverything.cache set expires_at = now()")
        else:
            one.tx.cache.invalidate(tags=["t"])
    one.begin()
    one.tx.cache.set_many({"k": 5, "n": 5}, tags=tags)
    added = two.waiting(two.tx.cache.add, "k", 6)
    one.commit()
    assert added.result(PATIENCE) is False
    one.begin()
    one.tx.cache.set_many({"k": 5, "n": 5}, tags=tags)
    counted = two.waiting(two.tx.cache.increment, "n")
    one.commit()
    assert counted.result(PATIENCE) == 6
    assert two.tx.cache.get_many(["k", "n"]) == {"k": 5, "n": 6}


def test_an_increment_that_waits_keeps_the_tags_of_what_it_counts(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    one.tx.cache.set("n", 5, tags=["t"])
    counted = two.waiting(two.tx.cache.increment, "n")
    one.commit()
    assert counted.result(PATIENCE) == 6
    one.tx.cache.invalidate(tags=["t"])
    assert two.tx.cache.get("n") is None


@pytest.mark.parametrize("call", ["add", "increment"])
def test_what_is_added_has_no_tags_of_what_was_there(sessions: Sessions, call: str) -> None:
    """The entry that it saw goes while it waits for the transaction that takes it away."""
    one, two, _ = sessions.three()
    one.tx.cache.set("k", 5, tags=["t"])
    one.begin()
    one.sql("delete from pgeverything.cache")
    called = two.waiting(getattr(two.tx.cache, call), "k", 7)
    one.commit()
    called.result(PATIENCE)
    one.tx.cache.invalidate(tags=["t"])
    assert two.tx.cache.get("k") == 7


def test_an_add_after_an_invalidation_that_was_open(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.tx.cache.set("k", 1)
    one.begin()
    one.tx.cache.invalidate("k")
    added = two.waiting(two.tx.cache.add, "k", 2)
    one.commit()
    assert added.result(PATIENCE) is True


def test_under_repeatable_read_an_invalidation_may_have_to_be_tried_again(sessions: Sessions) -> None:
    """As for every row that somebody else has written since the transaction began."""
    one, two, _ = sessions.three()
    one.begin("repeatable read")
    one.sql("select 1 from pgeverything.cache")
    two.tx.cache.set("k", 1)
    with pytest.raises(psycopg.errors.SerializationFailure):
        one.tx.cache.invalidate("k")
    one.rollback()
    one.begin("repeatable read")
    one.tx.cache.invalidate("k")
    one.commit()
    assert two.tx.cache.get("k") is None


def test_under_repeatable_read_a_new_tag_that_cannot_be_seen_makes_no_entry_valid(sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin("repeatable read")
    one.sql("select 1 from pgeverything.cache")
    two.tx.cache.set("other", 1, tags=["t"])
    try:
        one.tx.cache.set("k", 1, tags=["t"])
        one.commit()
    except psycopg.errors.SerializationFailure:
        one.rollback()
    assert two.tx.cache.get("k") is None


def test_a_connection_that_is_lost_while_computing(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """The value goes to its caller, or the error of the fill does; what is stored is whole or nothing."""
    breaker = sessions.open()

    def compute() -> int:
        breaker.sql(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where application_name = 'pgeverything' and datname = current_database()"
        )
        return 1

    assert pg.cache.get_or_set("k", compute) == 1
    assert pg.cache.get("k") == 1


def test_many_threads_in_one_process(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """More of them than connections, and a transaction that holds the key for a while."""
    writer = sessions.open()
    change_key = "k"
    writer.begin()
    writer.tx.cache.invalidate(change_key)
    with ThreadPoolExecutor(24) as threads:
        calls = [threads.submit(pg.cache.get_or_set, change_key, lambda: 1) for _ in range(24)]
        others: list[Any] = [threads.submit(pg.cache.get_or_set, f"other-{n}", lambda: 2) for n in range(24)]
        assert [call.result(PATIENCE) for call in others] == [2] * 24
        writer.commit()
        assert [call.result(PATIENCE) for call in calls] == [1] * 24
    assert fetch(url, "select count(*) from pgeverything.cache where lease is not null") == [(0,)]
