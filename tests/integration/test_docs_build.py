"""The documentation builds without a warning, and shows operations with the signatures they have."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgeverything import AsyncJobQueue, DeadLetters, JobQueue
from pgeverything.dead_letters import redrive
from pgeverything.jobs.enqueue import enqueue

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))


@pytest.mark.usefixtures("_extensions")
def test_operations_are_shown_as_methods() -> None:
    from _ext.operations import as_method, operations

    assert operations(JobQueue).keys() == operations(AsyncJobQueue).keys() >= {"enqueue", "wait", "why", "list"}

    shown = as_method("enqueue", operations(JobQueue)["enqueue"], JobQueue)
    signature, real = inspect.signature(shown), inspect.signature(enqueue)
    assert list(signature.parameters.values())[1:] == list(real.parameters.values())
    assert (signature.return_annotation, real.return_annotation) == ("Job", "Plan[Job]")
    assert shown.__doc__ == enqueue.__doc__
    assert not inspect.iscoroutinefunction(shown)

    awaited = as_method("enqueue", operations(AsyncJobQueue)["enqueue"], AsyncJobQueue)
    assert inspect.signature(awaited) == signature
    assert inspect.iscoroutinefunction(awaited)
    assert as_method("redrive", operations(DeadLetters)["redrive"], DeadLetters).__doc__ == redrive.__doc__


def test_the_documentation_builds(tmp_path: Path) -> None:
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed, reason="pip install -e '.[docs]'", exc_type=ImportError)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees"), str(DOCS)]
    built = subprocess.run([*command, str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    page = (tmp_path / "html" / "reference" / "python.html").read_text("utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for shown in (
        "args: Mapping[str, Any] | None = None",
        "unique_key: str | None = None",
        "→ Job",
        "async enqueue_many(",
        "dry_run: bool",
    ):
        assert shown in text, shown
    commands = (tmp_path / "html" / "reference" / "cli.html").read_text("utf-8")
    assert "Start the server, and create it the first time" in commands
