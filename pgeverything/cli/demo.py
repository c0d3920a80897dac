"""``pgeverything demo``: shown live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING

import click

from .output import counted, emit_table

if TYPE_CHECKING:
    from ..demo.report import Account, Report

_PLAIN_EVERY = 2.0  # seconds between lines where there is no terminal


@click.command()
@click.option("--url", metavar="URL", help="A database instead of the private local server.")
@click.option("--files", type=click.IntRange(1), metavar="N", help="Only N files, for a quicker look.")
def demo(url: str | None, files: int | None) -> None:
    """See it work: two workers parse the standard library, one is killed.

    Needs nothing but this package: it uses the private local server, whatever $DATABASE_URL says, unless --url is
    given. It drops and makes two schemas of its own, pgeverything_demo and pgeverything_demo_tables, and leaves them
    for you to look at: `pgeverything jobs list --schema pgeverything_demo`. Exit code 1 when a single file is lost.
    """
    from ..demo.run import run  # noqa: PLC0415 - no other command needs it
    from ..settings import conninfo  # noqa: PLC0415

    private = url is None
    if url is None:
        from ..local import ensure  # noqa: PLC0415

        server = ensure()
        url = server.url
        click.echo(f"PostgreSQL {server.version}, the private local server at {server.data_dir}")
    with _Show() as show:
        report = run(conninfo(url), files, show)
    _print(report)
    _print_next(url if private else None)
    if not report.balanced:
        click.echo("jobs were lost or counted twice, or the report built or cached wrongly: this is a bug", err=True)
        raise click.exceptions.Exit(1)


def _print_next(private: str | None) -> None:
    """Say how to look around, in lines to paste, and how to end the server that we have started."""
    called = sys.argv[0] if sys.argv[0].endswith("pgeverything") else "pgeverything"
    url = shlex.quote(private) if private else "..."
    click.echo("\nlook around, and stop the server when you have seen enough:" if private else "\nlook around:")
    click.echo(f"  export PGEVERYTHING_URL={url}")
    for command in ("status", "jobs list", "dead groups"):
        click.echo(f"  {called} {command} --schema pgeverything_demo")
    if private:
        click.echo(f"  {called} local stop")


class _Show:
    """A bar under the lines on a terminal; only lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._console = Console(highlight=False)
        self._live = self._console.is_terminal
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        self._bar = self._progress.add_task("", total=None, visible=False)
        self._said = (0.0, "")

    def __enter__(self) -> _Show:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Say that something happens."""
        if self._live:
            self._console.print(text, markup=False)
        else:
            click.echo(text)

    def progress(self, ended: int, total: int, note: str) -> None:
        """Say how far it is."""
        if self._live:
            self._progress.update(self._bar, completed=ended, total=total, description=note, visible=True)
            return
        text = f"{ended} of {total}, {note}"
        if time.monotonic() - self._said[0] >= _PLAIN_EVERY and text != self._said[1]:
            self._said = (time.monotonic(), text)
            click.echo(text)


def _print(report: Report) -> None:
    kill, latency = report.kill, report.latency
    click.echo()
    click.echo(_sum(report.account))
    click.echo(
        f"speed          {report.speed.per_second:.0f} jobs/s: {report.speed.jobs} in {report.speed.seconds:.1f} s"
    )
    click.echo(
        f"pickup         p50 {latency.p50 * 1000:.1f} ms, p99 {latency.p99 * 1000:.1f} ms from enqueue to start, "
        f"{latency.probes} jobs on idle workers"
    )
    click.echo(
        f"the kill       {kill.rescued} jobs rescued, back in line after {kill.back:.1f} s, the last run again after "
        f"{kill.again:.1f} s; {kill.twice} started twice"
    )
    delays = ", ".join(f"{delay * 1000:.1f}" for delay in report.ticks.delays)
    click.echo(f"the schedule   {report.ticks.ran} ticks ran, enqueued {delays} ms after their time")
    if report.groups:
        click.echo("\ndead letters by error")
        emit_table(
            ("jobs", "fingerprint", "error", "for example"),
            ((g.count, g.fingerprint, g.error_type, _cut(g.error_message or "")) for g in report.groups),
        )
    if report.redrive is not None:
        redrive = report.redrive
        click.echo(
            f"\nredrive        {redrive.moved} of fingerprint {redrive.group.fingerprint} went to a queue "
            f"that reads up to the first error: {redrive.finished} finished"
        )
        click.echo(_sum(report.after))
    _print_log(report)
    click.echo("\nthe largest modules")
    emit_table(
        ("lines", "functions", "classes", "module"),
        ((m.lines, m.functions, m.classes, m.path) for m in report.largest),
    )
    click.echo(f"\n{report.seconds:.0f} s in all")


def _print_log(report: Report) -> None:
    """What was made of the parsed files."""
    totals, trail, sums, cached = report.totals, report.trail, report.sums, report.cached
    verdict = "their sum, the killed worker's included" if totals.equal else "NOT THEIR SUM"
    click.echo(
        f"\nthe log        {totals.events} events, one for each finished file; "
        f"the totals of {totals.packages} packages are {verdict}"
    )
    verdict = "it holds the same" if totals.rebuilt else "it DOES NOT HOLD THE SAME"
    click.echo(f"the replay     the table emptied and the subscription rewound: {totals.seconds:.1f} s later {verdict}")
    verdict = "what it was" if trail.as_of else "NOT WHAT IT WAS"
    click.echo(
        f"the trail      {trail.changes} changes of the row {trail.package!r}, last by {trail.actor}, {trail.reason}; "
        f"the redrive changed {counted(trail.changed, 'row')}, and the table as of before is {verdict}"
    )
    click.echo(
        f"\nthe report     {sums.asked} jobs in {counted(sums.processes, 'process', 'processes')} asked for its lock, "
        f"{sums.built} built it (token {sums.token}): "
        f"{sums.lines} lines, {sums.functions} functions, {sums.classes} classes"
    )
    verdict = "what was cached before is gone" if report.fresh else f"WRONG, {set(cached.lines)}"
    click.echo(f"the cache      {cached.asked} jobs read its lines, {cached.computed} from the table: {verdict}")


def _sum(account: Account) -> str:
    """The claim that matters, as an equation."""
    sign, verdict = ("=", "nothing lost") if account.balanced else ("!=", "NOT EQUAL")
    ended = f"{account.finished} finished + {account.dead} dead letters"
    return f"files          {account.found} found {sign} {ended}: {verdict}"


def _cut(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:67]}..."
