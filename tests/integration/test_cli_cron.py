"""`pgeverything cron`, as a person and as a script see it."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything
from pgeverything.cli import main

Database = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _environment(url: str, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)


def run(*args: str | int) -> Result:
    return CliRunner().invoke(main, ["cron", *map(str, args)])


def run_json(*args: str | int) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def done(*args: str | int) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return result.stderr.strip()


def test_the_life_of_a_schedule(pg: PgEverything) -> None:
    said = done("add", "digest", "send_digest", "--cron", "0 7 * * MON-FRI", "--timezone", "Europe/Berlin",
                "--args", '{"to": "ops"}', "--misfire", "all", "--jitter", "5m")  # fmt: skip
    said, words = said.splitlines()
    assert words == "at 07:00 on Mon to Fri"
    assert said.startswith("schedule 'digest' ticks next at ")
    assert said.endswith(("07:00:00 CET", "07:00:00 CEST"))
    done("add", "often", "poll", "--every", "10m", "--queue", "fast", "--remaining", 3)

    table = run("list").stdout
    assert "0 7 * * MON-FRI" in table
    assert "every 600 s" in table
    listed = run_json("list")
    assert [(each["name"], each["task"], each["args"]) for each in listed] == [
        ("digest", "send_digest", {"to": "ops"}),
        ("often", "poll", {}),
    ]
    assert [each["name"] for each in run_json("list", "--task", "poll")] == ["often"]

    shown = run("show", "digest").stdout
    assert "0 7 * * MON-FRI, which is at 07:00 on Mon to Fri" in shown
    assert "jitter" in shown
    assert "300 s" in shown
    assert run_json("show", "often")["remaining"] == 3

    assert done("pause", "often") == "schedule 'often' is paused"
    assert run_json("list", "--state", "paused")[0]["name"] == "often"
    assert done("resume", "often").startswith("schedule 'often' ticks next at")

    assert "is ready" in done("run", "often")
    job = run_json("run", "often")
    assert (job["task"], job["queue"]) == ("poll", "fast")
    history = run_json("history", "often")
    assert [row["outcome"] for row in history if row["outcome"] != "paused"] == ["manual", "manual"]
    assert str(job["id"]) in run("history", "often").stdout
    assert "manual" in run("show", "often").stdout

    assert done("remove", "often") == "schedule 'often' is removed"
    again = run("remove", "often")
    assert (again.exit_code, "there is no schedule 'often'" in again.stderr) == (1, True)


def test_run_says_when_the_last_job_is_still_there() -> None:
    done("add", "alone", "t", "--every", "1h", "--overlap", "skip")
    done("run", "alone")
    assert "has not ended, and schedule 'alone' says overlap=skip" in done("run", "alone")


def test_a_single_time() -> None:
    assert "2030-01-31 08:00:00 UTC" in done("add", "once", "t", "--at", "2030-01-31T09:00+01:00")
    assert "once" in run("list").stdout


def test_times_are_shown_on_the_clock_of_the_schedule(pg: PgEverything, db: Database) -> None:
    """In autumn a clock shows one hour twice."""
    done("add", "night", "t", "--cron", "30 2 * * *", "--timezone", "Europe/Paris")
    columns = "schedule, tick, outcome, job, at"
    for at, job in (("2026-10-25 00:30+00", 1), ("2026-10-25 01:30+00", 2)):
        row = ["night", at, "ran", job, at]
        db.execute(f"insert into pgeverything.ticks ({columns}) values (%s, %s, %s, %s, %s)".encode(), row)
    db.execute("update pgeverything.schedules set next_tick = s.at, next_run_at = s.at"
               " from (values (timestamptz '2027-07-01 00:30+00')) s(at)")  # fmt: skip

    assert "2027-07-01 02:30:00 CEST" in run("list").stdout
    shown = run("show", "night").stdout
    assert "next_tick    2027-07-01 02:30:00 CEST" in shown
    assert "2026-10-25 02:30:00 CEST" in shown
    assert "2026-10-25 02:30:00 CET " in run("history", "night").stdout
    done("remove", "night")
    assert "2026-10-25 01:30:00 UTC" in run("history", "night").stdout


def test_what_this_machine_cannot_read_is_shown_all_the_same(db: Database) -> None:
    done("add", "strange", "t", "--cron", "30 2 * * *")
    db.execute("update pgeverything.schedules set timezone = 'Mars/Olympus', cron = '30 2 * * LATER'")

    assert "Mars/Olympus" in run("list").stdout
    assert "'LATER'" in run("show", "strange").stdout


def test_history_of_what_was_never_there() -> None:
    result = run("history", "nothing")
    assert (result.exit_code, result.stderr) == (0, "nothing is recorded of a schedule 'nothing'\n")


def test_preview_needs_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    arguments = ["30 2 * * *", "--timezone", "Europe/Paris", "--start", "2026-10-24T00:00+00:00", "--count", 3]
    result = run("preview", *arguments)
    assert result.stderr.strip() == "at 02:30 every day"
    assert result.stdout.splitlines() == [
        "Sat 2026-10-24 02:30:00 CEST",
        "Sun 2026-10-25 02:30:00 CEST",
        "Mon 2026-10-26 02:30:00 CET",
    ]
    assert run_json("preview", *arguments)[2] == "2026-10-26T02:30:00+01:00"
    assert len(run_json("preview", "*/5 * * * * *", "--seconds")) == 5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["preview", "0 0 30 2 *"], "there is no such date"),
        (["preview", "* * * * * *"], "six fields need seconds=True"),
        (["preview", "@daily", "--start", "tomorrow"], "--start 'tomorrow' must be a time with its offset"),
        (["add", "a", "t"], "say when: one of cron=, every= and at="),
        (["add", "a", "t", "--every", "1h", "--args", "[1]"], "must be a JSON object"),
        (["add", "a", "t", "--at", "2030-01-31T09:00"], "--at '2030-01-31T09:00' must be a time with its offset"),
        (["add", "a", "t", "--every", "1h", "--overlap", "no"], "Invalid value for '--overlap'"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], why: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr


def test_what_is_not_there_exits_1() -> None:
    for command in ("show", "pause", "resume", "run"):
        result = run(command, "nothing")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "there is no schedule 'nothing'" in result.stderr


def test_status_names_what_is_wrong_with_schedules(pg: PgEverything, db: Database) -> None:
    def status() -> Result:
        return CliRunner().invoke(main, ["status"])

    for name in ("late", "gone"):
        pg.scheduler.add(name, "t", every="1h")
    assert status().exit_code == 0
    db.execute("update pgeverything.schedules set next_run_at = now() - interval '90 s' where name = 'late'")
    db.execute(
        "update pgeverything.schedules set disabled = true, origin = 'shop', next_run_at = null where name = 'gone'"
    )
    result = status()
    assert result.exit_code == 1
    assert "problem: schedule 'late' is 90 s overdue, " in result.stderr
    assert "schedule 'gone' is disabled, because the code of shop no longer defines it: start a worker" in result.stderr
    pg.scheduler.remove("late")
    result = status()
    assert result.exit_code == 0
    assert "warning: schedule 'gone' is disabled" in result.stderr
