"""Everything on one object: the modules over one database, tasks, workers, and the caller's transaction."""

from .async_everything import AsyncPgEverything
from .bound import AsyncBound, Bound
from .everything import PgEverything

__all__ = ["AsyncBound", "AsyncPgEverything", "Bound", "PgEverything"]
