"""``pgeverything local``: the private local server from the command line."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ..errors import LocalServerError
from ..local import LocalStatus, ensure
from ..local import status as status_of_servers
from ..local import stop as stop_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group()
def local() -> None:
    """Run a private PostgreSQL server on this machine.

    It keeps its data under $PGEVERYTHING_HOME or your data directory, and listens on a Unix socket that only
    you can reach.
    """


@local.command()
def start() -> None:
    """Start the server, and create it the first time; print its URL."""
    with _failures_reported():
        server = ensure()
    click.echo(f"PostgreSQL {server.version} runs as process {server.pid} in {server.data_dir}", err=True)
    click.echo(server.url)


@local.command()
def stop() -> None:
    """Stop the server. Its data stays."""
    with _failures_reported():
        stopped = stop_servers()
    for major in stopped:
        click.echo(f"PostgreSQL {major} has stopped", err=True)
    if not stopped:
        click.echo("the local server is not running", err=True)


@local.command()
@_json
def status(*, as_json: bool) -> None:
    """Show the servers that have data. Exit code 1 if none is running."""
    with _failures_reported():
        servers = status_of_servers()
    if as_json:
        click.echo(json.dumps([_as_json(server) for server in servers], indent=2))
    elif servers:
        _print_table(servers)
    else:
        click.echo("there is no local server yet; `pgeverything local start` makes one", err=True)
    if not any(server.state == "running" for server in servers):
        raise click.exceptions.Exit(1)


@local.command()
@_json
def url(*, as_json: bool) -> None:
    """Print the URL of the running server. Exit code 1 if none is running."""
    with _failures_reported():
        running = next((status.server for status in status_of_servers() if status.server), None)
    if running is None:
        raise click.ClickException("the local server is not running; `pgeverything local start` starts it")
    click.echo(json.dumps({"url": running.url}) if as_json else running.url)


@contextmanager
def _failures_reported() -> Iterator[None]:
    try:
        yield
    except LocalServerError as error:
        raise click.ClickException(str(error)) from error


def _as_json(status: LocalStatus) -> dict[str, str | int | None]:
    server = status.server
    return {
        "state": status.state,
        "major": status.major,
        "version": server.version if server else None,
        "pid": server.pid if server else None,
        "url": server.url if server else None,
        "data_dir": str(status.data_dir),
        "log_file": str(status.log_file),
    }


def _print_table(servers: list[LocalStatus]) -> None:
    table = Table(box=None)
    for heading in ("version", "state", "pid", "data", "log"):
        table.add_column(heading, overflow="fold")  # half a path is of no use
    for status in servers:
        server = status.server
        table.add_row(
            server.version if server else str(status.major),
            status.state,
            str(server.pid) if server else "",
            str(status.data_dir),
            str(status.log_file),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a line per server for `grep`
    console.print(table)
