from __future__ import annotations

import copy
import logging
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything.errors import InvalidArgument
from pgeverything.retry import Retry

ERROR = ValueError("x")


def test_ceilings_double_up_to_the_most() -> None:
    policy = Retry(attempts=10, first="1s", most="10s", jitter="none")
    assert [policy.next_delay(n, ERROR) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_jitter_is_drawn_between_a_tenth_of_the_ceiling_and_the_ceiling() -> None:
    policy = Retry(first="10s")
    assert policy.next_delay(1, ERROR, random=lambda: 0.0) == pytest.approx(1)
    assert policy.next_delay(1, ERROR, random=lambda: 0.5) == pytest.approx(5.5)
    assert policy.next_delay(1, ERROR, random=lambda: 1.0) == pytest.approx(10)


def test_it_ends_after_the_last_attempt() -> None:
    policy = Retry(attempts=3)
    assert policy.next_delay(2, ERROR) is not None
    assert policy.next_delay(3, ERROR) is None
    assert policy.next_delay(4, ERROR) is None
    assert Retry.never().next_delay(1, ERROR) is None


def test_the_jobs_own_limit_replaces_the_policys() -> None:
    policy = Retry(attempts=3)
    assert policy.next_delay(3, ERROR, max_attempts=5) is not None
    assert policy.next_delay(1, ERROR, max_attempts=1) is None


def test_fixed_always_waits_the_same() -> None:
    policy = Retry.fixed(timedelta(seconds=10), attempts=3)
    assert [policy.next_delay(n, ERROR) for n in (1, 2, 3)] == [10, 10, None]


def test_the_most_specific_class_decides() -> None:
    policy = Retry(
        attempts=5,
        exceptions={
            LookupError: None,
            KeyError: Retry.fixed("7s", attempts=2),
            OSError: Retry.fixed("9s", attempts=20),
        },
    )

    class MissingError(KeyError):
        pass

    assert policy.next_delay(1, MissingError()) == 7
    assert policy.next_delay(2, MissingError()) is None
    assert policy.next_delay(1, IndexError()) is None
    assert policy.next_delay(1, ERROR) is not None
    assert policy.next_delay(19, ConnectionResetError()) == 9  # its own attempts, not the outer 5
    assert policy.next_delay(3, ConnectionResetError(), max_attempts=3) is None  # unless the job has a limit
    assert policy.next_delay(2, MissingError(), max_attempts=9) is None


def test_your_own_function_decides() -> None:
    asked: list[tuple[int, BaseException]] = []

    def delay(attempt: int, error: BaseException) -> str | None:
        asked.append((attempt, error))
        return None if attempt == 3 else f"{attempt * 10}s"

    policy = Retry(delay=delay)
    assert [policy.next_delay(n, ERROR) for n in (1, 2, 3)] == [10, 20, None]
    assert asked == [(1, ERROR), (2, ERROR), (3, ERROR)]
    assert Retry(delay=lambda *_: 0).next_delay(1, ERROR) == 0
    assert policy.next_delay(5, ERROR) is None
    assert len(asked) == 3  # out of attempts: not asked again


@pytest.mark.parametrize("broken", [lambda *_: 1 / 0, lambda *_: "soon", lambda *_: -1, lambda: "1s"])
def test_a_broken_function_is_logged_and_does_not_lose_the_job(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "pgeverything.retry"):
        assert Retry(first="4s", jitter="none", delay=broken).next_delay(1, ERROR) == 4
    assert "the delay function of a Retry failed" in caplog.text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": True}, "attempts=True"),
        ({"attempts": 2.5}, "attempts=2.5"),
        ({"first": 0}, "first=0"),
        ({"first": "soon"}, "first='soon'"),
        ({"most": "never"}, "most='never'"),
        ({"first": "2h"}, "most='1h'"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"factor": math.nan}, "factor=nan"),
        ({"factor": math.inf}, "factor=inf"),
        ({"factor": "2"}, "factor='2'"),
        ({"jitter": "some"}, "jitter='some'"),
        ({"delay": "5s"}, "delay='5s'"),
        ({"exceptions": [ValueError]}, "exceptions="),
        ({"exceptions": {"ValueError": None}}, "'ValueError'"),
        ({"exceptions": {int: None}}, "int"),
        ({"exceptions": {ValueError: 3}}, r"exceptions\[ValueError\]=3"),
        ({"exceptions": {ValueError: Retry(exceptions={KeyError: None})}}, r"exceptions\[ValueError\]"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Retry(**fields)


def test_fixed_refuses_its_own_argument_by_name() -> None:
    with pytest.raises(InvalidArgument, match="delay=0"):
        Retry.fixed(0)


def test_it_is_a_value() -> None:
    rules: dict[type[BaseException], Retry | None] = {KeyError: None}
    policy = Retry(exceptions=rules)
    rules[ValueError] = None
    assert policy.next_delay(1, ERROR) is not None  # a later change of the mapping does not reach it
    assert policy == Retry(exceptions={KeyError: None}) == copy.deepcopy(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(Retry(exceptions={KeyError: None}))
    assert not hasattr(policy, "__dict__")


@given(
    attempt=st.integers(1, 10**6),
    first=st.floats(1e-9, 1e9),
    more=st.floats(1, 3),
    factor=st.floats(1, 1000),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_zero_and_never_over_the_most(
    attempt: int, first: float, more: float, factor: float, draw: float
) -> None:
    most = first * more
    policy = Retry(attempts=10**7, first=first, most=most, factor=factor)
    delay = policy.next_delay(attempt, ERROR, random=lambda: draw)
    assert delay is not None
    assert 0 < first * 0.0999 <= delay <= most * 1.000001
    exact = Retry(attempts=10**7, first=first, most=most, factor=factor, jitter="none")
    this, after = exact.next_delay(attempt, ERROR), exact.next_delay(attempt + 1, ERROR)
    assert this is not None
    assert after is not None
    assert this <= after * 1.000001
