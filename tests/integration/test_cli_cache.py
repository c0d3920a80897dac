"""``pgeverything cache``: entries from the command line, and what the cache is worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything
from pgeverything.cli import main
from tests.waiting import PATIENCE


@pytest.fixture(autouse=True)
def named(url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a migrated database whose cache is empty."""
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)


def run(*args: str, stdin: str | bytes = "", exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["cache", *args], input=stdin)
    assert result.exit_code == exit_code, result.output
    return result


@pytest.mark.parametrize("value", [None, False, 0, "", "text", 'quotes " and \\', "naïve 漢字", [1, {"a": None}]])
def test_what_is_set_is_got(pg: PgEverything, value: Any) -> None:
    for arguments, stdin in (([json.dumps(value)], ""), ([], json.dumps(value) + "\n")):
        pg.cache.clear()
        run("set", "k", *arguments, stdin=stdin)
        assert pg.cache.get("k", "nothing") == value
        assert json.loads(run("get", "k").stdout) == value
        assert json.loads(run("get", "k", "--json").stdout) == {"key": "k", "value": value}


def test_a_value_that_a_terminal_would_obey_is_escaped(pg: PgEverything) -> None:
    pg.cache.set("k", "naïve\x9b31m\x1b[31m")
    assert run("get", "k").stdout == '"na\\u00efve\\u009b31m\\u001b[31m"\n'
    pg.cache.set("k", "naïve")
    assert run("get", "k").stdout == '"naïve"\n'


@pytest.mark.parametrize("data", [b"", b"\0\xff\r\n", bytes(range(256)) * 1000])
def test_bytes_are_left_as_they_are(pg: PgEverything, data: bytes) -> None:
    run("set", "k", "--bytes", stdin=data)
    assert pg.cache.get("k") == data
    assert run("get", "k").stdout_bytes == data
    found = json.loads(run("get", "k", "--json").stdout)
    assert found.keys() == {"key", "base64"}


def test_bytes_are_not_written_to_a_terminal(pg: PgEverything) -> None:
    pg.cache.set("k", b"\x1b[31m")
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pgeverything", "cache", "get", "k"],
            check=False,
            stdout=theirs,
            stderr=-1,
            timeout=PATIENCE,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert b"the value is 5 bytes" in done.stderr


def test_what_is_not_there(pg: PgEverything) -> None:
    missing = run("get", "k", exit_code=1)
    assert (missing.stdout, missing.stderr) == ("", "'k' has no value\n")
    assert json.loads(run("get", "k", "--json", exit_code=1).stdout) is None


def test_time_to_live_and_tags(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    run("set", "hour", "1", "--ttl", "1h", "--tag", "a", "--tag", "b")
    run("set", "ever", "1", "--ttl", "forever", "--tag", "b")
    run("set", "default", "1")
    lives = dict(db.execute("select key, expires_at - stored_at from pgeverything.cache where expires_at < 'infinity'"))
    assert {key: round(left.total_seconds()) for key, left in lives.items()} == {"hour": 3600, "default": 300}
    pg.cache.invalidate(tags=["a"])
    assert pg.cache.get_many(["hour", "ever"]) == {"ever": 1}
    run("invalidate", "default", "absent", "--tag", "b", "--tag", "c")
    assert pg.cache.get_many(["hour", "ever", "default"]) == {}


def test_delete_and_clear(pg: PgEverything) -> None:
    pg.cache.set_many(dict.fromkeys("abcde"))
    assert run("delete", "a", "b", "absent").stderr == "2 values deleted\n"
    assert json.loads(run("delete", "a", "c", "--json").stdout) == {"deleted": 1}
    assert json.loads(run("clear", "--json").stdout) == {"deleted": 2}
    assert run("clear").stderr == "0 values deleted\n"


def test_stats(pg: PgEverything) -> None:
    assert "no bound" in run("stats").stdout
    pg.cache.configure(max_entries=1000)
    pg.cache.set_many(dict.fromkeys("abc"))
    pg.cache.get_many(["a", "b", "c", "d"])
    pg.cache.stats()  # this process says what it has counted
    found = json.loads(run("stats", "--json").stdout)
    assert {"entries": 3, "hits": 3, "misses": 1, "max_entries": 1000, "max_bytes": None, "logged": False}.items() <= (
        found.items()
    )
    lines = dict(line.split("  ", 1) for line in run("stats").stdout.splitlines())
    assert {name: text.strip() for name, text in lines.items()}["hits"] == "3 (75.0%)"
    pg.cache.configure(max_entries=None)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["get"], "", "Missing argument 'KEY'"),
        (["get", ""], "", "key='' must be text of 1 to 1024 bytes"),
        (["set", "k" * 1025, "1"], "", "must be text of 1 to 1024 bytes"),
        (["set", "k", "hello"], "", "the argument is not JSON"),
        (["set", "k"], "hello", "standard input is not JSON"),
        (["set", "k"], "", "standard input is not JSON"),
        (["set", "k"], b'"\xff"', "standard input is not JSON"),
        (["set", "k", "NaN"], "", "value"),
        (["set", "k", f'"{"x" * 1_048_576}"'], "", "limit"),
        (["set", "k", "1", "--ttl", "soon"], "", "ttl='soon'"),
        (["set", "k", "1", "--ttl", "0"], "", "ttl='0'"),
        (["set", "k", "1", "--tag", ""], "", "tags=''"),
        (["set", "k", "1", "--bytes"], "", "leave out the JSON"),
        (["set", "k", "--bytes"], b"x" * 1_048_577, "value is 1048577 bytes"),
        (["delete"], "", "Missing argument 'KEY...'"),
        (["invalidate"], "", "say what: keys, --tag, or both"),
        (["invalidate", "--tag", "t" * 1025], "", "must be text of 1 to 1024 bytes"),
    ],
)
def test_wrong_usage(arguments: list[str], stdin: str | bytes, message: str, pg: PgEverything) -> None:
    failed = run(*arguments, stdin=stdin, exit_code=2)
    assert message in " ".join(failed.stderr.split())
    assert failed.stdout == ""
    assert pg.cache.get("k", "nothing") == "nothing"
