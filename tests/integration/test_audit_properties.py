"""Random changes of random tables: rows as they were are what they were, and undoing everything leads back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from pgeverything import PgEverything

Database = psycopg.Connection[Any]

TYPES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    "integer": st.integers(-3, 3),
    "numeric": st.one_of(
        st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-9, max_value=9), st.just("NaN")
    ),
    "double precision": st.floats(),
    "bytea": st.binary(max_size=3),
    "timestamptz": st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda at: f"{at} +03"),  # noqa: DTZ001
    "integer[]": st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=3),
    "jsonb": st.recursive(
        st.one_of(st.booleans(), st.integers(-9, 9), st.sampled_from(["", "a", 'q"\\'])),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
        ),
        max_leaves=4,
    ).map(Jsonb),
    "boolean": st.booleans(),
    "interval": st.sampled_from(["1 mon 3 days", "-04:05:06.7", "0"]),
}
# Few keys, so that one row meets several changes.
KEYS = {
    "integer": st.integers(1, 2),
    "text": st.sampled_from(['b"', "ü'"]),
    "uuid": st.sampled_from([f"{n:032x}" for n in range(2)]),
}
KINDS = ["insert"] * 3 + ["update"] * 8 + ["key"] * 2 + ["upsert"] * 2 + ["delete", "truncate"]
NAMES = ["id", "Key 2", 'a"b', "select", "c$1", "t", "old", "value"]


@dataclass(frozen=True)
class Shape:
    key: list[tuple[str, str]]
    columns: list[tuple[str, str]]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    names = draw(st.permutations(NAMES))
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=2))
    columns = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=4))
    return Shape(list(zip(names, keys, strict=False)), list(zip(names[len(keys) :], columns, strict=False)))


class Table:
    """A random table that is tracked, and random statements on it."""

    def __init__(self, db: Database, shape: Shape) -> None:
        self.db, self.shape = db, shape
        kinds = [
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in shape.key + shape.columns
        ]  # type: ignore[arg-type]
        key = sql.SQL(", ").join(sql.Identifier(name) for name, _ in shape.key)
        db.execute(
            sql.SQL("drop table if exists random; create table random ({}, primary key ({}))").format(
                sql.SQL(", ").join(kinds), key
            )
        )

    def run(self, draw: Any) -> None:
        """Run one random statement; one that a key forbids changes nothing."""
        kind = draw(st.sampled_from(KINDS))
        at_key = sql.SQL(" and ").join(
            sql.SQL("{} = %s::{}").format(sql.Identifier(n), sql.SQL(k)) for n, k in self.shape.key
        )  # type: ignore[arg-type]
        keys = [draw(KEYS[k]) for _, k in self.shape.key]
        new = [draw(KEYS[k]) for _, k in self.shape.key]
        values = [draw(st.one_of(st.none(), TYPES[k])) for _, k in self.shape.columns]
        one = draw(st.integers(0, len(values) - 1))
        sets = self._list("{} = %s::{}", self.shape.columns)
        names = self._list("{}", self.shape.key + self.shape.columns)
        places = sql.SQL(", ").join(
            sql.SQL("%s::{}").format(sql.SQL(k)) for _, k in self.shape.key + self.shape.columns
        )  # type: ignore[arg-type]
        statement, params = {
            "insert": (
                sql.SQL("insert into random ({}) values ({}) on conflict do nothing").format(names, places),
                keys + values,
            ),
            "upsert": (
                sql.SQL("insert into random ({}) values ({}) on conflict ({}) do update set {}").format(
                    names, places, self._list("{}", self.shape.key), sets
                ),
                keys + values + values,
            ),
            "update": (
                sql.SQL("update random set {} where {}").format(
                    self._list("{} = %s::{}", [self.shape.columns[one]]), at_key
                ),
                [values[one], *keys],
            ),
            "key": (
                sql.SQL("update random set {}, {} where {}").format(
                    self._list("{} = %s::{}", self.shape.key), sets, at_key
                ),
                new + values + keys,
            ),
            "delete": (sql.SQL("delete from random where {}").format(at_key), keys),
            "truncate": (sql.SQL("truncate random"), []),
        }[kind]
        try:
            self.db.execute(statement, params)
        except psycopg.errors.UniqueViolation:
            assert kind == "key"

    def _list(self, form: str, columns: list[tuple[str, str]]) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL(form).format(*([sql.Identifier(name), sql.SQL(kind)][: form.count("{}")]))
            for name, kind in columns  # type: ignore[arg-type]
        )

    def rows(self) -> list[str]:
        return sorted(row for (row,) in self.db.execute("select to_jsonb(r.*)::text from random r"))

    def now(self) -> datetime:
        return self.db.execute("select clock_timestamp()").fetchall()[0][0]


def spelled(rows: list[Any]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True, default=float) for row in rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_as_they_were_and_the_way_back(db: Database, pg: PgEverything, data: st.DataObject) -> None:
    table = Table(db, data.draw(shapes()))
    for _ in range(data.draw(st.integers(0, 2))):
        table.run(data.draw)
    pg.audit.track("random", bulk=data.draw(st.booleans()))
    began = table.rows()
    last = max((entry.id for entry in pg.audit.history("random", newest_first=True, limit=1)), default=0)
    copies = [(table.now(), began)]
    for _ in range(data.draw(st.integers(5, 20))):
        table.run(data.draw)
        copies.append((table.now(), table.rows()))

    for at, copy in copies:
        assert spelled(pg.audit.as_of("random", at)) == spelled([json.loads(row) for row in copy])

    changes = [
        entry for entry in pg.audit.history("random", newest_first=True) if entry.id > last and entry.key is not None
    ]
    undone: set[int] = set()
    for entry in changes:
        if entry.id in undone:
            continue
        pg.audit.revert(entry.id)
        if entry.other_key is not None:  # its other half is undone with it
            undone |= {
                other.id
                for other in changes
                if other.transaction_id == entry.transaction_id and other.key == entry.other_key
            }
    assert table.rows() == began
    pg.audit.seal()
    assert pg.audit.verify().ok
    db.execute("drop table random")
