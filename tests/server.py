"""The PostgreSQL that the tests run on, and databases on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from pgeverything import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URL_VARIABLE = "PGEVERYTHING_TEST_URL"
REQUIRE_VARIABLE = "PGEVERYTHING_TEST_REQUIRE"
_HOME_VARIABLE = "PGEVERYTHING_TEST_LOCAL_HOME"  # the first process of a test run tells the others
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
_IMAGE = "postgres:18-alpine"

Source = Literal["url", "docker", "local"]


def choose_source() -> Source:
    """Say where the server comes from: the URL, Docker if it answers, the local server.

    Raises:
        ValueError: ``$PGEVERYTHING_TEST_REQUIRE`` asks for what there is not.
    """
    required = os.environ.get(REQUIRE_VARIABLE, "")
    if required not in {"", "docker", "url"}:
        raise ValueError(f"{REQUIRE_VARIABLE}={required!r}: say docker or url, or leave it out")
    if required == "url" and not os.environ.get(URL_VARIABLE):
        raise ValueError(f"{REQUIRE_VARIABLE}=url, but {URL_VARIABLE} is not set")
    if required == "docker":
        if not docker_answers():
            raise ValueError(f"{REQUIRE_VARIABLE}=docker, but no Docker daemon answers")
        return "docker"
    if os.environ.get(URL_VARIABLE):
        return "url"
    return "docker" if docker_answers() else "local"


@contextmanager
def running_server(source: Source, tell: Callable[[str], None]) -> Iterator[str]:
    """Yield the URL of a server, ``postgresql://``, as a role that may create databases.

    Each process of a parallel test run has a local one of its own, so that nobody else's open transactions are in the
    way of what is tested; ``remove_local_servers()`` ends them.

    Args:
        source: where to take it from.
        tell: shows a line to the person who runs the tests.
    """
    with contextlib.ExitStack() as stack:
        if source == "url":
            yield _plain(os.environ[URL_VARIABLE])
            return
        if source == "docker":
            try:
                url = stack.enter_context(_container())
            except Exception as error:
                # Docker is there and the image is not, as on a train. The client has many errors for that.
                if os.environ.get(REQUIRE_VARIABLE) == "docker":
                    raise
                tell(f"Docker answers but has no server ({error}); the tests use a local one")
            else:
                yield url
                return
        yield local.ensure(Path(os.environ[_HOME_VARIABLE], _WORKER), durable=False).url


def docker_answers() -> bool:
    """Whether a Docker daemon answers within two seconds.

    Asked by hand: the Docker client leaves its socket open when nobody answers, and pytest fails for that.
    """
    address = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    with contextlib.ExitStack() as stack:
        try:
            if address.scheme == "unix":
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(2)
                connection.connect(address.path)
            else:
                where = (address.hostname or "localhost", address.port or 2375)
                connection = stack.enter_context(socket.create_connection(where, timeout=2))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/")
        except OSError:
            return False


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    server = PostgresContainer(_IMAGE, username="postgres", password="postgres", dbname="postgres", driver=None)
    server.with_command("postgres -c fsync=off -c max_connections=200")
    with server:
        yield _plain(server.get_connection_url())


def name_local_servers() -> bool:
    """Choose the directory of this test run's local servers.

    Returns:
        Whether this process chose, and so has to end the servers; False in the workers of a parallel run.
    """
    if _HOME_VARIABLE in os.environ:
        return False
    # Not pytest's own directory: as root the server's account could not enter it.
    home = Path(tempfile.gettempdir()).resolve() / f"pgeverything-test-{os.getpid()}-{secrets.token_hex(4)}"
    os.environ[_HOME_VARIABLE] = str(home)
    return True


def remove_local_servers() -> None:
    """Stop this test run's local servers, as many as were started, and delete them."""
    home = Path(os.environ.pop(_HOME_VARIABLE))
    for each in home.glob("*"):
        local.stop(each)
    shutil.rmtree(home, ignore_errors=True)


def create_database(server_url: str, template: str | None = None) -> str:
    """Create a database with a name of its own and return its URL.

    Args:
        server_url: any database of the server.
        template: the name of the database to copy, to which nobody may be connected; None for an empty one.
    """
    name = f"pgeverything_test_{secrets.token_hex(8)}"
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    _execute(server_url, statement)
    return _render(server_url, name)


def drop_database(url: str) -> None:
    """Drop the database that `url` names, and disconnect whoever still uses it."""
    name = database_name(url)
    if not name.startswith("pgeverything_test_"):
        raise ValueError(f"{name} was not created by create_database(); it stays")
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    _execute(_render(url, "postgres"), statement)


def database_name(url: str) -> str:
    """Return the name of the database that `url` names."""
    return make_url(url).database or ""


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _plain(url: str) -> str:
    """Take the driver out of a URL: ``postgresql+psycopg://`` is for SQLAlchemy only."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _render(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
