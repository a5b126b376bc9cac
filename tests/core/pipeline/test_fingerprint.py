"""The fingerprint of a step is the data that its action asks for, and its version."""

from __future__ import annotations

import pickle
from functools import partial
from keyword import iskeyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import WorkflowStep
from asyncflow._core.pipeline.fingerprint import difference, fingerprints_of, parameters_of
from asyncflow._core.pipeline.graph import plan


async def source(): ...
async def two(a, b): ...
async def two_swapped(b, a): ...
async def keyword(*, a, b=1): ...
async def some(a, **more): ...
async def takes_all(**outputs): ...
async def nothing(): ...


def of(action, *arguments, **options):
    steps = [WorkflowStep(name, source) for name in ("a", "b", "c")]
    return fingerprints_of(plan([*steps, WorkflowStep("x", action, *arguments, **options)]))["x"]


@pytest.mark.parametrize(
    ("action", "depends_on", "options", "text"),
    [
        (nothing, (), {}, "()"),
        (nothing, ["a"], {}, "()"),
        (two, ["a", "b"], {}, "(a, b)"),
        (two_swapped, ["a", "b"], {}, "(a, b)"),
        (keyword, ["a"], {}, "(a, b)"),
        (two, {"a": "c", "b": "b"}, {}, "(a=c, b=b)"),
        (partial(two, 1), ["b"], {}, "(b)"),
        (partial(two, b=1), ["a"], {}, "(a)"),
        (takes_all, (), {}, "()"),
        (takes_all, ["a", "b"], {}, "(**)"),
        (takes_all, {"y": "b", "z": "a"}, {}, "(**, y=b, z=a)"),
        (some, {"a": "b", "z": "c"}, {}, "(**, a=b, z=c)"),
        (partial(some, 1), ["b"], {}, "(**)"),
        (two, ["a", "b"], {"map_over": "a"}, "(a, b) for each of a"),
    ],
)
def test_a_fingerprint_is_the_data_that_the_action_asks_for(action, depends_on, options, text):
    assert of(action, depends_on, **options) == (text, "")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(
            lambda name: not iskeyword(name)
        ),
        st.text(" =,()*a", min_size=1, max_size=8).filter(str.strip),
        max_size=4,
    ),
    st.booleans(),
)
def test_a_fingerprint_tells_the_parameters_again(source_of, is_mapped):
    namespace = {}
    exec(f"async def action({', '.join(source_of)}): ...", namespace)
    sources = dict.fromkeys(source_of.values())
    map_over = next(iter(sources)) if sources and is_mapped else None
    step = WorkflowStep("x", namespace["action"], source_of, map_over=map_over)
    planned = plan([*(WorkflowStep(name, source) for name in sources if name != "x"), step])

    data, _ = fingerprints_of(planned)["x"]

    named = {p: "" if name == p else name for p, name in source_of.items()}
    assert parameters_of(data, step.depends_on) == (named, map_over or "")


def test_policies_are_not_part_of_a_fingerprint():
    policies = {"max_retries": 5, "timeout_ms": None, "retry": 3, "secret": True, "max_crashes": 0}

    assert of(two, ["a", "b"], **policies) == of(two, ["b", "a"])


def test_pickled_fingerprints_are_a_dict_without_the_plan():
    fingerprints = fingerprints_of(plan([WorkflowStep("a", source, version="2")]))

    assert fingerprints == {"a": ("()", "2")}
    assert len(fingerprints) == 1
    assert repr(fingerprints) == "{'a': ('()', '2')}"
    copy = pickle.loads(pickle.dumps(fingerprints))
    assert type(copy) is dict
    assert copy == {"a": ("()", "2")}


@pytest.mark.parametrize(
    ("stored", "now", "description"),
    [
        (("(a)", "1"), ("(a)", "1"), None),
        (("(a)", "1"), ("(a)", "2"), "its version is '2', and was '1'"),
        (("(a)", "1"), ("(a, b)", "1"), "its action asks for (a, b), and asked for (a)"),
        (("(a)", ""), ("(b)", "2"), "its version is '2', and was ''"),
    ],
)
def test_a_difference_is_described(stored, now, description):
    assert difference(stored, now) == description
