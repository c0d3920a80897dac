"""Entries of the cache, on every carrier."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import CacheError, InvalidArgument, PgEverything

from .entries import expire

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]

MISS = object()
VALUES = [
    None,
    0,
    False,
    "",
    'ä"\\',
    1.5,
    2**53,
    [],
    {},
    {"a": [1, None, {"b": "c"}]},
    b"",
    bytes(range(256)),
    "x" * 9000,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_value_comes_back_as_it_was(on: Face, value: Any) -> None:
    on.cache.set("k", value)
    found = on.cache.get("k", MISS)
    assert found == value
    assert type(found) is type(value)
    assert on.cache.get_many(["k"]) == {"k": value}


def test_what_is_not_there_is_the_default(on: Face) -> None:
    assert on.cache.get("k") is None
    assert on.cache.get("k", MISS) is MISS
    on.cache.set("k", None)
    assert on.cache.get("k", MISS) is None


def test_the_last_value_counts(on: Face) -> None:
    on.cache.set("k", b"bytes", tags=["t"])
    on.cache.set("k", "text")
    assert on.cache.get("k") == "text"
    on.cache.set("k", b"bytes")
    assert on.cache.get("k") == b"bytes"


def test_many_at_once(on: Face) -> None:
    values = {f"k{n}": value for n, value in enumerate(VALUES)} | {"ключ": 1, "a'\"{},\\": 2}
    on.cache.set("k1", "before")
    on.cache.set_many(values, "1h", tags=["t"])
    assert on.cache.get_many([*reversed(values), "missing", "k1"]) == values
    on.cache.invalidate(tags=["t"])
    assert on.cache.get_many(values) == {}
    on.cache.set_many({})
    assert on.cache.get_many([]) == {}


def test_many_are_one_statement(on: Face, db: Database) -> None:
    on.cache.set_many({f"k{n}": n for n in range(500)})
    on.commit()
    rows = db.execute("select count(distinct xmin::text), count(*) from pgeverything.cache").fetchall()
    assert rows == [(1, 500)]


def test_an_expired_entry_is_gone_at_once_for_everybody(on: Face, db: Database) -> None:
    on.cache.set_many({"k": 1, "n": 2})
    on.commit()
    expire(db, "k", "n")
    assert on.cache.get("k") is None
    assert on.cache.get_many(["k", "n"]) == {}
    assert not on.cache.touch("k")
    assert on.cache.delete("k") == 0
    assert on.cache.add("k", 3)
    assert on.cache.increment("n", 5) == 5


def test_the_end_of_an_entry_is_on_the_databases_clock(on: Face, db: Database) -> None:
    on.cache.set("k", 1, "1h")
    on.cache.set("for ever", 1, None)
    on.cache.set("default", 1)
    on.commit()
    ends = db.execute(
        "select key, date_part('epoch', expires_at) - date_part('epoch', stored_at) from pgeverything.cache"
    ).fetchall()
    lives = {key: round(left, 2) if left < 1e9 else None for key, left in ends}
    assert lives == {"default": 300.0, "for ever": None, "k": 3600.0}


def test_add_keeps_what_is_there(on: Face) -> None:
    assert on.cache.add("k", None)
    assert not on.cache.add("k", 2)
    assert on.cache.get("k", MISS) is None
    on.cache.delete("k")
    assert on.cache.add("k", b"3")
    assert on.cache.get("k") == b"3"


@pytest.mark.parametrize("invalidated", [False, True])
def test_add_and_increment_know_whether_a_tag_was_invalidated(on: Face, invalidated: bool) -> None:
    on.cache.set("k", 1, tags=["t", "u"])
    on.cache.set("n", 10, tags=["t"])
    if invalidated:
        on.cache.invalidate(tags=["t"])
    assert on.cache.add("k", 2) is invalidated
    assert on.cache.increment("n") == (1 if invalidated else 11)
    assert on.cache.increment("n") == (2 if invalidated else 12)
    on.cache.invalidate(tags=["t"])
    assert on.cache.get_many(["k", "n"]) == ({"k": 2, "n": 2} if invalidated else {})


def test_counters(on: Face, db: Database) -> None:
    assert on.cache.increment("n", ttl="1h") == 1
    on.commit()
    ends = db.execute("select expires_at from pgeverything.cache").fetchall()
    assert on.cache.increment("n", 41, ttl="2h") == 42
    assert on.cache.increment("n", -50) == -8
    assert on.cache.get("n") == -8
    on.commit()
    assert db.execute("select expires_at from pgeverything.cache").fetchall() == ends
    on.cache.set("n", 10**18 - 1)
    assert on.cache.increment("n", 10**18 - 1) == 2 * 10**18 - 2


@pytest.mark.parametrize("value", ["a", "1", 1.5, None, True, [1], b"1", 10**18])
def test_only_whole_numbers_are_incremented(on: Face, value: Any) -> None:
    on.cache.set("k", value)
    with pytest.raises(CacheError, match="cannot increment 'k'"):
        on.cache.increment("k")
    assert on.cache.get("k") == value


def test_touch_moves_the_end(on: Face, db: Database) -> None:
    assert not on.cache.touch("k")
    on.cache.set("k", 1, "1s", tags=["t"])
    assert on.cache.touch("k", "1h")
    on.commit()
    assert db.execute("select expires_at > now() + interval '50 min' from pgeverything.cache").fetchall() == [(True,)]
    assert on.cache.touch("k", None)
    on.cache.invalidate(tags=["t"])
    assert not on.cache.touch("k")


def test_delete_says_how_many_there_were(on: Face) -> None:
    on.cache.set_many({"a": 1, "b": None})
    assert on.cache.delete("a", "b", "c", "a") == 2
    assert on.cache.delete("a") == 0
    assert on.cache.delete() == 0
    assert on.cache.get_many(["a", "b"]) == {}


def test_invalidate_by_key_and_by_tag(on: Face) -> None:
    on.cache.set("a", 1, tags=["t", "u"])
    on.cache.set("b", 2, tags=["u", "v"])
    on.cache.set("c", 3)
    on.cache.set("d", 4, tags=["t"])
    on.cache.invalidate("c", "nowhere", tags=["v"])
    assert on.cache.get_many(list("abcd")) == {"a": 1, "d": 4}
    on.cache.invalidate(tags={"t"})
    assert on.cache.get_many(list("abcd")) == {}
    on.cache.invalidate()
    on.cache.set("a", 5, tags=["t", "u"])
    assert on.cache.get("a") == 5


def test_the_work_of_a_tag_does_not_depend_on_its_entries(on: Face, db: Database) -> None:
    on.cache.set_many({f"k{n}": n for n in range(300)}, tags=["t"])
    on.commit()
    before = db.execute("select max(xmin::text::bigint) from pgeverything.cache").fetchall()
    on.cache.invalidate(tags=["t"])
    on.commit()
    assert db.execute("select max(xmin::text::bigint) from pgeverything.cache").fetchall() == before
    assert on.cache.get_many([f"k{n}" for n in range(300)]) == {}


def test_a_tag_that_is_forgotten_takes_its_entries_along(on: Face, db: Database) -> None:
    """After a crash of the server, say: no number comes back, so no entry that was invalidated does."""
    on.cache.set("old", 1, tags=["t"])
    on.cache.invalidate(tags=["t"])
    on.cache.set("new", 2, tags=["t"])
    on.commit()
    db.execute("delete from pgeverything.cache_tags")
    assert on.cache.get_many(["old", "new"]) == {}
    on.cache.set("newer", 3, tags=["t"])
    assert on.cache.get_many(["old", "new", "newer"]) == {"newer": 3}


# In the caller's transaction -----------------------------------------------------------------------------------------


@pytest.fixture
def outside(tx: Face, pg: PgEverything) -> PgEverything:
    return pg


def test_writes_appear_with_the_commit(tx: Face, outside: PgEverything) -> None:
    outside.cache.set_many({"set": 1, "deleted": 1, "counted": 1})
    tx.cache.set("set", 2)
    tx.cache.delete("deleted")
    tx.cache.increment("counted")
    tx.cache.add("added", 2)
    keys = ["set", "deleted", "counted", "added"]
    assert tx.cache.get_many(keys) == {"set": 2, "counted": 2, "added": 2}
    assert outside.cache.get_many(keys) == {"set": 1, "deleted": 1, "counted": 1}
    tx.commit()
    assert outside.cache.get_many(keys) == {"set": 2, "counted": 2, "added": 2}


def test_writes_vanish_with_a_rollback(tx: Face, outside: PgEverything) -> None:
    outside.cache.set("a", 1, tags=["t"])
    outside.cache.set("b", 1)
    tx.cache.invalidate("b", "c", tags=["t"])
    tx.cache.set("d", 2)
    assert tx.cache.get_many(["a", "b", "c", "d"]) == {"d": 2}
    tx.rollback()
    assert outside.cache.get_many(["a", "b", "c", "d"]) == {"a": 1, "b": 1}


def test_there_is_no_computing_in_a_transaction_of_the_callers(tx: Face) -> None:
    with pytest.raises(CacheError, match=r"pg\.cache\.get_or_set\(\) outside"):
        tx.pg.on(tx.held).cache.get_or_set("a", lambda: 1)
    for name in ("stats", "clear", "configure", "near"):
        assert not hasattr(tx.pg.on(tx.held).cache, name)


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "a" * 1025, "ä" * 513, "a\0", "\ud800", None, 7, b"k", ["k"]])
def test_keys_that_are_refused(on: Face, key: Any) -> None:
    calls: list[Any] = [
        lambda: on.cache.get(key),
        lambda: on.cache.set(key, 1),
        lambda: on.cache.add(key, 1),
        lambda: on.cache.touch(key),
        lambda: on.cache.increment(key),
    ]
    if isinstance(key, str):
        calls += [
            lambda: on.cache.get_many([key]),
            lambda: on.cache.set_many({key: 1}),
            lambda: on.cache.delete("a", key),
            lambda: on.cache.invalidate(key),
            lambda: on.cache.set("k", 1, tags=[key]),
            lambda: on.cache.invalidate(tags=[key]),
        ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="must be text of 1 to 1024 bytes without NUL"):
            call()


def test_the_longest_key_is_kept(on: Face) -> None:
    longest = {"".join(random.choices("abcdefghijklmnop", k=1024)): 1, "ä" * 512: 2}
    on.cache.set_many(longest, tags=list(longest))
    assert on.cache.get_many(longest) == longest


def test_values_that_are_refused(on: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", "2000")
    for value, message in (
        (b"x" * 2001, "value is 2001 bytes, more than the limit of 2000"),
        ("x" * 1999, "value is 2001 bytes of JSON, more than the limit of 2000"),
        (object(), "value cannot be JSON"),
        ("\0", "NUL"),
        (float("nan"), "nan"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            on.cache.set("k", value)
        with pytest.raises(InvalidArgument, match=r"values\['k'\]"):
            on.cache.set_many({"j": 1, "k": value})
        with pytest.raises(InvalidArgument):
            on.cache.add("k", value)
    on.cache.set("k", b"x" * 2000)
    assert on.cache.get_many(["j", "k"]) == {"k": b"x" * 2000}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.set("k", 1, ttl=0), "ttl=0 must be more than 0"),
        (lambda cache: cache.set("k", 1, ttl="soon"), "ttl='soon' is not a duration"),
        (lambda cache: cache.set("k", 1, tags="tag"), "tags='tag' must be a list of keys"),
        (lambda cache: cache.set("k", 1, tags=[["a"]]), r"tags=\['a'\] must be text"),
        (lambda cache: cache.invalidate(["k"]), r"keys=\['k'\] must be text"),
        (lambda cache: cache.get_many("abc"), "keys='abc' must be a list of keys"),
        (lambda cache: cache.set_many([("a", 1)]), "values=.* must be a mapping"),
        (lambda cache: cache.increment("k", 1.5), "by=1.5 must be a whole number"),
        (lambda cache: cache.increment("k", 10**18), "by=1000000000000000000 must be a whole number"),
    ],
)
def test_other_arguments_that_are_refused(on: Face, call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call(on.cache)
