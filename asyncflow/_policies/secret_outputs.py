"""Lets a run know the outputs of its secret steps, which are replaced in what steps say."""

from __future__ import annotations

from typing import Any

from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.secret_texts import SecretTexts
from asyncflow._kernel.policy import Policy


class SecretOutputs(Policy):
    """The policy of a run that knows secrets, or may get to know some."""

    arguments = frozenset({"secret"})

    def __init__(self, secrets: SecretTexts) -> None:
        self._secrets = secrets

    def on_output(self, node: int, step: WorkflowStep, output: Any) -> None:
        self._secrets.add(output)

    def on_ended(self) -> None:
        self._secrets.clear()
