"""What the event log refuses, before any SQL, in words that name the argument; and what its plans send."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from pgeverything import EventLog, InvalidArgument
from pgeverything.engine.plan import Plan, Query
from pgeverything.events.append import append, append_many, extending
from pgeverything.events.reader import Reader, reader

NOWHERE = EventLog("postgresql://nowhere.invalid/")
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("topic", lambda log: log.append("a.*", 1)),
        ("topic", lambda log: log.append("", 1)),
        ("topic", lambda log: log.append(None, 1)),
        ("topic", lambda log: log.append_many("a b", [1])),
        ("data", lambda log: log.append("t", object())),
        ("data", lambda log: log.append("t", float("nan"))),
        ("data", lambda log: log.append("t", "a\0b")),
        ("data", lambda log: log.append("t", msgspec.Raw(b"<html>"))),
        ("data", lambda log: log.append_many("t", 7)),
        ("data", lambda log: log.append_many("t", "abc")),
        ("data", lambda log: log.append_many("t", {"a": 1})),
        (r"data\[1\]", lambda log: log.append_many("t", [1, object()])),
        (r"data\[1\]", lambda log: log.append_many("t", [1, msgspec.Raw(b"1 2")])),
        ("data", lambda log: log.append_many("t", range(10_001), idempotency_key="i")),
        ("type", lambda log: log.append("t", 1, type=None)),
        ("type", lambda log: log.append("t", 1, type="x" * 1025)),
        ("type", lambda log: log.append_many("t", [1], type=7)),
        (r"type\[1\]", lambda log: log.append_many("t", [1, 2], type=["a", None])),
        ("type", lambda log: log.append_many("t", [1, 2], type=["a"])),
        ("key", lambda log: log.append("t", 1, key="")),
        ("key", lambda log: log.append("t", 1, key=7)),
        ("key", lambda log: log.append("t", 1, key=["a"])),
        ("key", lambda log: log.append_many("t", [1, 2], key=["a"])),
        (r"key\[0\]", lambda log: log.append_many("t", [1, 2], key=["", None])),
        ("expected_version", lambda log: log.append("t", 1, expected_version=0)),
        ("expected_version", lambda log: log.append("t", 1, key="k", expected_version=-1)),
        ("expected_version", lambda log: log.append("t", 1, key="k", expected_version=True)),
        ("expected_version", lambda log: log.append("t", 1, key="k", expected_version="1")),
        ("expected_version", lambda log: log.append_many("t", [1], key=["k"], expected_version=1)),
        ("headers", lambda log: log.append("t", 1, headers={"a": 1})),
        ("headers", lambda log: log.append("t", 1, headers="a")),
        ("idempotency_key", lambda log: log.append("t", 1, idempotency_key="")),
        ("idempotency_key", lambda log: log.append_many("t", [1], idempotency_key=5)),
        ("topic", lambda log: log.read("a..b")),
        ("topic", lambda log: log.read(["a"])),
        ("key", lambda log: log.read(key="")),
        ("type", lambda log: log.read(type=7)),
        ("after", lambda log: log.read(after=-1)),
        ("after", lambda log: log.read(after=None)),
        ("after", lambda log: log.read(after="2026-01-01")),
        ("after", lambda log: log.read(after=WHEN.replace(tzinfo=None))),
        ("until", lambda log: log.read(until=-1)),
        ("until", lambda log: log.read(until=WHEN.replace(tzinfo=None))),
        ("limit", lambda log: log.read(limit=0)),
        ("limit", lambda log: log.read(limit=2**63)),
        ("topic", lambda log: log.version("a.*", "k")),
        ("key", lambda log: log.version("a", None)),
        ("topic", lambda log: log.topics("a*")),
        ("before", lambda log: log.drop_before("yesterday")),
        ("before", lambda log: log.drop_before(-1)),
        ("before", lambda log: log.drop_before(WHEN.replace(tzinfo=None))),
        ("keep", lambda log: log.retain("a while")),
        ("keep", lambda log: log.retain(0)),
    ],
)
def test_bad_input_is_refused_at_the_call(name: str, call: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}[ =]"):
        call(NOWHERE)


def answered(plan: Plan[Any], *answers: Any) -> tuple[Any, list[Query[Any]]]:
    """Run a plan with these answers; return its result and what it asked. An exception is thrown in."""
    asked = []
    todo = list(answers)
    step = next(plan)
    try:
        while True:
            assert isinstance(step, Query)
            asked.append(step)
            answer = todo.pop(0)
            step = plan.throw(answer) if isinstance(answer, Exception) else plan.send(step.read(answer))
    except StopIteration as stop:
        assert todo == []
        return stop.value, asked


def test_an_append_is_one_statement() -> None:
    event, asked = answered(append("t", {"a": 1}, key="k"), [(7, 1, WHEN, "appended")])

    assert (event.position, event.version, event.data) == (7, 1, {"a": 1})
    assert [query.statement.name for query in asked] == ["append"]


def test_a_batch_is_one_statement() -> None:
    positions = list(range(1, 10_001))
    events, asked = answered(append_many("t", range(10_000)), [(positions, None, WHEN, "appended")])

    assert [event.position for event in events] == positions
    assert len(asked) == 1


@pytest.mark.parametrize(("position", "extends"), [(99_996, False), (99_997, True), (99_999, True), (100_000, False)])
def test_partitions_are_looked_after_once_in_a_while(position: int, extends: bool) -> None:
    more = [[(True,)], [(1,)]] if extends else []
    event, asked = answered(extending(append).plan("t", 1), [(position, None, WHEN, "appended")], *more)

    assert event.position == position
    assert [query.statement.name for query in asked[1:]] == (["may_extend", "extend"] if extends else [])


def test_an_append_has_succeeded_when_looking_after_partitions_fails(caplog: pytest.LogCaptureFixture) -> None:
    answers = [[(99_999, None, WHEN, "appended")], [(True,)], OSError("the connection is gone")]
    event, _ = answered(extending(append).plan("t", 1), *answers)

    assert event.position == 99_999
    assert "the connection is gone" in caplog.text


def rows(first: int, last: int, size: int = 10) -> list[tuple[Any, ...]]:
    return [(n, "t", None, None, "", f'"{"x" * size}"', None, WHEN) for n in range(first, last + 1)]


def begin(until: int = 100_000) -> tuple[Reader, list[Any]]:
    return reader(None, None, None, 0, None, None, False), [[(0,)], [(until, "read committed", False)]]


def test_batches_grow_while_events_are_small() -> None:
    reading, first = begin()
    position, sizes = 0, []
    for _ in range(5):
        plan = reading.more()
        step = next(plan)
        while True:
            assert isinstance(step, Query)
            if step.statement.name == "near":
                limit = step.params["limit"]
                assert isinstance(limit, int)
                with pytest.raises(StopIteration):
                    plan.send(rows(position + 1, position + limit))
                position += limit
                sizes.append(limit)
                break
            step = plan.send(step.read(first.pop(0)))

    assert sizes == [100, 400, 1600, 2000, 2000]


def test_batches_shrink_when_events_are_large() -> None:
    reading, first = begin()
    answered(reading.more(), *first, rows(1, 100, size=500_000))
    _, asked = answered(reading.more(), rows(101, 107))

    assert [query.params["limit"] for query in asked] == [7]


def test_a_reader_reads_nothing_before_it_is_asked_to() -> None:
    assert NOWHERE.read("t") is not None
