"""`pgeverything topics`, as a person and as a pipe see it."""

from __future__ import annotations

import json
import subprocess
import sys
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


def run(*args: str | int, exit_code: int = 0, group: str = "topics", **more: Any) -> Result:
    result = CliRunner().invoke(main, [group, *map(str, args)], **more)
    assert result.exit_code == exit_code, result.output
    return result


def messages(*args: str | int) -> list[dict[str, Any]]:
    output = run("subscribe", *args, "--json", "--timeout", "300ms").stdout
    return [json.loads(line) for line in output.splitlines()]


def test_publish_and_list(pg: PgEverything) -> None:
    position = int(run("publish", "orders.eu", '{"n": 1}', "--type", "placed", "--key", "k", "--header", "a=b").stdout)
    event = json.loads(run("publish", "orders.us", "2", "--json").stdout)
    assert json.loads(run("publish", "t", "--json", input="1\n\n2\n").stdout)["published"] == 2

    first, second, *_ = pg.events.read()
    assert (first.position, first.type, first.key, first.headers) == (position, "placed", "k", {"a": "b"})
    assert second.position == event["position"]
    listed = json.loads(run("list", "orders.*", "--json").stdout)
    assert [(topic["name"], topic["events"]) for topic in listed] == [("orders.eu", 1), ("orders.us", 1)]
    assert "orders.eu" in run("list").stdout


def test_a_durable_subscription_goes_on_where_it_was(pg: PgEverything) -> None:
    pg.events.append_many("t", range(5), key="k")
    first = messages("t", "--name", "s", "--start", "earliest", "--limit", 2)
    rest = messages("t", "--name", "s")

    assert [message["data"] for message in first] == [0, 1]
    assert [message["data"] for message in rest] == [2, 3, 4]
    assert set(first[0]) == {
        "position", "topic", "key", "version", "type", "data", "headers", "recorded_at", "delivery",
    }  # fmt: skip
    assert first[0]["delivery"] == 1
    assert run("subscribe", "t", "--name", "s", "--timeout", "0s").stdout == ""


def test_a_broadcast_prints_what_comes(pg: PgEverything) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pgeverything", "topics", "subscribe", "orders.>", "--limit", "1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:  # until it has begun, and sees one
            pg.pubsub.publish("orders.eu", "hello")
        assert process.stdout is not None
        assert "hello" in process.stdout.read()
    assert process.returncode == 0


def test_lag_pause_resume_seek_delete(pg: PgEverything) -> None:
    pg.pubsub.subscribe("t", name="s").close()
    pg.events.append_many("t", range(3))
    [found] = json.loads(run("lag", "--json").stdout)
    assert (found["name"], found["lag"]["events"], found["pattern"]) == ("s", 3, "t")
    assert "active" in run("lag", "s").stdout
    run("lag", "--older-than", "0s", exit_code=1)
    run("lag", "--older-than", "1h")

    run("pause", "s")
    assert "paused" in run("lag", "s").stdout
    assert messages("t", "--name", "s") == []
    run("resume", "s")
    assert len(messages("t", "--name", "s")) == 3

    assert json.loads(run("seek", "s", "earliest", "--json").stdout) == {"name": "s", "position": 0}
    assert len(messages("t", "--name", "s")) == 3
    run("seek", "s", "latest")
    assert messages("t", "--name", "s") == []
    run("seek", "s", "2020-01-01")
    assert len(messages("t", "--name", "s")) == 3

    assert "deleted" in run("delete", "s").stderr
    run("delete", "s", exit_code=1)
    for command in (("lag", "s"), ("pause", "s"), ("resume", "s"), ("seek", "s", 0)):
        assert "no subscription" in run(*command, exit_code=1).output
    run("seek", "s", "someday", exit_code=2)


def test_a_subscription_that_stands_still_is_unhealthy(pg: PgEverything) -> None:
    pg.pubsub.publish("t", 1)
    with pg.pubsub.subscribe("t", name="s", start="earliest", max_deliveries=1, on_dead="stop") as subscriber:
        next(subscriber).nack()
    assert "stopped: event" in run("lag", exit_code=1).stdout
    [letter] = json.loads(run("list", "--subscription", "s", "--json", group="dead").stdout)
    assert (letter["subscription"], letter["event"]["data"]) == ("s", 1)
    assert "s" in run("list", group="dead").stdout
    assert "failed at delivery 1" in run("show", letter["id"], group="dead").stdout
    assert json.loads(run("show", letter["id"], "--json", group="dead").stdout)["id"] == letter["id"]
    assert json.loads(run("groups", "--subscription", "s", "--json", group="dead").stdout)[0]["count"] == 1
    assert "s" in run("groups", group="dead").stdout
    assert json.loads(run("redrive", "--subscription", "s", "--json", group="dead").stdout)["redriven"] == 1
    run("resume", "s")
    assert [message["data"] for message in messages("t", "--name", "s")] == [1]
