"""``pgeverything audit`` and ``pgeverything trace``: who changed what, and the proof that nobody changed that."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import click

from ..app import Bound
from ..audit import Entry, retention
from ..audit.seal import export_root, seal, verify
from ..engine.plan import Plan, Sleep, drive
from ..trace import trace as trace_transaction
from .options import json_option, on_database
from .output import counted, emit_fields, emit_json, emit_json_line, emit_table, say, shown

_POLL = 0.5  # seconds between two looks of `tail`
_LATE = 1000  # ids by which a commit may be late and `tail` still shows it

lines_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs and pipes."
)


@click.group()
def audit() -> None:
    """See who changed what, see rows as they were, undo a change.

    And track tables, erase personal data, and prove that nobody tampered with the trail.
    """


def _time(_context: click.Context, _parameter: click.Parameter, text: str | None) -> datetime | None:
    """Return what an option says; a time without a zone is in the zone of this computer."""
    try:
        return None if text is None else datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time like 2026-11-23T09:00") from error


def _key(values: tuple[str, ...]) -> list[Any] | None:
    """Return the values of a key: whole numbers as such, anything else as text, which Postgres reads as it should."""
    return [int(value) if value.isascii() and value.isdecimal() else value for value in values] or None


def _columns(name: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, multiple=True, metavar="COLUMN", help=what)


@audit.command()
@click.argument("table")
@_columns("--exclude", "Take no notice of it; again for more.")
@_columns("--mask", "Tell that it changed, and not the values.")
@_columns("--personal", "Its values can be erased later.")
@click.option("--require-actor", is_flag=True, help="Refuse changes of which nobody said who makes them.")
@click.option("--bulk", is_flag=True, help="For a table that is changed by thousands of rows at a time.")
@json_option
@on_database
def track(pg: Bound, *, table: str, as_json: bool, **options: Any) -> None:
    """Track TABLE, or change how it is tracked. Connect as its owner."""
    with pg.connection.transaction():
        tracked = pg.audit.track(table, **options)
    if as_json:
        emit_json(tracked)
    say(f"{tracked.table} is tracked")


@audit.command()
@click.argument("table")
@on_database
def untrack(pg: Bound, *, table: str) -> None:
    """Track TABLE no longer; what the trail has of it stays."""
    with pg.connection.transaction():
        was = pg.audit.untrack(table)
    say(f"{table} is tracked no longer" if was else f"{table} was not tracked")


@audit.command()
@json_option
@on_database
def tracked(pg: Bound, *, as_json: bool) -> None:
    """Show the tracked tables, and what has changed about them since."""
    found = pg.audit.tracked()
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("table", "key", "excluded", "masked", "personal", "needs actor"),
        ((t.table, t.key, t.exclude, t.mask, t.personal, t.require_actor) for t in found),
    )
    for each in found:
        for drift in each.drift:
            say(f"{each.table}: {drift}")


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--actor", help="Only what this one did."),
        click.option("--action", help="Only entries of this kind: insert, update, login, ..."),
        click.option("--limit", type=int, help="At most so many."),
        lines_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@audit.command()
@click.argument("table", required=False)
@click.argument("key", nargs=-1)
@_filters
@click.option("--since", metavar="TIME", callback=_time, help="Only what happened then or later.")
@click.option("--until", metavar="TIME", callback=_time, help="Only what happened before.")
@click.option("--newest-first", is_flag=True)
@on_database
def history(pg: Bound, *, table: str | None, key: tuple[str, ...], as_json: bool, **filters: Any) -> None:
    """Print the trail: of one row, of TABLE, or all of it.

    TABLE may also be the subject of records. A KEY of several columns is given as several arguments.
    """
    _print(pg.audit.history(table, _key(key), **filters), as_json=as_json)


@audit.command()
@click.argument("table", required=False)
@_filters
@on_database
def tail(pg: Bound, *, table: str | None, limit: int | None, as_json: bool, **filters: Any) -> None:
    """Print entries as they are committed, until interrupted."""
    _print(itertools.islice(_followed(pg, table, filters), limit), as_json=as_json)


def _followed(pg: Bound, table: str | None, filters: dict[str, Any]) -> Iterator[Entry]:
    """Yield new entries; those of the last while are kept in mind, because ids are not committed in order."""
    known: set[int] = {entry.id for entry in pg.audit.history(limit=_LATE, newest_first=True)}
    while True:
        newest, fresh = max(known, default=0), []
        for entry in pg.audit.history(table, newest_first=True, **filters):
            if entry.id <= newest - _LATE:
                break
            if entry.id not in known:
                fresh.append(entry)
        yield from reversed(fresh)
        known = {id_ for id_ in known if id_ > newest - 2 * _LATE} | {entry.id for entry in fresh}
        drive(pg.carrier, _pause())


def _pause() -> Plan[None]:
    yield Sleep(_POLL)


def _print(found: Iterable[Entry], *, as_json: bool) -> None:
    for entry in found:
        if as_json:
            emit_json_line(entry)
            continue
        key = "" if entry.key is None else _value(entry.key)
        who = entry.actor if entry.actor is not None else f"role {entry.role}"
        words = (entry.action, entry.subject, key, f"by {who}", f"({entry.reason})" if entry.reason else "")
        text = "  ".join(filter(None, map(shown, (*words, _changes(entry)))))
        click.echo(f"{entry.id:>8}  {shown(entry.at)}  {text}")


def _changes(entry: Entry) -> str:
    """Say what an entry tells of the row in one line."""
    hidden = [f"{name}: ***" for name in entry.masked] + [f"{name}: erased" for name in entry.erased]
    if entry.old is not None and isinstance(entry.new, dict):
        told = [f"{name}: {_value(entry.old.get(name))} -> {_value(value)}" for name, value in entry.new.items()]
    else:
        told = (
            [] if entry.old is None and entry.new is None else [_value(entry.new if entry.old is None else entry.old)]
        )
    return ", ".join(told + hidden)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


@audit.command("as-of")
@click.argument("table")
@click.argument("at", metavar="TIME", callback=_time)
@click.argument("key", nargs=-1)
@lines_option
@on_database
def as_of(pg: Bound, *, table: str, at: datetime, key: tuple[str, ...], as_json: bool) -> None:
    """Print rows of TABLE as they were at TIME: all, or the one with KEY."""
    rows = pg.audit.as_of(table, at, key=_key(key))
    if as_json:
        for row in rows:
            emit_json_line(row)
        return
    if not rows:
        say(f"{table} had no such row at that time" if key else f"{table} had no rows at that time")
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    emit_table(columns, ([row.get(name) for name in columns] for row in rows))


def _with_context(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--actor", help="Who does it.")(click.option("--reason", help="Why.")(function))


@audit.command()
@click.argument("entry", type=int)
@_with_context
@json_option
@on_database
def revert(pg: Bound, *, entry: int, actor: str | None, reason: str | None, as_json: bool) -> None:
    """Undo the change of ENTRY, as a new change. Refused when the row has moved on."""
    with pg.connection.transaction():
        pg.audit.context(actor=actor, reason=reason)
        made = pg.audit.revert(entry)
    if as_json:
        emit_json(made)
    say(f"entry {entry} is reverted by entry {made.id}")


@audit.command()
@click.argument("action")
@click.argument("subject")
@click.argument("data", metavar="[JSON]", required=False)
@_with_context
@json_option
@on_database
def record(
    pg: Bound, *, action: str, subject: str, data: str | None, actor: str | None, reason: str | None, as_json: bool
) -> None:
    """Add an entry about what is no change of a row: a login, an export."""
    try:
        value = None if data is None else json.loads(data)
    except ValueError as error:
        raise click.UsageError(f"the argument is not JSON: {error}") from error
    with pg.connection.transaction():
        pg.audit.context(actor=actor, reason=reason)
        made = pg.audit.record(action, subject, value)
    emit_json(made) if as_json else click.echo(made.id)


@audit.command("seal")
@json_option
@on_database
def seal_(pg: Bound, *, as_json: bool) -> None:
    """Seal what is committed; workers do it every minute."""
    blocks = drive(pg.carrier, seal())
    if as_json:
        emit_json({"blocks": blocks})
    say(f"{counted(blocks, 'block')} sealed")


@audit.command()
@json_option
@on_database
def root(pg: Bound, *, as_json: bool) -> None:
    """Print the end of the chain of seals.

    Keep it where nobody who can change this database can change it.
    """
    found = drive(pg.carrier, export_root())
    if as_json:
        emit_json(found)
    elif found is None:
        say("nothing is sealed yet")
    else:
        click.echo(str(found))


@audit.command("verify")
@click.option("--root", help="An end of the chain that `audit root` printed earlier.")
@json_option
@on_database
def verify_(pg: Bound, *, root: str | None, as_json: bool) -> None:
    """Look whether every sealed entry is as it was sealed.

    Exit code 1 when one is not.
    """
    found = drive(pg.carrier, verify(root=root))
    if as_json:
        emit_json(found)
    else:
        emit_fields(
            {
                "blocks": found.blocks,
                "entries": found.entries,
                "dropped": found.dropped,
                "erased": found.erased,
                "unsealed": found.unsealed,
            }
        )
        where = f"block {found.block}" + ("" if found.entry is None else f", entry {found.entry}")
        say("all that is sealed is as it was sealed" if found.ok else f"{where}: {found.problem}")
    if not found.ok:
        click.get_current_context().exit(1)


@audit.command()
@click.argument("table")
@click.argument("key", nargs=-1, required=True)
@json_option
@on_database
def erase(pg: Bound, *, table: str, key: tuple[str, ...], as_json: bool) -> None:
    """Erase the personal values of a row from its entries. The seal holds."""
    erased = pg.audit.erase(table, _key(key))
    if as_json:
        emit_json({"erased": erased})
    say(f"personal values of {erased} entries are erased")


@audit.command()
@click.option("--before", required=True, metavar="TIME", callback=_time, help="Months that end before it are dropped.")
@json_option
@on_database
def drop(pg: Bound, *, before: datetime, as_json: bool) -> None:
    """Drop old entries by whole months. The hashes of their blocks stay, so that the rest can be verified."""
    kept = drive(pg.carrier, retention.drop_before(before))
    if as_json:
        emit_json({"kept_from": kept})
    say("nothing was ever dropped" if kept is None else f"entries are kept from {kept} on")


@click.command()
@click.argument("transaction", type=int)
@json_option
@on_database
def trace(pg: Bound, *, transaction: int, as_json: bool) -> None:
    """Show what one TRANSACTION did: its audit entries, events and jobs."""
    found = drive(pg.carrier, trace_transaction(transaction))
    if as_json:
        emit_json(found)
        return
    _print(found.entries, as_json=False)
    for event in found.events:
        click.echo(f"   event  {shown(event.recorded_at)}  {shown(event.topic)}  {shown(event.type)}  {event.position}")
    for job in found.jobs:
        click.echo(f"     job  {shown(job.created_at)}  {shown(job.task)}  {job.state}  {job.id}")
    if not (found.entries or found.events or found.jobs):
        say(f"transaction {transaction} has left nothing that is kept")
