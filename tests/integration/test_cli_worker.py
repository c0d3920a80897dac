"""``pgeverything worker`` as processes: what it refuses, signals, crashes, and who outlives whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgeverything import Job, PgEverything
from pgeverything.doctor.workers import WorkerStatus, workers
from pgeverything.engine.plan import drive
from tests.waiting import PATIENCE, eventually

APP = """\
import os, time
from pathlib import Path
from pgeverything import AsyncPgEverything, PgEverything

pg = PgEverything()
apg = AsyncPgEverything()
number = 7

@pg.task()
def hold(folder: str) -> int:
    (Path(folder) / f"began-{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return os.getpid()

@pg.task()
def note() -> int:
    return os.getpid()

@apg.task()
async def later(n: int) -> int:
    return n + 1
"""


@pytest.fixture
def pg(new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgEverything]:
    url = new_database()
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    (tmp_path / "shop.py").write_text(APP)
    with PgEverything(url) as pg:
        pg.migrate()
        yield pg


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pgeverything", "worker", *args]


def run(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), check=False, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


@contextmanager
def started(cwd: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker command that is running; nothing of it is left afterwards."""
    with (
        (cwd / "log").open("wb") as log,
        subprocess.Popen(command(*args), cwd=cwd, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            (cwd / "go").touch()  # a failed test leaves no handler waiting
            process.kill()  # its children see that, and drain


def registered(pg: PgEverything) -> list[WorkerStatus]:
    return drive(pg._database.carrier(), workers())


def pid_of(worker: WorkerStatus) -> int:
    return int(worker.name.rpartition(":")[2])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")  # an orphan whose new parent is slow to bury it
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def begun(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("began-")) for path in folder.glob("began-*")]


def hold(pg: PgEverything, folder: Path) -> Job:
    return pg.jobs.enqueue("hold", {"folder": str(folder)})


# One process ------------------------------------------------------------------------------------------------------


def test_until_idle_for_both_kinds_of_app(pg: PgEverything, tmp_path: Path) -> None:
    first, second = pg.jobs.enqueue("note"), pg.jobs.enqueue("later", {"n": 1}, queue="other")
    done = run(tmp_path, "shop:pg", "--until-idle", "--no-listen", "--name", "me", "--log-level", "warning")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pg.jobs.get(first.id).state == "succeeded"
    assert run(tmp_path, "shop:apg", "--queues", "other, more", "--until-idle").returncode == 0
    assert pg.jobs.get(second.id).result == 2
    assert registered(pg) == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["shop"], 2, "must be module:attribute"),
        (["nowhere:pg"], 2, "there is no module 'nowhere'"),
        (["shop:nothing"], 2, "has no 'nothing'"),
        (["shop:number"], 2, "is a int, not a PgEverything"),
        (["shop:pg", "--lease", "1s"], 2, "lease="),
        (["shop:pg", "--drain", "long"], 2, "drain="),
        (["shop:pg", "--concurrency", "0"], 2, "concurrency="),
        (["broken:pg"], 1, "cannot import 'broken': ModuleNotFoundError: No module named 'missing_dependency'"),
        (["shop:pg", "--processes", "2", "--lease", "1s"], 2, "a worker cannot start"),
    ],
)
def test_what_cannot_start(pg: PgEverything, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    (tmp_path / "broken.py").write_text("import missing_dependency\n")
    done = run(tmp_path, *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_schema_that_is_not_migrated(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    monkeypatch.setenv("PGEVERYTHING_URL", new_database())
    (tmp_path / "shop.py").write_text(APP)
    done = run(tmp_path, "shop:pg", "--processes", processes)
    assert done.returncode == 3
    assert done.stderr.count("run `pgeverything migrate`") == 1  # one message, however many processes
    assert "Traceback" not in done.stderr


def test_an_app_without_tasks_is_told(pg: PgEverything, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("from pgeverything import PgEverything\npg = PgEverything()\n")
    done = run(tmp_path, "empty:pg", "--until-idle")
    assert done.returncode == 0
    assert "has no tasks" in done.stderr


# Several processes ------------------------------------------------------------------------------------------------


def test_several_processes_until_idle(pg: PgEverything, tmp_path: Path) -> None:
    ids = pg.jobs.enqueue_many("note", [{}] * 50)
    assert run(tmp_path, "shop:pg", "--processes", "2", "--until-idle").returncode == 0
    assert {pg.jobs.get(each).state for each in ids} == {"succeeded"}
    assert registered(pg) == []


def test_a_killed_child_is_started_again_and_its_job_survives(pg: PgEverything, tmp_path: Path) -> None:
    with started(tmp_path, "shop:pg", "--processes", "2", "--lease", "2s") as parent:
        eventually(lambda: len(registered(pg)) == 2, "both workers register")
        job = hold(pg, tmp_path)
        eventually(lambda: begun(tmp_path), "the job begins")
        (victim,) = begun(tmp_path)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(begun(tmp_path)) == 2, "the job begins elsewhere")
        eventually(
            lambda: sum(worker.alive for worker in registered(pg)) == 2 and gone(victim), "there are two workers again"
        )
        (tmp_path / "go").touch()
        done = pg.jobs.wait(job.id, timeout="60s")
        assert (done.crashes, done.attempt) == (1, 1)
        assert done.result != victim
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(PATIENCE) == 0
    assert registered(pg) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(pg: PgEverything, tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, "shop:pg", "--processes", "2", "--concurrency", "1", "--name", "web") as parent:
        eventually(lambda: len(registered(pg)) == 2, "both workers register")
        assert {worker.name for worker in registered(pg)} == {"web-1", "web-2"}
        jobs = [hold(pg, tmp_path) for _ in range(4)]
        eventually(lambda: len(begun(tmp_path)) == 2, "both workers have a job")
        parent.send_signal(number)
        heard = "claiming nothing more"
        eventually(lambda: (tmp_path / "log").read_text().count(heard) == 2, "both hear of it, once")
        (tmp_path / "go").touch()
        assert parent.wait(PATIENCE) == 0
    states = [pg.jobs.get(job.id).state for job in jobs]
    assert sorted(states) == ["ready", "ready", "succeeded", "succeeded"]  # what had not begun went back untouched
    assert registered(pg) == []


def test_the_second_signal_kills(pg: PgEverything, tmp_path: Path) -> None:
    with started(tmp_path, "shop:pg", "--processes", "2") as parent:
        eventually(lambda: len(registered(pg)) == 2, "both workers register")
        pids = [pid_of(worker) for worker in registered(pg)]
        job = hold(pg, tmp_path)
        eventually(lambda: begun(tmp_path), "the job begins")
        parent.send_signal(signal.SIGTERM)
        eventually(lambda: len(registered(pg)) == 1, "the idle worker leaves")
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(PATIENCE) == 128 + signal.SIGTERM
    assert all(gone(pid) for pid in pids)
    assert pg.jobs.get(job.id).state == "running"  # until it is rescued


def test_children_drain_when_their_supervisor_is_killed(pg: PgEverything, tmp_path: Path) -> None:
    with started(tmp_path, "shop:pg", "--processes", "2") as parent:
        eventually(lambda: len(registered(pg)) == 2, "both workers register")
        pids = [pid_of(worker) for worker in registered(pg)]
        job = hold(pg, tmp_path)
        eventually(lambda: begun(tmp_path), "the job begins")
        parent.kill()
        eventually(lambda: len(registered(pg)) == 1, "the idle worker leaves")
        (tmp_path / "go").touch()
        assert pg.jobs.wait(job.id, timeout="60s").result in pids
        eventually(lambda: registered(pg) == [] and all(map(gone, pids)), "both are gone")
