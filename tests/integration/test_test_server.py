"""The test suite's own server: what every other test relies on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from tests import server
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]


def exists(server_url: str, name: str) -> bool:
    with psycopg.connect(server_url) as connection:
        row = connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone()
        return row is not None


def test_new_databases_are_different_and_empty(new_database: Callable[[], str]) -> None:
    first, second = new_database(), new_database()

    assert server.database_name(first) != server.database_name(second)
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE here ()")
    with psycopg.connect(second) as connection:
        assert connection.execute("SELECT to_regclass('here')").fetchone() == (None,)


def test_a_url_keeps_everything_but_the_database(server_url: str, new_database: Callable[[], str]) -> None:
    before, after = conninfo_to_dict(server_url), conninfo_to_dict(new_database())

    assert {**before, "dbname": None} == {**after, "dbname": None}
    assert make_url(server_url).drivername == "postgresql"


def test_a_template_is_copied_and_a_database_in_use_is_dropped(server_url: str) -> None:
    template = server.create_database(server_url)
    with psycopg.connect(template) as connection:
        connection.execute("CREATE TABLE copied AS SELECT 42 AS answer")
    copy = server.create_database(server_url, template=server.database_name(template))
    with psycopg.connect(copy) as connection:
        assert connection.execute("SELECT answer FROM copied").fetchone() == (42,)
        server.drop_database(copy)
        server.drop_database(template)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")

    assert not exists(server_url, server.database_name(copy))
    assert not exists(server_url, server.database_name(template))


def test_only_its_own_databases_are_dropped(server_url: str) -> None:
    with pytest.raises(ValueError, match="was not created"):
        server.drop_database(server_url)


def test_there_is_room_for_many_connections(server_url: str) -> None:
    with psycopg.connect(server_url) as connection:
        row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
    assert row is not None
    assert row[0] >= (100 if os.environ.get(server.URL_VARIABLE) else 200)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PGEVERYTHING_TEST_REQUIRE": "url"}, "PGEVERYTHING_TEST_URL is not set"),
        (
            {"PGEVERYTHING_TEST_REQUIRE": "docker", "DOCKER_HOST": "unix:///nonexistent"},
            "no Docker daemon answers",
        ),
        ({"PGEVERYTHING_TEST_REQUIRE": "luck"}, "say docker or url"),
    ],
)
def test_what_is_required_and_missing_ends_the_run(environment: dict[str, str], message: str) -> None:
    with pytest_in_a_process(environment, "--collect-only", "-q", "tests/unit") as process:
        _, messages = process.communicate(timeout=PATIENCE)

    assert process.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in messages


def test_an_interrupted_run_leaves_no_server(tmp_path: Path) -> None:
    plugin = tmp_path / "hold_still.py"
    plugin.write_text(
        "import os, pytest, time\n"
        "@pytest.fixture(autouse=True)\n"
        "def hold(server_url):\n"
        "    os.write(2, (os.environ['PGEVERYTHING_TEST_LOCAL_HOME'] + '\\n').encode())\n"
        "    time.sleep(600)\n"
    )
    environment = {"DOCKER_HOST": "unix:///nonexistent", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    arguments = ("-s", "-p", "hold_still", f"{Path(__file__)}::test_only_its_own_databases_are_dropped")
    with pytest_in_a_process(environment, *arguments) as process:
        assert process.stderr is not None
        home = Path(process.stderr.readline().strip())
        assert list(home.glob("*/*/data/postmaster.pid"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert not home.exists()


def pytest_in_a_process(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PGEVERYTHING_TEST_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=REPOSITORY,
        env={**clean, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
