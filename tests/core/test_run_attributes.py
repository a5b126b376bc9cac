"""Attributes are a few names with plain values, which a person can type."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import Orchestrator, WorkflowStep, run_pipeline
from asyncflow._core.run_attributes import attribute_text, attributes_from, checked_attributes
from asyncflow.events import RunStarted

VALUES = st.one_of(
    st.booleans(),
    st.text(max_size=200),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)


class Tier(StrEnum):
    GOLD = "gold"


class Name(str, Enum):  # noqa: UP042  # unlike that of a StrEnum, its text is "Name.TIER"
    TIER = "tier"


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("attributes", "error", "match"),
    [
        ([("a", 1)], TypeError, "attributes must be a mapping of name to str, int, float or bool"),
        ({"tenant": None}, TypeError, "attribute 'tenant' must be a str, int, .* not NoneType"),
        ({"tags": ["a"]}, TypeError, "attribute 'tags' must be a str, int, float or bool, not li"),
        ({1: "a"}, TypeError, "the names of attributes must be str, not int"),
        ({"": "a"}, ValueError, "invalid attribute name ''; it begins with a letter"),
        ({"a b": "a"}, ValueError, "invalid attribute name 'a b'"),
        ({"a\n": "a"}, ValueError, "invalid attribute name"),
        ({"größe": "a"}, ValueError, "invalid attribute name 'größe'"),
        ({"a" * 65: "a"}, ValueError, "at most 64 letters"),
        ({"a": "x" * 201}, ValueError, "attribute 'a' must have at most 200 characters, not 201"),
        ({"a": 2**63}, ValueError, "attribute 'a' must fit in 64 bits"),
        ({"a": float("nan")}, ValueError, "attribute 'a' must be a finite number, not nan"),
        ({f"a{at}": at for at in range(17)}, ValueError, "at most 16 attributes, not 17"),
    ],
)
def test_others_are_refused_before_anything_runs(
    attributes: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Orchestrator([]).with_options(attributes=attributes)


async def test_a_report_has_them_as_plain_values() -> None:
    given_ = MappingProxyType({Name.TIER: Tier.GOLD, "level": Level.HIGH, "zero": -0.0, "on": True})
    seen: list[Any] = []

    report = await run_pipeline([], attributes=given_, observers=[seen.append])

    assert isinstance(seen[0], RunStarted)
    assert report.attributes == seen[0].attributes
    assert repr(report.attributes) == "{'tier': 'gold', 'level': 3, 'zero': 0.0, 'on': True}"


async def test_a_nested_run_has_none_of_its_parent() -> None:
    async def nested() -> Any:
        return (await run_pipeline([])).attributes

    report = await run_pipeline([WorkflowStep("outer", nested)], attributes={"tenant": "acme"})

    assert report["outer"].output == {}


@given(VALUES)
def test_an_attribute_is_read_as_it_is_shown(value: Any) -> None:
    shown = attribute_text("name", value)

    found = attributes_from([shown])["name"]

    assert (type(found), found) == (type(value), value)
    assert checked_attributes({"name": value}) == {"name": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=42", 42),
        ("n=4.5", 4.5),
        ("n=true", True),
        ("n=acme", "acme"),
        ('n="42"', "42"),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=null", "null"),
        ("n=[1]", "[1]"),
        ("n=" + "[" * 190, "[" * 190),
        ("n=007", "007"),
    ],
)
def test_a_typed_value_is_a_number_or_a_bool_if_json_reads_it_as_one(text: str, value: Any) -> None:
    (found,) = attributes_from([text]).values()

    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["tenant"], "invalid attribute 'tenant'; give NAME=VALUE, such as tenant=acme"),
        (["a=1", "a=2"], "attribute 'a' is given twice"),
        (["=1"], "invalid attribute name ''"),
        (["a=1e999"], "finite"),
        (["a=NaN"], "finite"),
    ],
)
def test_typed_attributes_are_checked(texts: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attributes_from(texts)
