"""``pgeverything migrate``: create or update the schema."""

from __future__ import annotations

import click

from ..engine.plan import drive
from ..engine.statements import check_schema
from ..schema import migrate as migrations
from .options import connected, json_option, schema_option, url_option
from .output import emit_json, emit_table, say


@click.command()
@url_option
@schema_option
@json_option
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it; connects to nothing.")
@click.option("--after", type=click.IntRange(0), default=0, help="With --sql: only migrations above this number.")
@click.option("--status", is_flag=True, help="Show what is applied. Exit code 3 if something is pending.")
def migrate(url: str | None, schema: str, *, as_json: bool, sql: bool, after: int, status: bool) -> None:
    """Create or update the schema.

    Any number of processes may do this at once: one does the work. Needs a role that may create tables; where that is
    not yours, hand its owner the output of --sql.
    """
    if sql and (status or as_json):
        raise click.UsageError("--sql prints SQL: leave out --status and --json")
    if after and not sql:
        raise click.UsageError("--after goes with --sql")
    if sql:
        click.echo(migrations.script(check_schema(schema), after), nl=False)
        return
    with connected(url, schema, migrated=False) as pg:
        if status:
            _show(drive(pg.carrier, migrations.status(schema)), as_json=as_json)
            return
        applied = drive(pg.carrier, migrations.migrate(schema))
    if as_json:
        emit_json([{"version": each.version, "name": each.name} for each in applied])
        return
    for each in applied:
        say(f"applied {each.version:04d} {each.name}")
    if not applied:
        say(f"schema {schema!r} is up to date")


def _show(entries: list[migrations.MigrationStatus], *, as_json: bool) -> None:
    if as_json:
        emit_json(entries)
    else:
        rows = [(f"{each.version:04d}", each.name, each.applied_at or "pending") for each in entries]
        emit_table(("version", "name", "applied"), rows)
    if any(each.applied_at is None for each in entries):
        raise click.exceptions.Exit(3)
