"""What many commands share: where the database is, and whether a program reads the output."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..app import Bound
from ..engine.carriers import PsycopgCarrier
from ..engine.modules import database
from ..engine.plan import drive
from ..schema.migrate import verify

R = TypeVar("R")

_CONNECT_SECONDS = 10  # a person waits for the answer; psycopg's own limit is 130 s

url_option = click.option(
    "--url", metavar="URL", help="The database: postgresql://user@host/name. Default: the environment's."
)
schema_option = click.option(
    "--schema",
    metavar="NAME",
    envvar="PGEVERYTHING_SCHEMA",
    default="pgeverything",
    show_default=True,
    help="The schema that holds our tables; also $PGEVERYTHING_SCHEMA.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document for programs; a list is an array."
)


def instant(text: str | None, option: str) -> datetime | None:
    """Return the time that an option says.

    Args:
        text: ISO 8601 with its offset: jobs start by it, perhaps on machines in other time zones.
        option: the parameter's name, for the error message.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        flag = option.replace("_", "-")
        raise click.UsageError(f"--{flag} {text!r} must be a time with its offset, as in 2030-01-31T09:00+01:00")
    return found


@contextmanager
def connected(url: str | None, schema: str, *, migrated: bool = True) -> Iterator[Bound]:
    """Open one connection, on which each statement commits by itself, and yield the modules on it.

    Not the pool that a program uses: a pool keeps trying for 30 s what a person wants to know at once.

    Args:
        url: what `--url` says; None looks at the environment.
        schema: our schema.
        migrated: whether to raise unless the schema fits this library.
    """
    conninfo = database(url, schema).conninfo()
    options: dict[str, Any] = {"fallback_application_name": "pgeverything cli"}
    if "connect_timeout" not in conninfo_to_dict(conninfo) and "PGCONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = _CONNECT_SECONDS
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, **options) as connection:
        carrier = PsycopgCarrier(connection, schema)
        if migrated:
            drive(carrier, verify(schema))
        yield Bound(carrier, connection)


def on_database(function: Callable[..., R]) -> Callable[..., R]:
    """Add --url and --schema to a command and hand it the modules on a connection of its own."""

    @url_option
    @schema_option
    @functools.wraps(function)
    def command(*, url: str | None, schema: str, **arguments: Any) -> R:
        with connected(url, schema) as pg:
            return function(pg, **arguments)

    return command
