"""Append: one event, or thousands in a round trip."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from ..engine import codec
from ..engine.plan import Atomic, Plan, Query, nothing, one, op, same
from ..engine.statements import statements
from ..errors import InvalidArgument, RetentionGap, WrongVersion
from ..jobs.values import MOST_BIGINT, check_name, check_whole
from .patterns import check_topic
from .retention import AHEAD
from .values import Event, read_events

log = logging.getLogger("pgeverything.events")
SQL = statements("events")

P = ParamSpec("P")
E = TypeVar("E", bound=Event | list[Event])

MOST_NAME = 1024
"""Bytes of a key, a type and an idempotency key."""

_BATCH = 10_000
_BATCH_CHARACTERS = 8_000_000
_EXTEND_EVERY = 100_000  # positions


def append(
    topic: str,
    data: Any,
    *,
    type: str = "",  # noqa: A002 - the public name of the thing
    key: str | None = None,
    expected_version: int | None = None,
    headers: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Plan[Event]:
    """Append one event.

    Args:
        topic: what it is about: tokens with dots between them, like "orders.eu".
        data: a JSON value.
        type: what happened, like "placed".
        key: the one it happened to. Events of one topic and key have versions and are committed in their order: a
            second publisher of the key waits until the first has committed. Who appends to several keys in one
            transaction does so in one order everywhere, or two of them can deadlock.
        expected_version: append only if the topic and key are at this version; 0 if they have no event yet.
        headers: text for the reader's eyes, for example a W3C `traceparent`.
        idempotency_key: of one topic and this key only the first append counts. Others return its event, and wait for
            it when it is not committed yet. It is remembered for at least a week.

    Returns:
        The event as it is in the log, or will be when its transaction is committed.

    Raises:
        InvalidArgument: an argument is refused, before any SQL.
        WrongVersion: `expected_version` is not the version there is. The transaction stays usable.
    """
    check_topic(topic)
    check_type(type, "type")
    if key is not None:
        check_name(key, "key", MOST_NAME)
    text = codec.encode(data, "data")
    params = _options(key is not None, expected_version, headers, idempotency_key)
    params |= {"topic": topic, "data": text, "type": type, "key": key}
    position, version, recorded_at, state = (yield from Query(SQL["append"], params, same))[0]
    if state == "conflict":
        raise _wrong_version(topic, key, expected_version, version)
    if state == "duplicate":
        return (yield from _first(topic, idempotency_key, [position]))[0]
    return Event(position, topic, key, version, type, codec.decode(text), dict(headers or {}), recorded_at)


def append_many(
    topic: str,
    data: Iterable[Any],
    *,
    type: str | Sequence[str] = "",  # noqa: A002
    key: str | Sequence[str | None] | None = None,
    expected_version: int | None = None,
    headers: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Plan[list[Event]]:
    """Append an event for each of `data`, in that order: all of them or none.

    A round trip carries up to 10,000 events or 8 MB of data.

    Args:
        topic: what they are about.
        data: a JSON value for each.
        type: what happened: one for all, or a list with one for each.
        key: the one it happened to: one for all, or a list with one, or None, for each.
        expected_version: append only if the topic and key, of which there is one, are at this version.
        headers: text for the reader's eyes, the same for all.
        idempotency_key: of one topic and this key only the first append counts, one event or many; for a single round
            trip's worth of events.

    Returns:
        The events as they are in the log.

    Raises:
        InvalidArgument: an argument is refused, before any SQL.
        WrongVersion: `expected_version` is not the version there is. The transaction stays usable.
    """
    check_topic(topic)
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise InvalidArgument(f"data={data!r} must be a list of JSON values, one for each event")
    texts = codec.encode_many(data, "data")
    types = _each(type, "type", len(texts), check_type)
    keys = None if key is None else _each(key, "key", len(texts), _check_key)
    params = _options(isinstance(key, str), expected_version, headers, idempotency_key) | {"topic": topic}
    pieces = list(_pieces(texts))
    if len(pieces) > 1 and idempotency_key is not None:
        raise InvalidArgument(
            f"data has {len(texts)} events: under one idempotency_key go at most {_BATCH} or {_BATCH_CHARACTERS} "
            "characters of JSON; append them in parts with a key each"
        )
    if len(pieces) <= 1:
        return (yield from _append_pieces(texts, pieces, types, keys, params))
    return (yield from Atomic(_append_pieces(texts, pieces, types, keys, params)))


def _append_pieces(
    texts: Sequence[str],
    pieces: Iterable[slice],
    types: Sequence[str],
    keys: Sequence[str | None] | None,
    params: dict[str, Any],
) -> Plan[list[Event]]:
    events: list[Event] = []
    expected = params["expected_version"]
    headers = codec.decode(params["headers"]) if params["headers"] else {}
    for piece in pieces:
        own_types = types if len(types) == 1 else types[piece]
        own_keys = keys if keys is None or len(keys) == 1 else keys[piece]
        more = params | {
            "data": f"[{','.join(texts[piece])}]",
            "types": own_types,
            "keys": own_keys,
            "expected_version": None if expected is None else expected + len(events),
        }
        positions, versions, recorded_at, state = (yield from Query(SQL["append_many"], more, same))[0]
        if state == "conflict":
            raise _wrong_version(params["topic"], own_keys and own_keys[0], expected, versions[0])
        if state == "duplicate":
            return (yield from _first(params["topic"], params["idempotency_key"], positions))
        count = len(positions)
        events += [
            Event(position, params["topic"], own_key, version, own_type, data, dict(headers), recorded_at)
            for position, own_key, version, own_type, data in zip(
                positions,
                _spread(own_keys or [None], count),
                versions or [None] * count,
                _spread(own_types, count),
                map(codec.decode, texts[piece]),
                strict=True,
            )
        ]
    return events


def _spread(values: Sequence[Any], count: int) -> Sequence[Any]:
    return [values[0]] * count if len(values) == 1 else values


def _pieces(texts: Sequence[str]) -> Iterator[slice]:
    begin = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if index > begin and (size > _BATCH_CHARACTERS or index - begin >= _BATCH):
            yield slice(begin, index)
            begin, size = index, len(text)
    if begin < len(texts):
        yield slice(begin, len(texts))


def _first(topic: str, idempotency_key: str | None, positions: Sequence[int]) -> Plan[list[Event]]:
    """Return the events of the first append under an idempotency key."""
    events = yield from Query(SQL["get"], {"positions": list(positions)}, read_events)
    if len(events) < len(positions):
        raise RetentionGap(
            f"idempotency_key={idempotency_key!r} of topic {topic!r} was used for an event that retention has dropped",
            positions[0],
            positions[-1],
        )
    return events


def _wrong_version(topic: str, key: object, expected: int | None, actual: int) -> WrongVersion:
    assert expected is not None  # noqa: S101 - only an expected version can be wrong
    return WrongVersion(
        f"topic {topic!r} key {key!r} is at version {actual}, not {expected}: read the newer events and decide again",
        expected,
        actual,
    )


def check_type(value: object, name: str) -> None:
    """Refuse what can be no event's type; empty is one."""
    if value != "":
        check_name(value, name, MOST_NAME)


def _check_key(value: object, name: str) -> None:
    if value is not None:
        check_name(value, name, MOST_NAME)


def _each(value: Any, name: str, count: int, check: Callable[[object, str], None]) -> list[Any]:
    """Return one value for all or a list with one for each as a list."""
    if isinstance(value, str):
        check(value, name)
        return [value]
    if not isinstance(value, Sequence) or len(value) != count:
        raise InvalidArgument(f"{name} must be one for all the events or a list with one for each of the {count}")
    for index, each in enumerate(value):
        check(each, f"{name}[{index}]")
    return list(value) or [""]


def _options(
    keyed: bool, expected_version: int | None, headers: Mapping[str, str] | None, idempotency_key: str | None
) -> dict[str, Any]:
    if expected_version is not None:
        check_whole(expected_version, "expected_version", 0, MOST_BIGINT)
        if not keyed:
            raise InvalidArgument("expected_version= needs one key=: versions count the events of a topic and key")
    if headers is not None and not (
        isinstance(headers, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in headers.items())
    ):
        raise InvalidArgument("headers must map strings to strings")
    if idempotency_key is not None:
        check_name(idempotency_key, "idempotency_key", MOST_NAME)
    return {
        "expected_version": expected_version,
        "headers": codec.encode(headers, "headers") if headers else None,
        "idempotency_key": idempotency_key,
    }


class extending(op[P, E]):  # noqa: N801 - used like `op`
    """An operation that appends, on connections of our own, and now and then creates partitions ahead after it.

    So a log that no worker looks after has partitions too. Never in the caller's transaction, which would hold the lock
    of the default partition until it ends.
    """

    def __init__(self, plan: Callable[P, Plan[E]]) -> None:
        @functools.wraps(plan)
        def extended(*args: P.args, **kwargs: P.kwargs) -> Plan[E]:
            result = yield from plan(*args, **kwargs)
            if _passes_a_mark(result):
                try:
                    if (yield from Query(SQL["may_extend"], {}, one)):
                        yield from Query(SQL["extend"], {"ahead": AHEAD}, nothing)
                except Exception as error:  # the append is done, and must not seem to have failed
                    log.warning("could not create partitions of the event log ahead: %s", error)
            return result

        super().__init__(extended)


def _passes_a_mark(result: Event | list[Event]) -> bool:
    """Whether an append has come to the end of a stretch of positions, or nearly: some are lost to rollbacks."""
    events = [result] if isinstance(result, Event) else result
    return bool(events) and events[0].position // _EXTEND_EVERY != (events[-1].position + 3) // _EXTEND_EVERY
