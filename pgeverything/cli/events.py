"""``pgeverything events``: append, read and follow the event log, and look after it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import click

from ..app import Bound
from ..durations import seconds
from ..engine.plan import Plan, Sleep, drive
from ..events import Event, retention
from ..events.patterns import compile_pattern
from ..events.read import batch, horizon, position_at
from .options import json_option, on_database
from .output import counted, emit_json, emit_json_line, emit_table, plain, progress_bar, say, shown

_LINES = 1000  # of standard input that are appended at a time
_POLL = 0.25  # seconds between two looks of `tail`

lines_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs and pipes."
)


@click.group()
def events() -> None:
    """Append to the event log, read it, follow it, drop what is old."""


def position_or_time(value: object) -> int | datetime:
    """Return what an option says; a time without a zone is in the zone of this computer."""
    text = str(value)
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a position nor a time like 2026-11-23T09:00") from error


def bound_option(name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option that takes a position or a time."""
    return click.option(name, type=position_or_time, metavar="POSITION|TIME", **options)


@events.command()
@click.argument("topic")
@click.argument("data", metavar="[JSON]", required=False)
@click.option("--type", "type_", default="", help="What happened.")
@click.option("--key", help="The one it happened to.")
@click.option("--expected-version", type=int, help="Only if the topic and key are at this version.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE")
@click.option("--idempotency-key", help="Of one topic and this key only the first append counts.")
@json_option
@on_database
def append(
    pg: Bound, *, topic: str, data: str | None, type_: str, headers: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Append an event. With no JSON, append one for each line of standard input.

    Lines are appended 1,000 at a time; interrupted, what was appended stays.
    """
    options |= {"type": type_, "headers": header_map(headers)}
    if data is not None:
        event = pg.events.append(topic, json_value(data, "the argument"), **options)
        emit_json(event) if as_json else click.echo(event.position)
        return
    for name in ("expected_version", "idempotency_key"):
        if options.pop(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is for one event: give its JSON as an argument")
    count = last = 0
    try:
        for appended in append_lines(pg, topic, options):
            count, last = count + len(appended), appended[-1].position
    finally:
        say(f"{counted(count, 'event')} appended" + (f", the last at position {last}" if last else ""))
    if as_json:
        emit_json({"appended": count, "last": last or None})


def append_lines(pg: Bound, topic: str, options: dict[str, Any]) -> Iterator[list[Event]]:
    """Append an event for each line of standard input, 1,000 at a time."""
    numbered = ((number, line) for number, line in enumerate(sys.stdin, 1) if line.strip())
    done = 0
    with progress_bar("appended", 0) as progress:
        while lines := list(itertools.islice(numbered, _LINES)):
            values = [json_value(line, f"line {number}") for number, line in lines]
            yield pg.events.append_many(topic, values, **options)
            done += len(lines)
            progress(done)


def json_value(text: str, where: str) -> Any:
    """Return the value that JSON stands for."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{where} is not JSON: {error}") from error


def header_map(pairs: tuple[str, ...]) -> dict[str, str] | None:
    """Return what `--header NAME=VALUE` says."""
    headers = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--header {pair!r} must be NAME=VALUE")
        headers[name] = value
    return headers or None


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.argument("topic", metavar="[PATTERN]", required=False),
        click.option("--key", help="Only events of this key."),
        click.option("--type", "type_", help="Only events of this type."),
        click.option("--limit", type=int, help="At most so many."),
        lines_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@events.command()
@_filters
@bound_option("--after", default=0, help="Only events above this position, or later than this time.")
@bound_option("--until", help="Only events up to it.")
@on_database
def read(pg: Bound, *, topic: str | None, type_: str | None, as_json: bool, **options: Any) -> None:
    """Print the events of the log, oldest first, up to where it ends now.

    PATTERN is a topic, or a pattern of topics: * is one token, > the rest.
    """
    _print(pg.events.read(topic, type=type_, **options), as_json=as_json)


@events.command()
@_filters
@bound_option("--after", help="Begin with the events above it, or later than it; by default with new ones.")
@on_database
def tail(
    pg: Bound,
    *,
    topic: str | None,
    key: str | None,
    type_: str | None,
    limit: int | None,
    after: int | datetime | None,
    as_json: bool,
) -> None:
    """Print events as they are published, until interrupted."""
    topics = compile_pattern(topic)

    def start() -> Plan[int]:
        if isinstance(after, datetime):
            return (yield from position_at(after))[0]
        return (yield from horizon()) if after is None else after

    position = drive(pg.carrier, start())

    def more() -> Plan[list[Event]]:
        nonlocal position
        while True:
            upto = yield from horizon(position)
            found = yield from batch(topics, after=position, upto=upto, limit=_LINES, key=key, type=type_)
            position = found[-1].position if len(found) == _LINES else upto
            if found:
                return found
            yield Sleep(_POLL)

    def followed() -> Iterator[Event]:
        while True:
            yield from drive(pg.carrier, more())

    _print(itertools.islice(followed(), limit), as_json=as_json)


def _print(found: Iterable[Event], *, as_json: bool) -> None:
    for event in found:
        emit_json_line(event) if as_json else click.echo(event_line(event))


def event_line(event: Event) -> str:
    """Return an event as a line for a person."""
    key = "" if event.key is None else f"{shown(event.key)} v{event.version}"
    words = (shown(event.topic), shown(event.type), key, json.dumps(event.data, ensure_ascii=False, default=plain))
    return "  ".join([f"{event.position:>8}", shown(event.recorded_at), *filter(None, map(shown, words))])


@events.command()
@json_option
@on_database
def head(pg: Bound, *, as_json: bool) -> None:
    """Print the position of the last event that can be read."""
    position = pg.events.head()
    emit_json({"position": position}) if as_json else click.echo(position)


@events.command()
@click.option("--older-than", default="1m", show_default=True, help="Exit with 1 when one is older.")
@json_option
@on_database
def stalled(pg: Bound, *, older_than: str, as_json: bool) -> None:
    """Show the open transactions that keep readers waiting.

    They have published something, and readers do not pass the position of the first.
    """
    most = seconds(older_than, "--older-than")
    found = pg.events.stalled_by()
    if as_json:
        emit_json(found)
    else:
        emit_table(
            ("position", "pid", "prepared as", "user", "application", "state", "age in s", "last statement"),
            (
                (p.position, p.pid, p.prepared, p.user, p.application, p.state, round(p.age, 1), p.query[:200])
                for p in found
            ),
        )
    if any(publisher.age > most for publisher in found):
        click.get_current_context().exit(1)


@events.command()
@bound_option("--before", required=True, help="Events before it are dropped.")
@json_option
@on_database
def drop(pg: Bound, *, before: int | datetime, as_json: bool) -> None:
    """Drop old events. It goes by whole partitions of 5 million positions, and says what stays."""
    dropped = drive(pg.carrier, retention.drop_before(before))
    if as_json:
        emit_json({"dropped": dropped or None})
    say(f"dropped up to position {dropped}" if dropped else "nothing has been dropped")


@events.command()
@click.argument("keep", metavar="DURATION|forever")
@on_database
def retain(pg: Bound, *, keep: str) -> None:
    """Set how long events are kept, like 90d. Workers drop older ones, by whole partitions."""
    drive(pg.carrier, retention.retain(None if keep == "forever" else keep))
    say("events are kept for ever" if keep == "forever" else f"events are kept for {keep}")
