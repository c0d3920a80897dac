"""What the cache's arguments must be, how values travel, and what is counted."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..durations import Duration, seconds
from ..engine import codec
from ..errors import InvalidArgument

MOST_KEY = 1024
"""Bytes of UTF-8 that a key or a tag may have. An index entry of Postgres could have 2,700."""

_BYTES = (bytes, bytearray, memoryview)

Stored: TypeAlias = tuple[str | None, bytes | None]
"""A value as it is stored: as JSON text, or as bytes."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What is known of the cache.

    `entries` and `bytes` are from the last sweep: values that had not expired, those of invalidated tags included, and
    their keys and values as Postgres stores them. `disk_bytes` is what the table takes. The counters are of all
    processes, since the server last crashed; each process adds its own every ten seconds while it uses the cache.
    `hits` and `misses` count keys that were asked for, `fills` values that were computed and stored, `waits` calls that
    waited for another's computation. `max_entries` and `max_bytes` are the bounds, None without; `logged` is whether
    entries survive a crash.
    """

    entries: int
    bytes: int
    disk_bytes: int
    hits: int
    misses: int
    fills: int
    waits: int
    max_entries: int | None
    max_bytes: int | None
    logged: bool


class Tally:
    """What one process has counted since it last said so. Threads may lose a count to each other: it is for show."""

    __slots__ = ("fills", "hits", "misses", "since", "slot", "waits", "writes")

    SLOTS = 16  # rows that the processes share, so that they rarely wait for each other

    def __init__(self) -> None:
        self.hits = self.misses = self.fills = self.waits = 0
        self.since = time.monotonic()
        self.slot = os.getpid() % self.SLOTS
        self.writes = random.randrange(250)  # noqa: S311 - so that many short-lived processes sweep as often as a long one


def check_key(key: object, name: str = "key") -> None:
    """Refuse what can be no key or tag: not text, empty, with NUL, or longer than 1 KiB."""
    if isinstance(key, str) and "\0" not in key:
        if key.isascii() and 0 < len(key) <= MOST_KEY:
            return
        text = key.encode("utf-8", "replace")  # a lone surrogate becomes "?"
        if 0 < len(text) <= MOST_KEY and text.decode() == key:
            return
    shown = repr(key) if len(repr(key)) <= 200 else f"{repr(key)[:200]}..."
    raise InvalidArgument(f"{name}={shown} must be text of 1 to {MOST_KEY} bytes without NUL")


def check_keys(keys: Iterable[str], name: str = "keys") -> list[str]:
    """Return the keys, each once."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidArgument(f"{name}={keys!r} must be a list of keys: [{keys!r}]")
    found = list(keys)
    for key in found:
        check_key(key, name)
    return list(dict.fromkeys(found))


def check_tags(tags: Iterable[str]) -> list[str] | None:
    """Return the tags sorted, each once; None where there are none."""
    if tags == ():
        return None
    return sorted(check_keys(tags, "tags")) or None


def lifetime(ttl: Duration | None, name: str = "ttl") -> float | None:
    """Return a time to live in seconds; None is for ever."""
    return None if ttl is None else seconds(ttl, name, zero=False)


def dump(value: object, name: str = "value") -> Stored:
    """Return a value as it is stored.

    Raises:
        InvalidArgument: it is neither bytes nor JSON, or larger than the limit.
    """
    if not isinstance(value, _BYTES):
        return codec.encode(value, name), None
    data = bytes(value)
    if len(data) > (limit := codec.max_payload_bytes()):
        raise InvalidArgument(
            f"{name} is {len(data)} bytes, more than the limit of {limit}; keep it elsewhere and cache where it is, or "
            f"raise the limit with {codec.MAX_PAYLOAD_VARIABLE}"
        )
    return None, data


def load(text: str | None, data: bytes | None) -> Any:
    """Return the value that was stored."""
    return codec.decode(text) if text is not None else data
