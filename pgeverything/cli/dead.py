"""``pgeverything dead``: what failed for good, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..app import Bound
from .jobs import show_job
from .options import json_option, on_database
from .output import emit_json, emit_table, progress_bar, say

if TYPE_CHECKING:
    from collections.abc import Iterator

_queue = click.option("--queue")
_task = click.option("--task")
_fingerprint = click.option("--fingerprint", help="As `dead groups` shows it.")


@click.group()
def dead() -> None:
    """Look at dead letters; redrive or discard them."""


@dead.command("list")
@_queue
@_task
@_fingerprint
@click.option("--limit", type=int, default=50, show_default=True)
@json_option
@on_database
def list_(
    pg: Bound, *, queue: str | None, task: str | None, fingerprint: str | None, limit: int, as_json: bool
) -> None:
    """List dead jobs, latest death first."""
    found = pg.dead_letters.list(queue=queue, task=task, fingerprint=fingerprint, limit=limit)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("id", "queue", "task", "died", "fingerprint", "redriven", "reason", "error"),
        (
            (j.id, j.queue, j.task, j.finished_at, j.fingerprint, j.redriven, j.reason, (j.error or {}).get("message"))
            for j in found
        ),
    )


@dead.command()
@_queue
@_task
@click.option("--limit", type=int, default=50, show_default=True)
@json_option
@on_database
def groups(pg: Bound, *, queue: str | None, task: str | None, limit: int, as_json: bool) -> None:
    """Group dead jobs by what they died of, the largest group first."""
    found = pg.dead_letters.groups(queue=queue, task=task, limit=limit)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("jobs", "fingerprint", "task", "first", "last", "latest id", "error"),
        (
            (g.count, g.fingerprint, g.task, g.first_at, g.last_at, g.latest_id, _error(g.error_type, g.error_message))
            for g in found
        ),
    )


def _error(kind: str | None, message: str | None) -> str:
    return f"{kind}: {message}" if kind else ""


@dead.command()
@click.argument("id", type=int, metavar="ID")
@json_option
@on_database
def show(pg: Bound, *, id: int, as_json: bool) -> None:  # noqa: A002
    """Show everything about one dead job."""
    show_job(pg, pg.dead_letters.get(id), as_json=as_json)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.argument("ids", type=int, nargs=-1, metavar="[ID]..."),
        _queue,
        _task,
        _fingerprint,
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
@click.option("--to-queue", help="Run them on this queue; they remember where they died.")
@click.option("--rate", type=float, help="Jobs a second; default: all at once.")
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
    """Give dead jobs a fresh life, oldest death first.

    Interrupted, each job is either moved or still dead; the same command goes on where it stopped.
    """
    filters = {name: options[name] for name in ("queue", "task", "fingerprint")} | {"everything": everything}
    _refuse_nothing(ids, filters)
    expected = pg.dead_letters.redrive(ids or None, **filters, limit=limit, dry_run=True)
    done = expected
    if not dry_run:
        with _told("redriven", expected) as progress:
            done = pg.dead_letters.redrive(
                ids or None,
                **filters,
                limit=limit,
                to_queue=options["to_queue"],
                rate=options["rate"],
                progress=progress,
            )
    _tell("redriven", done, expected, dry_run=dry_run, as_json=as_json)


@dead.command()
@_filters
@on_database
def discard(
    pg: Bound, *, ids: tuple[int, ...], limit: int | None, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """End dead jobs for good; they join the finished ones as cancelled.

    Interrupted, each job is either discarded or still dead; the same command goes on where it stopped.
    """
    _refuse_nothing(ids, filters)
    expected = pg.dead_letters.discard(ids or None, **filters, limit=limit, dry_run=True)
    done = expected
    if not dry_run:
        with _told("discarded", expected) as progress:
            done = pg.dead_letters.discard(ids or None, **filters, limit=limit, progress=progress)
    _tell("discarded", done, expected, dry_run=dry_run, as_json=as_json)


def _refuse_nothing(ids: tuple[int, ...], filters: dict[str, Any]) -> None:
    if not ids and not any(filters.values()):
        raise click.UsageError("say which: ids, --queue, --task or --fingerprint, or --everything")


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
            say(f"{done} job(s) {what}, the rest are dead as before")
            raise


def _tell(what: str, done: int, expected: int, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit_json({what: done, "dry_run": dry_run})
        return
    say(f"{done} job(s) would be {what}" if dry_run else f"{done} job(s) {what}")
    if done < expected:
        say(f"{expected - done} stay dead: other unfinished jobs have their unique keys, or somebody took them first")
