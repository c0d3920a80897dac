"""``pgeverything cron``: schedules, what became of their ticks, and when an expression would tick."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from ..app import Bound
from ..errors import InvalidArgument, ScheduleNotFound
from ..scheduler import Schedule, Tick, explain
from ..scheduler.read import upcoming
from .jobs import parse_object
from .options import instant, json_option, on_database
from .output import emit_fields, emit_json, emit_table, say

_STATES = ["active", "paused", "disabled", "ended"]


@click.group()
def cron() -> None:
    """Look at schedules, add, change and run them; preview a cron line."""


@cron.command()
@click.argument("name")
@click.argument("task")
@click.option("--cron", metavar="EXPR", help='Five fields, quoted: "0 7 * * MON-FRI"; @daily and the like.')
@click.option("--every", metavar="DURATION", help="An interval: 5m, 1h.")
@click.option("--at", metavar="TIME", help="A single time: 2030-01-31T09:00+01:00.")
@click.option("--seconds", is_flag=True, help="The expression has six fields, the first is the second.")
@click.option(
    "--timezone", metavar="ZONE", default="UTC", show_default=True, help="Whose clock the expression is about."
)
@click.option("--args", metavar="JSON", help="The handler's parameters as a JSON object.")
@click.option("--queue", help="The jobs' queue.  [default: default]")
@click.option("--priority", type=int, help="The jobs' priority.  [default: 0]")
@click.option("--misfire", type=click.Choice(["once", "all", "skip"]), default="once", show_default=True)
@click.option("--grace", metavar="DURATION", help="How late is too late.  [default: the next tick, at most 1m]")
@click.option("--catch-up", type=int, default=100, show_default=True, help="Overdue ticks that one pass runs at most.")
@click.option("--overlap", type=click.Choice(["allow", "skip", "queue"]), default="allow", show_default=True)
@click.option("--jitter", metavar="DURATION", default="0s", show_default=True, help="Spreads starts over so long.")
@click.option("--start-at", metavar="TIME", help="No ticks before.")
@click.option("--end-at", metavar="TIME", help="No ticks after.")
@click.option("--remaining", type=int, help="How many jobs to enqueue at most.")
@on_database
def add(pg: Bound, *, name: str, task: str, args: str | None, **options: Any) -> None:
    """Add a schedule, or change the one of that NAME.

    It enqueues jobs of TASK at set times.
    """
    for option in ("at", "start_at", "end_at"):
        options[option] = instant(options[option], option)
    schedule = pg.scheduler.add(name, task, parse_object(args) if args else None, **options)
    say(f"schedule {name!r} {_next(schedule)}")
    if schedule.cron is not None:
        say(_words(schedule))


@cron.command("list")
@click.option("--task")
@click.option("--state", type=click.Choice(_STATES))
@click.option("--limit", type=int, default=1000, show_default=True)
@json_option
@on_database
def list_(pg: Bound, *, task: str | None, state: Any, limit: int, as_json: bool) -> None:
    """List schedules by name."""
    found = pg.scheduler.list(task=task, state=state, limit=limit)
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("name", "when", "zone", "task", "state", "next", "last", "last job"),
        (
            (
                s.name,
                _when(s),
                _zone(s),
                s.task,
                s.state,
                _on(_clock(s), s.next_run_at),
                _on(_clock(s), s.last_tick),
                s.last_job_id,
            )
            for s in found
        ),
    )


@cron.command()
@click.argument("name")
@json_option
@on_database
def show(pg: Bound, *, name: str, as_json: bool) -> None:
    """Show everything about a schedule and its latest ticks."""
    schedule = pg.scheduler.get(name)
    if as_json:
        emit_json(schedule)
        return
    fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    for seconds in ("every", "grace", "jitter"):
        fields[seconds] = f"{fields[seconds]:g} s" if fields[seconds] else None
    fields["seconds"] = fields["seconds"] or None
    if schedule.cron is not None:
        fields["cron"] = f"{schedule.cron}, which is {_words(schedule)}"
    for which in ("at", "start_at", "end_at", "next_tick", "next_run_at", "last_tick"):
        fields[which] = _on(_clock(schedule), fields[which])
    emit_fields(fields)
    if ticks := pg.scheduler.history(name, limit=5):
        click.echo()
        _ticks(ticks, _clock(schedule))


@cron.command()
@click.argument("name")
@on_database
def pause(pg: Bound, *, name: str) -> None:
    """Let a schedule enqueue nothing until it is resumed."""
    pg.scheduler.pause(name)
    say(f"schedule {name!r} is paused")


@cron.command()
@click.argument("name")
@on_database
def resume(pg: Bound, *, name: str) -> None:
    """Let a paused schedule tick again, from now on."""
    pg.scheduler.resume(name)
    say(f"schedule {name!r} {_next(pg.scheduler.get(name))}")


@cron.command()
@click.argument("name")
@json_option
@on_database
def run(pg: Bound, *, name: str, as_json: bool) -> None:
    """Enqueue a schedule's job now, beside its ticks."""
    job = pg.scheduler.run_now(name)
    if as_json:
        emit_json(job)
    elif job.duplicate:
        say(f"job {job.id} has not ended, and schedule {name!r} says overlap=skip")
    else:
        say(f"job {job.id} is {job.state}")


@cron.command()
@click.argument("name")
@on_database
def remove(pg: Bound, *, name: str) -> None:
    """Forget a schedule; its history stays for 30 days."""
    if not pg.scheduler.remove(name):
        raise click.ClickException(f"there is no schedule {name!r}")
    say(f"schedule {name!r} is removed")


@cron.command()
@click.argument("name")
@click.option("--limit", type=int, default=20, show_default=True)
@json_option
@on_database
def history(pg: Bound, *, name: str, limit: int, as_json: bool) -> None:
    """Show what became of a schedule's ticks, the latest first."""
    found = pg.scheduler.history(name, limit=limit)
    if as_json:
        emit_json(found)
        return
    if not found:
        say(f"nothing is recorded of a schedule {name!r}")
    try:
        clock = _clock(pg.scheduler.get(name))
    except ScheduleNotFound:  # its history outlives it
        clock = UTC
    _ticks(found, clock)


@cron.command()
@click.argument("expression", metavar="EXPR")
@click.option("--timezone", metavar="ZONE", default="UTC", show_default=True)
@click.option("--count", type=int, default=5, show_default=True)
@click.option("--start", metavar="TIME", help="The times after this one.  [default: now]")
@click.option("--seconds", is_flag=True, help="There are six fields, the first is the second.")
@json_option
def preview(*, expression: str, timezone: str, count: int, start: str | None, seconds: bool, as_json: bool) -> None:
    """Show the next times of a cron expression, and what it means. Needs no database."""
    times = upcoming(expression, timezone, count, instant(start, "start") or datetime.now(UTC), seconds=seconds)
    if as_json:
        emit_json(times)
        return
    say(explain(expression, seconds=seconds))
    for each in times:
        click.echo(f"{each:%a %Y-%m-%d %H:%M:%S} {each:%Z}")


def _ticks(ticks: list[Tick], clock: tzinfo) -> None:
    emit_table(
        ("tick", "outcome", "job", "at", "ticks", "since", "reason"),
        (
            (
                _on(clock, t.tick),
                t.outcome,
                t.job_id,
                _on(clock, t.at),
                t.count,
                _on(clock, t.since) if t.count > 1 else None,
                t.reason,
            )
            for t in ticks
        ),
    )


def _when(schedule: Schedule) -> str:
    if schedule.cron is not None:
        return schedule.cron
    return f"every {schedule.every:g} s" if schedule.every is not None else "once"


def _zone(schedule: Schedule) -> str | None:
    return schedule.timezone if schedule.cron is not None else None


def _next(schedule: Schedule) -> str:
    if schedule.state != "active" or schedule.next_tick is None:
        return f"is {schedule.state}"
    return f"ticks next at {_on(_clock(schedule), schedule.next_tick)}"


def _words(schedule: Schedule) -> str:
    """Say what an expression means, where this release can read it."""
    try:
        return explain(schedule.cron or "", seconds=schedule.seconds)
    except InvalidArgument as error:
        return str(error)


def _clock(schedule: Schedule) -> tzinfo:
    """Return the clock that a schedule goes by, where this machine has it."""
    try:
        return UTC if schedule.timezone == "UTC" else ZoneInfo(schedule.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def _on(clock: tzinfo, at: datetime | None) -> str | None:
    """Show an instant on a clock, and which that is: in autumn it shows one hour twice."""
    return None if at is None else f"{at.astimezone(clock):%Y-%m-%d %H:%M:%S %Z}"
