"""A Mermaid diagram is valid whatever the names of its steps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Edges, graphs

from asyncflow import RunReport, StepResult, StepStatus
from asyncflow._core.analysis.diagram import to_mermaid

NODE = re.compile(r'    (s\d+)\["([^"\n]+)"\](?::::(\w+))?')
EDGE = re.compile(r"    (s\d+) --> (s\d+)")


def read(code: str) -> str:
    """The text that a label shows."""
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), code)


def label_of(name: str) -> str:
    (_, line) = to_mermaid({name: []}).split("\n")
    node = NODE.fullmatch(line)
    assert node is not None, line
    return node[2]


def test_the_diagram_of_a_run_shows_the_status_of_each_step() -> None:
    results = [
        StepResult("a", StepStatus.SUCCESS, 1, 3.4, started_ms=0.0),
        StepResult("b", StepStatus.FAILED, 1, 120.0, started_ms=0.0, depends_on=("a",)),
        StepResult("c", StepStatus.SKIPPED, depends_on=("b",), recorded=()),
        StepResult("d", StepStatus.CANCELLED, 1, 2.0, started_ms=0.0, depends_on=("a",)),
        StepResult("e", StepStatus.SUCCESS, 1, 0.0, started_ms=0.0),
    ]
    report = RunReport("r1", results, total_duration_ms=1.0, wall_time=1.0)

    assert report.to_mermaid() == (
        "flowchart LR\n"
        '    s0["a<br/>✓ SUCCESS 3ms"]:::success\n'
        '    s1["b<br/>✗ FAILED 120ms"]:::failed\n'
        '    s2["c<br/>⊘ SKIPPED"]:::skipped\n'
        '    s3["d<br/>■ CANCELLED 2ms"]:::cancelled\n'
        '    s4["e<br/>✓ SUCCESS 0ms"]:::success\n'
        "    s0 ==> s1\n"
        "    s1 --> s2\n"
        "    s0 --> s3\n"
        "    classDef success fill:#d1fae5,stroke:#047857,color:#064e3b\n"
        "    classDef failed fill:#fee2e2,stroke:#b91c1c,color:#7f1d1d\n"
        "    classDef cancelled fill:#fef3c7,stroke:#b45309,color:#78350f\n"
        "    classDef skipped fill:#f3f4f6,stroke:#6b7280,color:#1f2937,stroke-dasharray:4\n"
        "    classDef critical stroke-width:4px\n"
        "    class s0,s1 critical"
    )


def test_a_run_in_progress_can_be_drawn() -> None:
    results = {
        "a": StepResult("a", StepStatus.RUNNING, 1, 0.0),
        "b": StepResult("b", StepStatus.PENDING),
    }

    drawn = to_mermaid({"a": [], "b": ["a"], "c": []}, results)

    assert '    s0["a<br/>▷ RUNNING"]:::running\n' in drawn
    assert '    s1["b<br/>○ PENDING"]:::pending\n' in drawn
    assert '    s2["c"]\n' in drawn
    assert "    classDef running fill:#dbeafe,stroke:#1d4ed8,color:#1e3a8a\n" in drawn
    assert drawn.endswith("    classDef pending fill:#f3f4f6,stroke:#6b7280,color:#1f2937")


def test_the_text_of_each_status_has_enough_contrast() -> None:
    results = {status: StepResult(status, status) for status in StepStatus}

    drawn = to_mermaid({status: [] for status in StepStatus}, results)

    classes = re.findall(r"classDef \w+ fill:#(\w+),stroke:#\w+,color:#(\w+)", drawn)
    assert len(classes) == len(StepStatus)
    # WCAG 2.2 requires 4.5 at level AA and 7 at level AAA.
    assert all(contrast(fill, text) >= 7 for fill, text in classes)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours by WCAG 2.2, from 1 to 21."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels
    ]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_an_unknown_dependency_is_drawn_too() -> None:
    assert to_mermaid({"a": ["ghost", "a"]}) == (
        'flowchart LR\n    s0["a"]\n    s1["ghost"]\n    s1 --> s0\n    s0 --> s0'
    )


def test_a_result_without_a_step_is_not_drawn() -> None:
    assert to_mermaid({}, {"a": StepResult("a", StepStatus.SUCCESS)}) == "flowchart LR"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ('a"b', "a#34;b"),
        ("a#b;", "a#35;b#59;"),
        ("<b>&amp;", "#60;b#62;#38;amp#59;"),
        ("`a`", "#96;a#96;"),
        ("fetch[3]", "fetch#91;3#93;"),
        ("1. a", "1#46; a"),
        ("- a", "#45; a"),
        ("a -", "a #45;"),
        ("_a_", "#95;a#95;"),
        ("a__b", "a#95;#95;b"),
        ("style a:#", "style a#58;#35;"),
        (r"a\nb", "a#92;nb"),
        ("a\nb", "a#92;nb"),
        ("a\u202eb", "a#92;u202eb"),
        ("\ud800", "#92;ud800"),
        ("", " "),
    ],
)
def test_special_characters_are_escaped(name: str, label: str) -> None:
    assert label_of(name) == label


@given(st.text())
def test_a_label_has_no_special_character_outside_of_an_escape(name: str) -> None:
    without_codes = re.sub(r"#\d+;", "", label_of(name))

    assert not re.search(r"""[!-,./:-@\[-^`{-~]""", without_codes)
    without_codes.encode()  # raises for a lone surrogate


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1))
def test_the_label_shows_the_name(name: str) -> None:
    assert read(label_of(name)) == name


@given(graphs())
def test_every_step_has_a_node_and_every_dependency_an_arrow(edges: Edges) -> None:
    first, *lines = to_mermaid(edges).split("\n")

    nodes = [NODE.fullmatch(line) for line in lines[: len(edges)]]
    arrows = [EDGE.fullmatch(line) for line in lines[len(edges) :]]
    names = {node[1]: node[2] for node in nodes if node}
    assert first == "flowchart LR"
    assert list(names.values()) == list(edges)
    assert [(names[arrow[1]], names[arrow[2]]) for arrow in arrows if arrow] == [
        (needed, name) for name, needs in edges.items() for needed in needs
    ]
    assert None not in arrows
