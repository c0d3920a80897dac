"""SQL as text: named statements from ``schema/sql/*.sql``, with the schema's name filled in where they are run.

In a file, a block begins with ``-- name: claim`` and the comment lines below it say what it does. Statements use
psycopg's ``%(name)s`` parameters, each with an explicit cast, so that every driver sends the type that is meant. The
schema is written as ``pgeverything.``, in a string ``'pgeverything.job_seq'``, and its bare name, which is also the
notification channel, as ``'pgeverything'``.

A statement that joins tables whose size changes by the minute says ``-- plan: fresh``: it is never prepared, because a
plan that was made while a table was empty would be kept while the table grows to a million rows. One whose effect ends
with its transaction says ``-- runs: inside``: on a connection in autocommit it is refused.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

from ..errors import ConfigurationError

_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_TOKEN = re.compile(r"'pgeverything(\.\w+)?'|\bpgeverything\.")
_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


@dataclass(frozen=True, eq=False, slots=True)
class Statement:
    """One statement of a module, as it stands in its file."""

    module: str
    name: str
    text: str
    fresh: bool = False
    inside: bool = False

    def __repr__(self) -> str:
        return f"{self.module}.{self.name}"


@functools.cache
def statements(module: str) -> dict[str, Statement]:
    """Load the statements of ``schema/sql/<module>.sql`` by name."""
    text = (resources.files("pgeverything.schema") / "sql" / f"{module}.sql").read_text("utf-8")
    _, *parts = _BLOCK.split(text)
    return {
        name: Statement(
            module, name, body.strip().rstrip(";"), "\n-- plan: fresh\n" in body, "\n-- runs: inside\n" in body
        )
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def check_schema(schema: str) -> str:
    """Return `schema` when it can name a schema and a notification channel; raise otherwise.

    `$$` would end the bodies of our functions, and a line break the comments in them.
    """
    if (
        not isinstance(schema, str)
        or not schema.isprintable()  # no NUL, no line break, nothing that is not UTF-8
        or not 0 < len(schema.encode()) <= 63
        or schema.startswith("pg_")
        or "$$" in schema
    ):
        raise ConfigurationError(
            f"schema={schema!r} cannot name a schema: 1 to 63 bytes, printable, without '$$', not beginning with 'pg_'"
        )
    return schema


def in_schema(text: str, schema: str) -> str:
    """Fill the schema's name, quoted, into SQL that is written for ``pgeverything``."""
    identifier = '"' + schema.replace('"', '""') + '"' if schema != "pgeverything" else schema

    def fill(match: re.Match[str]) -> str:
        if match[0][0] != "'":
            return f"{identifier}."
        inside = f"{identifier}{match[1]}" if match[1] else schema
        return "'" + inside.replace("'", "''") + "'"

    return _TOKEN.sub(fill, text)


@functools.cache
def named(statement: Statement, schema: str) -> str:
    """Return the statement's text with ``%(name)s`` parameters, as psycopg takes it."""
    return in_schema(statement.text, schema.replace("%", "%%"))


@functools.cache
def numbered(statement: Statement, schema: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement's text with ``$1`` parameters, as asyncpg takes it, and the parameters' names in order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _PARAMETER.sub(number, named(statement, schema)), tuple(names)
