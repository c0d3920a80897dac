"""``pgeverything topics``: publish, subscribe, and look after the subscriptions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import click

from ..app import Bound, PgEverything
from ..durations import seconds
from ..engine.plan import drive
from ..pubsub import Subscription, manage
from .events import append_lines, event_line, header_map, json_value, lines_option, position_or_time
from .options import json_option, on_database, schema_option, url_option
from .output import counted, emit_json, emit_json_line, emit_table, say


@click.group()
def topics() -> None:
    """Publish and subscribe, and look after durable subscriptions."""


def place(value: object) -> str | int | datetime:
    """Return where to begin: "latest", "earliest", a position or a time."""
    return value if value in ("latest", "earliest") else position_or_time(value)


@topics.command("list")
@click.argument("pattern", required=False)
@json_option
@on_database
def list_(pg: Bound, *, pattern: str | None, as_json: bool) -> None:
    """List topics, with what the log keeps of each."""
    found = pg.events.topics(pattern)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("topic", "events", "bytes", "last position"), ((t.name, t.events, t.bytes, t.last_position) for t in found)
    )


@topics.command()
@click.argument("topic")
@click.argument("data", metavar="[JSON]", required=False)
@click.option("--type", "type_", default="", help="What happened.")
@click.option("--key", help="The one it happened to.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE")
@json_option
@on_database
def publish(
    pg: Bound,
    *,
    topic: str,
    data: str | None,
    type_: str,
    key: str | None,
    headers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Publish an event. With no JSON, publish one for each line of standard input.

    Lines are published 1,000 at a time; interrupted, what was published stays.
    """
    options: dict[str, Any] = {"type": type_, "key": key, "headers": header_map(headers)}
    if data is not None:
        event = pg.pubsub.publish(topic, json_value(data, "the argument"), **options)
        emit_json(event) if as_json else click.echo(event.position)
        return
    count = last = 0
    try:
        for appended in append_lines(pg, topic, options):
            count, last = count + len(appended), appended[-1].position
    finally:
        say(f"{counted(count, 'event')} published" + (f", the last at position {last}" if last else ""))
    if as_json:
        emit_json({"published": count, "last": last or None})


@topics.command()
@click.argument("pattern", default=">")
@click.option("--name", help="Of a durable subscription; without it, events from now on.")
@click.option(
    "--start", type=place, metavar="latest|earliest|POSITION|TIME", help="Where a subscription begins that is new."
)
@click.option("--max-deliveries", type=int, help="After how many failures a message is dead; for a new one 5.")
@click.option("--on-dead", type=click.Choice(["skip", "hold", "stop"]), help="What becomes of what follows a dead one.")
@click.option("--limit", type=int, help="End after so many.")
@click.option("--timeout", metavar="DURATION", help="End when nothing came for so long.")
@lines_option
@url_option
@schema_option
def subscribe(
    *,
    pattern: str,
    url: str | None,
    schema: str,
    name: str | None,
    limit: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print messages as they come, until interrupted.

    PATTERN is a topic, or a pattern of topics: * is one token, > the rest. With --name the subscription is durable, and
    each message is acknowledged when it is printed: start several to share the work, and again to go on.
    """
    with _application(url, schema) as pg, pg.pubsub.subscribe(pattern, name=name, **options) as subscriber:
        for message in itertools.islice(subscriber, limit):
            if as_json:
                known = {field: getattr(message, field) for field in _FIELDS}
                emit_json_line(known)
            else:
                again = f"  delivery {message.delivery}" if message.delivery > 1 else ""
                click.echo(event_line(message) + again)
            message.ack()


_FIELDS = ("position", "topic", "key", "version", "type", "data", "headers", "recorded_at", "delivery")


@contextmanager
def _application(url: str | None, schema: str) -> Iterator[PgEverything]:
    with closing(PgEverything(url, schema=schema)) as pg:
        yield pg


@topics.command()
@click.argument("name", required=False)
@click.option("--older-than", help="Exit with 1 when something is left undone for longer, like 5m.")
@json_option
@on_database
def lag(pg: Bound, *, name: str | None, older_than: str | None, as_json: bool) -> None:
    """Show how far subscriptions are behind, and what they hold."""
    most = None if older_than is None else seconds(older_than, "--older-than")
    found = [each for each in pg.pubsub.subscriptions() if name is None or each.name == name]
    if name is not None and not found:
        pg.pubsub.lag(name)  # which says that there is none
    lags = [(each, pg.pubsub.lag(each.name)) for each in found]
    if as_json:
        fields = Subscription.__dataclass_fields__
        emit_json([{f: getattr(s, f) for f in fields} | {"lag": n} for s, n in lags])
    else:
        emit_table(
            ("name", "pattern", "state", "behind", "seconds", "in flight", "retrying", "waiting", "dead", "members"),
            (
                (
                    s.name, s.pattern, _state(s), n.events, round(n.seconds, 1), s.in_flight, s.retrying, s.waiting,
                    s.dead, s.members,
                )
                for s, n in lags
            ),
        )  # fmt: skip
    if any(s.gap or s.stopped for s, _ in lags) or (most is not None and any(n.seconds > most for _, n in lags)):
        click.get_current_context().exit(1)


def _state(subscription: Subscription) -> str:
    if subscription.gap:
        return "overtaken by retention: seek"
    if subscription.stopped is not None:
        return f"stopped: {subscription.stopped}"
    return "paused" if subscription.paused else "active"


@topics.command()
@click.argument("name")
@click.argument("to", type=place, metavar="latest|earliest|POSITION|TIME")
@json_option
@on_database
def seek(pg: Bound, *, name: str, to: Any, as_json: bool) -> None:
    """Move a subscription, backwards to replay or forwards to skip."""
    position = drive(pg.carrier, manage.seek(name, to))
    if as_json:
        emit_json({"name": name, "position": position})
    say(f"{name} goes on after position {position}")


@topics.command()
@click.argument("name")
@on_database
def pause(pg: Bound, *, name: str) -> None:
    """Deliver nothing more of a subscription until it is resumed."""
    drive(pg.carrier, manage.pause(name))
    say(f"{name} is paused")


@topics.command()
@click.argument("name")
@on_database
def resume(pg: Bound, *, name: str) -> None:
    """Let a subscription go on that was paused or has stopped."""
    drive(pg.carrier, manage.resume(name))
    say(f"{name} goes on")


@topics.command()
@click.argument("name")
@on_database
def delete(pg: Bound, *, name: str) -> None:
    """Delete a subscription with its dead letters. The log keeps its events."""
    gone = drive(pg.carrier, manage.delete(name))
    say(f"{name} is deleted" if gone else f"there is no subscription {name}")
    if not gone:
        click.get_current_context().exit(1)
