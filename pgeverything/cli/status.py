"""``pgeverything status``: one screen that says how it is."""

from __future__ import annotations

import click

from ..engine.plan import drive
from ..status import Status
from ..status import status as look
from .options import connected, json_option, schema_option, url_option
from .output import emit_fields, emit_json, emit_table, say


@click.command()
@url_option
@schema_option
@json_option
def status(url: str | None, schema: str, *, as_json: bool) -> None:
    """Show server, schema, workers, queues and jobs on one screen.

    Exit code 1 when something is wrong: work that no live worker takes for 30 s, a worker that fell silent, a standby.
    Exit code 3 when the schema is not migrated. `pgeverything doctor` looks at much more.
    """
    with connected(url, schema, migrated=False) as pg:
        found = drive(pg.carrier, look(schema))
    if as_json:
        emit_json(found)
    else:
        _show(found)
    for problem in found.problems:
        say(f"problem: {problem}")
    for warning in found.warnings:
        say(f"warning: {warning}")
    if found.problems:
        raise click.exceptions.Exit(3 if found.pending else 1)


def _show(found: Status) -> None:
    emit_fields(
        {
            "server": f"PostgreSQL {found.server}{', standby' if found.standby else ''}",
            "database": f"{found.database} as {found.role}",
            "schema": f"{found.schema}, " + (f"migration {found.migration:04d}" if found.migration else "not there"),
            "jobs": ", ".join(f"{number} {state}" for state, number in found.counts.items() if number) or None,
        }
    )
    if found.workers:
        click.echo()
        emit_table(
            ("worker", "heartbeat", "queues", "running", "finished", "failed", "refused", ""),
            (
                (
                    w.name,
                    f"{w.heartbeat_age:.1f} s ago",
                    w.queues,
                    f"{w.running}/{w.concurrency}",
                    w.finished,
                    w.failed,
                    w.refused,
                    ("asleep" if w.asleep else "busy") if w.alive else "silent",
                )
                for w in found.workers
            ),
        )
    if found.queues:
        click.echo()
        emit_table(
            ("queue", "ready", "waiting", "scheduled", "running", "dead", "workers", ""),
            (
                (q.name, q.ready, q.waiting, q.scheduled, q.running, q.dead, q.workers, "paused" if q.paused else "")
                for q in found.queues
            ),
        )
