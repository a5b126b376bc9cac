"""The files around the code are true: what pyproject.toml claims, and what a bot reads."""

from __future__ import annotations

import re
import shlex
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
def test_what_the_workflows_make_are_goals_of_the_makefile() -> None:
    phony = re.findall(r"^\.PHONY:(.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    goals = {goal for line in phony for goal in line.split()}

    made = {
        goal
        for workflow in WORKFLOWS.glob("*.yml")
        for goal in re.findall(r"^ *- (?:run: )?make ([a-z-]+)", workflow.read_text("utf-8"), re.M)
    }

    assert {"check", "test-all", "soak", "explore"} <= made <= goals


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
