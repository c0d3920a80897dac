from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything.engine.codec import encode
from pgeverything.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType


class DeclinedError(Exception):
    pass


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def failure(function: Callable[[], object], task: str = "pay") -> Failure:
    return Failure.of(caught(function), task)


def program(source: str, file: str = "/srv/app/billing.py", name: str = "billing") -> dict[str, object]:
    """Run source as a module of a deployed application: its own file name and module name."""
    scope: dict[str, object] = {"__name__": name}
    exec(compile(source, file, "exec"), scope)
    return scope


def raised(source: str, task: str = "pay", **where: str) -> Failure:
    return failure(program(source, **where)["run"], task)  # type: ignore[arg-type]


def test_it_says_what_happened() -> None:
    def charge() -> None:
        raise DeclinedError("no money")

    found = failure(charge)
    assert found.type == f"{__name__}.DeclinedError"
    assert found.message == "no money"
    assert "in charge" in found.traceback
    assert found.traceback.endswith("DeclinedError: no money\n")
    assert len(found.fingerprint) == 12
    assert int(found.fingerprint, 16) >= 0
    assert failure(lambda: int("x")).type == "ValueError"


BASE = "def run():\n    raise ValueError('order 1')\n"


@pytest.mark.parametrize(
    "same",
    [
        "\n\n\n# moved\n" + BASE,
        BASE.replace("order 1", "order 2"),
        "def run():\n    x = [int(n) for n in 'a']\n",
        "import json\ndef run():\n    json.loads('')\n".replace("json.loads('')", "int(json.dumps('a'))"),
    ],
)
def test_the_same_bug_keeps_its_fingerprint(same: str) -> None:
    assert raised(same).fingerprint == raised(BASE).fingerprint


@pytest.mark.parametrize(
    ("other", "task", "name"),
    [
        (BASE, "refund", "billing"),
        (BASE, "pay", "shipping"),
        (BASE.replace("ValueError", "KeyError"), "pay", "billing"),
        ("def check():\n    raise ValueError\ndef run():\n    check()\n", "pay", "billing"),
        ("def run():\n    raise ValueError from KeyError()\n", "pay", "billing"),
    ],
)
def test_another_bug_has_another_fingerprint(other: str, task: str, name: str) -> None:
    assert raised(other, task, name=name).fingerprint != raised(BASE).fingerprint


def test_libraries_below_the_callers_code_do_not_split_a_group() -> None:
    library = program(
        "def one(): raise ValueError\ndef two(): raise ValueError\ndef call(f): f()\n",
        file="/srv/app/.venv/lib/python3.11/site-packages/lib.py",
        name="lib",
    )
    ways = [program(f"def run():\n    {name}()\n") | {} for name in ("one", "two")]
    for way in ways:
        way.update({name: library[name] for name in ("one", "two")})
    first, second = (failure(way["run"]) for way in ways)  # type: ignore[arg-type]
    assert first.fingerprint == second.fingerprint
    # Without a frame of the caller's own, the innermost library frame tells the bugs apart.
    alone = [bare(library[name].__code__, library) for name in ("one", "two")]  # type: ignore[attr-defined]
    assert alone[0].fingerprint != alone[1].fingerprint


def bare(code: CodeType, scope: dict[str, object]) -> Failure:
    error = caught(lambda: exec(code, scope))
    while error.__traceback__ is not None and error.__traceback__.tb_frame.f_code is not code:
        error.__traceback__ = error.__traceback__.tb_next
    return Failure.of(error, "pay")


def test_the_standard_library_is_not_the_callers_code() -> None:
    source = "import json\ndef run():\n    json.loads({!r})\n"
    assert raised(source.format("")).fingerprint == raised(source.format("[1,")).fingerprint


def test_explicit_causes_count_and_a_loop_of_causes_ends() -> None:
    wrap = (
        "class E(Exception): pass\n"
        "def run():\n    try:\n        {}\n    except Exception as e:\n        raise E from e\n"
    )
    key, zero = raised(wrap.format("{}['a']")), raised(wrap.format("1/0"))
    assert key.fingerprint != zero.fingerprint
    assert "KeyError" in key.traceback

    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert Failure.of(one, "pay").fingerprint == Failure.of(one, "pay").fingerprint


def test_groups_do_not_depend_on_order_or_number_of_their_members() -> None:
    def group(*kinds: type[Exception]) -> Failure:
        return failure(lambda: (_ for _ in ()).throw(ExceptionGroup("several", [kind("x") for kind in kinds])))

    assert group(ValueError, KeyError).fingerprint == group(KeyError, ValueError, KeyError).fingerprint
    assert group(ValueError, KeyError).fingerprint != group(ValueError, OSError).fingerprint
    assert "KeyError" in group(ValueError, KeyError).traceback


def test_a_task_groups_failure_is_described() -> None:
    async def broken() -> None:
        raise DeclinedError("inner")

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(broken())

    found = failure(lambda: asyncio.run(main()))
    assert found.type == "ExceptionGroup"
    assert "inner" in found.traceback


def test_mutual_recursion_is_one_bug_wherever_it_ends() -> None:
    source = "def even(n):\n    return odd(n)\ndef odd(n):\n    return even(n)\n"
    direct = raised(source + "def run():\n    even(1)\n")
    deeper = raised(source + "def more():\n    even(1)\ndef run():\n    more()\n")
    assert direct.type == "RecursionError"
    assert direct.fingerprint == deeper.fingerprint
    assert "frames left out" in direct.traceback
    assert "in run" in direct.traceback  # where it began ...
    assert direct.traceback.rstrip().endswith("exceeded")  # ... and how it ended
    assert len(direct.traceback) <= 16_384


def test_long_texts_keep_both_ends() -> None:
    found = failure(lambda: (_ for _ in ()).throw(ValueError("a" * 50_000 + "z" * 50_000)))
    assert len(found.message) <= 2_000
    assert found.message.startswith("aaa")
    assert found.message.endswith("zzz")
    assert "characters left out" in found.message
    assert len(found.traceback) <= 16_384
    assert found.traceback.startswith("Traceback")


def test_exceptions_that_misbehave_are_still_described() -> None:
    class NastyError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("again")

        __repr__ = __str__

    found = failure(lambda: (_ for _ in ()).throw(NastyError()))
    assert found.message == "<its message could not be read: RuntimeError>"
    assert "Nasty" in found.traceback

    class WorseError(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise RuntimeError("again")

    assert failure(lambda: (_ for _ in ()).throw(WorseError("x"))).message == "x"


def test_syntax_errors_and_bare_exceptions_are_described() -> None:
    found = failure(lambda: compile("def (", "broken.py", "exec"))
    assert found.type == "SyntaxError"
    assert "broken.py" in found.traceback
    assert Failure.of(KeyboardInterrupt(), "pay").type == "KeyboardInterrupt"
    assert Failure.of(ValueError(), "pay").message == ""


@given(st.text(st.characters(), max_size=3000))
def test_any_message_becomes_storable_json(message: str) -> None:
    found = Failure.of(ValueError(message), "pay")
    stored = json.loads(found.json())
    assert stored == {
        "type": "ValueError",
        "message": found.message,
        "traceback": found.traceback,
        "fingerprint": found.fingerprint,
    }
    assert encode(stored, "failure")  # no NUL, no surrogate
    assert len(found.message) <= 2_000


def test_the_payload_limit_does_not_lose_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", "1024")
    found = failure(lambda: (_ for _ in ()).throw(ValueError("\0\ud800é" * 9_000)))
    assert json.loads(found.json())["message"] == found.message
    assert found.message.startswith("\\x00\\ud800é")
    assert "\0" not in found.message + found.traceback


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="comprehensions have no frames of their own any more")
def test_a_comprehension_is_its_function() -> None:
    assert (
        raised("def run():\n    return [1 / n for n in [0]]\n").fingerprint
        == raised("def run():\n    return 1 / 0\n").fingerprint
    )
