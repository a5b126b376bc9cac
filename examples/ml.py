"""Train several models on scikit-learn's handwritten digits, and report the best one.

The models don't depend on each other, so they are one tier: they train at the same time, each in
a thread of its own, and the event loop stays free for whatever else the program does. The critical
path at the end tells which of them took longest.

    python examples/ml.py [--seed N]

It needs scikit-learn. The exit code is 0 if all steps passed, 1 if one did not, and 2 if
scikit-learn is missing or the usage is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from asyncflow import WorkflowStep, run_pipeline

try:
    from sklearn import (  # type: ignore[import-untyped]
        datasets,
        ensemble,
        linear_model,
        metrics,
        model_selection,
        neighbors,
        preprocessing,
        svm,
    )
    from sklearn import pipeline as sklearn_pipeline
except ModuleNotFoundError as missing:
    print(
        f"error: this example needs scikit-learn ({missing}); "
        "install it with: python -m pip install scikit-learn",
        file=sys.stderr,
    )
    sys.exit(2)


class Model(Protocol):
    """What scikit-learn calls an estimator; arrays are its business alone."""

    def fit(self, images: Any, digits: Any, /) -> Any: ...
    def predict(self, images: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled images: an array of shape (images, pixels) and one of shape (images,)."""

    images: Any
    digits: Any


@dataclass(frozen=True, slots=True)
class Split:
    train: Samples
    test: Samples


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model does on images that it was not trained on."""

    accuracy: float
    """The share of images that it reads right, from 0 to 1."""
    confusion: list[list[int]]
    """How often digit ``[i]`` was read as digit ``[j]``."""


# The steps. Most are plain functions that run in a thread. It need not be a process: scikit-learn
# lets other threads run while it calculates.


def load() -> Samples:
    return Samples(*datasets.load_digits(return_X_y=True))


def split(load: Samples, seed: int) -> Split:
    """Keep a quarter of the images for the test, with as many of each digit as there are."""
    train_images, test_images, train_digits, test_digits = model_selection.train_test_split(
        load.images, load.digits, test_size=0.25, stratify=load.digits, random_state=seed
    )
    return Split(Samples(train_images, train_digits), Samples(test_images, test_digits))


def train(model: Model, split: Split) -> Model:
    model.fit(split.train.images, split.train.digits)
    return model


def evaluate(split: Split, **models: Model) -> dict[str, Score]:
    """Return the score of each model: of each step that this one depends on, but the split."""
    return {name: score(model, split.test) for name, model in models.items()}


async def best(evaluate: dict[str, Score]) -> str:
    """Return the name of the most accurate model; of equals, the first."""
    return max(evaluate, key=lambda name: evaluate[name].accuracy)


async def report(evaluate: dict[str, Score], best: str) -> str:
    ranking = sorted(evaluate, key=lambda name: -evaluate[name].accuracy)
    width = max(map(len, evaluate))
    return "\n".join(
        [
            f"{'model'.ljust(width)}  accuracy",
            *(f"{name.ljust(width)}  {evaluate[name].accuracy:8.4f}" for name in ranking),
            "",
            f"best: {best}, which reads each digit (row) as (column)",
            as_table(evaluate[best].confusion),
        ]
    )


def pipeline(models: Mapping[str, Model]) -> list[WorkflowStep]:
    """Return the steps; the seed is an input of the run."""
    return [
        WorkflowStep("load", load, runs_in="thread"),
        WorkflowStep("split", split, depends_on=["load"], runs_in="thread"),
        *(
            # A thread can't be stopped: with a limit it would be abandoned, and train on.
            WorkflowStep(
                name,
                partial(train, model),
                depends_on=["split"],
                runs_in="thread",
                timeout_ms=None,
            )
            for name, model in models.items()
        ),
        WorkflowStep("evaluate", evaluate, depends_on=["split", *models], runs_in="thread"),
        WorkflowStep("best", best, depends_on=["evaluate"]),
        WorkflowStep("report", report, depends_on=["evaluate", "best"]),
    ]


def candidates(seed: int) -> dict[str, Model]:
    """Return new, untrained models by the names of the steps that train them."""
    models: dict[str, Any] = {  # Any: scikit-learn has no types, so they are guessed wrong
        "logistic": sklearn_pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(max_iter=1000, random_state=seed),
        ),
        "svm": svm.SVC(random_state=seed),
        "forest": ensemble.RandomForestClassifier(n_estimators=200, random_state=seed),
        "neighbours": neighbors.KNeighborsClassifier(n_neighbors=3),
    }
    return models


def score(model: Model, test: Samples) -> Score:
    read = model.predict(test.images)
    confusion = metrics.confusion_matrix(test.digits, read).tolist()
    return Score(float(metrics.accuracy_score(test.digits, read)), confusion)


def as_table(confusion: Sequence[Sequence[int]]) -> str:
    """Return a line for each digit, with a dot for "never"."""
    heads = "   " + "".join(f"{digit:4}" for digit in range(len(confusion)))
    rows = [
        f"{digit:3}" + "".join(f"{count or '.':>4}" for count in counts)
        for digit, counts in enumerate(confusion)
    ]
    return "\n".join([heads, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train models on handwritten digits.")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for all that is random (default: 0)"
    )
    seed = parser.parse_args(argv).seed
    if not 0 <= seed < 2**32:
        parser.error(f"--seed: must be from 0 to {2**32 - 1}, not {seed}")
    outcome = asyncio.run(run_pipeline(pipeline(candidates(seed)), inputs={"seed": seed}))
    if outcome.all_passed:
        print(outcome["report"].output, end="\n\n")
    print(outcome)
    print("Critical path:", " -> ".join(outcome.critical_path))
    return 0 if outcome.all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
