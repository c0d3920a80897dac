"""Acquire, wait, renew, release, guard, look: the statements of a lock and what they mean."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from ..engine.plan import Plan, Query, Rows, Sleep, Watch, nothing, one, same, whole
from ..engine.refusals import connection_lost
from ..engine.statements import statements
from ..errors import ConfigurationError, InvalidArgument, LeaseLost
from ..jobs.values import check_name, check_whole
from .clock import now
from .held import Held
from .values import Busy, Grant, Holder, Lock, Request

SQL = statements("locks")

Line: TypeAlias = Literal["none", "join", "leave"]

_LOCK_TIMEOUT = "55P03"  # lock_not_available
_KEPT, _STRETCH = 86_400.0, 1000  # seconds for which the row of a free lock stays; pages a sweep looks at
_HINTED_PAUSE = 0.5  # seconds between looks where a hint says when it is worth it; a turn in line lasts 0.3 s
_GUARDED_PAUSE = 0.05  # where an open guarded transaction holds it up, whose end nobody is told of


def obtain(request: Request, holder: int, *, hears: bool) -> Plan[Grant | Busy]:
    """Get a lease, waiting for it as long as the request says.

    Args:
        request: what is asked for.
        holder: a number that no other call has: what is repeated because its answer was lost gets the same lease.
        hears: whether this process listens already, so that to watch costs nothing.
    """
    began, ticket = now(), None
    if not (request.wait and hears):
        answer = yield from _ask(request, holder, "none")
        if not request.wait or isinstance(answer, Grant):
            return answer
    # First the ears, then the place in line: no hint can come between.
    with (yield from Watch(f"locks:{holder}")) as watching:
        while True:
            left = began + request.wait - now()
            channel = watching.channel
            answer = yield from _ask(request, holder, "join" if left > 0 else "leave", channel, ticket)
            if left <= 0 or isinstance(answer, Grant):
                return answer
            ticket = answer.ticket
            yield from watching.wait(min(pause(answer, now() - began, hinted=channel is not None), max(left, 0.001)))


def pause(busy: Busy, waited: float, *, hinted: bool) -> float:
    """Return how long to sleep before the next look: until something is known to happen, and not too long.

    Without hints a wait that has lasted for a while is looked after every tenth of that.
    """
    most = _HINTED_PAUSE if hinted else min(max(waited / 10, 0.02), 0.25)
    most *= random.uniform(0.8, 1.2)  # noqa: S311 - so that those who wait do not look in step
    if busy.retry_in is None:
        return most
    if busy.retry_in <= 0:
        return min(most, _GUARDED_PAUSE)
    return min(most, busy.retry_in + random.uniform(0.001, 0.01))  # noqa: S311


def _ask(
    request: Request, holder: int, line: Line, channel: str | None = None, ticket: int | None = None
) -> Plan[Grant | Busy]:
    """Ask once; again at once when the connection was lost with the answer, or the answer came late."""
    params = request.params(holder) | {"line": line, "channel": channel, "ticket": ticket}
    late: Grant | None = None
    again = False
    while True:
        sent = now()
        try:
            rows = yield from Query(SQL["acquire"], params, same)
        except Exception as error:
            if state_of(error) == _LOCK_TIMEOUT:
                return late or Busy(ticket, retry_in=0.0)
            if again or not connection_lost(error):
                raise
        else:
            answer = _read(rows, sent)
            # Waiting for a connection may take most of a lease, and nobody is to begin with one that is lost. Asked for
            # again, it is ours and lasts from then on.
            if again or not isinstance(answer, Grant) or now() <= sent + request.ttl / 2:
                return answer
            late = answer
        again = True


def _read(rows: Rows, sent: float) -> Grant | Busy:
    ((state, slot, token, expires_at, ticket, *busy),) = rows
    if state == "isolation":
        raise ConfigurationError(
            "locks need READ COMMITTED, and this role's default_transaction_isolation is another: "
            "alter role ... set default_transaction_isolation = 'read committed', or connect as another role"
        )
    return Grant(slot, token, sent, expires_at) if state == "held" else Busy(ticket, *busy)


def state_of(error: Exception) -> str | None:
    """Return the SQLSTATE of a driver's error, also inside one of SQLAlchemy's."""
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None)


def withdraw(name: str, holder: int) -> Plan[None]:
    """Undo an `obtain` that was interrupted."""
    yield from Query(SQL["withdraw"], {"name": name, "holder": holder}, nothing)


def release(lease: Held) -> Plan[bool]:
    """Give a lease back; returns whether it was still ours."""
    query = Query(SQL["release"], {"name": lease.name, "slot": lease.slot, "token": lease.token}, one)
    try:
        return bool((yield from query))
    except Exception as error:
        if not connection_lost(error):
            raise
        return bool((yield from query))


def renew(lease: Held) -> Plan[None]:
    """Renew one lease.

    Raises:
        LeaseLost: it is not ours any more.
    """
    while True:
        lease.check()
        try:
            undecided = yield from renew_all([lease])
        except Exception as error:
            if not connection_lost(error):
                raise
            undecided = yield from renew_all([lease])
        if not undecided:
            return lease.check()
        yield Sleep(0.01)


def renew_all(leases: Sequence[Held]) -> Plan[list[Held]]:
    """Renew leases, or note that they are lost; returns those on whose rows somebody is busy: try again soon."""
    params = {
        "names": [lease.name for lease in leases],
        "slots": [lease.slot for lease in leases],
        "tokens": [lease.token for lease in leases],
        "ttls": [lease.ttl for lease in leases],
    }
    sent = now()
    rows = yield from Query(SQL["renew"], params, same)
    found = {(name, token): (expires_at, ours) for name, token, expires_at, ours in rows}
    undecided = []
    for lease in leases:
        expires_at, ours = found[lease.name, lease.token]
        if expires_at is not None:
            lease.renewed(sent, expires_at)
        elif ours:
            undecided.append(lease)
        else:
            lease.lose()
    return undecided


def guard(lease: Held) -> Plan[None]:
    """Make this transaction's commit depend on the lease: it happens while the lease is ours, or not at all.

    From here to the end of the transaction nobody else gets the lock, also when the lease runs out meanwhile: who takes
    it over waits for this transaction. Its holder may renew and release it. Guard last, shortly before the commit: then
    the others wait for as little as possible.

    Under REPEATABLE READ or SERIALIZABLE the transaction sees the lease as it was at its first statement: acquire it
    before. When somebody else has got the lock since then, it may fail with a serialization failure (SQLSTATE 40001).

    Raises:
        LeaseLost: the lease is not ours any more. Roll back.
        InvalidArgument: the connection is in autocommit, so there is no transaction to guard.
    """
    if not isinstance(lease, Held):
        raise InvalidArgument(f"guard({lease!r}) takes the lease that acquire() or hold() returned")
    lease.check()
    params = {"name": lease.name, "slot": lease.slot, "token": lease.token}
    ((ours, isolation),) = yield from Query(SQL["guard"], params, same)
    if ours:
        return
    if isolation in ("read committed", "read uncommitted"):
        lease.lose()
        raise LeaseLost(
            f"the lease on {lease.name!r} (token {lease.token}) is lost: roll back, and do not write outside"
        )
    raise LeaseLost(
        f"the lease on {lease.name!r} (token {lease.token}) is lost, or was acquired after this {isolation} "
        "transaction's first statement: acquire before it, or use READ COMMITTED"
    )


def break_lock(name: str) -> Plan[int]:
    """Take a lock from its holders, whoever they are.

    Their guards fail from now on. A transaction that is guarded already may still commit, before anybody else gets the
    lock. What they do outside of this database goes on until they look at `lease.lost`, at the latest when they renew.

    Returns:
        How many leases there were.
    """
    check_name(name, "name", most=1024)
    return (yield from Query(SQL["break"], {"name": name}, whole))


def list_(prefix: str = "", *, limit: int = 1000) -> Plan[list[Lock]]:
    """Return the locks that are held, by name.

    Reads all names that were used in the last day: about a tenth of a second for 100,000 of them.

    Args:
        prefix: only names that begin so.
        limit: at most so many leases.
    """
    if prefix != "":
        check_name(prefix, "prefix", most=1024)
    check_whole(limit, "limit", 1, 100_000)
    return (yield from Query(SQL["list"], {"prefix": prefix, "limit": limit}, _read_locks))


def get(name: str) -> Plan[Lock | None]:
    """Return a lock, or None when nobody holds it."""
    check_name(name, "name", most=1024)
    found = yield from Query(SQL["get"], {"name": name}, _read_locks)
    return found[0] if found else None


def sweep() -> Plan[None]:
    """Delete the rows of leases that ended more than a day ago, in a stretch of the table."""
    yield from Query(SQL["sweep"], {"keep": _KEPT, "pages": _STRETCH}, nothing)


def _read_locks(rows: Iterable[Sequence[object]]) -> list[Lock]:
    holders: dict[str, list[Holder]] = {}
    waiting: dict[str, int] = {}
    for name, *holder, count in rows:
        holders.setdefault(str(name), []).append(Holder(*holder))  # type: ignore[arg-type]  # the statement says so
        waiting[str(name)] = int(str(count))
    return [Lock(name, tuple(found), waiting[name]) for name, found in holders.items()]
