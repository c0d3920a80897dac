"""What a handler sees of its job: a parameter annotated :class:`JobContext`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..jobs.values import Job
    from .claimed import Claimed
    from .transactions import Transactions


class _Transaction:
    """`with` in a `def` handler, `async with` in an `async def` one."""

    def __init__(self, transactions: Transactions, claimed: Claimed) -> None:
        self._transactions, self._claimed = transactions, claimed

    def __enter__(self) -> Any:
        self._manager = self._transactions.blocking(self._claimed)
        return self._manager.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._manager.__exit__(*error)

    async def __aenter__(self) -> Any:
        self._amanager = self._transactions.awaiting(self._claimed)
        return await self._amanager.__aenter__()

    async def __aexit__(self, *error: Any) -> Any:
        return await self._amanager.__aexit__(*error)


class JobContext:
    """A running job, as its handler sees it."""

    def __init__(self, claimed: Claimed, load: Callable[[Claimed], Job], transactions: Transactions) -> None:
        self._claimed, self._load, self._transactions = claimed, load, transactions
        self._stop = claimed.stop = threading.Event()
        if claimed.cancelled or claimed.lost:
            self._stop.set()

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self._load(self._claimed)

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return int(self._claimed.attempt)

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop: a cancel, a timeout, a lost lease, or a worker that cannot wait longer."""
        return self._stop.is_set()

    def progress(self, share: float, note: str | None = None) -> None:
        """Say how far the job is. Written at most once a second, so call it as often as you like.

        Args:
            share: from 0 to 1.
            note: a few words.
        """
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InvalidArgument(f"progress({share!r}) must be from 0 to 1")
        claimed = self._claimed
        claimed.progress = round(float(share), 6)  # the column is a real, which refuses what is nearly nothing
        claimed.note = None if note is None else _storable(str(note)[:500])
        claimed.progress_changed = True

    def transaction(self) -> _Transaction:
        """Open a transaction in which the handler's writes and the job's completion commit together.

        `with` in a `def` handler, `async with` in an `async def` one; yields a bound facade, whose `.connection` is the
        psycopg connection for your own SQL. When the block is left the job is finished in the same commit: its effects
        happen exactly once, whatever is killed when. What the handler does after the block is not covered, and its
        return value is not kept.

        Raises:
            JobLost: on leaving the block, when the job is not this worker's any more. Nothing was committed.
        """
        return _Transaction(self._transactions, self._claimed)


def _storable(text: str) -> str:
    """Return text that Postgres takes: no NUL, and no lone surrogate, as undecodable file names have."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
