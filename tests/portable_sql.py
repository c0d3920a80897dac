"""Rules for SQL that Citus can run too, read off the parse trees of a plain Postgres.

Citus evaluates a statement at one place and runs it at another. In `UPDATE SET`, `ON CONFLICT` and `RETURNING` it
therefore refuses what is not immutable: a clock, a sequence, a cast of text to jsonb. With `debug_print_parse` Postgres
shows the analysed tree of each statement, also of those inside functions; the rules are checked on that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import psycopg

from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, Rows, same
from tests.plans import SQL

Node: TypeAlias = "dict[str, Node] | list[Node] | str"

_TOKEN = re.compile(r'[(){}\[\]]|"(?:\\.|[^"\\])*"|(?:\\.|[^\s(){}\[\]"\\])+')
KIND = "{"
"""The field of a node that says what it is; no field of Postgres' own has that name."""

_MERGE = "5"  # commandType
_UPDATE = "2"
_SYSTEM_COLUMNS = {"-2": "xmin", "-3": "cmin", "-4": "xmax", "-5": "cmax"}


def parse(text: str) -> Node:
    """Read a tree as Postgres prints it: `{NAME :field value ...}`, `(list)`, `word`.

    A field may have several words (a constant's bytes, an array of numbers); it becomes a list then.
    """
    tokens = _TOKEN.findall(text)
    position = 0

    def take() -> str:
        nonlocal position
        position += 1
        return str(tokens[position - 1])

    def node() -> Node:
        token = take()
        if token == "{":
            return fields()
        if token in "([":
            return until(")" if token == "(" else "]")
        return token

    def until(end: str) -> list[Node]:
        found = []
        while tokens[position] != end:
            found.append(node())
        take()
        return found

    def fields() -> dict[str, Node]:
        found: dict[str, Node] = {KIND: take()}
        while (token := take()) != "}":
            values = []
            while tokens[position] != "}" and not tokens[position].startswith(":"):
                values.append(node())
            found[token.removeprefix(":")] = values[0] if len(values) == 1 else values
        return found

    return node()


def walk(node: Node) -> Iterator[dict[str, Any]]:
    """Yield every node of a tree that has fields."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


class Linter:
    """Checks trees by the rules; knows from the catalog which function is how volatile."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._functions = {
            oid: (name, volatile)
            for oid, name, volatile in connection.execute("select oid::text, proname, provolatile::text from pg_proc")
        }
        self._operators = dict(connection.execute("select oid::text, oprcode::oid::text from pg_operator").fetchall())
        self._inputs = dict(connection.execute("select oid::text, typinput::oid::text from pg_type").fetchall())

    def faults(self, tree: Node) -> Iterator[str]:
        """Yield what Citus would refuse in a statement."""
        for node in walk(tree):
            if node[KIND] == "VAR" and node["varattno"] in _SYSTEM_COLUMNS:
                yield f"reads {_SYSTEM_COLUMNS[node['varattno']]}"
            if node[KIND] != "QUERY":
                continue
            if node["commandType"] == _MERGE:
                yield "is a MERGE"
            if node["commandType"] == _UPDATE:
                yield from self._mutable(node["targetList"], "SET")
            if isinstance(node["onConflict"], dict):
                yield from self._mutable(node["onConflict"]["onConflictSet"], "ON CONFLICT SET")
                yield from self._mutable(node["onConflict"]["onConflictWhere"], "ON CONFLICT WHERE")
            yield from self._mutable(node["returningList"], "RETURNING")

    def _mutable(self, clause: Node, where: str) -> Iterator[str]:
        for node in walk(clause):
            if node[KIND] == "SQLVALUEFUNCTION":
                yield f"{where} uses CURRENT_..."
            if node[KIND] == "NEXTVALUEEXPR":
                yield f"{where} uses a sequence"
            name, volatile = self._functions.get(self._function(node), ("", "i"))
            if volatile != "i":
                yield f"{where} uses {name}()"

    def _function(self, node: dict[str, Any]) -> str:
        """Return the oid of the function that a node calls."""
        match node[KIND]:
            case "FUNCEXPR":
                return str(node["funcid"])
            case "AGGREF":
                return str(node["aggfnoid"])
            case "WINDOWFUNC":
                return str(node["winfnoid"])
            case "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" | "SCALARARRAYOPEXPR":
                return self._operators.get(node["opno"], "")
            case "COERCEVIAIO":
                return self._inputs.get(node["resulttype"], "")
        return ""


class Linted:
    """A session whose statements, and those of the functions they call, are checked as they run.

    Attributes:
        faults: (statement, what is wrong with it), for each tree that Postgres showed.
        trees: how many it showed.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.faults: set[tuple[str, str]] = set()
        self.trees = 0
        self._linter, self._running = Linter(connection), ""
        self._connection, self._carrier = connection, PsycopgCarrier(connection, "pgeverything")
        connection.add_notice_handler(self._noticed)
        connection.execute("set client_min_messages = log; set debug_pretty_print = off; set track_functions = 'pl'")

    one_transaction = True

    def run(self, name: str, /, **params: object) -> Rows:
        """Run a named statement the way the library does."""
        query = Query(SQL[name], params, same)
        return self._shown(name, lambda: self._carrier.execute(query))

    def execute(self, name: str, text: str) -> None:
        """Run any statement."""
        self._shown(name, lambda: self._connection.execute(text))  # type: ignore[arg-type]

    def sql(self, text: str) -> None:
        """Run a statement that fires triggers; only what those do is ours."""
        self._shown(text, lambda: self._connection.execute(text))  # type: ignore[arg-type]

    def functions_not_called(self) -> list[str]:
        """Return which of our functions this transaction has not called: nothing of theirs was checked."""
        names = self._connection.execute(
            "select proname from pg_proc p where pronamespace = 'pgeverything'::regnamespace and not exists"
            " (select from pg_stat_xact_user_functions c where c.funcid = p.oid)"
        )
        return [name for (name,) in names]

    def _shown(self, name: str, run: Any) -> Any:
        self._connection.execute("set debug_print_parse = on")
        self._running = name
        try:
            return run()
        finally:
            self._running = ""
            if self._connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
                self._connection.execute("set debug_print_parse = off")

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if self._running and (notice.message_primary or "").startswith("parse tree"):
            self.trees += 1
            self.faults |= {(self._running, fault) for fault in self._linter.faults(parse(notice.message_detail or ""))}
