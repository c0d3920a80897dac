"""Reading and writing entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..durations import Duration
from ..engine.plan import Plan, Query, nothing, one, same
from ..engine.statements import statements
from ..errors import CacheError, InvalidArgument
from ..jobs.values import check_whole
from .upkeep import Caching, asked, wrote
from .values import check_key, check_keys, check_tags, dump, lifetime, load

SQL = statements("cache")
ANYTHING = "cache all"
"""The hint that something happened to many keys."""
_MOST_STEP = 10**18 - 1


def get(cache: Caching, key: str, default: Any = None) -> Plan[Any]:
    """Return the value of a key.

    Args:
        key: text of up to 1 KiB.
        default: what to return where there is no value. None is a value like any other: pass something else to tell.
    """
    check_key(key)
    rows = yield from Query(SQL["get"], {"key": key}, same)
    if cache.tally is not None:
        yield from asked(cache, len(rows), 1 - len(rows))
    return load(*rows[0]) if rows else default


def get_many(cache: Caching, keys: Iterable[str]) -> Plan[dict[str, Any]]:
    """Return the values of those of these keys that have one, in one round trip."""
    wanted = check_keys(keys)
    if not wanted:
        return {}
    rows = yield from Query(SQL["get_many"], {"keys": wanted}, same)
    yield from asked(cache, len(rows), len(wanted) - len(rows))
    return {key: load(text, data) for key, text, data in rows}


def set_(cache: Caching, key: str, value: Any, ttl: Duration | None = "5m", tags: Iterable[str] = ()) -> Plan[None]:
    """Store a value, whatever was there before.

    A value that somebody computes at this moment for `get_or_set` is not stored over this one.

    Args:
        key: text of up to 1 KiB.
        value: JSON, as everywhere in this library, or bytes.
        ttl: how long it lives; None for until it is evicted.
        tags: names by which many entries are invalidated together.

    Raises:
        InvalidArgument: the key or a tag is too long, or the value is not JSON or above ``$PGEVERYTHING_MAX_PAYLOAD``.
    """
    check_key(key)
    text, data = dump(value)
    params = {"key": key, "value": text, "data": data, "ttl": lifetime(ttl), "tags": check_tags(tags)}
    yield from Query(SQL["set"], params, nothing)
    if cache.tally is not None:
        yield from wrote(cache, 1)


def set_many(
    cache: Caching, values: Mapping[str, Any], ttl: Duration | None = "5m", tags: Iterable[str] = ()
) -> Plan[None]:
    """Store many values with the same time to live and the same tags, in one round trip: all of them or none."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"values={values!r} must be a mapping of keys to values")
    keys = check_keys(values, "values")
    stored = [dump(value, f"values[{key!r}]") for key, value in values.items()]
    lives, named = lifetime(ttl), check_tags(tags)
    if keys:
        texts, datas = [text for text, _ in stored], [data for _, data in stored]
        params = {"keys": keys, "values": texts, "datas": datas, "ttl": lives, "tags": named}
        yield from Query(SQL["set_many"], params, nothing)
        yield from wrote(cache, len(keys))


def add(cache: Caching, key: str, value: Any, ttl: Duration | None = "5m") -> Plan[bool]:
    """Store a value unless there is one; returns whether it was stored. Of several at the same moment, one succeeds."""
    check_key(key)
    text, data = dump(value)
    rows = yield from Query(SQL["add"], {"key": key, "value": text, "data": data, "ttl": lifetime(ttl)}, same)
    yield from wrote(cache, 1)
    return bool(rows)


def increment(cache: Caching, key: str, by: int = 1, ttl: Duration | None = "5m") -> Plan[int]:
    """Add to a whole number and return the sum. No increment is lost.

    Args:
        key: the counter. Where there is no value it begins at 0.
        by: what to add; may be negative.
        ttl: how long it lives from when it begins. Later increments leave its end as it is, so it counts by the window.

    Raises:
        CacheError: the key has a value that is no whole number.
    """
    check_key(key)
    check_whole(by, "by", -_MOST_STEP, _MOST_STEP)
    rows = yield from Query(SQL["increment"], {"key": key, "by": by, "ttl": lifetime(ttl)}, same)
    yield from wrote(cache, 1)
    if not rows:
        raise CacheError(f"cannot increment {key!r}: it has a value that is no whole number of up to 18 digits")
    return int(rows[0][0])


def touch(cache: Caching, key: str, ttl: Duration | None = "5m") -> Plan[bool]:
    """Let a value live so long from now; returns whether there was one."""
    check_key(key)
    rows = yield from Query(SQL["touch"], {"key": key, "ttl": lifetime(ttl)}, same)
    yield from wrote(cache, 1)
    return bool(rows)


def delete(cache: Caching, *keys: str) -> Plan[int]:
    """Take away the values of these keys; returns how many had one. The same as `invalidate` without tags."""
    return (yield from _invalidate(cache, check_keys(keys), None))


def invalidate(cache: Caching, *keys: str, tags: Iterable[str] = ()) -> Plan[None]:
    """Take away the values of these keys, and of every entry with one of these tags.

    In a transaction it takes effect when that commits. What was computed from data as it was before the commit is not
    stored after it, neither by `get_or_set` nor by a function that is `cached`. The work does not depend on how many
    entries have a tag.

    Args:
        keys: these keys; those without a value count too, because somebody may be computing one.
        tags: these tags.
    """
    yield from _invalidate(cache, check_keys(keys), check_tags(tags))


def _invalidate(cache: Caching, keys: list[str], tags: list[str] | None) -> Plan[int]:
    if not keys and not tags:
        return 0
    params = {"keys": keys, "tags": tags or [], "hint": f"\t{hint(keys, tags)}"}
    gone = yield from Query(SQL["invalidate"], params, one)
    yield from wrote(cache, len(keys))
    return int(gone)


def hint(keys: list[str], tags: list[str] | None = None) -> str:
    """Return the hint that something happened to a key; one for all keys, where there are several or tags."""
    return f"cache:{keys[0]}" if len(keys) == 1 and not tags else ANYTHING
