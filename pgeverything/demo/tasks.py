"""What the demo's worker processes run: ``pgeverything worker pgeverything.demo.tasks:pg``."""

from __future__ import annotations

import ast
import functools
import io
import os
import tokenize
from pathlib import Path

from ..app import Bound, PgEverything
from ..pubsub import Message
from ..retry import Retry
from ..worker.context import JobContext

SCHEMA = "pgeverything_demo"
TABLES = "pgeverything_demo_tables"  # the schema of the application's own tables
PARSED, TOTALS = "parsed", "totals"  # the topic of what was parsed, and the subscription that adds it up
PARSE, REPAIR, PROBE, REPORT = "parse", "repair", "probe", "report"  # queues
HEADLINE = "report: lines"  # a key of the cache
JOURNAL = "PGEVERYTHING_DEMO_JOURNAL"  # names the folder in which each process notes what it starts

pg = PgEverything(schema=SCHEMA)


@pg.task(queue=PARSE, retry=Retry(attempts=1))  # a syntax error is the same at the second attempt
def parse(context: JobContext, path: str, package: str) -> None:
    """Publish what a Python file defines; on the repair queue, what as much of it as can be read defines."""
    note_start(context.job.id)
    source = Path(path).read_bytes()
    tree = readable_part(source) if context.job.queue == REPAIR else ast.parse(decoded(source))
    kinds = [type(node) for node in ast.walk(tree)]
    found = {
        "path": path,
        "lines": source.count(b"\n"),
        "functions": kinds.count(ast.FunctionDef) + kinds.count(ast.AsyncFunctionDef),
        "classes": kinds.count(ast.ClassDef),
    }
    with context.transaction() as tx:  # the event and the end of the job are one commit
        tx.pubsub.publish(PARSED, found, key=package)


@pg.subscriber(PARSED, name=TOTALS, start="earliest", transactional=True)
def add_up(message: Message, tx: Bound) -> None:
    """Add a file to the totals of its package, in the transaction that acknowledges its event."""
    tx.audit.context(actor=TOTALS, reason=f"event {message.position}")
    tx.connection.execute(_ADD, {"package": message.key} | message.data)


_ADD = f"""
    insert into {TABLES}.totals as t (package, files, lines, functions, classes)
    values (%(package)s, 1, %(lines)s, %(functions)s, %(classes)s)
    on conflict (package) do update
    set files = t.files + 1, lines = t.lines + excluded.lines, functions = t.functions + excluded.functions,
        classes = t.classes + excluded.classes
"""  # noqa: S608 - a constant


@pg.task(queue=PROBE)
def probe() -> None:
    """Do nothing: how soon it is started is what is measured."""


@pg.task(queue=REPORT)
def build_report(context: JobContext) -> dict[str, int]:
    """Sum up what the files define. Of all who are asked at about the same time, the one that gets the lock does it."""
    lease = pg.locks.acquire("report", ttl="30s", min_hold="30s", note=f"job {context.job.id}")
    if lease is not None:
        with lease, pg.transaction() as tx:
            tx.connection.execute(_SUM, [lease.token])
            tx.cache.invalidate(HEADLINE)  # commits with the report: nobody sees one without the other
            tx.locks.guard(lease)  # committed while the lease is ours, or not at all
    return {"pid": os.getpid(), "built": int(lease is not None)}


@pg.task(queue=REPORT)
def read_report() -> dict[str, int]:
    """Read the report's first line through the cache: of all who ask, one asks the table."""
    asked: list[int] = []

    def compute() -> int:
        with pg.transaction() as tx:
            asked.append(1)
            row = tx.connection.execute(f"select coalesce(sum(lines), 0)::bigint from {TABLES}.report").fetchone()  # noqa: S608
            return int(row[0])

    lines = pg.cache.get_or_set(HEADLINE, compute, ttl="1h")
    return {"pid": os.getpid(), "computed": len(asked), "lines": lines}


_SUM = f"""
    insert into {TABLES}.report (token, lines, functions, classes)
    select %s, sum(lines), sum(functions), sum(classes) from {TABLES}.totals
"""  # noqa: S608 - a constant


def decoded(source: bytes) -> str:
    """Return a file's text in the encoding it declares: a step of its own, so that it fails as a group of its own."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode(encoding)


def readable_part(source: bytes) -> ast.Module:
    """Parse a file up to its first error, whatever its encoding."""
    lines = source.decode("utf-8-sig", "replace").replace("\0", "").splitlines(keepends=True)
    while True:
        try:
            return ast.parse("".join(lines))
        except SyntaxError as error:
            # An error at the very end (an open bracket) takes the last line along, so that this comes to an end.
            del lines[max(min((error.lineno or 1) - 1, len(lines) - 1), 0) :]


def note_start(job: int) -> None:
    """Note that a job begins, where a SIGKILL cannot undo it: this is how the demo knows what ran twice."""
    if folder := os.environ.get(JOURNAL):
        os.write(_journal(folder), f"{job}\n".encode())


@functools.cache
def _journal(folder: str) -> int:
    return os.open(Path(folder) / f"{os.getpid()}.started", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
