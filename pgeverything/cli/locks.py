"""``pgeverything locks`` and ``pgeverything lock``: who holds what, and a command under a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..app import Bound, PgEverything
from ..errors import LockNotAcquired
from .options import connected, json_option, on_database, schema_option, url_option
from .output import counted, emit_json, emit_table, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..locks import Lock

_NOT_OBTAINED = 4


@click.group()
def locks() -> None:
    """See who holds which lock and break it."""


@locks.command("list")
@click.argument("prefix", default="")
@click.option("--limit", type=int, default=100, show_default=True, help="At most so many leases.")
@json_option
@on_database
def list_(pg: Bound, *, prefix: str, limit: int, as_json: bool) -> None:
    """List the locks that are held, whose names begin with PREFIX."""
    found = pg.locks.list(prefix, limit=limit)
    if as_json:
        emit_json(found)
    else:
        _print(found)


@locks.command()
@click.argument("name")
@json_option
@on_database
def show(pg: Bound, *, name: str, as_json: bool) -> None:
    """Show who holds a lock."""
    found = pg.locks.get(name)
    if as_json:
        emit_json(found)
    elif found is None:
        say(f"nobody holds {name!r}")
    else:
        _print([found])


def _print(found: Iterable[Lock]) -> None:
    emit_table(
        ("name", "holder", "since", "expires", "token", "kind", "waiting", "note"),
        (
            (
                lock.name,
                "released, kept by min_hold" if holder.released else holder.owner,
                holder.acquired_at,
                holder.expires_at,
                str(holder.token),
                "shared" if holder.shared else f"1 of {holder.slots}" if holder.slots > 1 else "alone",
                lock.waiting,
                holder.note,
            )
            for lock in found
            for holder in lock.holders
        ),
    )


@locks.command("break")
@click.argument("name")
@url_option
@schema_option
def break_(name: str, *, url: str | None, schema: str) -> None:
    """Take a lock from its holders.

    Their guarded transactions fail from now on. What they do outside of this database goes on until they notice.
    """
    with connected(url, schema):
        pass  # says at once what is wrong
    with PgEverything(url, schema=schema) as pg:
        broken = pg.locks.break_lock(name)
    say(f"took {name!r} from {counted(broken, 'holder')}" if broken else f"nobody holds {name!r}")


@click.command(short_help="Run a command under a lock.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--ttl", metavar="DURATION", default="30s", show_default=True, help="When others get it if we vanish.")
@click.option("--wait", metavar="DURATION", help="How long to wait for it.  [default: not at all]")
@click.option("--slots", type=int, default=1, show_default=True, help="How many may have it at once.")
@click.option("--shared", is_flag=True, help="Together with others that say so.")
@click.option("--fair", is_flag=True, help="Strictly in the order of arrival.")
@click.option("--min-hold", metavar="DURATION", help="Nobody else gets it sooner than this after we did.")
@click.option("--note", help="A few words for `locks list`.")
@click.option("--grace", metavar="DURATION", default="10s", show_default=True, help="From SIGTERM to SIGKILL.")
@url_option
@schema_option
def lock(name: str, command: tuple[str, ...], *, url: str | None, schema: str, grace: str, **options: Any) -> None:
    """Run COMMAND while holding the lock NAME, and exit with its exit code.

    The lease is renewed until the command has ended. Signals are passed on to it. When the lease is lost, it is
    stopped: SIGTERM, and after --grace SIGKILL; not started from a terminal, it is stopped with all of its children.
    It finds its fencing token in $PGEVERYTHING_LOCK_TOKEN.

    Exit codes: those of COMMAND, 128 + N when signal N ended it, 1 at least when the lease was lost, 4 when the lock
    was not obtained, 126 and 127 when COMMAND cannot be run or is not there.
    """
    from ..durations import seconds  # noqa: PLC0415
    from .under_lock import Running, interruptible  # noqa: PLC0415 - no other command needs it

    running = Running(command, seconds(grace, "grace"))
    with connected(url, schema):
        pass  # says at once what is wrong
    with PgEverything(url, schema=schema) as pg:
        hold = pg.locks.hold(name, **options, renew=True, on_lost=running.lost)
        try:
            with interruptible():
                lease = hold.__enter__()
        except LockNotAcquired as error:
            say(str(error))
            raise click.exceptions.Exit(_NOT_OBTAINED) from None
        try:
            code = running.run(lease)
        finally:
            hold.__exit__(None, None, None)
    raise click.exceptions.Exit(code)
