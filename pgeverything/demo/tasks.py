"""What the demo's worker processes run: ``pgeverything worker pgeverything.demo.tasks:pg``."""

from __future__ import annotations

import ast
import functools
import io
import os
import tokenize
from pathlib import Path

from ..app import PgEverything
from ..retry import Retry
from ..worker.context import JobContext

SCHEMA = "pgeverything_demo"
PARSE, REPAIR, PROBE = "parse", "repair", "probe"  # queues
JOURNAL = "PGEVERYTHING_DEMO_JOURNAL"  # names the folder in which each process notes what it starts

pg = PgEverything(schema=SCHEMA)


@pg.task(queue=PARSE, retry=Retry(attempts=1))  # a syntax error is the same at the second attempt
def parse(context: JobContext, path: str) -> dict[str, int]:
    """Count what a Python file defines; on the repair queue, in as much of it as can be read."""
    note_start(context.job.id)
    source = Path(path).read_bytes()
    tree = readable_part(source) if context.job.queue == REPAIR else ast.parse(decoded(source))
    kinds = [type(node) for node in ast.walk(tree)]
    return {
        "lines": source.count(b"\n"),
        "functions": kinds.count(ast.FunctionDef) + kinds.count(ast.AsyncFunctionDef),
        "classes": kinds.count(ast.ClassDef),
    }


@pg.task(queue=PROBE)
def probe() -> None:
    """Do nothing: how soon it is started is what is measured."""


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
