"""Retention, partitions, publishers and readers in chosen orders.

Nothing sleeps; the server says who waits for whom.
"""

from __future__ import annotations

import pytest

from pgeverything import PgEverything, RetentionGap
from pgeverything.engine.plan import drive
from pgeverything.events.patterns import compile_pattern
from pgeverything.events.read import batch, horizon
from pgeverything.events.values import PARTITION

from .accounts import fetch
from .sessions import Sessions, append


def put(url: str, position: int) -> None:
    """Let the log go on above a position, as if so much had been published."""
    fetch(url, "select setval('pgeverything.event_seq', %s)", position)


# Partitions and retention --------------------------------------------------------------------------------------------


def test_positions_without_a_partition_of_their_own_are_kept_and_moved_later(
    url: str, sessions: Sessions, pg: PgEverything
) -> None:
    """No worker, no append on a connection of our own: nobody has created partitions ahead."""
    publisher, _, _ = sessions.three()
    for number in (20, 21, 22):
        put(url, number * PARTITION - 2)
        publisher.tx.events.append_many("t", range(4), key="k")
    before = list(pg.events.read())
    assert len(before) == 12
    publisher.begin()
    append(publisher, "open")
    assert publisher.sql("select count(*) from only pgeverything.events_default") == [(13,)]
    assert fetch(url, "select pgeverything.extend_events(2)") == [(0,)]  # nor does anybody wait for it
    publisher.commit()
    assert fetch(url, "select pgeverything.extend_events(2)") == [(5,)]

    assert list(pg.events.read())[:12] == before
    left = fetch(url, "select min(position), count(*) from only pgeverything.events_default")
    assert left == [(22 * PARTITION, 4)]  # the range that is being written to stays
    put(url, 23 * PARTITION)
    append(publisher, "in a partition")
    assert fetch(url, "select count(*) from pgeverything.events_000023") == [(1,)]
    fetch(url, "select pgeverything.extend_events(2)")
    assert fetch(url, "select count(*) from only pgeverything.events_default") == [(0,)]
    assert list(pg.events.read())[:12] == before


def test_partitions_are_created_under_open_publishers_and_readers(
    url: str, sessions: Sessions, pg: PgEverything
) -> None:
    publisher, reading, _ = sessions.three()
    publisher.begin()
    append(publisher, 1)
    reading.begin()
    list(reading.tx.events.read())
    assert fetch(url, "select pgeverything.extend_events(20)") == [(12,)]
    publisher.commit()
    reading.rollback()
    assert [event.data for event in pg.events.read()] == [1]


def test_retention_waits_for_no_publisher_and_no_publisher_for_it(
    url: str, sessions: Sessions, pg: PgEverything
) -> None:
    publisher, other, dropper = sessions.three()
    append(publisher, "old")
    put(url, PARTITION)
    publisher.begin()
    append(publisher, "open")
    dropper.begin()
    assert dropper.sql("select pgeverything.drop_events(%s)", PARTITION - 1) == [(True,)]
    assert dropper.sql("select pgeverything.discard_events()") == [(False,)]  # its lock is on what publishers use
    append(other, "during")
    dropper.commit()
    publisher.commit()
    assert pg.events.drop_before(PARTITION) == PARTITION - 1
    assert fetch(url, "select to_regclass('pgeverything.events_000000')") == [(None,)]
    assert [event.data for event in pg.events.read()] == ["open", "during"]


def test_a_partition_that_is_being_read_is_left_for_the_next_time(
    url: str, sessions: Sessions, pg: PgEverything
) -> None:
    publisher, reading, _ = sessions.three()
    append(publisher, "old")
    put(url, PARTITION)
    append(publisher, "new")
    reading.begin()
    assert [event.data for event in reading.tx.events.read()] == ["old", "new"]
    assert pg.events.drop_before(PARTITION) == 0
    assert [event.data for event in reading.tx.events.read()] == ["old", "new"]
    reading.commit()
    assert pg.events.drop_before(PARTITION) == PARTITION - 1


def test_an_open_publisher_keeps_its_partition(url: str, sessions: Sessions, pg: PgEverything) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    append(slow, "old")
    put(url, PARTITION)
    append(fast, "new")
    assert pg.events.drop_before(PARTITION) == 0
    slow.commit()
    assert [event.data for event in pg.events.read()] == ["old", "new"]


@pytest.mark.parametrize("pattern", [None, "t", "rare"])
def test_a_reader_that_retention_overtakes_is_told(
    url: str, sessions: Sessions, pg: PgEverything, pattern: str | None
) -> None:
    """It has a horizon and then pauses, for as long as it takes to drop all of what it was about to read."""
    publisher, _, _ = sessions.three()
    last = [append(publisher, number) for number in range(3)][-1].position
    carrier = pg._database.carrier()
    upto = drive(carrier, horizon())
    put(url, PARTITION)
    append(publisher, "new")
    assert pg.events.drop_before(PARTITION) == PARTITION - 1

    with pytest.raises(RetentionGap) as caught:
        drive(carrier, batch(compile_pattern(pattern), after=1, upto=upto, limit=9))
    assert (caught.value.lost_from, caught.value.lost_to) == (2, PARTITION - 1)
    for after in (1, last, PARTITION - 2):
        with pytest.raises(RetentionGap):
            list(pg.events.read(pattern, after=after))
    for after in (0, PARTITION - 1):  # 0 is the oldest that is kept
        read = [event.data for event in pg.events.read(pattern, after=after)]
        assert read == ([] if pattern == "rare" else ["new"])


def test_a_reading_under_way_is_told_too(url: str, sessions: Sessions, pg: PgEverything) -> None:
    publisher, _, _ = sessions.three()
    publisher.tx.events.append_many("t", range(1000))
    put(url, PARTITION)
    append(publisher, "new")
    reading = pg.events.read()
    assert next(reading).data == 0
    assert pg.events.drop_before(PARTITION) == PARTITION - 1
    with pytest.raises(RetentionGap):
        list(reading)
