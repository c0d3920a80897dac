"""What is asked of a schedule is refused before anything is connected; what code defines is known by what it says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgeverything import (
    AsyncPgEverything,
    InvalidArgument,
    InvalidTaskArguments,
    JobContext,
    PgEverything,
    TaskError,
)
from pgeverything.scheduler.code import Code
from pgeverything.scheduler.definitions import Definition, define

SOON = datetime(2030, 1, 1, tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - no zone

ADD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name="),
    ({"name": "a\0"}, "name="),
    ({"name": "x" * 201}, "name="),
    ({"task": ""}, "task="),
    ({"args": [1]}, r"args=\[1\] must map"),
    ({"args": {"a": object()}}, "args"),
    ({"queue": ""}, "queue="),
    ({"priority": 2**31}, "priority="),
    ({"every": None}, "say when: one of cron=, every= and at="),
    ({"cron": "* * * * *"}, "say when: one of"),
    ({"at": SOON}, "say when: one of"),
    ({"every": "soon"}, "every='soon' is not a duration"),
    ({"every": 0.5}, "every=0.5 must be at least 1 s"),
    ({"every": 0}, "every=0 must be at least 1 s"),
    ({"every": -1}, "every=-1"),
    ({"every": None, "cron": "* * * *"}, "cron="),
    ({"every": None, "cron": "* * * * * *"}, "seconds=True"),
    ({"every": None, "at": NAIVE}, "at=.* must be a datetime with a time zone"),
    ({"every": None, "at": "tomorrow"}, "at='tomorrow' must be a datetime"),
    ({"every": None, "at": datetime(9999, 1, 1, tzinfo=UTC)}, "at=.* between the years"),
    ({"every": None, "at": SOON, "start_at": SOON}, "at= is a single time"),
    ({"every": None, "at": SOON, "end_at": SOON}, "at= is a single time"),
    ({"seconds": True}, "seconds=True is about"),
    ({"seconds": "yes"}, "seconds='yes'"),
    ({"timezone": "Europe/Berlin"}, "timezone= is for cron="),
    ({"timezone": "Mars/Olympus"}, "timezone='Mars/Olympus'"),
    ({"timezone": None}, "timezone=None"),
    ({"misfire": "twice"}, "misfire='twice' must be 'once', 'all' or 'skip'"),
    ({"misfire": None}, "misfire=None"),
    ({"overlap": "yes"}, "overlap='yes' must be 'allow', 'skip' or 'queue'"),
    ({"grace": "soon"}, "grace="),
    ({"grace": -1}, "grace="),
    ({"jitter": -1}, "jitter="),
    ({"jitter": None}, "jitter="),
    ({"every": "1m", "jitter": "61s"}, "jitter='61s' is longer than the 60 s from one tick to the next: .* 60 at most"),
    ({"every": None, "cron": "0,50 * * * *", "jitter": "11m"}, "jitter='11m' is longer than the 600 s"),
    ({"catch_up": 0}, "catch_up="),
    ({"catch_up": 10_001}, "catch_up="),
    ({"task": None}, "task=None must be what @pg.task"),
    ({"task": print}, "must be what @pg.task"),
    ({"every": None, "cron": "0 * * * * *", "seconds": 1}, "seconds=1 must be True or False"),
    ({"every": None, "cron": "0 * * * *", "seconds": []}, "seconds="),
    ({"seconds": None}, "seconds="),
    ({"remaining": 0}, "remaining="),
    ({"remaining": "2"}, "remaining="),
    ({"start_at": NAIVE}, "start_at="),
    ({"end_at": NAIVE}, "end_at="),
    ({"start_at": SOON, "end_at": SOON - timedelta(days=1)}, "end_at= is before start_at="),
]
OTHERS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    *((name, (value,), {}, "name=") for name in ("get", "remove", "pause", "resume", "run_now", "history")
      for value in ("", "a\0", None, 7)),
    ("list", (), {"state": "off"}, "state='off' must be one of active, paused"),
    ("list", (), {"task": ""}, "task="),
    ("list", (), {"after": ""}, "after="),
    ("list", (), {"limit": 0}, "limit="),
    ("history", ("a",), {"limit": 0}, "limit="),
    ("history", ("a",), {"before": NAIVE}, "before="),
    ("preview", ("5-1 * * * *",), {}, "runs backwards"),
    ("preview", ("* * * * *",), {"timezone": "x"}, "timezone="),
    ("preview", ("* * * * *",), {"count": 0}, "count="),
    ("preview", ("* * * * *",), {"start": NAIVE}, "start="),
    ("preview", ("* * * * * *",), {"seconds": 1}, "seconds="),
]  # fmt: skip


def nowhere() -> Any:
    return PgEverything("postgresql://nobody@127.0.0.1:1/nowhere")


@pytest.mark.parametrize(("options", "message"), ADD)
def test_add_refuses(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"name": "s", "task": "t", "every": "1h"} | options
    with pytest.raises(InvalidArgument, match=message):
        nowhere().scheduler.add(given.pop("name"), given.pop("task"), **given)


@pytest.mark.parametrize(("name", "args", "options", "message"), OTHERS)
async def test_the_others_refuse(name: str, args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        getattr(nowhere().scheduler, name)(*args, **options)
    with pytest.raises(InvalidArgument, match=message):
        await getattr(AsyncPgEverything("postgresql://nobody@127.0.0.1:1/nowhere").scheduler, name)(*args, **options)


# Definitions ----------------------------------------------------------------------------------------------------------


def made(**options: Any) -> Definition:
    return define(**({"name": "s", "task": "t", "args": '{"a": 1, "b": 2}', "every": "1h"} | options))


def test_the_digest_says_whether_two_say_the_same() -> None:
    assert made().digest == made(args='{"b":2,"a":1}').digest == made(every=3600).digest == made(grace=None).digest
    changes: list[dict[str, Any]] = [
        {"name": "r"}, {"task": "u"}, {"args": "{}"}, {"queue": "q"}, {"priority": 1}, {"every": "2h"},
        {"every": None, "cron": "0 * * * *"}, {"misfire": "all"}, {"grace": 1}, {"catch_up": 1}, {"overlap": "skip"},
        {"jitter": 1}, {"start_at": SOON}, {"end_at": SOON}, {"remaining": 1},
    ]  # fmt: skip
    digests = {made(**change).digest for change in changes}
    assert len(digests) == len(changes)
    assert made().digest not in digests
    berlin = SOON.astimezone(datetime.fromisoformat("2026-01-01T00:00+01:00").tzinfo)
    assert made(start_at=SOON).digest == made(start_at=berlin).digest


# @pg.cron -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PgEverything, AsyncPgEverything])
def test_a_task_is_scheduled_where_it_is_defined(kind: type[Any]) -> None:
    pg = kind()

    @pg.cron("0 7 * * MON-FRI", timezone="Europe/Berlin", args={"to": "ops"})
    @pg.cron(every="5m", name="often", args={"to": "dev"}, queue="fast")
    @pg.task(queue="mail", priority=2)
    def digest(to: str) -> str:
        return to

    assert digest("x") == "x"
    morning, often = pg.code.definitions["digest"], pg.code.definitions["often"]
    assert (morning.task, morning.args, morning.queue, morning.priority) == ("digest", '{"to":"ops"}', "mail", 2)
    assert (morning.timing.cron, morning.timing.timezone) == ("0 7 * * MON-FRI", "Europe/Berlin")
    assert (often.task, often.args, often.queue, often.timing.every) == ("digest", '{"to":"dev"}', "fast", 300.0)
    assert pg.code.origin == __name__


def test_what_the_decorator_refuses() -> None:
    pg = PgEverything()

    @pg.task()
    def needs(number: int) -> None: ...

    @pg.task()
    def plain(context: JobContext) -> None: ...

    with pytest.raises(InvalidTaskArguments, match="missing a required argument: 'number'"):
        pg.cron(every="1h")(needs)
    with pytest.raises(InvalidTaskArguments, match="number: Expected `int`"):
        pg.cron(every="1h", args={"number": "7"})(needs)
    with pytest.raises(TaskError, match=r"@pg.cron\(...\) stands above @pg.task\(\)"):
        pg.cron(every="1h")(lambda: None)  # type: ignore[type-var]
    with pytest.raises(InvalidArgument, match="say when"):
        pg.cron()(plain)
    with pytest.raises(InvalidArgument, match="must say when"):
        pg.cron(plain)  # type: ignore[arg-type]  # `@pg.cron` without its parentheses
    with pytest.raises(InvalidArgument, match="runs backwards"):
        pg.cron("5-1 * * * *")(plain)
    pg.cron(every="1h")(plain)
    pg.cron(every="1h")(plain)  # the same again: a module that was imported twice
    with pytest.raises(TaskError, match="two schedules are named 'plain': give one of them a name="):
        pg.cron(every="2h")(plain)


def test_a_worker_serves_the_queues_of_its_schedules() -> None:
    pg = PgEverything("postgresql://nobody@127.0.0.1:1/nowhere")

    @pg.cron(every="1h", queue="night")
    @pg.task(queue="day")
    def work() -> None: ...

    assert pg.worker().queues == ["day", "night"]


def test_an_application_is_called_by_the_module_that_makes_it() -> None:
    assert PgEverything().code.origin == AsyncPgEverything().code.origin == __name__
    scope: dict[str, Any] = {"PgEverything": PgEverything, "__name__": "__main__", "__file__": "/srv/shop/tasks.py"}
    exec("pg = PgEverything()", scope)
    assert scope["pg"].code.origin == "tasks"


def test_code_that_defines_nothing_knows_nothing() -> None:
    assert Code("").job("t", {"n": 1})[:2] == ("t", '{"n":1}')
