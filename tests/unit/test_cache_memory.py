"""What a process keeps in its own memory: never longer than it said, and nothing that it heard was invalidated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pgeverything.cache import memory
from pgeverything.cache.entries import ANYTHING, hint
from pgeverything.cache.memory import Draft, Memory


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ears:
    """Hints that a test sends."""

    works = True

    def __init__(self) -> None:
        self.watched: list[tuple[str, Callable[[], object]]] = []

    def watch(self, hint: str, wake: Callable[[], object]) -> Callable[[], None]:
        self.watched.append((hint, wake))
        return lambda: self.watched.remove((hint, wake))

    def send(self, sent: str) -> None:
        for watched, wake in list(self.watched):
            if watched == sent:
                wake()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(memory, "now", clock)
    return clock


def keep(kept: Memory, key: str, text: str, ears: Ears | None = None) -> None:
    with Draft(kept, key, ears) as draft:
        draft.stored = (text, None)


def test_the_time_of_an_entry_runs_from_before_it_is_read(clock: Clock) -> None:
    kept = Memory(2.0, 10)
    with Draft(kept, "k", None) as draft:
        clock.now += 1.5
        draft.stored = ("1", None)
    clock.now += 0.4
    assert kept.live("k") == ("1", None)
    clock.now += 0.1
    assert kept.live("k") is None
    assert len(kept) == 0


def test_what_is_not_there_is_not_kept(clock: Clock) -> None:
    kept, ears = Memory(2.0, 10), Ears()
    with Draft(kept, "k", ears):
        assert len(ears.watched) == 2
    assert kept.live("k") is None
    assert ears.watched == []


def test_a_read_that_fails_leaves_nothing(clock: Clock) -> None:
    kept, ears = Memory(2.0, 10), Ears()
    with pytest.raises(OSError), Draft(kept, "k", ears):
        raise OSError
    assert ears.watched == []


@pytest.mark.parametrize("sent", [hint(["k"]), ANYTHING])
def test_a_hint_ends_an_entry(clock: Clock, sent: str) -> None:
    kept, ears = Memory(2.0, 10), Ears()
    keep(kept, "k", "1", ears)
    keep(kept, "other", "2", ears)
    ears.send(sent)
    assert kept.live("k") is None
    assert (kept.live("other") is None) is (sent == ANYTHING)
    assert len(ears.watched) == 2 * len(kept)


@pytest.mark.parametrize("sent", [hint(["k"]), ANYTHING])
def test_a_hint_that_comes_while_an_entry_is_read_keeps_it_out(clock: Clock, sent: str) -> None:
    """What is on its way may have been read before the invalidation that the hint is about."""
    kept, ears = Memory(2.0, 10), Ears()
    with Draft(kept, "k", ears) as draft:
        ears.send(sent)
        draft.stored = ("old", None)
    assert kept.live("k") is None
    assert ears.watched == []


def test_a_hint_and_a_reader_may_stop_an_entry_at_once(clock: Clock) -> None:
    class Taken(list[Callable[[], object]]):
        """Another thread takes the last one between the look and the hand."""

        def __len__(self) -> int:
            return 1

    draft = Draft(Memory(10, 10), "k", None)
    draft._stops = Taken()
    draft.stop()


def test_forgetting_keeps_out_what_is_being_read(clock: Clock) -> None:
    kept = Memory(2.0, 10)
    with Draft(kept, "k", None) as draft:
        kept.clear()
        draft.stored = ("old", None)
    assert kept.live("k") is None


def test_those_used_last_stay(clock: Clock) -> None:
    kept, ears = Memory(60.0, 3), Ears()
    for key in "abc":
        keep(kept, key, key, ears)
    kept.live("a")
    keep(kept, "d", "d", ears)
    assert [key for key in "abcd" if kept.live(key)] == ["a", "c", "d"]
    assert len(ears.watched) == 6


def test_it_says_now_and_then_that_it_listens(clock: Clock) -> None:
    kept = Memory(2.0, 3)
    assert kept.must_say()
    assert not kept.must_say()
    clock.now += 29.0
    assert not kept.must_say()
    clock.now += 1.0
    assert kept.must_say()


class Kept(RuleBasedStateMachine):
    """Against a cache that changes, with hints that sometimes come and reads that take their time."""

    TTL, MOST = 5.0, 3
    keys = st.sampled_from("abcd")

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.ears = Clock(), Ears()
        self.before = memory.now
        memory.now = self.clock
        self.kept = Memory(self.TTL, self.MOST)
        self.history: dict[str, list[tuple[float, int]]] = {key: [(0.0, 0)] for key in "abcd"}
        self.heard: dict[str, int] = dict.fromkeys("abcd", 0)
        self.reading: list[tuple[Draft, int]] = []

    def teardown(self) -> None:
        memory.now = self.before

    @rule(seconds=st.floats(0.0, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(key=keys, hinted=st.booleans(), many=st.booleans())
    def somebody_writes(self, key: str, hinted: bool, many: bool) -> None:
        number = self.history[key][-1][1] + 1
        self.history[key].append((self.clock.now, number))
        if hinted:
            self.heard[key] = number
            self.ears.send(ANYTHING if many else hint([key]))

    @rule(key=keys)
    def begin_to_read(self, key: str) -> None:
        self.reading.append((Draft(self.kept, key, self.ears), self.history[key][-1][1]))

    @rule(found=st.booleans(), which=st.integers(0, 100))
    def end_reading(self, found: bool, which: int) -> None:
        if self.reading:
            draft, number = self.reading.pop(which % len(self.reading))
            with draft:
                draft.stored = (str(number), None) if found else None

    @rule()
    def forget(self) -> None:
        self.kept.clear()

    @rule(key=keys)
    def look(self, key: str) -> None:
        stored: Any = self.kept.live(key)
        if stored is not None:
            number = int(stored[0])
            written = [at for at, later in self.history[key] if later == number + 1]
            assert not written or written[0] > self.clock.now - self.TTL, "older than it said"
            assert number >= self.heard[key], "older than what it has heard of"

    @invariant()
    def bounded(self) -> None:
        assert len(self.kept) <= self.MOST
        assert len(self.ears.watched) <= 2 * (len(self.kept) + len(self.reading))


TestKept = Kept.TestCase
