"""``--engine``: which engine a name stands for, how it is opened and closed, and what shows it."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import Any, ClassVar

import pytest
from fake_engine import FakeEngine

from asyncflow import IllegalEventError, Orchestrator
from asyncflow._cli.engines import _maker_of

from .conftest import Shell


class Recording(FakeEngine):
    """A fake engine that is opened and closed."""

    made: ClassVar[list[Recording]] = []
    problem: Exception | None = None
    closing_problem: Exception | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.states: list[str] = []
        self.open = False
        self.made.append(self)

    async def __aenter__(self) -> Recording:
        if self.problem is not None:
            raise self.problem
        self.open = True
        self.states.append("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.states.append("closed")
        if self.closing_problem is not None:
            raise self.closing_problem


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """Replace the engines of clusters; return those that were made."""
    for name, kind in (("dask", "DaskEngine"), ("ray", "RayEngine")):
        module = ModuleType(f"asyncflow.engines.{name}")
        setattr(module, kind, type(kind, (Recording,), {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Recording, "made", [])
    return Recording.made


def test_a_run_has_the_engine_that_is_open_meanwhile(shell: Shell, made: list[Recording]) -> None:
    report = shell.json("run", "etl:pipeline", "--engine", "dask://h:8786", "--quiet", "--json")

    (engine,) = made
    assert engine.arguments == ("tcp://h:8786",)
    assert engine.states == ["opened", "closed"]
    assert [(each["engine"], each["worker"]) for each in report["results"]] == [
        ("fake", "w1"),
        ("fake", "w2"),
    ]


def test_what_ran_on_a_worker_is_shown_and_resumed_there(
    shell: Shell, made: list[Recording]
) -> None:
    first = shell("run", "etl:failing", "--run-id", "r", "--engine", "dask://h:1", exits=1)
    again = shell("resume", "r", "etl:failing", "--engine", "dask://h:1", exits=1)
    shown = shell("show", "r")

    assert len(made) == 2
    command = "asyncflow resume r etl:failing --engine dask://h:1"
    assert command in first.stderr
    assert command in again.stderr
    assert "Step bad failed, attempt 1 on fake, worker w1:\n" in first.stderr
    assert "bad: attempt 1 failed on fake, worker w1: OSError: no disk" in shown.stdout
    assert "bad began on fake, worker w1" in shell("show", "r", "--events").stdout


def test_an_engine_that_cannot_be_opened_is_reported(
    shell: Shell, made: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "problem", OSError("no scheduler"))

    result = shell("run", "etl:pipeline", "--engine", "dask://h:1", exits=1)

    assert "engine dask://h:1 can't be opened: OSError: no scheduler" in result.stderr


def test_an_engine_that_cannot_be_closed_is_no_bug_of_asyncflow(
    shell: Shell, made: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "closing_problem", OSError("no scheduler"))

    result = shell("run", "etl:pipeline", "--engine", "dask://h:1", "--run-id", "r", exits=1)

    assert "Error: engine dask://h:1 can't be closed: OSError: no scheduler" in result.stderr
    assert "\n✓ PASSED in " in shell("show", "r").stdout


def test_a_missing_extra_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "asyncflow.engines.dask", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)

    result = shell("run", "etl:pipeline", "--engine", "dask://h:1", exits=2)

    assert "asyncflow-tiers[dask]" in result.stderr


def test_the_engines_of_a_pipeline_are_open_while_it_runs(shell: Shell) -> None:
    shell.write(
        "own.py",
        """
        from asyncflow import Pipeline
        from fake_engine import FakeEngine


        class Engine(FakeEngine):
            async def __aenter__(self):
                self.open = True
                print(f"{self.name} opens")

            async def __aexit__(self, *_):
                self.open = False
                print(f"{self.name} closes")


        def closed(name):
            engine = Engine(name=name)
            engine.open = False
            return engine


        pipeline = Pipeline("own", engine=closed("first"))

        @pipeline.step
        async def load():
            pass

        @pipeline.step(engine=closed("second"))
        async def store():
            pass

        @pipeline.step(engine="local")
        async def tell():
            pass
        """,
    )

    result = shell("run", "own:pipeline", "--no-journal", "--quiet")

    words = ["first opens", "second opens", "second closes", "first closes"]
    assert [line for line in result.stdout.splitlines() if line in words] == words


def test_a_pipeline_with_an_engine_that_is_not_open_is_refused(shell: Shell) -> None:
    shell.write(
        "closed.py",
        """
        from asyncflow import Pipeline
        from fake_engine import FakeEngine

        engine = FakeEngine()
        engine.open = False
        pipeline = Pipeline("closed", engine=engine)

        @pipeline.step
        async def load():
            pass
        """,
    )

    result = shell("run", "closed:pipeline", "--no-journal", exits=3)

    message = "'closed:pipeline' can't run: step 'load' can't run on engine 'fake': it is not open"
    assert message in " ".join(result.stderr.split())


def test_a_bug_of_ours_is_not_taken_for_an_engine_that_is_not_open(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: Any, **inputs: Any) -> None:
        raise IllegalEventError("step 'load' started", "it has ended")

    monkeypatch.setattr(Orchestrator, "run", run)

    result = shell("run", "etl:pipeline", "--no-journal", exits=70)

    assert "this is a bug in asyncflow" in result.stderr


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("dask://10.0.0.1:8786", "DaskEngine", "tcp://10.0.0.1:8786"),
        ("ray://10.0.0.1:10001", "RayEngine", "ray://10.0.0.1:10001"),
        ("ray", "RayEngine", "auto"),
    ],
)
def test_a_name_stands_for_an_engine(
    made: list[Recording], name: str, kind: str, address: str
) -> None:
    engine = _maker_of(name)()

    assert made == [engine]
    assert type(engine).__name__ == kind
    assert engine.arguments == (address,)


@pytest.mark.parametrize(("name", "workers"), [("processes:3", 3), ("processes", None)])
async def test_processes_are_a_pool_of_fresh_ones(name: str, workers: int | None) -> None:
    async with _maker_of(name)() as engine:
        (pool,) = [each for each in vars(engine).values() if isinstance(each, ProcessPoolExecutor)]

        assert pool._mp_context.get_start_method() == "spawn"  # type: ignore[attr-defined]
        assert workers is None or pool._max_workers == workers  # type: ignore[attr-defined]


def test_a_misspelled_name_is_refused_with_the_nearest(shell: Shell) -> None:
    result = shell("run", "etl:pipeline", "--engine", "dasc://h:1", exits=2)

    assert "did you mean 'dask'?" in result.stderr


def test_a_plan_shows_where_steps_run(shell: Shell) -> None:
    shell.write(
        "placed.py",
        """
        from asyncflow import Orchestrator, WorkflowStep
        from fake_engine import FakeEngine

        async def act(): ...
        def compute(): ...

        pipeline = Orchestrator(
            [
                WorkflowStep("here", act, engine="local"),
                WorkflowStep("there", act),
                WorkflowStep("beside", compute, runs_in="thread"),
            ],
            engine=FakeEngine(name="dask"),
        )
        """,
    )

    text = shell("plan", "placed:pipeline").stdout
    document = shell.json("plan", "placed:pipeline", "--format", "json")

    assert "  here\n  there  (on dask)\n  beside  (in a thread, on dask)\n" in text
    assert [step["engine"] for step in document["steps"]] == ["local", "dask", "dask"]
