"""One interface over the job queues that are compared.

Every queue is driven through its own public API, with the settings that made it fastest on the machine where
this benchmark was written; `choices` says which, so that a reader can argue with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import psycopg

NAMES = ("pgeverything", "procrastinate", "pgqueuer")
QUEUE = "bench"


class Producer(ABC):
    """A connected client that enqueues no-op jobs; job `n` has `n` as its only argument."""

    @abstractmethod
    def enqueue_each(self, first: int, count: int) -> None:
        """Enqueue jobs `first` to `first + count - 1`, one call and one commit for each."""

    @abstractmethod
    def enqueue_many(self, first: int, count: int) -> None:
        """Enqueue jobs `first` to `first + count - 1` through the bulk call, in calls of the best size."""


class Peer(ABC):
    """One job queue."""

    name: ClassVar[str]
    choices: ClassVar[str]
    drained: ClassVar[str]
    """SQL for one boolean: no job waits or runs. Cheap however many finished jobs there are."""
    pending: ClassVar[str]
    """SQL for the number of jobs that wait or run."""
    finished: ClassVar[str]
    """SQL for the number of jobs recorded as succeeded."""

    @property
    def version(self) -> str:
        """The installed version."""
        return version(self.name)

    @abstractmethod
    def install(self, url: str) -> None:
        """Create the queue's schema in an empty database."""

    @abstractmethod
    def producer(self, url: str) -> AbstractContextManager[Producer]:
        """Connect a client."""

    @abstractmethod
    def work(self, url: str, handler: Callable[[int], None], ready: Callable[[], None]) -> None:
        """Run one worker in this process until SIGTERM.

        Args:
            url: Where the queue lives.
            handler: To be called with the job's number by an `async def` task.
            ready: To be called when connected; returns when the worker shall begin.
        """

    @abstractmethod
    def fill_finished(self, connection: psycopg.Connection, count: int) -> None:
        """Write what `count` successful jobs of the past leave behind in the queue's tables."""


def load(name: str) -> Peer:
    """Import the adapter of one queue.

    Raises:
        SystemExit: The queue is not installed in this environment.
    """
    try:
        peer: Peer = import_module(f"peers.{name}").PEER
    except ImportError as error:
        raise SystemExit(
            f"{name} cannot be imported ({error}): "
            "pip install -e . -r tests/benchmarks/requirements.txt, or leave it out with --peers"
        ) from error
    return peer
