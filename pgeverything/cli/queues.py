"""``pgeverything queues``: what they hold, pause and resume, limits."""

from __future__ import annotations

from typing import Any

import click

from ..app import Bound
from .options import json_option, on_database
from .output import emit_json, emit_table, say


@click.group()
def queues() -> None:
    """Look at queues, pause and resume them, set their limits."""


@queues.command("list")
@json_option
@on_database
def list_(pg: Bound, *, as_json: bool) -> None:
    """List the queues that are configured or hold unfinished jobs."""
    found = pg.jobs.queues()
    if as_json:
        emit_json(found)
        return
    emit_table(
        ("queue", "ready", "waiting", "scheduled", "running", "dead", "workers", "paused", "limits"),
        ((q.name, q.ready, q.waiting, q.scheduled, q.running, q.dead, q.workers, q.paused, _limits(q)) for q in found),
    )


def _limits(queue: Any) -> str:
    parts = []
    if queue.max_depth is not None:
        parts.append(f"depth {queue.max_depth} then {queue.on_full}")
    if queue.concurrency is not None:
        parts.append(f"concurrency {queue.concurrency}")
    if queue.per_key != 1:
        parts.append(f"per key {queue.per_key}")
    return ", ".join(parts)


@queues.command()
@click.argument("queue")
@on_database
def pause(pg: Bound, *, queue: str) -> None:
    """Stop handing out the jobs of a queue; what runs goes on."""
    pg.jobs.pause(queue)
    say(f"queue {queue!r} is paused")
    (found,) = [each for each in pg.jobs.queues() if each.name == queue]
    if not (found.ready or found.waiting or found.scheduled or found.running or found.dead or found.workers):
        say("it has no jobs and no worker: is that its name? `pgeverything queues list` shows those there are")


@queues.command()
@click.argument("queue")
@on_database
def resume(pg: Bound, *, queue: str) -> None:
    """Hand out the jobs of a paused queue again."""
    pg.jobs.resume(queue)
    say(f"queue {queue!r} is handed out")


@queues.command()
@click.argument("queue")
@click.option("--max-depth", metavar="N|none", help="How many jobs may be ready or waiting.")
@click.option("--on-full", type=click.Choice(["raise", "wait", "drop"]), help="What an enqueue does then.")
@click.option("--concurrency", metavar="N|none", help="How many run at once in the whole fleet.")
@click.option("--per-key", type=int, help="How many jobs of one ordering key run at once.")
@on_database
def configure(pg: Bound, *, queue: str, **options: Any) -> None:
    """Set the limits of a queue for the whole fleet. Those not named stay as they are."""
    limits = {name: value for name, value in options.items() if value is not None}
    if not limits:
        raise click.UsageError("name a limit: --max-depth, --on-full, --concurrency or --per-key")
    for name in limits.keys() & {"max_depth", "concurrency"}:
        limits[name] = _limit(limits[name], name)
    pg.jobs.configure(queue, **limits)
    say(f"queue {queue!r} is configured")


def _limit(text: str, option: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        flag = option.replace("_", "-")
        raise click.UsageError(f"--{flag} {text!r} must be a whole number, or none for no limit")
    return int(text)
