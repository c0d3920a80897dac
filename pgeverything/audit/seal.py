"""The seal: blocks of entries, chained by their hashes, and the proof that nothing in them was changed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine.plan import Plan, Query, Rows, same
from ..engine.statements import statements
from ..errors import InvalidArgument
from ..jobs.values import MOST_BIGINT
from .values import Root, Verification, decode

SQL = statements("audit")

_BLOCKS = 10  # blocks that are sealed, or read, at a time
_PAGE = 2000  # entries
_HASH = 32  # bytes


def seal() -> Plan[int]:
    """Seal the entries that are committed, so that a later change of them can be proven.

    Workers do it every minute. What is not sealed yet can be changed without a trace by who has the rights of the
    schema's owner. Entries of transactions that are still open, and all later ones, wait for their end.

    Returns:
        How many blocks were made.
    """
    sealed = 0
    while True:
        blocks, more = (yield from Query(SQL["seal"], {"most": _BLOCKS}, same))[0]
        sealed += int(blocks)
        if not more:
            return sealed


def export_root() -> Plan[Root | None]:
    """Return the end of the chain; None while nothing is sealed.

    Keep it where nobody who can change this database can change it: in a mail, a ticket, another system. It is 32 bytes
    that stand for every entry up to here.
    """
    rows = yield from Query(SQL["head"], {}, same)
    return Root(rows[0][0], bytes(rows[0][1]).hex(), *rows[0][2:]) if rows else None


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle root of hashes: neighbours make one of the next level, a last one without moves up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = itertools.zip_longest(level[::2], level[1::2])
        level = [left if right is None else hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
    return level[0]


def leaf(columns: Iterable[str | None]) -> bytes:
    """Return the hash of an entry's columns, as text: of each its length, a colon, itself and a semicolon."""
    text = "".join("-;" if value is None else f"{len(value)}:{value};" for value in columns)
    return hashlib.sha256(b"\x00" + text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Block:
    """A block as it is stored."""

    number: int
    month: str
    first_id: int
    last_id: int
    entries: int
    root: bytes
    hash: bytes
    ids: list[int]
    leaves: list[bytes]

    def chained(self, before: bytes) -> bytes:
        """Return the hash that it should have after that one."""
        head = f"{self.number}:{self.month}:{self.first_id}:{self.last_id}:{self.entries}:"
        return hashlib.sha256(before + head.encode() + self.root).digest()


def _read_blocks(rows: Rows) -> list[Block]:
    return [
        Block(number, month, first, last, entries, bytes(root), bytes(digest), ids or [], _split(bytes(leaves or b"")))
        for number, month, first, last, entries, root, digest, ids, leaves in rows
    ]


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[place : place + _HASH] for place in range(0, len(hashes), _HASH)]


def parse_root(root: Root | str | None) -> tuple[int, str] | None:
    """Return the number and the hash of an exported root."""
    if root is None:
        return None
    number, _, digest = str(root).partition(":")
    if not (number.isascii() and number.isdecimal() and len(digest) == 2 * _HASH):
        raise InvalidArgument(f"root={root!r} must be what export_root() returned, or its text: number:hash")
    return int(number), digest.lower()


def verify(*, root: Root | str | None = None) -> Plan[Verification]:
    """Look whether every sealed entry is as it was sealed: none changed, gone, added or moved.

    It reads the whole trail and computes every hash here, not in the database, by the recipe in the documentation.

    Args:
        root: an end of the chain that was exported earlier. Without one, the chain only proves that it fits itself: who
            has every right in the database could have made all of it anew.

    Returns:
        What was found. `.ok` is whether all is right; else `.block` and `.entry` are the first that are not.
    """
    anchor = parse_root(root)
    unsealed, dropped_before = (yield from Query(SQL["unsealed"], {}, same))[0]
    found = Verification(ok=True, unsealed=unsealed)
    before, low = b"", 0
    checks = _Personal()
    while blocks := (yield from Query(SQL["blocks"], {"after": found.blocks, "limit": _BLOCKS}, _read_blocks)):
        for block in blocks:
            wrong = _wrong_block(block, found.blocks + 1, before, low, anchor)
            entry: int | None = None
            if wrong is None and dropped_before is not None and block.month < dropped_before:
                entry, wrong = yield from _none_left(low, block)
                found = replace(found, dropped=found.dropped + block.entries)
            elif wrong is None:
                entry, wrong = yield from _wrong_entry(block, low, checks)
            if wrong is not None and (yield from _dropped_meanwhile(block, dropped_before)):
                return (yield from verify(root=root))  # from the beginning, which is shorter now
            if wrong is not None:
                return replace(found, ok=False, block=found.blocks + 1, entry=entry, problem=wrong)
            found = replace(
                found, blocks=block.number, entries=found.entries + block.entries, erased=len(checks.erased)
            )
            before, low = block.hash, block.last_id
    if anchor is not None and anchor[0] > found.blocks:
        return replace(found, ok=False, block=found.blocks + 1, problem=f"the chain ends before block {anchor[0]}")
    yield from checks.read_unsealed(low, dropped_before)
    if (entry := checks.unexplained()) is not None:
        number = next(number for number, last in checks.ends if entry <= last)
        problem = "its personal values are gone, and no entry says that they were erased"
        return replace(found, ok=False, block=number, entry=entry, problem=problem)
    if not checks.explains(dropped_before):
        problem = f"months before {dropped_before} are gone, and no entry says that they were dropped"
        return replace(found, ok=False, block=1, problem=problem)
    return found


def _dropped_meanwhile(block: Block, dropped_before: str | None) -> Plan[bool]:
    _, now = (yield from Query(SQL["unsealed"], {}, same))[0]
    return now != dropped_before and now is not None and block.month < now


def _wrong_block(block: Block, number: int, before: bytes, low: int, anchor: tuple[int, str] | None) -> str | None:
    if block.number != number:
        return f"block {number} is gone"
    if block.hash != block.chained(before) or not low < block.first_id <= block.last_id:
        return "its hash does not follow from the block before it"
    if anchor is not None and anchor[0] == number and anchor[1] != block.hash.hex():
        return "it is not the block whose root was exported"
    return None


def _none_left(low: int, block: Block) -> Plan[tuple[int | None, str | None]]:
    rows = yield from Query(SQL["sealed"], {"low": low, "high": block.last_id, "limit": 1}, same)
    return (rows[0][0], "it was added to a month that was dropped") if rows else (None, None)


def _wrong_entry(block: Block, low: int, checks: _Personal) -> Plan[tuple[int | None, str | None]]:
    """Return the first entry of a block that is not as it was sealed, and what is wrong."""
    if not len(block.ids) == len(block.leaves) == block.entries or merkle_root(block.leaves) != block.root:
        return None, "its hashes of entries do not make its root"
    sealed = zip(block.ids, block.leaves, strict=True)
    last, complete = low, False
    while not complete:
        rows = yield from Query(SQL["sealed"], {"low": last, "high": block.last_id, "limit": _PAGE}, same)
        for row in rows:
            id_, digest = next(sealed, (row[0] + 1, b""))
            if row[0] != id_:
                return (row[0], "it was added") if row[0] < id_ else (id_, "it is gone")
            if leaf([str(row[0]), *row[1:16]]) != digest:
                return row[0], "it was changed"
            if (wrong := checks.look(row)) is not None:
                return row[0], wrong
        complete = len(rows) < _PAGE
        last = rows[-1][0] if rows else last
    checks.ends.append((block.number, block.last_id))
    gone = next(sealed, None)
    return (gone[0], "it is gone") if gone is not None else (None, None)


class _Personal:
    """Personal values against their hashes; values that are gone must have been erased by an entry that says so."""

    def __init__(self) -> None:
        self.erased: dict[int, tuple[str, str]] = {}
        self.ends: list[tuple[int, int]] = []  # number and last id of each block
        self._erasures: dict[tuple[str, str], int] = {}
        self._dropped = ""

    def look(self, row: tuple[Any, ...]) -> str | None:
        """Look at an entry; returns what is wrong with its personal values."""
        id_, action, subject, key, new, digests, personal = row[0], row[3], row[4], row[5], row[8], row[10], row[16]
        if action == "erase" and key is None:
            self._erasures[subject, _spelled(decode(new)["key"])] = id_
        elif action == "drop" and key is None:
            self._dropped = decode(new)["before"]
        if digests is None:
            return None if personal is None else "it has personal values that were not sealed"
        if personal is None:
            self.erased[id_] = (subject, _spelled(decode(key)))
            return None
        return None if _digests(personal) == decode(digests) else "its personal values were changed"

    def read_unsealed(self, low: int, dropped_before: str | None) -> Plan[None]:
        """Learn of erasures and drops that are not sealed yet."""
        while self.unexplained() is not None or not self.explains(dropped_before):
            rows = yield from Query(SQL["sealed"], {"low": low, "high": MOST_BIGINT, "limit": _PAGE}, same)
            for row in rows:
                if row[3] in ("erase", "drop"):
                    self.look(row)
            if not rows:
                return
            low = rows[-1][0]

    def explains(self, dropped_before: str | None) -> bool:
        """Whether an entry says that the months before this one were dropped."""
        return dropped_before is None or self._dropped >= dropped_before

    def unexplained(self) -> int | None:
        """Return the first entry whose values are gone without an erasure after it."""
        return next((id_ for id_, where in self.erased.items() if self._erasures.get(where, 0) < id_), None)


def _digests(personal: str) -> dict[str, dict[str, str]]:
    """Return the salted hashes of personal values, each of which is given as its text."""
    sides = decode(personal)
    salt = sides.pop("salt")
    return {
        side: {
            column: hashlib.sha256(f"{salt}:{side}:{column}:{text}".encode()).hexdigest()
            for column, text in values.items()
        }
        for side, values in sides.items()
    }


def _spelled(key: Any) -> str:
    return json.dumps(key, default=str)
