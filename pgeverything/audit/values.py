"""What the trail tells: entries, tables that are tracked, and what a verification found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..engine import codec
from ..engine.plan import Rows


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the trail: a change of a row, or what was recorded.

    Values are JSON values: what JSON has no form for is its text in Postgres, `"2026-11-26T09:00:00+00:00"`. A number
    that a float cannot hold exactly is a `Decimal`.

    Attributes:
        id: increases; of two changes of one row the later one has the higher id.
        at: the database's clock when it happened, which is before it was committed.
        transaction_id: the same for all that was committed together, events and jobs too.
        action: "insert", "update", "delete" or "truncate" of a row, or what :meth:`AuditTrail.record` was given.
        subject: the table, or what the record is about.
        key: the row's primary key: a value, or a list where it has several columns; None where there is no row.
        other_key: where an update changed the key, the other one: there is an entry for each.
        old: the row before: all of it when it ended, the columns that an update changed, None when it began.
        new: the row after; None when it ended. Of a record, its data.
        masked: columns that changed and whose values the trail does not have.
        erased: columns whose values it does not have any more.
        actor, reason, context: what :meth:`audit.context` said.
        session_role: the database role that logged in.
        role: the one it had taken on with `SET ROLE`; the same if none.
    """

    id: int
    at: datetime
    transaction_id: int
    action: str
    subject: str
    key: Any
    other_key: Any
    old: Mapping[str, Any] | None
    new: Any
    masked: tuple[str, ...]
    erased: tuple[str, ...]
    actor: str | None
    reason: str | None
    context: Mapping[str, Any]
    session_role: str
    role: str


@dataclass(frozen=True, slots=True)
class Tracked:
    """A table that is tracked.

    `subject` is what the trail calls it: its name when tracking began. Names of columns are those of today. `drift`
    says in words what has changed about the table since then; it is empty when nothing has.
    """

    table: str
    subject: str
    key: tuple[str, ...]
    exclude: tuple[str, ...]
    mask: tuple[str, ...]
    personal: tuple[str, ...]
    require_actor: bool
    bulk: bool = False
    drift: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Root:
    """The end of the chain: who keeps it elsewhere can prove later that nothing up to here was changed.

    `str(root)` is "number:hash"; it is what :meth:`AuditTrail.verify` takes as `root`.
    """

    block: int
    hash: str
    last_id: int
    sealed_at: datetime

    def __str__(self) -> str:
        return f"{self.block}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What :meth:`AuditTrail.verify` found.

    Attributes:
        ok: whether everything that is sealed is as it was sealed.
        block: the first block that is not.
        entry: the first entry that is not; None where it is the block itself.
        problem: what is wrong with it, in words.
        blocks: how many blocks are right, up to the first that is not.
        entries: how many entries in them.
        dropped: how many of those blocks' entries retention has dropped, block by block: only their chain was verified.
        erased: how many entries have had their personal values erased.
        unsealed: how many entries are not sealed yet, counted up to 100,000: of those nothing is proven.
    """

    ok: bool
    block: int | None = None
    entry: int | None = None
    problem: str | None = None
    blocks: int = 0
    entries: int = 0
    dropped: int = 0
    erased: int = 0
    unsealed: int = 0


decode = codec.decode_exactly


def _key(text: str | None) -> Any:
    if text is None:
        return None
    values = decode(text)
    return values[0] if len(values) == 1 else values


def read_entries(rows: Rows) -> list[Entry]:
    """Read rows of the columns that every statement about entries returns."""
    return [_entry(row) for row in rows]


def _entry(row: tuple[Any, ...]) -> Entry:
    id_, at, transaction_id, action, subject, key, other_key, old, new, masked, digests, personal, *who = row
    actor, reason, context, session_role, role = who
    apart = decode(personal) if personal else {}
    erased = {name for side in decode(digests).values() for name in side} if digests and not personal else ()
    before, after = decode(old) if old else None, decode(new) if new else None
    return Entry(
        id=id_,
        at=at,
        transaction_id=transaction_id,
        action=action,
        subject=subject,
        key=_key(key),
        other_key=_key(other_key),
        old=before | apart["old"] if "old" in apart else before,
        new=after | apart["new"] if "new" in apart else after,
        masked=tuple(masked or ()),
        erased=tuple(sorted(erased)),
        actor=actor,
        reason=reason,
        context=decode(context) if context else {},
        session_role=session_role,
        role=role,
    )
