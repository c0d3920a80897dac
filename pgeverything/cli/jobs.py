"""``pgeverything jobs``: enqueue, look at, cancel, retry."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import click

from ..app import Bound
from ..jobs.values import ENDED, STATES, Job, State
from .options import instant, json_option, on_database
from .output import counted, emit_fields, emit_json, emit_table, say

_id = click.argument("id", type=int, metavar="ID")
_ids = click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")


@click.group()
def jobs() -> None:
    """Enqueue jobs, look at them, cancel and retry them."""


@jobs.command()
@click.argument("task")
@click.argument("args", required=False, metavar="[JSON]")
@click.option(
    "--arg",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="One argument; VALUE is JSON where it parses, else text. Repeatable.",
)
@click.option("--queue", default="default", show_default=True)
@click.option("--priority", type=int, default=0, show_default=True, help="Higher runs first.")
@click.option("--delay", metavar="DURATION", help="How long from now it is due: 30s, 5m, 1h30m, 2d.")
@click.option("--run-at", metavar="TIME", help="When it is due: 2030-01-31T09:00+01:00.")
@click.option("--unique-key", help="No second unfinished job of this task with this key.")
@click.option("--on-duplicate", type=click.Choice(["skip", "raise", "replace"]), default="skip", show_default=True)
@click.option("--ordering-key", help="Jobs of one key run one at a time, in order.")
@click.option("--max-attempts", type=int, help="Default: the task's retry policy.")
@click.option("--timeout", metavar="DURATION", help="How long one attempt may run.")
@click.option("--expires", metavar="DURATION", help="How long after it is due it is still worth starting.")
@click.option("--header", "headers", multiple=True, metavar="NAME=TEXT", help="Text for the handler. Repeatable.")
@json_option
@on_database
def enqueue(
    pg: Bound,
    *,
    task: str,
    args: str | None,
    pairs: tuple[str, ...],
    headers: tuple[str, ...],
    as_json: bool,
    run_at: str | None,
    on_duplicate: Literal["skip", "raise", "replace"],
    **options: Any,
) -> None:
    """Enqueue a job of TASK and print its id.

    JSON is an object of the handler's parameters by name; `-` reads it from stdin.
    """
    given = parse_object(sys.stdin.read() if args == "-" else args)
    given |= {name: _value(text) for name, text in map(_pair, pairs)}
    options |= {"headers": dict(map(_pair, headers)), "run_at": instant(run_at, "run_at")}
    job = pg.jobs.enqueue(task, given, on_duplicate=on_duplicate, **options)
    if as_json:
        emit_json(job)
    else:
        click.echo(job.id)
    if job.duplicate:
        say(f"job {job.id} has that unique key and is {job.state}: no second one was enqueued")
    elif job.state == "cancelled":
        say(f"queue {job.queue!r} is full and drops: job {job.id} was cancelled")
        raise click.exceptions.Exit(1)


def parse_object(text: str | None) -> dict[str, Any]:
    """Read a job's arguments as a person types them."""
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise click.UsageError(f"the arguments are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError("the arguments must be a JSON object of parameter names, as in '{\"user_id\": 7}'")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise click.UsageError(f"{text!r} must be NAME=VALUE")
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@jobs.command("list")
@click.option("--queue")
@click.option("--task")
@click.option("--state", type=click.Choice(STATES))
@click.option("--limit", type=int, default=50, show_default=True)
@click.option("--before", type=int, metavar="ID", help="Only ids below this one: the next page.")
@json_option
@on_database
def list_(
    pg: Bound,
    *,
    queue: str | None,
    task: str | None,
    state: State | None,
    limit: int,
    before: int | None,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    found = pg.jobs.list(queue=queue, task=task, state=state, limit=limit, before=before)
    if as_json:
        emit_json(found)
    else:
        rows = ((j.id, j.state, j.queue, j.task, j.attempt, j.created_at, _last_word(j)) for j in found)
        emit_table(("id", "state", "queue", "task", "attempt", "created", ""), rows)


def _last_word(job: Job) -> str:
    error = job.error or {}
    return job.reason or job.note or str(error.get("message") or "")


@jobs.command()
@_id
@json_option
@on_database
def show(pg: Bound, *, id: int, as_json: bool) -> None:  # noqa: A002 - the name of the argument
    """Show everything about one job, with its failures."""
    show_job(pg, pg.jobs.get(id), as_json=as_json)


def show_job(pg: Bound, job: Job, *, as_json: bool) -> None:
    """Print a job, and what went wrong with it attempt by attempt."""
    failures = pg.jobs.failures(job.id)
    fields = {name: getattr(job, name) for name in Job.__dataclass_fields__ if name != "duplicate"}
    if as_json:
        emit_json(fields | {"failures": failures})
        return
    error = fields.pop("error")
    emit_fields(fields)
    if job.state not in ENDED:
        say(pg.jobs.why(job.id))
    for failure in failures:
        what = failure["error"] or {}
        emit_fields({f"attempt {failure['attempt']}": f"{what.get('type')}: {what.get('message')}"})
    if error and error.get("traceback"):
        emit_fields({"traceback": "\n" + error["traceback"]})


@jobs.command()
@_ids
@click.option("--reason", default="cancelled", show_default=True)
@on_database
def cancel(pg: Bound, *, ids: tuple[int, ...], reason: str) -> None:
    """Cancel jobs in any state. Those that run are asked to stop."""
    missed = [each for each in ids if not pg.jobs.cancel(each, reason)]
    for each in missed:
        say(f"job {each} had ended already, or is not known")
    if len(ids) > len(missed):
        say(f"cancelled {counted(len(ids) - len(missed), 'job')}, or asked to stop what is running")
    if missed:
        raise click.exceptions.Exit(1)


@jobs.command()
@_ids
@on_database
def retry(pg: Bound, *, ids: tuple[int, ...]) -> None:
    """Run dead or scheduled jobs now. Dead ones begin anew, from their first attempt."""
    for each in ids:
        pg.jobs.retry(each)
        say(f"job {each} runs again")


@jobs.command()
@_id
@json_option
@on_database
def why(pg: Bound, *, id: int, as_json: bool) -> None:  # noqa: A002
    """Say in words why a job is not running, or how it ended."""
    text = pg.jobs.why(id)
    if as_json:
        emit_json({"id": id, "why": text})
    else:
        click.echo(text)


@jobs.command()
@click.option("--queue")
@json_option
@on_database
def counts(pg: Bound, *, queue: str | None, as_json: bool) -> None:
    """Count jobs by state."""
    found = pg.jobs.counts(queue)
    if as_json:
        emit_json(found)
    else:
        emit_table(("state", "jobs"), found.items())
