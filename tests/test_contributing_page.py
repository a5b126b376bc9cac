"""CONTRIBUTING.md and ARCHITECTURE.md name files and functions that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from asyncflow._kernel.policy import Policy

ROOT = Path(__file__).parents[1]
NEW = {"hedge_ms", "hedges", "SlotTaken"}
"""What its examples add."""
FUNCTIONS = {"test_a_late_value_is_not_a_success", "test_each_policy_is_passed_on"}
"""Tests that it names, in no module of that name."""


def test_the_three_examples_name_files_and_names_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = page[page.index("### A policy:") : page.index("## The documentation")]
    quoted = set(re.findall(r"`([^`\n]+)`", examples))
    quoted = {text for text in quoted if not text.startswith((".venv/", "make ", "git "))}
    files = [*(ROOT / "asyncflow").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    sources = [file.read_text(encoding="utf-8") for file in files if file != Path(__file__)]
    known = set(re.findall(r"\w+", " ".join(sources)))

    missing = set()
    for text in quoted:
        owner, member = re.match(r"([A-Z][a-z]\w+)\.(\w+)|", text).groups()
        if "/" in text or text.endswith(".md"):
            found = (ROOT / text).exists()
        elif owner:
            source = next((each for each in sources if re.search(rf"class {owner}\b", each)), "")
            defined = rf"def {member}\b|\b{member}:|self\.{member}\b"
            found = member in NEW or re.search(defined, source) is not None
        else:
            found = set(re.findall(r"[A-Za-z_]\w+", text)) <= known | NEW
        if not found:
            missing.add(text)

    assert missing == set()


def test_each_file_and_module_of_tests_that_the_two_pages_name_exists() -> None:
    missing = set()
    for name in ("CONTRIBUTING.md", "ARCHITECTURE.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        files = set(re.findall(r"(?<=[`(])(?:asyncflow|tests|docs)/[\w./]+(?=[`)])", page))
        tests = re.findall(r"(?<=`)(?:[a-z]+/)?test_\w+(?=`)", page)
        files |= {f"tests/{test}.py" for test in tests if test not in FUNCTIONS}
        missing |= {file for file in files if not (ROOT / file).exists()}

    assert missing == set()


def test_the_architecture_lists_the_policies_in_their_order_with_their_hooks() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\| \[`(\w+)`\]\(asyncflow/_policies/(\w+)\.py\) \|.*\| (.+) \|$", page, re.M
    )
    made = (ROOT / "asyncflow" / "_policies" / "policies.py").read_text(encoding="utf-8")
    names = [name for name, *_ in listed]

    for name, module, hooks in listed:
        policy = getattr(importlib.import_module(f"asyncflow._policies.{module}"), name)
        assert sorted(f"on_{hook}" for hook in hooks.split(", ")) == sorted(
            policy.run_hooks | policy.node_hooks
        )
    # Permits and Observing are made before others that know them, and added in their place.
    added = [name for name in names if name not in ("Permits", "Observing")]
    assert sorted(added, key=lambda name: made.rindex(f"{name}(")) == added
    assert {*names} == {policy.__name__ for policy in Policy.__subclasses__()
                        if policy.__module__.startswith("asyncflow.")}  # fmt: skip
