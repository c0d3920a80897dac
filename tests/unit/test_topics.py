"""Topics and patterns: what is refused, and that a compiled pattern chooses what the words say."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgeverything import InvalidArgument
from pgeverything.events.patterns import Topics, check_topic, compile_pattern

tokens = st.sampled_from(["a", "b", "ab", "a-b", "(", "[a", "$", "\\d", "é", "+", "|", "a/", "^", "{1}", "_", "%"])
topics = st.lists(tokens, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda body, rest: ".".join([*body, *rest]) or ">",
    st.lists(st.one_of(st.just("*"), tokens), max_size=4),
    st.sampled_from([[], [">"]]),
)


def naive(pattern: list[str], topic: list[str]) -> bool:
    """Match token by token, as the documentation says it in words."""
    if not pattern or not topic:
        return not pattern and not topic
    if pattern[0] == ">":
        return True
    return pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


def chooses(topics: Topics, name: str) -> bool:
    """Match as the statement does, bytewise where it does so."""
    raw = name.encode()
    return (
        (topics.topic is None or name == topics.topic)
        and (topics.low is None or topics.low.encode() <= raw)
        and (topics.high is None or raw < topics.high.encode())
        and (topics.regex is None or re.search(topics.regex, name) is not None)
    )


@given(patterns, topics)
@example("a.*", "a.b.c")
@example("a.>", "a")
@example("*.b.>", "a.b.c.d")
def test_a_compiled_pattern_chooses_what_the_words_say(pattern: str, topic: str) -> None:
    assert chooses(compile_pattern(pattern), topic) == naive(pattern.split("."), topic.split("."))


@given(topics)
def test_a_topic_is_a_topic_and_chooses_itself(topic: str) -> None:
    assert check_topic(topic) == topic
    assert compile_pattern(topic).topic == topic


@pytest.mark.parametrize("pattern", [None, ">"])
def test_everything(pattern: str | None) -> None:
    assert compile_pattern(pattern).everything


@pytest.mark.parametrize(
    "pattern",
    ["", ".", "a.", ".a", "a..b", "a.>.b", ">.a", "a*", "*a.b", "a.>>", "a b", "a\n", "a\0", "é" * 101, 7, b"a", ["a"]],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match="topic="):
        compile_pattern(pattern)


@pytest.mark.parametrize("topic", ["", "a.*", ">", "*", "a b", "a\u00a0b", "a\n", "\ud800", "é" * 101, None, 7, ["a"]])
def test_what_is_no_topic(topic: str) -> None:
    with pytest.raises(InvalidArgument, match="topic="):
        check_topic(topic)
