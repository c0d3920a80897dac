"""Values that are computed where there is none: once for the whole fleet, and never from data that is out of date.

A miss takes a lease on the key, in a statement that commits by itself. Only then is the value computed, and only the
lease that is still there may store it. Invalidating a key takes its lease away, in the transaction that changes the
data; while that transaction is open, nobody gets a new one. So whatever is stored was computed from committed data.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..durations import Duration, seconds
from ..engine.plan import Plan, Query, Sleep, Watch, one, same
from ..engine.statements import statements
from ..errors import CacheError, ComputeFailed, InvalidArgument
from .entries import hint
from .upkeep import Caching, asked, wrote
from .values import Stored, check_key, check_tags, lifetime, load

log = logging.getLogger("pgeverything.cache")
SQL = statements("cache")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds between two looks at another's computation; a hint comes earlier
_PATIENCE = 1.0  # seconds to wait for a transaction that holds the key; then the value is computed and not stored
_LONGEST_ERROR = 2000


class Misfit(Exception):
    """A stored value is not of the type that is wanted: a release with another type has stored it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a value is had: its key, and what `get_or_set` was told."""

    key: str
    ttl: float | None
    stale: float
    tags: list[str] | None
    early: float | None
    hold: float
    errors: float | None
    load: Callable[[str | None, bytes | None], Any] = load

    @classmethod
    def of(
        cls,
        key: str,
        ttl: Duration | None,
        stale: Duration | None,
        tags: Iterable[str],
        early: float | None,
        lease: Duration,
        errors: Duration | None,
        load: Callable[[str | None, bytes | None], Any] = load,
    ) -> Recipe:
        """Check what was said."""
        check_key(key)
        if early is not None and not (isinstance(early, int | float) and early is not True and 0 < early < math.inf):
            raise InvalidArgument(f"early={early!r} must be a number above 0; 1.0 is the usual one")
        return cls(
            key,
            lifetime(ttl),
            0.0 if stale is None else seconds(stale, "stale"),
            check_tags(tags),
            early,
            seconds(lease, "lease", zero=False),
            None if errors is None else seconds(errors, "errors", zero=False),
            load,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """There is a value: as it is read, and as it is stored."""

    value: Any
    stored: Stored


@dataclass(frozen=True, slots=True)
class Lease:
    """The caller is to compute the value. Without a token it is not to be stored."""

    token: int | None
    generations: list[int] | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a look at a key has shown: its last value, and seconds until it expires, it took, another may go on."""

    found: Found | None
    left: float
    took: float | None
    computing: float


def check_compute(compute: object) -> None:
    """Refuse what cannot be called."""
    if not callable(compute):
        raise InvalidArgument(f"compute={compute!r} must be a function without arguments that returns the value")


@dataclass(slots=True)
class _Computation:
    """A computation of a key of a cache, and the one that it is a part of."""

    cache: object
    key: str
    outer: _Computation | None
    running: bool = True


# Seen by the tasks and threads that a computation starts with its context: it may wait for them.
_under_way: ContextVar[_Computation | None] = ContextVar("pgeverything_computing", default=None)


def refuse_own(cache: object, key: str) -> None:
    """Refuse to wait for a computation within itself.

    Args:
        cache: which cache: what is equal for those that are the same.
        key: the key that is asked for.

    Raises:
        CacheError: this is a part of computing the same key.
    """
    computation = _under_way.get()
    while computation is not None:
        if computation.running and computation.key == key and computation.cache == cache:
            raise CacheError(
                f"computing {key!r} asks for {key!r} itself, and would wait for its own end: give what it asks for "
                f"another key, or compute it without the cache; get({key!r}) returns the last value without waiting"
            )
        computation = computation.outer


@contextlib.contextmanager
def computing(cache: object, key: str) -> Iterator[None]:
    """Note that a key is computed, until the block ends: a task that goes on after it may ask for the key."""
    computation = _Computation(cache, key, _under_way.get())
    try:
        _under_way.set(computation)
        yield
    finally:
        computation.running = False
        _under_way.set(computation.outer)


def new_token() -> int:
    """Return a number for a lease that no other call has."""
    return secrets.randbits(63)


def acquire(cache: Caching, recipe: Recipe, token: int) -> Plan[Found | Lease]:
    """Return the value of a key, or the lease to compute it, after waiting for whoever computes it already.

    Args:
        cache: counts what was found.
        recipe: how the value is had.
        token: what the lease is to be known by, so that who is interrupted here can end it.

    Raises:
        ComputeFailed: computing it failed, and that is to be remembered.
    """
    entry = yield from _look(recipe)
    fallback = None
    if entry.found is not None:
        if entry.left > 0 and not _early(recipe, entry):
            yield from asked(cache, 1, 0)
            return entry.found
        if entry.left > -recipe.stale:
            fallback = entry.found  # not out of date yet, or allowed to be: it will do if somebody else is computing
    yield from asked(cache, 0, 1)
    answer = yield from _ask(recipe, token, refresh=entry.left > 0)
    if isinstance(answer, Found | Lease):
        return answer
    if fallback is not None:
        return fallback
    if cache.tally is not None:
        cache.tally.waits += 1
    return (yield from _wait(recipe, token, answer))


def _look(recipe: Recipe) -> Plan[_Entry]:
    rows = yield from Query(SQL["look"], {"key": recipe.key}, same)
    if not rows:
        return _Entry(None, -math.inf, None, -math.inf)
    text, data, left, took, computing = rows[0]
    return _Entry(_read(recipe, text, data), left, took, -math.inf if computing is None else computing)


def _read(recipe: Recipe, text: str | None, data: bytes | None) -> Found | None:
    if text is None and data is None:
        return None
    try:
        return Found(recipe.load(text, data), (text, data))
    except Misfit:
        return None


def _early(recipe: Recipe, entry: _Entry) -> bool:
    """Whether to compute a value before it expires, by chance: more likely the nearer that is and the longer it takes.

    A. Vattani, F. Chierichetti, K. Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
    """
    if recipe.early is None or entry.took is None:
        return False
    return entry.left <= -entry.took * recipe.early * math.log(1.0 - random.random())  # noqa: S311


def _ask(recipe: Recipe, token: int, *, refresh: bool) -> Plan[Found | Lease | str]:
    """Ask for the lease; returns "held" or "busy" where it cannot be had now."""
    params = {
        "key": recipe.key,
        "lease": token,
        "hold": recipe.hold,
        "stale": recipe.stale,
        "refresh": refresh,
        "tags": recipe.tags,
    }
    state, text, data, error, generations = (yield from Query(SQL["lease"], params, same))[0]
    if state == "taken":
        return Lease(token, generations)
    if state == "failed":
        raise ComputeFailed(f"computing {recipe.key!r} failed a moment ago: {error}")
    if state in ("hit", "stale"):
        return _read(recipe, text, data) or "held"
    return str(state)


def _wait(recipe: Recipe, token: int, answer: str) -> Plan[Found | Lease]:
    """Wait until there is a value or the lease can be had, at most for as long as a lease lasts."""
    waited = blocked = 0.0
    pause = _FIRST_PAUSE
    with (yield from Watch(hint([recipe.key]))) as watching:
        while waited < recipe.hold and blocked < _PATIENCE:
            if not (yield from watching.wait(pause * random.uniform(0.75, 1.25))):  # noqa: S311
                waited += pause
                blocked += pause if answer == "busy" else 0.0
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            entry = yield from _look(recipe)
            if entry.found is not None and entry.left > 0:
                return entry.found
            if entry.computing > 0:
                answer = "held"
                continue
            asked_ = yield from _ask(recipe, token, refresh=entry.left > 0)
            if isinstance(asked_, Found | Lease):
                return asked_
            answer = asked_
    return Lease(None)


def settle(cache: Caching, recipe: Recipe, lease: Lease, stored: Stored, took: float) -> Plan[bool]:
    """Store what was computed under a lease; returns whether it still was the caller's to store."""
    if lease.token is None:
        return False
    kept = yield from _settle(recipe, lease, {"value": stored[0], "data": stored[1], "took": took})
    if kept and cache.tally is not None:
        cache.tally.fills += 1
        yield from wrote(cache, 1)
    return kept


def give_up(recipe: Recipe, lease: Lease, error: BaseException) -> Plan[None]:
    """End a lease after computing has failed or was interrupted, so that somebody else may try."""
    if lease.token is None:
        return
    remembered = recipe.errors is not None and isinstance(error, Exception)
    text = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    told: dict[str, object] = {"error": text[:_LONGEST_ERROR], "error_ttl": recipe.errors} if remembered else {}
    yield from _settle(recipe, lease, told)


def _settle(recipe: Recipe, lease: Lease, told: dict[str, object]) -> Plan[bool]:
    params = {
        "key": recipe.key,
        "lease": lease.token,
        "ttl": recipe.ttl,
        "stale": recipe.stale,
        "generations": lease.generations,
    } | dict.fromkeys(("value", "data", "took", "error", "error_ttl"))
    kept = yield from Query(SQL["settle"], params | told, one)
    if kept is None:  # a transaction that has invalidated the key is open: perhaps it ends, perhaps it is rolled back
        yield Sleep(_LONGEST_PAUSE)
        kept = yield from Query(SQL["settle"], params | told, one)
    return bool(kept)
