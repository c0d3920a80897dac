"""What the audit trail costs who writes: inserts, narrow updates, and 50,000 rows at once.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/audit.py

Without `--url` it starts a server of its own and stops it at the end, as `job_queue.py` does. With `--url` it makes a
database named `pgeverything_bench_...` there and drops it; the role must be a superuser.

How it measures:

* One database with a table of twelve columns for each contestant: without any audit, with a plain trigger that writes
  the whole old and new row as jsonb, with ours, as it is by default and with `bulk=True`, and with postgresql-audit,
  whose triggers are by statement.
* The plain trigger is what one writes by hand in ten lines: whole rows, the table, the time, who; into a table with a
  primary key and an index to find the entries of a row by. It knows no actor, leaves nothing out, and keeps what did
  not change. `plain, no index` is the same without that index: nothing can be looked up in it.
* One connection, each statement a transaction of its own. The contestants take turns of `--statements` statements, for
  `--rounds` rounds; figures are medians over the rounds. Compare ratios within one run.
* The bulk update is one statement that changes one column of 50,000 rows, on a connection that has run nothing else:
  postgresql-audit keeps the plan of its first statements, which for 50,000 rows compares each with each.

Nothing here is a test: there is no time limit to meet, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from report import Results, table
from scenarios import Metric
from server import private_server

from pgeverything import PgEverything

METRICS = {
    "insert": Metric("insert, one row", "1/s"),
    "update": Metric("narrow update, one row", "1/s"),
    "context": Metric("the same with actor and reason", "1/s"),
    "bulk": Metric("narrow update of all rows at once", "rows/s"),
    "bytes": Metric("written to the trail by that, a row", "bytes", lower_is_better=True),
}
TABLE = """
create table {name} (
  id bigint primary key, owner text not null, email text, street text, city text, country text, note text,
  balance numeric(20, 2) not null default 0, credit numeric(20, 2) not null default 0,
  active boolean not null default true,
  created_at timestamptz not null default now(), changed_at timestamptz not null default now());
"""
ROWS = """
insert into {name} (id, owner, email, street, city, country, note)
select n, 'owner ' || n, 'owner' || n || '@example.org', n || ' Long Street', 'Springfield', 'Nowhere',
       repeat('note ', 10)
from generate_series(1, %s) n
"""
PLAIN = """
create table {log} (
  id bigserial primary key, at timestamptz not null default clock_timestamp(), table_name text not null,
  operation text not null, who text not null default session_user, old jsonb, new jsonb);
create function {log}_write() returns trigger language plpgsql as $$
begin
  insert into {log} (table_name, operation, old, new) values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create trigger audit after insert or update or delete on {name} for each row execute function {log}_write();
"""


def _nothing(connection: psycopg.Connection, url: str, name: str) -> str | None:
    return None


def _plain(index: bool) -> Callable[[psycopg.Connection, str, str], str | None]:
    def install(connection: psycopg.Connection, url: str, name: str) -> str:
        log = f"{name}_log"
        connection.execute(PLAIN.format(name=name, log=log).encode())
        if index:
            connection.execute(f"create index on {log} (table_name, (coalesce(new, old) ->> 'id'))".encode())
        return log

    return install


def _ours(bulk: bool) -> Callable[[psycopg.Connection, str, str], str | None]:
    def install(connection: psycopg.Connection, url: str, name: str) -> str:
        with PgEverything(url) as pg:
            pg.migrate()
            pg.audit.track(name, bulk=bulk)
        return "pgeverything.audit_entries"

    return install


def _postgresql_audit(connection: psycopg.Connection, url: str, name: str) -> str:
    from postgresql_audit import VersioningManager
    from sqlalchemy import create_engine
    from sqlalchemy.orm import declarative_base

    base = declarative_base()
    manager = VersioningManager(schema_name="peer")
    manager.init(base)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    manager.transaction_cls.__table__.create(engine)
    manager.activity_cls.__table__.create(engine)
    with engine.begin() as alchemy:
        alchemy.exec_driver_sql(f"select peer.audit_table('{name}')")
    engine.dispose()
    return "peer.activity"


CONTESTANTS: dict[str, Callable[[psycopg.Connection, str, str], str | None]] = {
    "pgeverything": _ours(bulk=False),
    "pgeverything, bulk": _ours(bulk=True),
    "no audit": _nothing,
    "plain": _plain(index=True),
    "plain, no index": _plain(index=False),
}
if find_spec("postgresql_audit"):
    CONTESTANTS["postgresql-audit"] = _postgresql_audit


class Contestant:
    """A table and what audits it."""

    def __init__(self, connection: psycopg.Connection, url: str, number: int, name: str, rows: int) -> None:
        self.name, self.table, self._connection, self._url = name, f"account_{number}", connection, url
        self._next, self._rows = rows, rows
        connection.execute(TABLE.format(name=self.table).encode())
        connection.execute(ROWS.format(name=self.table).encode(), [rows])
        self.log = CONTESTANTS[name](connection, url, self.table)
        self._insert = (
            f"insert into {self.table} (id, owner, email, street, city, country, note)"
            " values (%s, 'o', 'o@example.org', '1 Long Street', 'Springfield', 'Nowhere', 'note')"
        ).encode()
        self._update = f"update {self.table} set balance = balance + 1, changed_at = now() where id = %s".encode()

    def insert(self, count: int) -> float:
        return self._timed(count, lambda: self._connection.execute(self._insert, [self._fresh()], prepare=True))

    def update(self, count: int) -> float:
        return self._timed(count, lambda: self._connection.execute(self._update, [self._any()], prepare=True))

    def context(self, count: int) -> float:
        """Update in a transaction that says who and why: three round trips more for everybody."""
        say = "select set_config('pgeverything_audit.actor', 'ada', true),"
        say += " set_config('pgeverything_audit.reason', 'r', true)"

        def one() -> None:
            with self._connection.transaction():
                self._connection.execute(say.encode(), prepare=True)
                self._connection.execute(self._update, [self._any()], prepare=True)

        return self._timed(count, one)

    def bulk(self) -> tuple[float, float]:
        """Update all rows; return rows a second, and the bytes of the trail for each."""
        before = self._size()
        with psycopg.connect(self._url, autocommit=True) as fresh:
            began = time.perf_counter()
            done = fresh.execute(f"update {self.table} set balance = balance + 1".encode()).rowcount
            took = time.perf_counter() - began
        written = (self._size() - before) / done
        self._connection.execute(f"vacuum {self.table}".encode())
        self._connection.execute("checkpoint")
        return done / took, written

    def _timed(self, count: int, run: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(count):
            run()
        return count / (time.perf_counter() - began)

    def _fresh(self) -> int:
        self._next += 1
        return self._next

    def _any(self) -> int:
        return secrets.randbelow(self._rows) + 1

    def _size(self) -> int:
        if self.log is None:
            return 0
        query = "select sum(pg_total_relation_size(coalesce(t.relid, c.oid))) from pg_class c left join lateral"
        query += " pg_partition_tree(c.oid) t on t.isleaf where c.oid = %s::regclass"
        return int(self._connection.execute(query.encode(), [self.log]).fetchall()[0][0])


def main() -> None:
    """Run what was asked for and print what came out."""
    options = _arguments()
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        fresh = stack.enter_context(database(url))
        connection = stack.enter_context(psycopg.connect(fresh, autocommit=True))
        found = [
            Contestant(connection, fresh, number, name, options.rows)
            for number, name in enumerate(CONTESTANTS)
            if name in options.contestants
        ]
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
        results: Results = {each.name: {} for each in found}
        for metric in ("insert", "update", "context"):
            for number in range(options.rounds + 1):
                for each in found:
                    rate = getattr(each, metric)(options.statements)
                    if number:  # the first one warms up
                        results[each.name].setdefault(metric, []).append(rate)
            print(f"{metric} done", flush=True)
        for _ in range(options.bulk_rounds):
            for each in found:
                rate, written = each.bulk()
                results[each.name].setdefault("bulk", []).append(rate)
                if each.log:
                    results[each.name].setdefault("bytes", []).append(written)
        print(f"\n{options.rows} rows; medians of {options.rounds} rounds, bulk of {options.bulk_rounds}")
        print(table(results, METRICS))


@contextmanager
def database(url: str) -> Iterator[str]:
    """Make a database, and drop it afterwards."""
    name = f"pgeverything_bench_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield make_conninfo(url, dbname=name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=20, help="turns of each")
    add("--bulk-rounds", type=int, default=5, help="turns of each with all rows")
    add("--statements", type=int, default=300, help="statements in a turn")
    add("--rows", type=int, default=50_000, help="rows of each table")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="whom to compare")
    add("--url", help="a server to use instead of a private one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
