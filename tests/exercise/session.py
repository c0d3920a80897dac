"""What runs a named statement."""

from __future__ import annotations

from typing import Protocol

from pgeverything.engine.plan import Rows


class Session(Protocol):
    """A session that is looked at.

    Attributes:
        one_transaction: whether all of it is one transaction.
    """

    one_transaction: bool

    def run(self, name: str, /, **params: object) -> Rows: ...

    def sql(self, text: str) -> None:
        """Run a statement of a caller's, which may fire triggers of ours."""
