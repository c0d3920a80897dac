"""``pgeverything doctor``: what is wrong, why, and what to do."""

from __future__ import annotations

import click

from ..app import PgEverything
from .options import json_option, schema_option, url_option
from .output import emit_json, emit_table, say


@click.command()
@url_option
@schema_option
@json_option
def doctor(url: str | None, schema: str, *, as_json: bool) -> None:
    """Say what is wrong, whose fault it is, and what to do.

    It looks at the server, the schema, this role's rights and every module.

    A problem keeps work from being done, or data from being safe, now. A warning will, or does so for somebody else.
    Unknown is what this role may not see. It reads only, and waits for no lock for more than 2 s.

    Exit code 1 when there is a problem, 3 when the schema is not migrated; warnings are no failure.
    """
    with PgEverything(url, schema=schema) as pg:
        health = pg.doctor()
    if as_json:
        emit_json(health)
    else:
        rows = ((check.verdict, check.name, check.found, check.fix) for check in health.checks)
        emit_table(("", "check", "found", "what to do"), rows)
    for verdict in ("problem", "warning", "unknown"):
        if names := [check.name for check in health.checks if check.verdict == verdict]:
            say(f"{verdict}: {', '.join(names)}")
    if not health.ok:
        raise click.exceptions.Exit(3 if health.migrated is False else 1)
