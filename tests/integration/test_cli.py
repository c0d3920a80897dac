"""The command line, as a person and as a script see it: output, exit codes, filters."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything, Reject, __version__, local
from pgeverything.cli import main
from pgeverything.cli.output import shown

Run = Callable[..., Result]


@pytest.fixture
def url(new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that is not migrated, which the environment names."""
    url = new_database()
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)
    monkeypatch.delenv("PGEVERYTHING_DEBUG", raising=False)
    return url


@pytest.fixture
def migrated(url: str) -> str:
    with PgEverything(url) as pg:
        pg.migrate()
    return url


def run(*args: str | int, **more: Any) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], **more)


def run_json(*args: str | int) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def make_dead(url: str, number: int, *, queue: str = "default", why: str = "why") -> list[int]:
    with PgEverything(url) as pg:

        @pg.task(name="broken", queue=queue)
        def broken(n: int) -> None:
            raise Reject(why)

        ids = broken.enqueue_many([(n,) for n in range(number)])
        pg.worker(listen=False).run(until_idle=True)
        return ids


# Exit codes and failures ------------------------------------------------------------------------------------------


def test_version() -> None:
    assert __version__ in run("--version").stdout


def test_lists_of_commands_are_whole_on_80_columns() -> None:
    def look(command: click.Command, path: tuple[str, ...]) -> None:
        if isinstance(command, click.Group):
            page = CliRunner().invoke(main, [*path, "--help"], terminal_width=80).output
            cut = [line for line in page.partition("Commands:")[2].splitlines() if line.endswith("...")]
            assert not cut, (path, cut)
            for name, inner in command.commands.items():
                look(inner, (*path, name))

    look(main, ())


def test_what_is_not_migrated_says_so_and_exits_3(url: str) -> None:
    for command in (["jobs", "list"], ["queues", "list"], ["dead", "groups"], ["jobs", "enqueue", "x"]):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (3, ""), command
        assert "run `pgeverything migrate`" in result.stderr
    status = run("status")
    assert (status.exit_code, "pgeverything, not there" in status.stdout) == (3, True)
    assert run("migrate", "--status").exit_code == 3


def test_a_server_that_is_not_there_is_one_line(url: str) -> None:
    result = run("jobs", "list", "--url", "postgresql://127.0.0.1:1/nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "127.0.0.1" in result.stderr


def test_a_missing_right_is_one_sentence_and_names_the_page(migrated: str) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("create role reader_of_all in role pg_read_all_data")
    try:
        as_reader = psycopg.conninfo.make_conninfo(migrated, options="-c role=reader_of_all")
        result = run("jobs", "enqueue", "t", "--url", as_reader)
    finally:
        with psycopg.connect(migrated, autocommit=True) as connection:
            connection.execute("drop role reader_of_all")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: permission denied for table jobs: have the schema's owner grant this role what it needs"
        " (docs/how-to/roles.md)\n"
    )


def test_debug_shows_the_exception(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_DEBUG", "1")
    result = run("jobs", "list", "--url", "postgresql://127.0.0.1:1/nowhere")
    assert isinstance(result.exception, psycopg.OperationalError)


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "enqueue", "t", "{"],
        ["jobs", "enqueue", "t", "[1]"],
        ["jobs", "enqueue", "t", "--arg", "novalue"],
        ["jobs", "enqueue", "t", "--delay", "soon"],
        ["jobs", "enqueue", "t", "--run-at", "tomorrow"],
        ["jobs", "enqueue", "t", "--run-at", "2100-01-01T00:00"],
        ["jobs", "enqueue", "t", "--on-duplicate", "raise"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--state", "happy"],
        ["jobs", "list", "--schema", "pg_no"],
        ["jobs", "list", "--url", "mysql://host/db"],
        ["jobs", "list", "--url", "host"],
        ["queues", "configure", "q"],
        ["queues", "configure", "q", "--max-depth", "0"],
        ["queues", "configure", "q", "--concurrency", "many"],
        ["dead", "redrive"],
        ["dead", "discard"],
        ["dead", "redrive", "--everything", "--rate", "-1"],
        ["migrate", "--sql", "--status"],
        ["migrate", "--after", "3"],
    ],
)
def test_wrong_usage_exits_2_without_a_traceback(migrated: str, command: list[str]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Error: " in result.stderr


def test_interrupted_exits_130(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pgeverything.cli.jobs.emit_json", interrupt)
    assert run("jobs", "list", "--json").exit_code == 130


# Migrate ----------------------------------------------------------------------------------------------------------


def test_migrate_and_its_status(url: str) -> None:
    result = run("migrate")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "applied 0001" in result.stderr
    assert "up to date" in run("migrate").stderr
    assert all(entry["applied_at"] for entry in run_json("migrate", "--status"))


def test_the_printed_sql_makes_the_schema(url: str) -> None:
    sql = run("migrate", "--sql", "--schema", "Our Jobs").stdout
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.encode())
    assert run("migrate", "--status", "--schema", "Our Jobs").exit_code == 0
    assert "up to date" in run("migrate", "--schema", "Our Jobs").stderr
    assert run("migrate", "--sql", "--after", "9999").stdout == ""


def test_the_schema_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("migrate", "--schema", "elsewhere")
    assert run("jobs", "list").exit_code == 3
    monkeypatch.setenv("PGEVERYTHING_SCHEMA", "elsewhere")
    assert run("jobs", "list").exit_code == 0


# Jobs and queues --------------------------------------------------------------------------------------------------


def test_enqueue_prints_the_id_and_takes_arguments_in_three_ways(migrated: str) -> None:
    first = run(
        "jobs", "enqueue", "greet", '{"name": "Ada"}', "--arg", "times=3", "--arg", "zip=0123", "--header", "a=b=c"
    )
    assert first.exit_code == 0
    job = run_json("jobs", "show", first.stdout.strip())
    assert job["args"] == {"name": "Ada", "times": 3, "zip": "0123"}
    assert (job["headers"], job["failures"]) == ({"a": "b=c"}, [])

    second = run("jobs", "enqueue", "greet", "-", "--delay", "1h", input='{"name": "Bob"}')
    assert second.exit_code == 0, second.output
    assert run_json("jobs", "show", second.stdout.strip())["state"] == "scheduled"


def test_enqueue_with_a_time_and_keys(migrated: str) -> None:
    options = ("--run-at", "2100-01-01T00:00+00:00", "--unique-key", "u", "--ordering-key", "o", "--max-attempts", 2)
    job = run_json("jobs", "enqueue", "t", *options, "--timeout", "5s", "--expires", "1h", "--priority", 7)
    assert (job["state"], job["unique_key"], job["ordering_key"], job["timeout"]) == ("scheduled", "u", "o", 5.0)

    again = run("jobs", "enqueue", "t", "--unique-key", "u")
    assert (again.exit_code, again.stdout) == (0, f"{job['id']}\n")
    assert "no second one" in again.stderr
    refused = run("jobs", "enqueue", "t", "--unique-key", "u", "--on-duplicate", "raise")
    assert (refused.exit_code, refused.stdout) == (1, "")


def test_a_dropped_job_is_a_failure(migrated: str) -> None:
    assert run("queues", "configure", "small", "--max-depth", 1, "--on-full", "drop").exit_code == 0
    assert run("jobs", "enqueue", "t", "--queue", "small").exit_code == 0
    dropped = run("jobs", "enqueue", "t", "--queue", "small")
    assert dropped.exit_code == 1
    assert "is full and drops" in dropped.stderr


def test_list_filters_and_pages(migrated: str) -> None:
    ids = [int(run("jobs", "enqueue", f"t{n % 2}", "--queue", f"q{n % 3}").stdout) for n in range(6)]
    assert [job["id"] for job in run_json("jobs", "list")] == ids[::-1]
    assert [job["id"] for job in run_json("jobs", "list", "--task", "t1", "--queue", "q1")] == [ids[1]]
    assert [job["id"] for job in run_json("jobs", "list", "--limit", 2, "--before", ids[3])] == [ids[2], ids[1]]
    table = run("jobs", "list", "--state", "ready").stdout.splitlines()
    assert len(table) == 1 + 6  # a line each where nobody looks
    assert run_json("jobs", "counts")["ready"] == 6
    assert run_json("jobs", "counts", "--queue", "q0")["ready"] == 2
    assert "ready" in run("jobs", "counts").stdout


def test_cancel_retry_and_why(migrated: str) -> None:
    job = run("jobs", "enqueue", "t", "--delay", "1h").stdout.strip()
    assert run("jobs", "why", job).stdout.startswith("It is due in")
    assert run("jobs", "retry", job).exit_code == 0
    with psycopg.connect(migrated) as connection:
        assert connection.execute("select due_at < clock_timestamp() from pgeverything.scheduled").fetchall() == [
            (True,)
        ]
    cancelled = run("jobs", "cancel", job, 999, "--reason", "not needed")
    assert cancelled.exit_code == 1
    assert "job 999 had ended already" in cancelled.stderr
    assert run_json("jobs", "why", job)["why"] == "It was cancelled: not needed."
    assert run("jobs", "cancel", job).exit_code == 1
    assert run("jobs", "retry", job).exit_code == 1
    assert run("jobs", "show", 999).exit_code == 1


def test_queues(migrated: str) -> None:
    run("jobs", "enqueue", "t", "--queue", "mail")
    assert run("queues", "pause", "mail").exit_code == 0
    assert run("queues", "configure", "mail", "--max-depth", 9, "--concurrency", 3, "--per-key", 2).exit_code == 0
    (queue,) = run_json("queues", "list")
    assert (queue["name"], queue["paused"], queue["ready"]) == ("mail", True, 1)
    assert (queue["max_depth"], queue["concurrency"], queue["per_key"]) == (9, 3, 2)
    assert "depth 9 then raise, concurrency 3, per key 2" in run("queues", "list").stdout
    run("queues", "resume", "mail")
    run("queues", "configure", "mail", "--concurrency", "none")
    (queue,) = run_json("queues", "list")
    assert (queue["paused"], queue["concurrency"], queue["max_depth"]) == (False, None, 9)


def test_pausing_a_queue_that_holds_nothing_asks_whether_it_is_the_one(migrated: str) -> None:
    run("jobs", "enqueue", "t", "--queue", "mail")
    assert "is that its name?" in run("queues", "pause", "mial").stderr
    assert run("queues", "pause", "mail").stderr == "queue 'mail' is paused\n"
    assert "--max-depth 'x' must be" in run("queues", "configure", "mail", "--max-depth", "x").stderr


def test_what_strangers_enqueued_cannot_steer_the_terminal(migrated: str) -> None:
    run("jobs", "enqueue", "[red]t[/red]", "--arg", 'x="\\u001b[2J"')
    assert "[red]t[/red]" in run("jobs", "list").stdout
    assert "\x1b" not in run("jobs", "show", 1).stdout
    assert shown("a\x1b[2Jb\rc\nd") == "a\\x1b[2Jb\\rc\nd"


# Dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_grouped_and_shown(migrated: str) -> None:
    ids = make_dead(migrated, 3, why="no such customer")
    assert sorted(job["id"] for job in run_json("dead", "list")) == ids
    (group,) = run_json("dead", "groups")
    assert (group["count"], group["task"]) == (3, "broken")
    assert [j["id"] for j in run_json("dead", "list", "--fingerprint", group["fingerprint"], "--limit", 1)] == [ids[-1]]
    assert "no such customer" in run("dead", "groups").stdout
    assert "no such customer" in run("dead", "list").stdout
    person = run("dead", "show", ids[0]).stdout
    assert "attempt 1" in person
    assert "Traceback" in person
    assert run("dead", "show", 999).exit_code == 1
    assert "the other 2 are no dead letters" in run("dead", "redrive", 998, 999, ids[0], "--dry-run").stderr


def test_redrive_in_parts_to_another_queue(migrated: str) -> None:
    ids = make_dead(migrated, 5)
    dry = run("dead", "redrive", "--task", "broken", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "")
    assert "5 would be redriven" in dry.stderr
    assert run_json("dead", "redrive", ids[0], ids[1], "--to-queue", "repair") == {"redriven": 2, "dry_run": False}
    assert {job["queue"] for job in run_json("jobs", "list", "--state", "scheduled")} == {"repair"}
    assert run_json("dead", "redrive", "--everything", "--limit", 2, "--rate", 0.001)["redriven"] == 2
    assert len(run_json("dead", "list")) == 1


def test_discard(migrated: str) -> None:
    make_dead(migrated, 2, queue="a")
    make_dead(migrated, 1, queue="b")
    assert run_json("dead", "discard", "--queue", "a") == {"discarded": 2, "dry_run": False}
    assert run_json("dead", "discard", "--everything", "--dry-run") == {"discarded": 1, "dry_run": True}
    assert run_json("jobs", "counts")["cancelled"] == 2


def test_a_redrive_that_is_interrupted_loses_nothing(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dead(migrated, 3)
    monkeypatch.setattr("pgeverything.dead_letters._BATCH", 1)
    calls: list[int] = []

    class Bar:
        def __enter__(self) -> Callable[[int], None]:
            def advance(done: int) -> None:
                calls.append(done)
                if done == 2:
                    raise KeyboardInterrupt

            return advance

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr("pgeverything.cli.dead.progress_bar", lambda *_: Bar())
    result = run("dead", "redrive", "--everything")
    assert (result.exit_code, calls) == (130, [1, 2])
    assert "2 redriven, the rest are dead as before" in result.stderr
    counts = run_json("jobs", "counts")
    assert (counts["scheduled"], counts["dead"]) == (2, 1)


def test_a_job_whose_unique_key_is_taken_stays_dead_and_is_told(migrated: str) -> None:
    (first,) = make_dead(migrated, 1)
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("update pgeverything.jobs set unique_key = 'u' where id = %s", (first,))
    run("jobs", "enqueue", "broken", "--unique-key", "u")
    result = run("dead", "redrive", first)
    assert "0 redriven" in result.stderr
    assert "1 stay dead" in result.stderr


# Status -----------------------------------------------------------------------------------------------------------


def test_status_of_an_idle_installation(migrated: str) -> None:
    result = run("status")
    assert result.exit_code == 0, result.stderr
    assert "PostgreSQL" in result.stdout
    status = run_json("status")
    assert (status["problems"], status["pending"], status["workers"]) == ([], [], [])
    assert status["migration"] >= 1


def test_a_schema_that_is_too_new_is_a_problem(migrated: str) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("insert into pgeverything.migrations (version, name, breaking) values (999, 'later', true)")
    result = run("status")
    assert (result.exit_code, "newer pgeverything (0999 later): upgrade" in result.stderr) == (1, True)


def test_an_error_of_the_system_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pgeverything.cli.cron.emit_json", full)
    result = run("cron", "preview", "@daily", "--json")
    assert (result.exit_code, result.stderr) == (1, "Error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("how", [[], ["--delay", "1s"], ["--ordering-key", "k"]])
def test_work_that_nobody_takes_is_unhealthy_after_a_while(migrated: str, how: list[str]) -> None:
    run("jobs", "enqueue", "t", "--queue", "lonely", *how)
    assert run("status").exit_code == 0
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("update pgeverything.jobs set created_at = created_at - interval '1 minute'")
        connection.execute("update pgeverything.scheduled set due_at = due_at - interval '1 minute'")
    result = run("status")
    assert result.exit_code == 1
    assert "queue 'lonely' has work" in result.stderr
    assert "lonely" in result.stdout
    run("queues", "pause", "lonely")  # somebody wants it so
    assert run("status").exit_code == 0


def test_a_silent_worker_is_unhealthy(migrated: str) -> None:
    insert = """insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease)
                values (%s, %s, '{default}', 4, now(), now() - %s::interval, '30 seconds')"""
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute(insert, (1, "fresh", "1 second"))
        assert run("status").exit_code == 0
        connection.execute(insert, (2, "stale", "5 minutes"))
    result = run("status")
    assert result.exit_code == 1
    assert "worker stale was last heard 300 s ago" in result.stderr
    assert {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines() if " s ago" in line} == {
        "fresh": "busy",
        "stale": "silent",
    }


# Doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_of_what_is_not_there(url: str) -> None:
    result = run("doctor")
    assert result.exit_code == 3
    assert "run `pgeverything migrate`" in result.stdout
    assert result.stderr.startswith("problem: ")
    assert run("doctor", "--url", "postgresql://127.0.0.1:1/nowhere").exit_code == 1
    assert run("doctor", "--url", "mysql://host/db").exit_code == 2


def test_doctor_names_the_problem_and_the_fix(migrated: str) -> None:
    run("jobs", "enqueue", "t", "--queue", "lonely")
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("update pgeverything.jobs set created_at = created_at - interval '1 minute'")
    result = run("doctor")
    assert result.exit_code == 1
    (line,) = (line for line in result.stdout.splitlines() if "'lonely'" in line)
    assert line.startswith("problem  queues ")
    assert "no live worker" in line
    assert "pgeverything worker APP --queues lonely" in line
    assert "queues" in result.stderr.splitlines()[0]
    shown = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert shown["queues"]["verdict"] == "problem"
    assert shown["queues"]["figures"]["seconds"]["lonely"] >= 60
    assert shown["schema"]["figures"]["pending"] == []


def test_warnings_of_the_doctor_are_no_failure(new_home: Callable[[], Path]) -> None:
    url = local.ensure(new_home()).url
    assert run("migrate", "--url", url).exit_code == 0
    healthy = run("doctor", "--url", url)
    assert (healthy.exit_code, healthy.stderr) == (0, "")
    assert {line.split()[0] for line in healthy.stdout.splitlines()[1:]} == {"ok"}
    run("jobs", "enqueue", "t", "--queue", "held", "--url", url)
    run("queues", "pause", "held", "--url", url)
    warned = run("doctor", "--url", url)
    assert (warned.exit_code, warned.stderr) == (0, "warning: paused\n")
