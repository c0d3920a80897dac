from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from pgeverything.cli.local import local as command


@pytest.fixture(autouse=True)
def _default_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_HOME", str(home))


def test_before_the_first_start(home: Path) -> None:
    result = CliRunner().invoke(command, ["status"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pgeverything local start" in result.stderr

    result = CliRunner().invoke(command, ["status", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])

    result = CliRunner().invoke(command, ["url"])
    assert (result.exit_code, result.stdout) == (1, "")

    result = CliRunner().invoke(command, ["stop"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert not home.exists()


def test_start_status_url_stop(home: Path) -> None:
    run = CliRunner().invoke
    started = run(command, ["start"])
    assert started.exit_code == 0, started.output
    url = started.stdout.strip()
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")
    assert run(command, ["start"]).stdout.strip() == url
    assert run(command, ["url"]).stdout.strip() == url
    assert json.loads(run(command, ["url", "--json"]).stdout) == {"url": url}

    shown = run(command, ["status"])
    assert shown.exit_code == 0
    assert "running" in shown.stdout
    assert f"{home}/" in shown.stdout
    (state,) = json.loads(run(command, ["status", "--json"]).stdout)
    assert (state["state"], state["url"]) == ("running", url)
    assert (state["version"].split(".")[0], Path(state["data_dir"]).parent.name) == (str(state["major"]),) * 2

    stopped = run(command, ["stop"])
    assert (stopped.exit_code, stopped.stdout) == (0, "")
    assert "has stopped" in stopped.stderr
    result = run(command, ["status", "--json"])
    (state,) = json.loads(result.stdout)
    assert (result.exit_code, state["state"], state["pid"], state["url"]) == (1, "stopped", None, None)


@pytest.mark.parametrize("name", ["start", "stop", "status", "url"])
def test_failures_are_one_message(home: Path, name: str) -> None:
    home.write_text("")
    result = CliRunner().invoke(command, [name])
    home.unlink()

    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not a directory" in result.stderr
    assert "Traceback" not in result.stderr
