"""Migrations: numbered files, forward only, one transaction each, guarded against two migrators at once.

A file is ``migrations/NNNN_words.sql``. One whose first line is ``-- breaking`` cannot be used by older releases of
this library; the others leave what older releases use as it was, so that a rolling deployment can migrate first.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources

from ..engine.plan import Atomic, Plan, Query, Rows, nothing, one, same
from ..engine.statements import Statement, in_schema, statements
from ..errors import NotMigrated, SchemaError, SchemaTooNew

log = logging.getLogger("pgeverything.migrate")
SQL = statements("migrate")

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its number, its name, whether older releases can live with it, and its SQL."""

    version: int
    name: str
    breaking: bool
    sql: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """What `migrate --status` shows of one migration. `applied_at` is None while it is pending."""

    version: int
    name: str
    applied_at: datetime | None


@functools.cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations this library knows, in order."""
    files = (resources.files("pgeverything.schema") / "migrations").iterdir()
    found = [_read(file.name, file.read_text("utf-8")) for file in files if _FILE.fullmatch(file.name)]
    return tuple(sorted(found, key=lambda migration: migration.version))


def _read(file: str, text: str) -> Migration:
    number, _, name = file.removesuffix(".sql").partition("_")
    return Migration(int(number), name, text.startswith("-- breaking\n"), text)


def script(schema: str, after: int = 0) -> str:
    """Return the SQL of every migration above number `after`, for a person to read or for ``psql`` to run."""
    return "\n".join(_script(schema, after))


def _script(schema: str, after: int) -> Iterator[str]:
    for migration in migrations():
        if migration.version > after:
            yield f"begin;\n\n-- {migration.version:04d} {migration.name}\n"
            if migration.version == 1:
                yield in_schema(_FOUNDATION, schema)
            yield in_schema(migration.sql, schema)
            yield in_schema(
                "insert into pgeverything.migrations (version, name, breaking)\n"
                f"values ({migration.version}, '{migration.name}', {str(migration.breaking).lower()});\n\ncommit;\n",
                schema,
            )


# Not `create schema if not exists`, which wants the right to create schemas even where there is nothing to create.
_FOUNDATION = """\
do $$
begin
  if to_regnamespace(quote_ident('pgeverything')) is null then
    execute format('create schema %I', 'pgeverything');
  end if;
end $$;

create table if not exists pgeverything.migrations (
  version    integer primary key,
  name       text not null,
  breaking   boolean not null default false,
  applied_at timestamptz not null default now()
);
"""


def _quoted(schema: str) -> str:
    return in_schema("pgeverything.", schema)[:-1]


def _raw(name: str, text: str) -> Query[None]:
    """Return a query for text that takes no parameters."""
    return Query(Statement("migrate", name, text.replace("%", "%%")), {}, nothing)


def migrate(schema: str) -> Plan[list[Migration]]:
    """Apply what is missing and return it, oldest first; an empty list when the schema is up to date.

    Raises:
        SchemaError: this role may not create what a migration creates.
        SchemaTooNew: a newer release has made a breaking change to the schema.
    """
    done: list[Migration] = []
    yield from verify(schema, pending_is_fine=True)
    for migration in migrations():
        if (yield from Atomic(_apply(schema, migration))):
            done.append(migration)  # noqa: PERF401 - a comprehension cannot yield
    return done


def _apply(schema: str, migration: Migration) -> Plan[bool]:
    """Apply one migration unless it is there. The lock comes first: a second migrator sees the work of the first."""
    yield from Query(SQL["lock"], {"schema": schema}, nothing)
    if migration.version in {row.version for row in (yield from status(schema)) if row.applied_at}:
        return False
    role, allowed = (yield from Query(SQL["may_create"], {"schema": schema}, same))[0]
    if not allowed:
        raise SchemaError(
            f"role {role!r} may not create tables in schema {schema!r}: run `pgeverything migrate` as "
            "its owner, or have the owner run the output of `pgeverything migrate --sql`"
        )
    if migration.version == 1:
        yield from _raw("foundation", _FOUNDATION)
    yield from _raw(migration.name, migration.sql)
    yield from Query(
        SQL["record"],
        {"version": migration.version, "name": migration.name, "breaking": migration.breaking},
        nothing,
    )
    log.info("migrated %s to %04d %s", schema, migration.version, migration.name)
    return True


def _applied(schema: str) -> Plan[Rows]:
    if (yield from Query(SQL["exists"], {"table": _quoted(schema) + ".migrations"}, one)):
        return (yield from Query(SQL["applied"], {}, same))
    return ()


def status(schema: str) -> Plan[list[MigrationStatus]]:
    """Return every migration that this library knows or the database has, in order."""
    rows = yield from _applied(schema)
    seen = {version: MigrationStatus(version, name, at) for version, name, _, at in rows}
    pending = {m.version: MigrationStatus(m.version, m.name, None) for m in migrations()}
    return [entry for _, entry in sorted((pending | seen).items())]


def verify(schema: str, *, pending_is_fine: bool = False) -> Plan[None]:
    """Raise unless the schema fits this library.

    Raises:
        NotMigrated: a migration is missing.
        SchemaTooNew: a newer release has made a breaking change.
    """
    rows = yield from _applied(schema)
    known = {migration.version for migration in migrations()}
    if newer := [f"{version:04d} {name}" for version, name, breaking, _ in rows if version not in known and breaking]:
        raise SchemaTooNew(
            f"schema {schema!r} was migrated by a newer pgeverything ({', '.join(newer)}): upgrade this installation"
        )
    if (missing := known - {version for version, *_ in rows}) and not pending_is_fine:
        state = "is not there" if len(missing) == len(known) else f"lacks {len(missing)} migration(s)"
        raise NotMigrated(f"schema {schema!r} {state}: run `pgeverything migrate`, or pg.migrate() in code")
