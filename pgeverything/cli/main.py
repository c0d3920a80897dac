"""``pgeverything``: the commands, and what their failures look like from outside."""

from __future__ import annotations

import os
from typing import Any

import click
import psycopg

from .. import __version__
from ..errors import ConfigurationError, InvalidArgument, NotMigrated, PgEverythingError
from .dead import dead
from .demo import demo
from .jobs import jobs
from .local import local
from .migrate import migrate
from .queues import queues
from .status import status
from .worker import worker

_INTERRUPTED = 130  # what a shell reports of a command that SIGINT ended


class Failure(click.ClickException):
    """A failure as a person should see it: one line, and an exit code that a script can tell apart."""

    exit_code = 1

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split()) or type(error).__name__)


class WrongUsage(Failure):
    """What was asked for is refused before anything was done."""

    exit_code = 2


class Unmigrated(Failure):
    """The schema is missing or older than this library."""

    exit_code = 3


class Commands(click.Group):
    """All commands. What the library or the database refuses becomes one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, translating what it raises."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except (PgEverythingError, psycopg.Error) as error:
            if os.environ.get("PGEVERYTHING_DEBUG") == "1":
                raise
            raise _failure(error) from error


def _failure(error: Exception) -> Failure:
    if isinstance(error, InvalidArgument | ConfigurationError):
        return WrongUsage(error)
    if isinstance(error, NotMigrated):
        return Unmigrated(error)
    return Failure(error)


@click.group(
    "pgeverything", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="pgeverything")
def main() -> None:
    """Job queue and dead letters on the Postgres you already run.

    The database is --url, else $PGEVERYTHING_URL, $DATABASE_URL, libpq's PG* variables, else a private local server.

    Exit codes: 0 fine, 1 failed or unhealthy, 2 wrong usage, 3 the schema is not migrated, 130 interrupted.
    PGEVERYTHING_DEBUG=1 shows tracebacks.
    """


for command in (demo, migrate, worker, jobs, queues, dead, status, local):
    main.add_command(command)
