from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything.arguments import Arguments, describe
from pgeverything.errors import InvalidTaskArguments, TaskError

if TYPE_CHECKING:
    from nowhere import Ghost  # type: ignore[import-not-found]


class Context:
    pass


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Line:
    sku: str
    count: int = 1


class Address(TypedDict):
    street: str


class Node(msgspec.Struct):
    children: list[Node] = []


UserId = NewType("UserId", int)


def of(function: Callable[..., Any]) -> Arguments:
    return Arguments.of(function, Context)


def send_welcome(user_id: int) -> None: ...


def report(context: Context, day: date, rows: int = 10, *, title: str | None = None) -> None: ...


def test_a_call_becomes_an_object_of_named_values() -> None:
    arguments = of(report)
    assert json.loads(arguments.bind(date(2026, 1, 2))) == {"day": "2026-01-02"}
    assert json.loads(arguments.bind(date(2026, 1, 2), 5, title=None)) == {
        "day": "2026-01-02",
        "rows": 5,
        "title": None,
    }
    assert arguments.check({"day": date(2026, 1, 2)}) == arguments.check({"day": "2026-01-02"})
    assert arguments.bind(day=date(2026, 1, 2)) == arguments.bind(date(2026, 1, 2))


def test_what_was_not_given_is_not_loaded_and_none_is() -> None:
    arguments = of(report)
    assert arguments.load('{"day": "2026-01-02"}') == {"day": date(2026, 1, 2)}
    assert arguments.load(b'{"day": "2026-01-02", "title": null}') == {"day": date(2026, 1, 2), "title": None}


def test_the_context_is_passed_by_the_worker_only() -> None:
    arguments, context = of(report), Context()
    assert arguments.context == "context"
    assert arguments.description == "report(day: date, rows: int = 10, *, title: str | None = None)"
    args, kwargs = arguments.call_args('{"day": "2026-01-02"}', context)
    assert (args, kwargs) == ([], {"day": date(2026, 1, 2), "context": context})
    with pytest.raises(InvalidTaskArguments, match="context"):
        arguments.bind(date(2026, 1, 2), context=None)
    with pytest.raises(InvalidTaskArguments, match="context"):
        arguments.load('{"day": "2026-01-02", "context": 1}')
    assert of(send_welcome).context is None


def test_positional_only_parameters_are_named_in_json_and_passed_by_position() -> None:
    def move(a: int, context: Context, b: int = 2, /, c: int = 3) -> tuple[int, int, int]:
        return a, b, c

    arguments = of(move)
    assert json.loads(arguments.bind(1, c=9)) == {"a": 1, "c": 9}
    args, kwargs = arguments.call_args(arguments.bind(1, c=9), Context())
    assert move(*args, **kwargs) == (1, 2, 9)
    with pytest.raises(InvalidTaskArguments, match="positional only"):
        arguments.bind(a=1)
    assert arguments.check({"b": 5, "a": 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.bind(), "missing a required argument: 'user_id'"),
        (lambda a: a.bind(1, 2), "too many positional arguments"),
        (lambda a: a.bind(1, user_id=1), "multiple values for argument 'user_id'"),
        (lambda a: a.bind(1, other=1), "got an unexpected keyword argument 'other'"),
        (lambda a: a.bind("1"), "user_id: Expected `int`, got `str`"),
        (lambda a: a.bind(None), "user_id: Expected `int`, got `null`"),
        (lambda a: a.bind(True), "user_id: Expected `int`, got `bool`"),
        (lambda a: a.bind(1.5), "user_id: Expected `int`, got `float`"),
        (lambda a: a.bind(math.nan), r"arguments\['user_id'\] is nan"),
        (lambda a: a.bind(object()), r"arguments\['user_id'\] cannot be JSON"),
        (lambda a: a.check({}), "missing a required argument: 'user_id'"),
        (lambda a: a.check({"user_id": 1, "usr": 2}), "unexpected argument: 'usr'; it takes 'user_id'"),
        (lambda a: a.check({"user_id": 1, 2: 2}), "unexpected argument: 2"),
        (lambda a: a.check({"user_id": []}), "user_id: Expected `int`, got `array`"),
        (lambda a: a.load("{}"), "Object missing required field `user_id`"),
        (lambda a: a.load('{"user_id": 1, "x": 2}'), "unknown field `x`"),
        (lambda a: a.load('{"user_id": "1"}'), "user_id: Expected `int`, got `str`"),
        (lambda a: a.load("[1]"), "Expected `object`, got `array`"),
        (lambda a: a.load("{"), "truncated"),
        (lambda a: a.load(b'{"user_id":1,"\xff":1}'), "utf-8|UTF-8|unknown"),
    ],
)
def test_a_misfit_is_refused_with_the_signature(call: Callable[[Arguments], object], message: str) -> None:
    with pytest.raises(InvalidTaskArguments, match=message) as caught:
        call(of(send_welcome))
    assert str(caught.value).startswith("send_welcome(user_id: int): ")


def test_the_path_inside_an_argument_is_named() -> None:
    def ship(lines: list[Line]) -> None: ...

    with pytest.raises(InvalidTaskArguments, match=r"lines\[0\].count: Expected `int`, got `str`"):
        of(ship).check({"lines": [{"sku": "a", "count": "2"}]})


@pytest.mark.parametrize("value", [UUID(int=1), date(2026, 1, 2), Decimal(1), b"raw", Colour.RED])
def test_a_value_that_is_text_only_in_json_does_not_pass_for_text(value: object) -> None:
    def take(text: str | None, anything: Any = None) -> None: ...

    with pytest.raises(InvalidTaskArguments, match=f"text: Expected `str`, got `{type(value).__name__}`"):
        of(take).bind(value)
    assert of(take).bind("x", value)


def test_arguments_without_annotation_take_any_json() -> None:
    def anything(a, b: object, *, c=None):  # type: ignore[no-untyped-def]
        ...

    text = of(anything).bind([1], {"x": None}, c=1.5)
    assert of(anything).load(text) == {"a": [1], "b": {"x": None}, "c": 1.5}


def test_a_handler_without_parameters() -> None:
    def tick(context: Context) -> None: ...

    assert of(tick).bind() == of(tick).check({}) == "{}"
    assert of(tick).load("{}") == {}
    with pytest.raises(InvalidTaskArguments, match=r"tick\(\): got an unexpected argument: 'a'; it takes none"):
        of(tick).check({"a": 1})


def test_arguments_over_the_limit_are_refused() -> None:
    with pytest.raises(InvalidTaskArguments, match="more than the limit"):
        of(lambda text: None).bind("x" * 2**20)


UNKNOWN = [Path, list[Path], dict[str, Path], Path | None, complex, range, Iterable[int], Callable[[], int]]
UNREADABLE = [dict[tuple[int, int], int], dict[bool, int], str | bytes, msgspec.msgpack.Ext]


@pytest.mark.parametrize("annotation", [*UNKNOWN, *UNREADABLE, int | Context, Context | None])
def test_a_type_that_json_cannot_hold_is_refused_at_registration(annotation: object) -> None:
    def handler(fine: int, value: Any) -> None: ...

    handler.__annotations__["value"] = annotation
    with pytest.raises(TaskError, match=r"handler\(.*parameter 'value' cannot be read from JSON"):
        of(handler)


def test_a_class_that_hides_such_a_type_is_refused_too() -> None:
    @dataclasses.dataclass
    class Deep:
        files: list[dict[str, Path]]

    def handler(value: Any) -> None: ...

    handler.__annotations__["value"] = Deep
    with pytest.raises(TaskError, match=r"'value'.*pathlib.*Path is not a type that JSON can hold"):
        of(handler)


def test_recursive_types_are_fine() -> None:
    def walk(root: Node) -> None: ...

    assert of(walk).load(of(walk).bind(Node([Node()]))) == {"root": Node([Node()])}


def test_open_ended_parameters_are_refused() -> None:
    def many(*names: str) -> None: ...

    def options(**options: int) -> None: ...

    with pytest.raises(TaskError, match=r"many\(\*names: str\): \*names cannot be sent"):
        of(many)
    with pytest.raises(TaskError, match=r"\*\*options cannot be sent"):
        of(options)


def test_one_context_at_most() -> None:
    def greedy(a: Context, b: Context) -> None: ...

    with pytest.raises(TaskError, match="more than one Context: a, b"):
        of(greedy)


def test_an_annotation_that_does_not_exist_at_run_time_is_named() -> None:
    def haunted(fine: int, ghost: Ghost) -> None: ...

    with pytest.raises(TaskError, match=r"haunted\(fine: int, ghost: Ghost\).*'ghost'.*no 'Ghost' at run time"):
        of(haunted)

    def broken(value: Any) -> None: ...

    broken.__annotations__["value"] = "int["
    with pytest.raises(TaskError, match="'value' cannot be read: SyntaxError"):
        of(broken)


def test_the_result_may_be_unresolvable_and_the_context_imported_for_types_only() -> None:
    def build(n: int, job: Any) -> Ghost: ...

    build.__annotations__["job"] = "JobContext"
    worker_context = type("JobContext", (), {})
    assert Arguments.of(build, worker_context).context == "job"


def test_a_name_that_cannot_be_sent_is_refused() -> None:
    def private(__x: int) -> None: ...

    with pytest.raises(TaskError, match=r"private\(__x: int\): a parameter's name cannot be sent"):
        of(private)


def test_keys_of_several_types_are_fine() -> None:
    def count(found: dict[int | str, int]) -> None: ...

    assert of(count).load('{"found": {"a": 1}}') == {"found": {"a": 1}}


def test_a_function_without_a_readable_signature_is_refused() -> None:
    with pytest.raises(TaskError, match="update has no signature that can be read"):
        of(dict.update)


def test_only_functions_are_handlers() -> None:
    for thing in (functools.partial(send_welcome, 1), Context, Path("x")):
        with pytest.raises(TaskError, match="not a function"):
            of(thing)  # type: ignore[arg-type]


def test_wrapped_functions_and_methods_keep_their_signature() -> None:
    @functools.wraps(send_welcome)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    class Mailer:
        def send(self, user_id: int) -> None: ...

    assert of(wrapper).description == "send_welcome(user_id: int)"
    assert of(Mailer().send).bind(7) == '{"user_id":7}'


def test_describe_shows_what_the_author_wrote() -> None:
    async def ship(order: Annotated[int, "id"], *, at: datetime | None = None) -> None: ...

    assert describe(ship) == "ship(order: Annotated[int, 'id'], *, at: datetime | None = None)"
    ship.__annotations__["order"] = int
    assert describe(ship).startswith("ship(order: int,")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
samples: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: text,
    bytes: st.binary(),
    datetime: st.datetimes(timezones=st.just(UTC)),
    date: st.dates(),
    timedelta: st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
    UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    Colour: st.sampled_from(Colour),
    Line: st.builds(Line, text, st.integers()),
    Address: st.fixed_dictionaries({"street": text}),
    UserId: st.integers(),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
    list[UUID]: st.lists(st.uuids(), max_size=4),
    Sequence[int]: st.lists(st.integers(), max_size=4),
    set[int]: st.sets(st.integers(), max_size=4),
    tuple[int, str]: st.tuples(st.integers(), text),
    dict[str, Line]: st.dictionaries(text, st.builds(Line, text), max_size=3),
    dict[int, str]: st.dictionaries(st.integers(), text, max_size=3),
    datetime | None: st.none() | st.datetimes(),
    Annotated[int, msgspec.Meta(ge=0)]: st.integers(0),
    Node: st.builds(Node, st.lists(st.builds(Node), max_size=3)),
}


def taking(annotation: object) -> Callable[..., Any]:
    def handler(value: Any, *, other: Any) -> None: ...

    handler.__annotations__ = {"value": annotation, "other": annotation}
    return handler


@pytest.mark.parametrize("annotation", samples, ids=str)
@given(data=st.data())
def test_what_is_bound_is_loaded(annotation: object, data: st.DataObject) -> None:
    arguments = of(taking(annotation))
    value, other = data.draw(samples[annotation]), data.draw(samples[annotation])
    loaded = arguments.load(arguments.bind(value, other=other))
    assert loaded == {"value": value, "other": other}
    assert [type(each) for each in loaded.values()] == [type(value), type(other)]
