"""Statements as text: names, schemas of any name, parameters of both drivers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything import schema
from pgeverything.engine.statements import Statement, in_schema, named, numbered, statements

MODULES = sorted(path.stem for path in (Path(schema.__file__).parent / "sql").glob("*.sql"))
SAMPLE = "select pg_notify('pgeverything', x), 'pgeverything migrate ' from pgeverything.jobs, mypgeverything.t"


@pytest.mark.parametrize("module", MODULES)
def test_every_statement_has_a_name_and_says_what_it_does(module: str) -> None:
    found = statements(module)
    assert found
    for name, statement in found.items():
        assert (statement.module, statement.name, repr(statement)) == (module, name, f"{module}.{name}")
        assert statement.text.startswith("-- ")
        assert not statement.text.endswith(";")


def test_what_a_statement_says_of_itself() -> None:
    locks = statements("locks")
    assert [name for name, statement in locks.items() if statement.inside] == ["guard"]
    assert [name for name, statement in locks.items() if statement.fresh] == ["list", "get"]


@pytest.mark.parametrize("statement", [s for module in MODULES for s in statements(module).values()], ids=repr)
def test_every_parameter_is_cast_and_every_driver_gets_the_same(statement: Statement) -> None:
    names = re.findall(r"%\((\w+)\)s", statement.text)
    assert len(re.findall(r"%\(\w+\)s::", statement.text)) == len(names), "a parameter without a cast"
    text, order = numbered(statement, "pgeverything")
    assert set(order) == set(names)
    assert len(order) == len(set(order))
    assert {int(n) for n in re.findall(r"\$(\d+)", text)} == set(range(1, len(order) + 1))
    assert "%" not in text


@pytest.mark.parametrize(
    ("schema", "identifier", "literal"),
    [
        ("pgeverything", "pgeverything", "'pgeverything'"),
        ("cell_7", '"cell_7"', "'cell_7'"),
        ('say "hi"', '"say ""hi"""', "'say \"hi\"'"),
        ("it's", '"it\'s"', "'it''s'"),
        ("two words", '"two words"', "'two words'"),
        ("ünï.cødé", '"ünï.cødé"', "'ünï.cødé'"),
        ("a\\1", '"a\\1"', "'a\\1'"),
    ],
)
def test_a_schema_is_quoted_wherever_it_stands(schema: str, identifier: str, literal: str) -> None:
    assert in_schema(SAMPLE, schema) == (
        f"select pg_notify({literal}, x), 'pgeverything migrate ' from {identifier}.jobs, mypgeverything.t"
    )


def test_a_percent_sign_in_a_schema_is_no_parameter() -> None:
    statement = Statement("m", "n", "select %(a)s::int, 10 %% 3, %(b)s::int, %(a)s::int from pgeverything.t")
    assert named(statement, "100%(a)s") == ('select %(a)s::int, 10 %% 3, %(b)s::int, %(a)s::int from "100%%(a)s".t')
    assert numbered(statement, "100%(a)s") == (
        'select $1::int, 10 % 3, $2::int, $1::int from "100%(a)s".t',
        ("a", "b"),
    )


@given(st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text))
def test_what_is_quoted_reads_back_as_it_was(schema: str) -> None:
    text = in_schema("pgeverything.'pgeverything'", schema)
    identifier, literal = text.split(".'", 1) if schema == "pgeverything" else (None, None)
    if identifier is None:
        quoted = '"' + schema.replace('"', '""') + '"'
        assert text == quoted + "." + "'" + schema.replace("'", "''") + "'"
        body = text[1 : len(quoted) - 1]
        assert body.replace('""', '"') == schema
    else:
        assert literal == "pgeverything'"
