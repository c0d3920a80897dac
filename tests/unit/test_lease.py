"""The length of a worker's lease: what is refused, and how it is divided."""

from __future__ import annotations

import pytest

from pgeverything import PgEverything
from pgeverything.errors import InvalidArgument
from pgeverything.worker.lease import Lease


@pytest.mark.parametrize("lease", ["1s", 1.9, "0s"])
def test_a_lease_that_a_slow_commit_would_lose_is_refused(lease: object) -> None:
    pg = PgEverything("postgresql://nowhere")
    with pytest.raises(InvalidArgument, match="lease="):
        pg.worker(lease=lease)  # type: ignore[arg-type]
    pg.worker(lease="2s")


def test_two_heartbeats_may_get_lost_and_trust_ends_before_the_patience_of_the_others() -> None:
    lease = Lease(["default"], 1, None, 30.0)
    assert not lease.trusted  # nobody has registered it yet
    assert 2 * lease.heartbeat < lease._trust < lease.length
