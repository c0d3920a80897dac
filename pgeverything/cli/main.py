"""``pgeverything``: the commands, and what their failures look like from outside."""

from __future__ import annotations

import errno
import os
from typing import Any

import click
import psycopg

from .. import __version__
from ..errors import ConfigurationError, InvalidArgument, NotMigrated, PgEverythingError
from .audit import audit, trace
from .cache import cache
from .cron import cron
from .dead import dead
from .demo import demo
from .doctor import doctor
from .events import events
from .jobs import jobs
from .local import local
from .locks import lock, locks
from .migrate import migrate
from .queues import queues
from .status import status
from .topics import topics
from .worker import worker

_INTERRUPTED = 130  # what a shell reports of a command that SIGINT ended


class Failure(click.ClickException):
    """A failure as a person should see it: one line, and an exit code that a script can tell apart."""

    exit_code = 1

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(_words(error).split()) or type(error).__name__)


def _words(error: Exception) -> str:
    """Return what an error says, without the statements and functions in which Postgres met it."""
    if not isinstance(error, psycopg.Error) or not error.diag.message_primary:
        return str(error)
    said = [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint]
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        said.append("have the schema's owner grant this role what it needs (docs/how-to/roles.md)")
    return ": ".join(filter(None, said))


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
        except OSError as error:
            if error.errno == errno.EPIPE or os.environ.get("PGEVERYTHING_DEBUG") == "1":
                raise  # click ends in silence when nobody reads any more
            raise Failure(error) from error


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
    """Jobs, events, pub/sub, locks, cache, cron, audit trail and dead letters on the Postgres you already run.

    The database is --url, else $PGEVERYTHING_URL, $DATABASE_URL, libpq's PG* variables, else a private local server.

    Exit codes: 0 fine, 1 failed or unhealthy, 2 wrong usage, 3 the schema is not migrated, 4 the lock was
    not obtained, 130 interrupted.
    PGEVERYTHING_DEBUG=1 shows tracebacks.
    """


for command in (
    demo, migrate, worker, jobs, queues, dead, events, topics, locks, lock, cache, cron, audit, trace, status, doctor,
    local,
):  # fmt: skip
    main.add_command(command)
