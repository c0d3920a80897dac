"""`pgeverything events`, as a person and as a pipe see it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything
from pgeverything.cli import main


@pytest.fixture(autouse=True)
def environment(url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The database that the environment names is empty."""
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)


def run(*args: str | int, exit_code: int = 0, **more: Any) -> Result:
    result = CliRunner().invoke(main, ["events", *map(str, args)], **more)
    assert result.exit_code == exit_code, result.output
    return result


def lines(*args: str | int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*args, "--json").stdout.splitlines()]


def test_append_and_read(pg: PgEverything) -> None:
    options = ("--type", "placed", "--key", "42", "--header", "trace=a=b", "--idempotency-key", "i")
    position = int(run("append", "orders.eu", '{"total": 990}', *options).stdout)
    assert int(run("append", "orders.eu", '{"total": 1}', *options).stdout) == position
    event = json.loads(run("append", "orders.us", "[1, null]", "--json").stdout)

    first, second = lines("read")
    assert second == event
    assert {name: first[name] for name in ("position", "topic", "key", "version", "type", "data", "headers")} == {
        "position": position,
        "topic": "orders.eu",
        "key": "42",
        "version": 1,
        "type": "placed",
        "data": {"total": 990},
        "headers": {"trace": "a=b"},
    }
    assert [line["position"] for line in lines("read", "*.us")] == [event["position"]]
    shown = run("read", "orders.eu").stdout
    assert [word in shown for word in (str(position), "orders.eu", "placed", "42 v1", '{"total": 990}')] == [True] * 5
    assert int(run("head").stdout) == event["position"]
    assert json.loads(run("head", "--json").stdout) == {"position": event["position"]}


def test_lines_are_appended(pg: PgEverything) -> None:
    text = "".join(f'{{"n": {n}}}\n\n' for n in range(2500))
    result = run("append", "t", "--key", "k", "--json", input=text)

    assert [event.data["n"] for event in pg.events.read()] == list(range(2500))
    assert json.loads(result.stdout) == {"appended": 2500, "last": pg.events.head()}
    assert "2500 events appended" in result.stderr
    assert "0 events" in run("append", "t", input="").stderr


def test_a_bad_line_is_named_and_what_came_before_stays(pg: PgEverything) -> None:
    result = run("append", "t", input="1\n" * 1000 + "2\n{oops\n", exit_code=2)

    assert "line 1002 is not JSON" in result.stderr
    assert "1000 events appended" in result.stderr
    assert len(list(pg.events.read())) == 1000


def test_filters(pg: PgEverything) -> None:
    events = pg.events.append_many("t", range(10), key=["a", "b"] * 5, type=["x"] * 4 + ["y"] * 6)
    middle = events[4].position
    late = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    assert [line["data"] for line in lines("read", "--after", middle, "--limit", 2)] == [5, 6]
    assert [line["data"] for line in lines("read", "--until", middle, "--type", "y")] == [4]
    assert [line["data"] for line in lines("read", "t", "--key", "a", "--type", "x")] == [0, 2]
    assert lines("read", "--after", late) == []
    assert len(lines("read", "--until", late, "--after", "2020-01-01")) == 10


def test_tail_follows(pg: PgEverything) -> None:
    events = pg.events.append_many("t", range(5))
    pg.events.append("other", 5)
    pg.events.append("t", 6)

    assert [line["data"] for line in lines("tail", "t", "--after", events[2].position, "--limit", 3)] == [3, 4, 6]
    since = (events[0].recorded_at - timedelta(seconds=1)).isoformat()
    assert [line["data"] for line in lines("tail", "--after", since, "--limit", 7)] == [0, 1, 2, 3, 4, 5, 6]


def test_stalled(pg: PgEverything) -> None:
    assert json.loads(run("stalled", "--json").stdout) == []
    with pg.transaction() as tx:
        event = tx.events.append("t", 1)
        tx.connection.execute("set local application_name = 'forgetful'")
        [publisher] = json.loads(run("stalled", "--json").stdout)
        assert (publisher["position"], publisher["application"]) == (event.position - 1, "forgetful")
        assert "forgetful" in run("stalled", "--older-than", "0s", exit_code=1).stdout


def test_drop_and_retain(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    assert json.loads(run("drop", "--before", 1, "--json").stdout) == {"dropped": None}
    pg.events.append("t", 1)
    db.execute("select setval('pgeverything.event_seq', 5000000)")
    pg.events.append("t", 2)
    assert "up to position 4999999" in run("drop", "--before", datetime.now(UTC).isoformat()).stderr
    assert [line["data"] for line in lines("read")] == [2]
    for keep, stored in (("90d", timedelta(days=90)), ("forever", None)):
        run("retain", keep)
        assert db.execute("select keep from pgeverything.event_retention").fetchone() == (stored,)


@pytest.mark.parametrize(
    "command",
    [
        ["append", "a.*", "1"],
        ["append", "t", "{"],
        ["append", "t", "1", "--header", "novalue"],
        ["append", "t", "1", "--expected-version", "0"],
        ["append", "t", "--idempotency-key", "i"],
        ["append", "t", "--expected-version", "1", "--key", "k"],
        ["read", "a..b"],
        ["read", "--after", "yesterday"],
        ["read", "--limit", "0"],
        ["drop"],
        ["drop", "--before", "x"],
        ["retain", "a while"],
        ["stalled", "--older-than", "x"],
    ],
)
def test_wrong_usage_exits_2(command: list[str]) -> None:
    result = run(*command, exit_code=2)

    assert (result.stdout, "Error: " in result.stderr) == ("", True)


def test_a_wrong_version_is_one_line(pg: PgEverything) -> None:
    result = run("append", "t", "1", "--key", "k", "--expected-version", 3, exit_code=1)

    assert "is at version 0, not 3" in result.stderr
    assert result.stdout == ""
