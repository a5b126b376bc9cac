"""CONTRIBUTING.md and ARCHITECTURE.md name files and functions that exist."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from asyncflow import events
from asyncflow._views import event_text

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NEW = {"least_ms", "least_times", "LeastTimes", "AttemptProlonged"}
"""What its examples add."""
STANDARD = {("Task", "cancelling")}
"""Methods of the standard library that the pages name."""
FUNCTIONS = {"test_a_late_value_is_not_a_success", "test_each_policy_is_passed_on"}
"""Tests that it names, in no module of that name."""


def examples() -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return page[page.index("### A policy:") : page.index("## The documentation")]


def test_the_three_examples_name_files_and_names_that_exist() -> None:
    prose = FENCE.sub("", examples())
    quoted = set(re.findall(r"`([^`\n]+)`", prose))
    quoted = {text for text in quoted if not text.startswith(("asyncflow runs", "make ", "git "))}
    files = [*(ROOT / "asyncflow").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    sources = [file.read_text(encoding="utf-8") for file in files if file != Path(__file__)]
    known = set(re.findall(r"\w+", " ".join(sources)))

    missing = set()
    for text in quoted:
        owner, member = re.match(r"([A-Z][a-z]\w+)\.(\w+)|", text).groups()
        if text in NEW or Path(text).stem in NEW:
            found = True
        elif "/" in text or text.endswith(".md"):
            found = (ROOT / text).exists()
        elif owner:
            found = member in NEW or is_defined(owner, member, sources)
        else:
            found = set(re.findall(r"[A-Za-z_]\w+", text)) <= known | NEW
        if not found:
            missing.add(text)

    assert missing == set()


def is_defined(owner: str, member: str, sources: list[str]) -> bool:
    source = next((each for each in sources if re.search(rf"^class {owner}\b", each, re.M)), "")
    return re.search(rf"def {member}\b|\b{member}:|self\.{member}\b", source) is not None


def test_each_method_on_the_way_of_a_step_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "asyncflow").rglob("*.py")]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)\.([a-z_]+)`", page))

    undefined = {(owner, name) for owner, name in named if not is_defined(owner, name, sources)}
    assert not undefined - STANDARD
    assert len(named) > 20


def test_each_file_and_module_of_tests_that_the_two_pages_name_exists() -> None:
    missing = set()
    for name in ("CONTRIBUTING.md", "ARCHITECTURE.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        files = set(re.findall(r"(?<=[`(])(?:asyncflow|tests|docs)/[\w./]+(?=[`)])", page))
        tests = re.findall(r"(?<=`)(?:[a-z]+/)?test_\w+(?=`)", page)
        files |= {f"tests/{test}.py" for test in tests if test not in FUNCTIONS}
        missing |= {
            file for file in files if Path(file).stem not in NEW and not (ROOT / file).exists()
        }

    assert missing == set()


def test_the_code_of_the_examples_fits_the_modules_that_it_is_for() -> None:
    policy, _, record, words, _, _ = map(textwrap.dedent, FENCE.findall(examples()))
    made: dict[str, Any] = {**vars(events), "ClassVar": ClassVar}
    exec(record, made)
    texts = vars(event_text).copy()
    texts["events"] = SimpleNamespace(**made)
    exec("from __future__ import annotations\n" + words, texts)
    exec(policy, made)
    prolonged = made["AttemptProlonged"]("fetch", 2, 5.0, 95.0, item=3)

    assert made["LeastTimes"].node_hooks == {"on_call"}
    assert texts["_attempt_prolonged"](prolonged, "attempt {}".format) == (
        "fetch[3]: attempt 2 takes 95 ms longer"
    )


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_a_page_for_contributors_can_be_read_in_one_sitting(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8")) < 23_000
