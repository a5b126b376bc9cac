"""The files around the code are true: what pyproject.toml claims, and what a bot reads."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
SYSTEMS = {"ubuntu": "POSIX :: Linux", "macos": "MacOS", "windows": "Microsoft :: Windows"}


has_workflows = pytest.mark.skipif(not WORKFLOWS.exists(), reason="the sdist has no workflows")


@has_workflows
def test_the_classifiers_claim_the_systems_and_pythons_that_ci_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    jobs: dict[str, Any] = yaml.safe_load((WORKFLOWS / "ci.yml").read_text("utf-8"))["jobs"]
    tests = [job for name, job in jobs.items() if name in ("test", "test-all")]
    pythons = {python for job in tests for python in pythons_of(job)}

    assert claimed("Operating System", project) == {
        SYSTEMS[job["runs-on"].partition("-")[0]] for job in tests
    }
    assert claimed("Programming Language :: Python", project) == {"3 :: Only", *pythons}


def pythons_of(job: dict[str, Any]) -> list[str]:
    """Return the versions of a job's matrix, or else those that it sets up."""
    if "strategy" in job:
        return job["strategy"]["matrix"]["python"]
    asked = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    return [version for each in asked for version in each["python-version"].split()]


def claimed(kind: str, project: dict[str, Any]) -> set[str]:
    """Return what the classifiers of a kind say."""
    return {
        classifier.removeprefix(f"{kind} :: ")
        for classifier in project["classifiers"]
        if classifier.startswith(f"{kind} :: ")
    }


def test_the_bot_can_read_which_command_wrote_the_constraints() -> None:
    header = (ROOT / "constraints.txt").read_text("utf-8").splitlines()[1]

    command = shlex.split(header.removeprefix("#"))

    assert command[:3] == ["uv", "pip", "compile"]
    # It takes the value of an option for a source, or refuses all, if no "=" stands between them.
    assert [each for each in command[3:] if not each.startswith("--")] == ["pyproject.toml"]


@has_workflows
@pytest.mark.process
def test_no_job_may_fail_for_longer_than_it_says() -> None:
    # By the day of the commit: what was green stays green, and the next commit must decide.
    command = ["git", "log", "-1", "--format=%cs"]
    today = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    may_fail = re.findall(r"continue-on-error: (.*)", (WORKFLOWS / "ci.yml").read_text("utf-8"))
    ends = [re.fullmatch(r"true # until (\d{4}-\d\d-\d\d): .+", each) for each in may_fail]

    assert [each for each, end in zip(may_fail, ends, strict=True) if not end] == []
    assert [end[0] for end in ends if end and end[1] <= today.strip()] == []


@has_workflows
def test_what_the_workflows_make_are_goals_of_the_makefile() -> None:
    phony = re.findall(r"^\.PHONY:(.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    goals = {goal for line in phony for goal in line.split()}

    made = {
        workflow.stem: {
            *re.findall(r"^ *- (?:run: )?make ([a-z-]+)(?= |$)", workflow.read_text("utf-8"), re.M)
        }
        for workflow in WORKFLOWS.glob("*.yml")
    }

    assert {goal for each in made.values() for goal in each} <= goals
    assert made["ci"] == {"check", "docs", "etl", "test", "test-lowest", "test-all"}
    # What only a person runs, nobody runs: each of these stopped working once without being seen.
    long = {"bench", "bench-peers", "crash", "explore", "fuzz", "mutants", "soak", "test-peers"}
    assert made["weekly"] == {*long, "test-ray"}


@has_workflows
def test_the_distributions_are_checked_with_what_the_action_checks_with() -> None:
    action = re.search(
        r"pypa/gh-action-pypi-publish@[0-9a-f]{40} # (v\S+)",
        (WORKFLOWS / "release.yml").read_text("utf-8"),
    )
    said = re.search(
        r"gh-action-pypi-publish (v[\d.]+)", (ROOT / "pyproject.toml").read_text("utf-8")
    )

    # When the bot raises the action: the group `publish` has the versions of the action's
    # requirements/runtime.txt, and METADATA_VERSION is what they take.
    assert action
    assert said
    assert said[1] == action[1]
