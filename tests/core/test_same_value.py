"""Two values are the same if their types and values are, at any depth."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.same_value import is_same_value


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Order:
    total: Any
    note: str = dataclasses.field(default="", compare=False)


class Open(pydantic.BaseModel, extra="allow"):
    total: Any = None


numbers = st.sampled_from([0, 1, True, False, 0.0, -0.0, 1.0])


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.tuples(inner),
        st.builds(Pair, inner, st.none()),
        st.builds(Order, inner, st.just("")),
        st.builds(Open, total=inner),
        st.builds(Open, more=inner),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1),
        st.dictionaries(numbers, inner, min_size=1, max_size=1),
        st.frozensets(numbers, min_size=1, max_size=2),
    )


values = st.recursive(numbers, nested, max_leaves=3)


@given(values, values)
def test_two_numbers_are_told_apart_at_any_depth(one: Any, other: Any) -> None:
    assert is_same_value(one, one)
    assert is_same_value(one, other) == (as_text(one) == as_text(other))


def as_text(value: Any) -> str:
    """Return the ``repr`` of a value, whatever the order of its sets and dictionaries."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(as_text, value))})"
    if isinstance(value, dict):
        return f"dict({sorted((as_text(key), as_text(each)) for key, each in value.items())})"
    if isinstance(value, list | tuple):
        return f"{type(value)}({[*map(as_text, value)]})"
    if isinstance(value, Order):
        return f"Order({as_text(value.total)})"
    if isinstance(value, Open):
        return f"Open({as_text(value.total)}, {as_text(value.model_extra)})"
    return repr(value)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ([1], [1, 2], False),
        ({1}, {1, 2}, False),
        (Order(1, "a"), Order(1, "b"), False),
        (Open(more=1), Open(), False),  # type: ignore[call-arg]
        (b"x", b"x", True),
        ("1", 1, False),
    ],
)
def test_each_part_counts_and_the_order_of_keys_does_not(
    one: Any, other: Any, expected: bool
) -> None:
    assert is_same_value(one, other) is expected
