"""``pgeverything worker``: run jobs, in this process or in several that are looked after."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import click

from ..app import AsyncPgEverything, PgEverything
from .output import say
from .supervisor import Supervisor

_LEVELS = ["debug", "info", "warning", "error"]


@click.command()
@click.argument("app", metavar="APP")
@click.option("--queues", metavar="A,B", help="The queues to serve.  [default: those that the tasks name]")
@click.option("--concurrency", type=int, default=10, show_default=True, help="Handlers at once in each process.")
@click.option("--processes", type=click.IntRange(1, 1000), default=1, show_default=True, help="Processes to run.")
@click.option("--until-idle", is_flag=True, help="End when nothing is left to do; for scripts and tests.")
@click.option("--no-listen", is_flag=True, help="Poll instead of LISTEN: behind a transaction pooler.")
@click.option("--poll", metavar="DURATION", help="The longest sleep of an idle worker.")
@click.option("--drain", metavar="DURATION", default="30s", show_default=True, help="How long handlers may go on.")
@click.option("--retention", metavar="DURATION", default="7d", show_default=True, help="How long ended jobs stay.")
@click.option("--lease", metavar="DURATION", default="30s", show_default=True, help="How soon a killed worker is one.")
@click.option("--name", help="What lists call it; with several processes NAME-1, NAME-2, ...  [default: host:pid]")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True)
@click.option("--supervised", type=int, hidden=True, help="The socket to the process that started this one.")
def worker(
    app: str,
    *,
    queues: str | None,
    processes: int,
    until_idle: bool,
    no_listen: bool,
    name: str | None,
    log_level: str,
    supervised: int | None,
    **options: Any,
) -> None:
    """Run the jobs, messages and schedules of APP.

    APP is `module:attribute` of a PgEverything or an AsyncPgEverything, as in shop.tasks:pg.

    The module is looked for in the current directory too. The database is the one that APP itself names.

    SIGTERM and SIGINT drain: nothing more is claimed, running handlers end, the rest goes back untouched. A second
    signal stops at once. With --processes, crashed processes are started again after a growing pause.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parent = None if supervised is None else socket.socket(fileno=supervised)
    if processes > 1:
        given = {**options, "queues": queues, "log_level": log_level}
        flags = [f"--{option.replace('_', '-')}={value}" for option, value in given.items() if value is not None]
        flags += [flag for flag, on in (("--until-idle", until_idle), ("--no-listen", no_listen)) if on]

        def command(number: int) -> list[str]:
            named = [] if name is None else [f"--name={name}-{number}"]
            return [sys.executable, "-m", "pgeverything", "worker", app, *flags, *named]

        code = Supervisor(command, processes, restart=not until_idle, parent=parent).run()
        raise click.exceptions.Exit(code)
    application = load(app)
    if not list(application.tasks):
        say(f"{app} has no tasks: import the modules that define them where it is made")
    chosen = None if queues is None else [each.strip() for each in queues.split(",")]
    running = application.worker(queues=chosen, listen=not no_listen, name=name, **options)
    running.run(until_idle, _report_to(parent) if parent is not None else None)


def load(app: str) -> PgEverything | AsyncPgEverything:
    """Import `module:attribute`.

    Raises:
        click.UsageError: there is no such thing, or it is something else.
    """
    module_name, separator, path = app.partition(":")
    if not separator or not module_name or not path:
        raise click.UsageError(f"{app!r} must be module:attribute, as in shop.tasks:pg")
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, error) from error
        raise click.UsageError(f"there is no module {error.name!r} in {os.getcwd()} or installed") from error  # noqa: PTH109
    except Exception as error:
        raise _import_failed(module_name, error) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise click.UsageError(f"module {module_name!r} has no {path!r}") from error
    if not isinstance(found, PgEverything | AsyncPgEverything):
        raise click.UsageError(f"{app} is a {type(found).__name__}, not a PgEverything or AsyncPgEverything")
    return found


def _import_failed(module: str, error: Exception) -> click.ClickException:
    """The traceback is of the user's own code, and the only thing that helps."""
    traceback.print_exception(error)
    return click.ClickException(f"cannot import {module!r}: {type(error).__name__}: {error}")


def _report_to(parent: socket.socket) -> Callable[[], None]:
    """Drain when the parent is gone, however it went; return what tells it that this worker takes jobs."""
    parent.set_inheritable(False)

    def watch() -> None:
        parent.recv(1)  # it never sends anything, so this ends when it does
        os.kill(os.getpid(), signal.SIGTERM)

    def ready() -> None:
        threading.Thread(target=watch, name="parent", daemon=True).start()
        with contextlib.suppress(OSError):  # it has ended already
            parent.send(b"r")

    return ready
