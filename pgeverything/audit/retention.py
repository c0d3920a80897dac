"""What goes: personal values of a row, months of entries. And what the trail needs now and then."""

from __future__ import annotations

import logging
from datetime import date, datetime
from typing import Any

from ..engine.plan import Plan, Query, one, same, whole
from ..engine.statements import statements
from ..errors import InvalidArgument
from .look import check_time
from .names import resolve
from .seal import seal

log = logging.getLogger("pgeverything.audit")
SQL = statements("audit")


def erase(table: str, key: Any) -> Plan[int]:
    """Erase the personal values of a row from all its entries so far; their salted hashes stay, so that the seal holds.

    Only of the columns that were `personal` when the entries were written. The row itself is yours to delete; do that
    first, or its deletion writes them once more.

    Args:
        table: the table, or what the trail calls it when it is gone.
        key: the row's primary key; see `history`. A row whose key was changed has entries under each.

    Returns:
        How many entries had any.
    """
    if key is None:
        raise InvalidArgument("key=None: say whose values to erase")
    place = yield from resolve(table, key)
    return (yield from Query(SQL["erase"], {"subject": place.subject, "key": place.key}, whole))


def drop_before(at: datetime) -> Plan[date | None]:
    """Drop entries by whole months that end before a time, and of those only what is sealed.

    The blocks' hashes stay, so that `verify` proves the rest as before, and that nothing else is missing. Nobody who
    writes waits for this.

    Args:
        at: a datetime with a time zone.

    Returns:
        The first day from which on entries are kept; None when none were ever dropped.
    """
    check_time(at, "at")
    yield from seal()
    kept: date | None = yield from Query(SQL["drop"], {"before": at}, one)
    yield from Query(SQL["partitions"], {}, one)
    return kept


def tend() -> Plan[None]:
    """Do what the trail needs now and then: partitions ahead, and the seal."""
    made = yield from Query(SQL["partitions"], {}, one)
    if made:
        log.info("created %s partitions of the audit trail", made)
    blocks, _ = (yield from Query(SQL["seal"], {"most": 10}, same))[0]
    if blocks:
        log.debug("sealed %s blocks of the audit trail", blocks)
