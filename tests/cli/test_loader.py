"""``MODULE:PIPELINE`` finds a pipeline, or the error says why not."""

from __future__ import annotations

import pytest

from .conftest import Shell


@pytest.mark.parametrize(
    ("target", "name", "steps"),
    [
        ("etl:pipeline", "etl", 2),
        ("etl:made", "etl", 2),
        ("etl:failing", "etl:failing", 4),
        ("etl:nameless", "etl:nameless", 1),
        ("etl.py:pipeline", "etl", 2),
        ("./etl.py:failing", "etl:failing", 4),
        ("shop.jobs.etl:pipeline", "shop", 1),
        ("shop/jobs/etl.py:steps", "shop.jobs.etl:steps", 1),
        ("other/alone.py:box.steps", "alone:box.steps", 1),
        ("nightly", "nightly", 1),
        ("nightly.py", "nightly", 1),
        ("jobs.weekly", "jobs.weekly:STEPS", 2),
        ("jobs/weekly.py", "weekly:STEPS", 2),
    ],
)
def test_a_pipeline_is_found_in_a_module_or_a_file(
    shell: Shell, target: str, name: str, steps: int
) -> None:
    shell.write("shop/__init__.py", "")
    shell.write("shop/jobs/__init__.py", "")
    shell.write("shop/jobs/rows.py", "name = 'shop'")
    shell.write(
        "shop/jobs/etl.py",
        """
        from asyncflow import Pipeline, WorkflowStep
        from .rows import name
        pipeline = Pipeline(name)
        @pipeline.step
        async def one(): ...
        steps = [WorkflowStep("one", one)]
        """,
    )
    shell.write(
        "other/alone.py",
        """
        from asyncflow import WorkflowStep
        from beside import one
        class box:
            steps = [WorkflowStep("one", one)]
        """,
    )
    shell.write("other/beside.py", "async def one(): ...")
    shell.write(
        "nightly.py",
        """
        from asyncflow import Orchestrator, Pipeline, WorkflowStep
        pipeline = alias = Pipeline("nightly")
        @pipeline.step
        async def one(): ...
        _private = Pipeline("private")
        steps = [WorkflowStep("one", one)]  # an Orchestrator or a Pipeline precedes a list
        """,
    )
    shell.write(
        "jobs/weekly.py",
        """
        from asyncflow import Pipeline, WorkflowStep
        async def one(): ...
        STEPS = [WorkflowStep("one", one), WorkflowStep("two", one)]
        empty = []
        names = ["one"]
        """,
    )

    plan = shell.json("plan", target, "--format", "json")

    assert plan["pipeline"] == name
    assert len(plan["steps"]) == steps


@pytest.mark.parametrize("target", ["etl:", ":pipeline", ""])
def test_a_malformed_target_is_wrong_usage(shell: Shell, target: str) -> None:
    assert "MODULE:PIPELINE" in shell("plan", target, exits=2).stderr


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("elt:pipeline", "there is no module 'elt' here or among the installed packages (did you"),
        ("etl.part:pipeline", "'etl' is a module, not a package"),
        ("shop.elt:pipeline", "there is no module 'elt' in 'shop' (did you mean 'etl'?)"),
        ("elt.py:pipeline", "there is no file 'elt.py' (did you mean 'etl.py'?)"),
        ("no/where.py:pipeline", "there is no file 'no/where.py'"),
        ("etl", "there are several pipelines in 'etl'; name one: etl:nameless, etl:pipeline"),
        ("lists", "there are several pipelines in 'lists'; name one: lists:one, lists:two"),
        ("classes", "there is no pipeline in 'classes'; name a function that returns one: cla"),
        ("classes:pipelin", "there is no 'pipelin' in 'classes'\n"),
        ("classes:Pipeline", "'classes:Pipeline' is a class that needs arguments; name a pipeline"),
        ("etl:pipelin", "there is no 'pipelin' in 'etl' (did you mean 'pipeline'?)"),
        ("etl:xyz", "there is no 'xyz' in 'etl'; its pipelines are: nameless, pipeline"),
        ("etl:pipeline.orders", "there is no 'orders' in 'etl:pipeline'"),
        ("etl:asyncio", "'etl:asyncio' is of type module; name a Pipeline,"),
        ("etl:fine", "'etl:fine' is an async function; name a pipeline, or a plain function"),
        ("wrong:needs", "'wrong:needs' is a function that needs arguments; name a pipeline"),
        ("wrong:cycle", "'wrong:cycle' is not valid: steps depend on each other in a circle"),
        ("wrong:unknown", "depends on unknown step 'claen' (did you mean 'clean'?)"),
        ("wrong:numbers", "'wrong:numbers' is not valid: "),
        ("wrong:text", "'wrong:text' is of type str; name a Pipeline"),
        ("wrong:dangling", "'wrong:dangling' is not valid: "),
    ],
)
def test_an_unknown_or_invalid_pipeline_is_reported_in_one_line(
    shell: Shell, target: str, says: str
) -> None:
    shell.write("shop/__init__.py", "")
    shell.write("shop/etl.py", "")
    shell.write(
        "classes.py",
        """
        from asyncflow import Pipeline, WorkflowStep
        async def jobs(): ...
        def make(): ...
        def needs(argument): ...
        class Job: ...
        """,
    )
    shell.write(
        "lists.py",
        """
        from asyncflow import WorkflowStep
        async def nothing(): ...
        one = [WorkflowStep("a", nothing)]
        two = (WorkflowStep("a", nothing),)
        """,
    )
    shell.write(
        "wrong.py",
        """
        from asyncflow import Pipeline, WorkflowStep
        async def one(): ...
        def needs(argument): ...
        cycle = [WorkflowStep("a", one, ["b"]), WorkflowStep("b", one, ["a"])]
        unknown = [WorkflowStep("clean", one), WorkflowStep("load", one, ["claen"])]
        numbers = [1, 2]
        text = "steps"
        dangling = Pipeline("dangling")
        dangling.step(name="load", depends_on=["nothing"])(one)
        """,
    )

    result = shell("plan", target, exits=3)

    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def helper():\n    1 / 0\nhelper()", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
def test_an_error_of_a_module_is_shown_with_the_frames_of_the_module(
    shell: Shell, text: str, says: str
) -> None:
    shell.write("broken.py", text)

    result = shell("run", "broken:pipeline", exits=3)

    assert result.stderr.startswith("Traceback (most recent call last):\n") or "Syntax" in says
    assert 'broken.py", line' in result.stderr
    assert "importlib" not in result.stderr
    assert "asyncflow/" not in result.stderr
    assert result.stderr.endswith(f"Error: 'broken' can't be imported: {says}\n")


def test_an_error_of_a_pipeline_factory_is_shown(shell: Shell) -> None:
    shell.write("broken.py", "def make():\n    raise ValueError('no such table')\n")

    result = shell("run", "broken:make", exits=3)

    assert 'broken.py", line 2, in make' in result.stderr
    assert "_cli/loader" not in result.stderr
    assert result.stderr.endswith("Error: 'broken:make' raised ValueError: no such table\n")


def test_a_file_that_shadows_another_module_is_refused(shell: Shell) -> None:
    shell.write("json.py", "pipeline = []")

    result = shell("plan", "json.py:pipeline", exits=3)

    assert "which is another module already; give the file another name" in result.stderr
