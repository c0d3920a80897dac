"""What a schema consists of, to compare one with another."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

_QUERIES: dict[str, LiteralString] = {
    "relations": """
        select c.relname, c.relkind::text, c.relpersistence::text, c.reloptions, pg_get_expr(c.relpartbound, c.oid),
               case when c.relkind = 'v' then pg_get_viewdef(c.oid) end
        from pg_class c where c.relnamespace = %(schema)s::regnamespace and c.relkind <> 'i'
    """,
    "columns": """
        select c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        from pg_class c join pg_attribute a on a.attrelid = c.oid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace = %(schema)s::regnamespace and a.attnum > 0 and not a.attisdropped
    """,
    "indexes": """
        select indexname, indexdef from pg_indexes where schemaname = %(name)s
    """,
    "constraints": """
        select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        from pg_constraint where connamespace = %(schema)s::regnamespace
    """,
    "functions": """
        select proname, pg_get_functiondef(oid), proacl::text
        from pg_proc where pronamespace = %(schema)s::regnamespace
    """,
}


def describe(connection: psycopg.Connection[Any], schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that a migration makes in a schema."""
    params = {"schema": sql.Identifier(schema).as_string(connection), "name": schema}
    described = {
        what: sorted(connection.execute(query, params).fetchall(), key=repr) for what, query in _QUERIES.items()
    }
    applied = sql.SQL("select version, name, breaking from {}.migrations order by 1").format(sql.Identifier(schema))
    return described | {"migrations": connection.execute(applied).fetchall()}
