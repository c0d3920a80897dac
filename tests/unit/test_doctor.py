"""What the health check makes of figures that no test server has."""

from __future__ import annotations

from typing import Any

import pytest

from pgeverything.cache import CacheStats
from pgeverything.doctor import Check, Health, modules, reach, schema, server, vacuum
from pgeverything.doctor.values import Verdict, ago, spell
from pgeverything.engine.probe import Probe
from pgeverything.events import OpenPublisher

SETTINGS = {
    "server_version": "18.1",
    "server_version_num": "180001",
    "server_encoding": "UTF8",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "autovacuum": "on",
    "track_counts": "on",
}


def session(state: str, seconds: float | None) -> tuple[Any, ...]:
    return ("session", "7", "ada", "app", state, seconds, 9, "select 1")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (session("active", 100.0), "ok"),
        (session("active", 601.0), "warning"),
        (session("idle in transaction", 61.0), "warning"),
        (session("idle in transaction", 601.0), "problem"),
        (session("idle in transaction (aborted)", 601.0), "problem"),
        (("prepared", "x", "ada", "", "prepared", 61.0, 9, ""), "warning"),
        (("prepared", "x", "ada", "", "prepared", 601.0, 9, ""), "problem"),
        (("slot", "s", "", "pgoutput", "inactive", None, 2_000_000, "1 GB"), "warning"),
        (("standby", "9", "repl", "reports", "streaming", None, 2_000_000, ""), "warning"),
    ],
)
def test_who_holds_vacuum_back(row: tuple[Any, ...], verdict: Verdict) -> None:
    check = vacuum.judge_holders([row], 0)
    assert check.verdict == verdict
    assert (check.fix is None) == (verdict == "ok")
    assert bool(check.figures["holders"]) == (verdict != "ok")


def test_what_is_hidden_is_unknown_unless_something_is_seen() -> None:
    assert vacuum.judge_holders([], 3).verdict == "unknown"
    assert vacuum.judge_holders([session("idle in transaction", 700.0)], 3).verdict == "problem"


def test_a_standby_that_is_behind_is_named() -> None:
    check = vacuum.judge_holders([("standby", "9", "repl", "reports", "streaming", None, 2_000_000, "")], 0)
    assert check.found == "standby 'reports' (pid 9) holds vacuum 2,000,000 transactions back"
    assert "hot_standby_feedback" in (check.fix or "")


@pytest.mark.parametrize(("age", "verdict"), [(200e6, "ok"), (1.1e9, "warning"), (1.7e9, "problem")])
def test_wraparound(age: float, verdict: Verdict) -> None:
    assert server.judge_age("postgres", int(age), 1).verdict == verdict
    assert server.judge_age("postgres", 1, int(age)).verdict == verdict


@pytest.mark.parametrize(("used", "verdict"), [(79, "ok"), (80, "warning"), (95, "problem"), (120, "problem")])
def test_connections(used: int, verdict: Verdict) -> None:
    rows = [("the server", 1, 1000), ("role app", used, 100)]
    check = server.judge_connections(rows)
    assert check.verdict == verdict
    assert "role app" in check.found


def test_a_role_that_may_not_connect_at_all() -> None:
    assert server.judge_connections([("role app", 1, 0)]).verdict == "problem"


@pytest.mark.parametrize(
    ("changed", "judge", "verdict"),
    [
        ({}, server.durability, "ok"),
        ({"full_page_writes": "off"}, server.durability, "problem"),
        ({"synchronous_commit": "off"}, server.durability, "warning"),
        ({}, server.session, "ok"),
        ({"default_transaction_isolation": "repeatable read"}, server.session, "problem"),
        ({"server_encoding": "LATIN1"}, server.session, "warning"),
    ],
)
def test_settings(changed: dict[str, str], judge: Any, verdict: Verdict) -> None:
    assert judge(SETTINGS | changed).verdict == verdict


def test_kinds_of_servers() -> None:
    assert server.kind(SETTINGS, standby=False).verdict == "ok"
    assert server.kind(SETTINGS, standby=True).fix == "connect to the primary"
    old = {"server_version": "14.1", "server_version_num": "140001"}
    assert server.kind(SETTINGS | old, standby=False).fix == "upgrade it to 15 or newer"


def test_autovacuum_of_the_whole_server() -> None:
    assert vacuum.autovacuum([], SETTINGS | {"autovacuum": "off"}).verdict == "problem"
    assert vacuum.autovacuum([], SETTINGS | {"track_counts": "off"}).verdict == "problem"
    assert vacuum.autovacuum([], SETTINGS).verdict == "ok"


@pytest.mark.parametrize(
    ("probe", "verdicts"),
    [
        (Probe(listens=True), ("ok", "ok", "ok")),
        (Probe(pooled=True, prepares=True), ("warning", "ok", "ok")),
        (Probe(pooled=True, prepares=False), ("warning", "problem", "ok")),
        (Probe(pooled=True, prepares=True, closes=False), ("warning", "warning", "ok")),
        (Probe(pooled=True), ("warning", "unknown", "ok")),
        (Probe(pooled=True, listens=True), ("ok", "ok", "ok")),  # a session pool
    ],
)
def test_the_way_to_the_server(probe: Probe, verdicts: tuple[Verdict, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGEVERYTHING_PREPARE", raising=False)
    assert tuple(check.verdict for check in reach.way(probe)) == verdicts


@pytest.mark.parametrize(
    ("ahead", "found"),
    [
        (0.1, "the clocks of the server and this machine agree"),
        (60.4, "the server's clock is 60 s ahead of this machine's; only the server's counts here"),
        (-60.4, "the server's clock is 60 s behind this machine's; only the server's counts here"),
    ],
)
def test_a_clock_that_differs_is_told_and_no_problem(ahead: float, found: str) -> None:
    clock = reach.way(Probe(ahead=ahead))[-1]
    assert (clock.found, clock.verdict) == (found, "ok")


def test_partitions() -> None:
    assert schema.judge_partitions({"finished": 2, "events": 1}, []).verdict == "ok"
    assert schema.judge_partitions({"finished": 1, "events": 1}, []).verdict == "warning"
    assert schema.judge_partitions({"finished": 2, "events": 0}, []).verdict == "warning"
    assert schema.judge_partitions({"finished": 2, "events": 1}, ["ticks_default"]).verdict == "warning"


@pytest.mark.parametrize(("age", "verdict"), [(1.0, "ok"), (6.0, "warning"), (60.0, "problem"), (None, "unknown")])
def test_open_publishers(age: float | None, verdict: Verdict) -> None:
    publisher = OpenPublisher(9, 7, None, "ada", "app", "idle in transaction", age, "insert")  # type: ignore[arg-type]
    assert modules.judge_events(1, [publisher]).verdict == verdict


@pytest.mark.parametrize(
    ("entries", "size", "disk", "verdict"),
    [(10, 1000, 8192, "ok"), (13, 1000, 8192, "warning"), (10, 1201, 8192, "warning"), (1, 1, 200_000_000, "warning")],
)
def test_the_size_of_the_cache(entries: int, size: int, disk: int, verdict: Verdict) -> None:
    assert modules.judge_cache(CacheStats(entries, size, disk, 0, 0, 0, 0, 10, 1000, False)).verdict == verdict


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ([], "ok"),
        (["ok", "unknown"], "unknown"),
        (["unknown", "warning", "ok"], "warning"),
        (["problem", "warning"], "problem"),
    ],
)
def test_health_is_as_bad_as_the_worst_check(verdicts: list[Verdict], worst: Verdict) -> None:
    health = Health.of([Check(str(n), verdict, "found") for n, verdict in enumerate(verdicts)], migrated=True)
    assert (health.verdict, health.ok) == (worst, worst != "problem")


def test_words() -> None:
    assert spell(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert spell(["a"]) == "a"
    assert [ago(seconds) for seconds in (1.2, 119.0, 120.0, 7200.0, 200_000.0)] == [
        "1 s",
        "119 s",
        "2 min",
        "2 h",
        "2 days",
    ]
    assert str(Check("x", "problem", "it is broken", "mend it")) == "it is broken: mend it"
    assert str(Check("x", "ok", "it is well")) == "it is well"
