"""``pgeverything dead``: jobs and messages that failed for good, and what to do about them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from ..app import Bound
from ..dead_letters import DeadDelivery, DeadGroup, DeadLetter
from .jobs import show_job
from .options import json_option, on_database
from .output import emit_fields, emit_json, emit_table, progress_bar, say, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

_queue = click.option("--queue")
_task = click.option("--task")
_subscription = click.option("--subscription", help="Only messages of this subscription.")
_fingerprint = click.option("--fingerprint", help="As `dead groups` shows it.")


@click.group()
def dead() -> None:
    """Look at dead letters; redrive or discard them."""


@dead.command("list")
@_queue
@_task
@_fingerprint
@_subscription
@click.option("--limit", type=int, default=50, show_default=True)
@json_option
@on_database
def list_(pg: Bound, *, as_json: bool, **filters: Any) -> None:
    """List dead jobs and dead messages, latest death first."""
    found = pg.dead_letters.list(**filters)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("id", "of", "task or event", "died", "fingerprint", "redriven", "why"),
        map(_row, found),
    )


def _row(letter: DeadLetter) -> tuple[object, ...]:
    message = (letter.error or {}).get("message")
    why = ": ".join(each for each in (letter.reason, message) if each)
    known = letter.fingerprint, letter.redriven, why
    if isinstance(letter, DeadDelivery):
        topic = letter.event.topic if letter.event is not None else "dropped"
        return letter.id, letter.subscription, f"{topic} at {letter.position}", letter.died_at, *known
    return letter.id, letter.queue, letter.task, letter.finished_at, *known


@dead.command()
@_queue
@_task
@_subscription
@click.option("--limit", type=int, default=50, show_default=True)
@json_option
@on_database
def groups(pg: Bound, *, as_json: bool, **filters: Any) -> None:
    """Group dead letters by what they died of, the largest group first."""
    found = pg.dead_letters.groups(**filters)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("count", "fingerprint", "of", "first", "last", "latest id", "error"),
        map(_group_row, found),
    )


def _group_row(group: DeadGroup) -> tuple[object, ...]:
    error = _error(group.error_type, group.error_message)
    name = group.task or group.subscription
    return group.count, group.fingerprint, name, group.first_at, group.last_at, group.latest_id, error


def _error(kind: str | None, message: str | None) -> str:
    return f"{kind}: {message}" if kind else ""


@dead.command()
@click.argument("id", type=int, metavar="ID")
@json_option
@on_database
def show(pg: Bound, *, id: int, as_json: bool) -> None:  # noqa: A002
    """Show everything about one dead job or message."""
    letter = pg.dead_letters.get(id)
    if not isinstance(letter, DeadDelivery):
        show_job(pg, letter, as_json=as_json)
        return
    if as_json:
        emit_json(letter)
        return
    error = dict(letter.error or {})
    event = {} if letter.event is None else {f.name: getattr(letter.event, f.name) for f in fields(letter.event)}
    known = {f.name: getattr(letter, f.name) for f in fields(letter) if f.name not in ("event", "error", "position")}
    emit_fields(known | event | {"error": _error(error.get("type"), error.get("message"))})
    click.echo(shown(error.get("traceback") or ""), nl=False)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.argument("ids", type=int, nargs=-1, metavar="[ID]..."),
        _queue,
        _task,
        _fingerprint,
        _subscription,
        click.option("--everything", is_flag=True, help="Needed where there is no id and no filter."),
        click.option("--limit", type=int, help="At most so many."),
        click.option("--dry-run", is_flag=True, help="Only count."),
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@dead.command()
@_filters
@click.option("--to-queue", help="Only jobs: run them on this queue; they remember where they died.")
@click.option("--rate", type=float, help="So many a second; default: all at once.")
@on_database
def redrive(
    pg: Bound,
    *,
    ids: tuple[int, ...],
    limit: int | None,
    dry_run: bool,
    as_json: bool,
    everything: bool,
    **options: Any,
) -> None:
    """Give dead jobs and messages a fresh life, oldest death first.

    Interrupted, each is either moved or still dead; the same command goes on where it stopped.
    """
    filters = {name: options[name] for name in ("queue", "task", "fingerprint", "subscription")}
    filters |= {"everything": everything}
    _refuse_nothing(ids, filters)
    to_queue = options["to_queue"]
    expected = pg.dead_letters.redrive(ids or None, **filters, limit=limit, to_queue=to_queue, dry_run=True)
    done = expected
    if not dry_run:
        with _told("redriven", expected) as progress:
            done = pg.dead_letters.redrive(
                ids or None,
                **filters,
                limit=limit,
                to_queue=to_queue,
                rate=options["rate"],
                progress=progress,
            )
    _tell("redriven", ids, done, expected, dry_run=dry_run, as_json=as_json)


@dead.command()
@_filters
@on_database
def discard(
    pg: Bound, *, ids: tuple[int, ...], limit: int | None, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """End dead letters for good. Jobs join the finished ones as cancelled, messages are forgotten.

    Interrupted, each is either discarded or still dead; the same command goes on where it stopped.
    """
    _refuse_nothing(ids, filters)
    expected = pg.dead_letters.discard(ids or None, **filters, limit=limit, dry_run=True)
    done = expected
    if not dry_run:
        with _told("discarded", expected) as progress:
            done = pg.dead_letters.discard(ids or None, **filters, limit=limit, progress=progress)
    _tell("discarded", ids, done, expected, dry_run=dry_run, as_json=as_json)


def _refuse_nothing(ids: tuple[int, ...], filters: dict[str, Any]) -> None:
    if not ids and not any(filters.values()):
        raise click.UsageError("say which: ids, --queue, --task, --fingerprint or --subscription, or --everything")


@contextmanager
def _told(what: str, expected: int) -> Iterator[Callable[[int], None]]:
    """Show progress, and where it is interrupted say how far it came."""
    done = 0
    with progress_bar(what, expected) as advance:

        def progress(count: int) -> None:
            nonlocal done
            done = count
            advance(count)

        try:
            yield progress
        except KeyboardInterrupt:
            say(f"{done} {what}, the rest are dead as before")
            raise


def _tell(what: str, ids: tuple[int, ...], done: int, expected: int, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit_json({what: done, "dry_run": dry_run})
        return
    say(f"{done} would be {what}" if dry_run else f"{done} {what}")
    if expected < len(set(ids)):
        say(f"the other {len(set(ids)) - expected} are no dead letters")
    if done < expected:
        say(f"{expected - done} stay dead: other unfinished jobs have their unique keys, or somebody took them first")
