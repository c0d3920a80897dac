"""Bad input is refused before anything is connected, by an error that names the argument."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from pgeverything import AsyncPgEverything, ConfigurationError, InvalidArgument, PgEverything, Retry

NUL, LONG, LONE = "a\0b", "x" * 201, "\ud800"
NAMES: list[Any] = ["", NUL, LONG, LONE, 7, None, b"mail"]
FILTERS = NAMES[:5]
WHOLE: list[Any] = [0, -1, 2**63, "1", 1.0, True, None]

ENQUEUE: list[tuple[str, Any, str]] = [
    *(("queue", value, "queue=") for value in NAMES),
    *(("priority", value, "priority=") for value in ("1", 2**31, -(2**31) - 1, True, None, 1.5)),
    *(("delay", value, "delay=") for value in ("soon", -1, float("nan"), "101000000d", [])),
    *(("timeout", value, "timeout=") for value in ("soon", -1, 0, float("inf"))),
    *(("expires", value, "expires=") for value in ("soon", -1, 0)),
    *(("run_at", value, "run_at") for value in ("tomorrow", 7, datetime(2030, 1, 1))),  # noqa: DTZ001 - no zone
    *(("run_at", datetime(year, 1, 2, tzinfo=UTC), "run_at") for year in (1, 9999)),
    *(("ordering_key", value, "ordering_key=") for value in ("", NUL, "x" * 1025, LONE, 7)),
    *(("max_attempts", value, "max_attempts=") for value in (0, -1, "3", 2**31, True)),
    *(("headers", value, "headers") for value in ("a=b", {"a": 1}, {1: "a"}, {"a": NUL}, {"a": LONE})),
]
ONE_ONLY: list[tuple[str, Any, str]] = [
    *(("unique_key", value, "unique_key=") for value in ("", NUL, "x" * 1025, LONE, 7)),
    *(("on_duplicate", value, "on_duplicate=") for value in ("ignore", "raise", None)),
]
ARGS: list[tuple[Any, str]] = [
    ("text", "args='text' must map"),
    ([1], r"args=\[1\] must map"),
    ({"a": object()}, "args"),
    ({"a": float("nan")}, "args"),
    ({"a": NUL}, "args"),
    ({"a": msgspec.Raw(b"<html>")}, r"args\['a'\] cannot be JSON"),
    ({"a": "x" * 2_000_000}, "args"),
]
CALLS: list[tuple[str, str, tuple[Any, ...], dict[str, Any], str]] = [
    *(("jobs", "enqueue", (task,), {}, "task=") for task in NAMES),
    *(("jobs", "enqueue", ("mail",), {name: value}, message) for name, value, message in ENQUEUE + ONE_ONLY),
    ("jobs", "enqueue", ("mail",), {"delay": 1, "run_at": datetime.now().astimezone()}, "delay= and run_at="),
    *(("jobs", "enqueue", ("mail", args), {}, message) for args, message in ARGS),
    *(("jobs", "enqueue_many", (task, []), {}, "task=") for task in NAMES),
    *(("jobs", "enqueue_many", ("mail", [{}]), {name: value}, message) for name, value, message in ENQUEUE),
    *(("jobs", "enqueue_many", ("mail", args), {}, "args=") for args in ("text", {"a": 1}, 7, None)),
    ("jobs", "enqueue_many", ("mail", [{}, "text"]), {}, r"args\[1\]='text' must map"),
    ("jobs", "enqueue_many", ("mail", [{}, {}, {"a": float("nan")}]), {}, r"args\[2\]"),
    ("jobs", "enqueue_many", ("mail", [{}, {"a": msgspec.Raw(b"")}]), {}, r"args\[1\]\['a'\] cannot be JSON"),
    ("cache", "set", ("k", msgspec.Raw(b"<html>")), {"ttl": 1}, "value cannot be JSON"),
    ("scheduler", "add", ("s", "mail", {"a": msgspec.Raw(b"<html>")}), {"every": 60}, r"args\['a'\] cannot be JSON"),
    *(("jobs", name, (id_,), {}, "id=") for name in ("get", "cancel", "retry", "why", "failures") for id_ in WHOLE),
    *(("jobs", "wait", (id_,), {}, "id=") for id_ in WHOLE),
    *(("jobs", "wait", (1,), {"timeout": value}, "timeout=") for value in (-1, "soon")),
    *(("jobs", "cancel", (1,), {"reason": value}, "reason=") for value in ("", NUL, "x" * 2001, None)),
    *(("jobs", "list", (), {name: value}, f"{name}=") for name in ("queue", "task") for value in FILTERS),
    *(("jobs", "list", (), {"state": value}, "state=") for value in ("failed", 7, ["ready"])),
    *(("jobs", "list", (), {"limit": value}, "limit=") for value in [*WHOLE, 100_001]),
    *(("jobs", "list", (), {"before": value}, "before=") for value in WHOLE[:-1]),
    *(("jobs", "counts", (value,), {}, "queue=") for value in FILTERS),
    *(("jobs", name, (value,), {}, "queue=") for name in ("pause", "resume") for value in NAMES),
    *(("jobs", "configure", (value,), {"per_key": 1}, "queue=") for value in NAMES),
    ("jobs", "configure", ("mail",), {}, "needs one of"),
    *(("jobs", "configure", ("mail",), {name: value}, f"{name}=") for name in ("max_depth", "concurrency")
      for value in WHOLE[:-1]),
    *(("jobs", "configure", ("mail",), {"per_key": value}, "per_key=") for value in WHOLE),
    *(("jobs", "configure", ("mail",), {"on_full": value}, "on_full=") for value in ("block", None, 7)),
    *(("dead_letters", name, (), {key: value}, f"{key}=") for name in ("list", "count", "redrive", "discard")
      for key in ("queue", "task", "fingerprint") for value in FILTERS),
    *(("dead_letters", "groups", (), {key: value}, f"{key}=") for key in ("queue", "task") for value in FILTERS),
    *(("dead_letters", name, (), {"limit": value}, "limit=") for name in ("list", "groups") for value in WHOLE),
    *(("dead_letters", "get", (id_,), {}, "id=") for id_ in WHOLE),
    *(("dead_letters", name, (), {}, "everything=True") for name in ("redrive", "discard")),
    *(("dead_letters", name, (ids,), {}, "ids=") for name in ("redrive", "discard")
      for ids in (7, "7", ["7"], [0], [None], [True], [2**63])),
    *(("dead_letters", name, (), {"everything": True, "limit": value}, "limit=") for name in ("redrive", "discard")
      for value in WHOLE[:-1]),
    *(("dead_letters", "redrive", (), {"task": "mail", "to_queue": value}, "to_queue=") for value in FILTERS),
    *(("dead_letters", "redrive", (), {"task": "mail", "rate": value}, "rate=")
      for value in (0, -1, 1e-310, "5", True, float("nan"), float("inf"))),
]  # fmt: skip


class Connected(AssertionError):
    """Something asked for a connection."""


@pytest.fixture
def pg(monkeypatch: pytest.MonkeyPatch) -> PgEverything:
    pg = PgEverything("postgresql://nobody.invalid/nothing")
    monkeypatch.setattr(pg._database, "open", _refuse)
    return pg


def _refuse() -> Any:
    raise Connected


@pytest.mark.parametrize(("module", "operation", "args", "kwargs", "message"), CALLS)
def test_it_is_refused_before_any_sql(
    pg: PgEverything, module: str, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        getattr(getattr(pg, module), operation)(*args, **kwargs)


async def test_it_is_refused_the_same_when_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    pg = AsyncPgEverything("postgresql://nobody.invalid/nothing")

    async def refuse() -> Any:
        raise Connected

    monkeypatch.setattr(pg._database, "open", refuse)
    for module, operation, args, kwargs, message in CALLS:
        with pytest.raises(InvalidArgument, match=message):
            await getattr(getattr(pg, module), operation)(*args, **kwargs)
    with pytest.raises(Connected):
        await pg.jobs.enqueue("mail")


def test_good_input_does_connect(pg: PgEverything) -> None:
    with pytest.raises(Connected):
        pg.jobs.enqueue("mail", delay=0, unique_key="x" * 1024, headers={"ä": "ö"})
    with pytest.raises(Connected):
        pg.dead_letters.redrive(ids=[], rate=0.5)


@pytest.mark.parametrize(("name", "value", "message"), ENQUEUE + ONE_ONLY)
def test_a_tasks_options_are_refused_where_they_are_written(
    pg: PgEverything, name: str, value: Any, message: str
) -> None:
    @pg.task()
    def mail() -> None: ...

    with pytest.raises(InvalidArgument, match=message):
        mail.options(**{name: value})


def test_other_bad_calls_of_a_task(pg: PgEverything) -> None:
    @pg.task()
    def mail(to: int) -> None: ...

    with pytest.raises(InvalidArgument, match=r"options\(\) takes no prio="):
        mail.options(prio=1)  # type: ignore[call-arg]
    for args in (7, None):
        with pytest.raises(InvalidArgument, match="args="):
            mail.enqueue_many(args)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"args\[1\]=7 must be a tuple"):
        mail.enqueue_many([(7,), 7])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match="enqueue_many would keep only the first"):
        mail.options(unique_key="a").enqueue_many([(7,)])
    with pytest.raises(InvalidArgument, match=r"on\(\) takes a psycopg\.Connection"):
        mail.on("connection")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"name": value}, "name=") for value in ("", NUL, LONG, 7)),
        *(({"queue": value}, "queue=") for value in NAMES),
        *(({"priority": value}, "priority=") for value in ("1", 2**31)),
        *(({"timeout": value}, "timeout=") for value in (0, -1, "soon")),
        ({"retry": 3}, "retry=3 must be a Retry"),
    ],
)
def test_a_task_is_refused_where_it_is_defined(pg: PgEverything, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        pg.task(**options)(lambda: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": "mail"}, r"queues='mail' must be a list: queues=\['mail'\]"),
        ({"queues": []}, "queues="),
        ({"queues": ["mail", ""]}, "queues="),
        *(({"concurrency": value}, "concurrency=") for value in (0, -1, "5", True, 10_001)),
        *(({"drain": value}, "drain=") for value in (-1, "soon")),
        *(({"poll": value}, "poll=") for value in (0, -1, "soon")),
        *(({"retention": value}, "retention=") for value in (0, -1, "soon", None)),
        *(({"name": value}, "name=") for value in ("", NUL, LONG, 7)),
    ],
)
def test_a_worker_is_refused_where_it_is_made(pg: PgEverything, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        pg.worker(**options)


@pytest.mark.parametrize("schema", ["", NUL, "x" * 64, "ü" * 32, "pg_jobs", LONE, 7, None])
def test_a_schema_that_cannot_be_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema="):
        PgEverything("postgresql://nobody.invalid/nothing", schema=schema)


def test_a_policy_is_one_of_ours(pg: PgEverything) -> None:
    with pytest.raises(InvalidArgument, match="attempts=0"):
        pg.task(retry=Retry(attempts=0))
