"""The plans that Postgres really runs: of statements, and of the statements inside functions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

import pgeverything.schema
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, Rows, same
from pgeverything.engine.statements import statements

SQL = {
    f"{module}.{name}": statement
    for module in sorted(file.stem for file in (Path(pgeverything.schema.__file__).parent / "sql").glob("*.sql"))
    for name, statement in statements(module).items()
}
"""Every named statement, by `module.name`."""


class Explained:
    """A session whose plans are seen as they run, by way of Postgres' own `auto_explain`.

    Args:
        connection: in autocommit, as a role that may load `auto_explain`.
        generic: whether what can be prepared, and what functions hold, gets plans for values that are not known.

    Attributes:
        plans: (statement, plan) in the order they ran; those inside a function go by the statement that called it.
    """

    one_transaction = False

    def __init__(self, connection: psycopg.Connection[Any], *, generic: bool = False) -> None:
        self.plans: list[tuple[str, dict[str, Any]]] = []
        self._connection, self._generic = connection, generic
        self._carrier, self._running = PsycopgCarrier(connection, "pgeverything"), ""
        connection.execute("load 'auto_explain'")
        connection.execute(
            "set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
            "set auto_explain.log_format = json; set client_min_messages = log"
        )
        connection.add_notice_handler(self._noticed)

    def run(self, name: str, /, **params: object) -> Rows:
        """Run a named statement the way the library does."""
        if self._generic:
            mode = "auto" if SQL[name].fresh else "force_generic_plan"
            self._connection.execute("select set_config('plan_cache_mode', %s, false)", [mode])
        self._running = name
        try:
            with self._connection.transaction() if SQL[name].inside else contextlib.nullcontext():
                return self._carrier.execute(Query(SQL[name], params, same))
        finally:
            self._running = ""

    def sql(self, text: str) -> None:
        """Run a statement that fires triggers of ours."""
        self._running = "audit.triggers"
        try:
            self._connection.execute(text)  # type: ignore[arg-type]
        finally:
            self._running = ""

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        head, _, plan = (notice.message_primary or "").partition("plan:\n")
        if self._running and head.startswith("duration:"):
            self.plans.append((self._running, json.loads(plan)))


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read_through(plan: Mapping[str, Any]) -> set[str]:
    """Return the tables that a plan reads from one end to the other."""
    return {str(node["Relation Name"]) for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


def rows_read(node: Mapping[str, Any]) -> int:
    """Return how many rows of its table a node has read that has run: an index can be read through as well."""
    if "Relation Name" not in node or "Actual Rows" not in node:
        return 0
    thrown_away = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    return round((node["Actual Rows"] + thrown_away) * node["Actual Loops"])


def sorted_whole(plan: Mapping[str, Any]) -> set[str]:
    """Return the tables that a plan sorts."""
    return {
        str(below["Relation Name"])
        for node in nodes(plan)
        if node["Node Type"] in ("Sort", "Incremental Sort")
        for below in nodes(node)
        if "Relation Name" in below
    }


def generic_plan(connection: psycopg.Connection[Any], text: str, parameters: int) -> dict[str, Any]:
    """Return the plan of a statement with `$1` parameters, for values that are not known."""
    nulls = f"({', '.join(['null'] * parameters)})" if parameters else ""
    connection.execute("set plan_cache_mode = force_generic_plan")
    connection.execute(f"prepare statement as {text}")  # type: ignore[arg-type]
    try:
        row = connection.execute(f"explain (format json) execute statement{nulls}").fetchone()  # type: ignore[arg-type]
    finally:
        connection.execute("deallocate statement")
    assert row is not None
    return dict(row[0][0]["Plan"])
