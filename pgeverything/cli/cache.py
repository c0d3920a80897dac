"""``pgeverything cache``: look at entries, write and take them away, see what the cache is worth."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import click

from ..app import Bound
from ..cache import upkeep
from ..engine.plan import drive
from .options import json_option, on_database
from .output import counted, emit_fields, emit_json, plain, say

_NOTHING = object()

tag_option = click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be given several times.")


@click.group()
def cache() -> None:
    """Get, set and invalidate entries of the cache; see its statistics."""


@cache.command()
@click.argument("key")
@json_option
@on_database
def get(pg: Bound, *, key: str, as_json: bool) -> None:
    """Print the value of KEY: JSON on one line, or bytes as they are. Exits with 1 where there is no value.

    With --json it is {"key": ..., "value": ...}, or {"key": ..., "base64": ...} for bytes, or null.
    """
    value = pg.cache.get(key, _NOTHING)
    if as_json:
        emit_json(None if value is _NOTHING else {"key": key} | _in_json(value))
    elif isinstance(value, bytes):
        if sys.stdout.isatty():  # which would obey what somebody has stored
            raise click.UsageError(f"the value is {len(value)} bytes: send them to a file or a program, or say --json")
        click.echo(value, nl=False)
    elif value is not _NOTHING:
        text = json.dumps(value, ensure_ascii=False, default=plain)
        safe = text if text.isprintable() else json.dumps(value, default=plain)
        click.echo(safe)  # a terminal obeys nothing that was stored
    if value is _NOTHING:
        say(f"{key!r} has no value")
        click.get_current_context().exit(1)


def _in_json(value: Any) -> dict[str, Any]:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else {"value": value}


@cache.command("set")
@click.argument("key")
@click.argument("value", metavar="[JSON]", required=False)
@click.option("--ttl", metavar="DURATION|forever", default="5m", show_default=True, help="How long it lives.")
@tag_option
@click.option("--bytes", "as_bytes", is_flag=True, help="Store standard input as it is, not as JSON.")
@on_database
def set_(pg: Bound, *, key: str, value: str | None, ttl: str, tags: tuple[str, ...], as_bytes: bool) -> None:
    """Store a value, whatever was there before. With no JSON it is read from standard input."""
    if as_bytes and value is not None:
        raise click.UsageError("--bytes reads standard input: leave out the JSON")
    pg.cache.set(key, _read(value, as_bytes=as_bytes), None if ttl == "forever" else ttl, tags)


def _read(text: str | None, *, as_bytes: bool) -> Any:
    if as_bytes:
        return sys.stdin.buffer.read()
    try:
        return json.loads(sys.stdin.read() if text is None else text)
    except ValueError as error:
        where = "standard input" if text is None else "the argument"
        raise click.UsageError(f"""{where} is not JSON: {error}; text is written '"text"'""") from error


@cache.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@json_option
@on_database
def delete(pg: Bound, *, keys: tuple[str, ...], as_json: bool) -> None:
    """Take away the values of these keys. Those that have none do no harm."""
    deleted = pg.cache.delete(*keys)
    emit_json({"deleted": deleted}) if as_json else say(f"{counted(deleted, 'value')} deleted")


@cache.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@tag_option
@on_database
def invalidate(pg: Bound, *, keys: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Take away values by key and by tag."""
    if not keys and not tags:
        raise click.UsageError("say what: keys, --tag, or both")
    pg.cache.invalidate(*keys, tags=tags)


@cache.command()
@json_option
@on_database
def stats(pg: Bound, *, as_json: bool) -> None:
    """Show how full the cache is and what it was asked for.

    Entries and bytes are from the last sweep. Hits, misses, fills and waits are of all processes since the server last
    crashed; each process adds its own every ten seconds while it uses the cache.
    """
    found = drive(pg.carrier, upkeep.stats(pg.cache))
    if as_json:
        emit_json(found)
        return
    asked = found.hits + found.misses
    emit_fields(
        {
            "entries": found.entries,
            "most entries": found.max_entries or "no bound",
            "bytes": found.bytes,
            "most bytes": found.max_bytes or "no bound",
            "on disk": found.disk_bytes,
            "hits": f"{found.hits} ({found.hits / asked:.1%})" if asked else found.hits,
            "misses": found.misses,
            "fills": found.fills,
            "waits": found.waits,
            "survives a crash": found.logged,
        }
    )


@cache.command()
@json_option
@on_database
def clear(pg: Bound, *, as_json: bool) -> None:
    """Delete all entries, a thousand at a time. Interrupted, the rest stay; the same command goes on."""
    deleted = drive(pg.carrier, upkeep.clear())
    emit_json({"deleted": deleted}) if as_json else say(f"{counted(deleted, 'value')} deleted")
