"""The training example learns, gives the same result for a seed, and never blocks the loop."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncflow import parallel_groups, run_pipeline

ROOT = Path(__file__).resolve().parents[2]


class Stub:
    """A model whose training is the given function, and which reads every image as 0."""

    def __init__(self, training: Callable[[], object] = lambda: None) -> None:
        self.training = training

    def fit(self, images: Any, digits: Any) -> Any:
        self.training()

    def predict(self, images: Any) -> Any:
        return [0 for _ in images]


@pytest.fixture(scope="module")
def ml() -> ModuleType:
    """The example, imported late: scikit-learn takes seconds, in each process that has tests."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    return import_module("examples.ml")


# Training.


def test_all_models_are_one_tier(ml: ModuleType) -> None:
    tiers = parallel_groups(ml.pipeline(ml.candidates(seed=0)))

    assert tiers == [
        ["load"],
        ["split"],
        ["logistic", "svm", "forest", "neighbours"],
        ["evaluate"],
        ["best"],
        ["report"],
    ]


@pytest.mark.exhaustive
def test_the_same_seed_prints_the_same_ranking_whose_best_model_reads_more_than_95_percent(
    ml: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = asyncio.run(run_pipeline(ml.pipeline(ml.candidates(seed=0)), inputs={"seed": 0}))

    exit_code = ml.main([])

    scores, best = trained["evaluate"].output, trained["best"].output
    assert scores[best].accuracy > 0.95
    assert scores[best].accuracy == max(score.accuracy for score in scores.values())
    test = trained["split"].output.test
    for score in scores.values():
        right = sum(score.confusion[digit][digit] for digit in range(10))
        assert sum(map(sum, score.confusion)) == len(test.digits)
        assert right / len(test.digits) == pytest.approx(score.accuracy)
    out = capsys.readouterr().out
    assert exit_code == 0
    assert out.startswith(f"{trained['report'].output}\n\nPipeline PASSED\n")
    table, reads, verdict = (part.splitlines() for part in out.split("\n\n"))
    accuracies = [float(line.split()[1]) for line in table[1:]]
    assert table[0] == "model       accuracy"
    assert accuracies == sorted(accuracies, reverse=True)
    assert table[1].split()[0] == best
    assert reads[0].startswith(f"best: {best}, ")
    assert len(reads) == 12
    assert re.fullmatch(
        r"Critical path: load -> split -> \w+ -> evaluate -> best -> report", verdict[-1]
    )


async def test_the_first_of_several_equally_good_models_is_the_best(ml: ModuleType) -> None:
    steps = ml.pipeline({"one": Stub(), "other": Stub()})

    report = await run_pipeline(steps, inputs={"seed": 0})

    assert report["best"].output == "one"


# The event loop.


async def test_the_loop_keeps_running_while_models_train(ml: ModuleType) -> None:
    ticked = threading.Event()

    async def tick() -> None:
        await training.wait()
        ticked.set()

    def train_until_the_loop_has_ticked() -> None:
        loop.call_soon_threadsafe(training.set)
        assert ticked.wait(timeout=50), "the loop stood still"

    loop, training = asyncio.get_running_loop(), asyncio.Event()
    steps = ml.pipeline({"stub": Stub(train_until_the_loop_has_ticked)})

    report, _ = await asyncio.gather(run_pipeline(steps, inputs={"seed": 0}), tick())

    report.raise_for_failures()


async def test_models_train_concurrently_and_none_in_the_thread_of_the_loop(ml: ModuleType) -> None:
    all_are_training = threading.Barrier(4)
    threads: list[int] = []

    def train_until_all_do() -> None:
        threads.append(threading.get_ident())
        all_are_training.wait(timeout=50)

    steps = ml.pipeline({f"stub {number}": Stub(train_until_all_do) for number in range(4)})

    report = await run_pipeline(steps, inputs={"seed": 0})

    report.raise_for_failures()
    assert len(set(threads)) == 4
    assert threading.get_ident() not in threads


# Output.


def test_a_model_that_cannot_be_trained_fails_the_run(
    ml: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ArithmeticError("did not converge")

    monkeypatch.setattr(ml, "candidates", lambda seed: {"good": Stub(), "bad": Stub(fail)})

    exit_code = ml.main([])

    out = capsys.readouterr().out
    assert exit_code == 1
    assert out.startswith("Pipeline FAILED\n")
    assert "ArithmeticError: did not converge" in out


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one"])
def test_an_invalid_seed_is_a_usage_error(
    ml: ModuleType, seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        ml.main([f"--seed={seed}"])

    assert stopped.value.code == 2
    assert "--seed" in capsys.readouterr().err


@pytest.mark.process
def test_a_missing_scikit_learn_is_reported_with_the_command_to_install_it(ml: ModuleType) -> None:
    without = (
        "import runpy, sys; sys.modules['sklearn'] = None; "
        f"runpy.run_path({ml.__file__!r}, run_name='__main__')"
    )

    ended = subprocess.run(
        [sys.executable, "-c", without],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: this example needs scikit-learn")
    assert ended.stderr.endswith("python -m pip install scikit-learn\n")
