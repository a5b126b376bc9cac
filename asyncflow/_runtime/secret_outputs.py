"""Lets a run know the outputs of its secret steps, which are replaced in what steps say."""

from __future__ import annotations

from asyncflow._core.secret_texts import SecretTexts
from asyncflow._runtime.policy import Policy
from asyncflow.events import Event, StepSucceeded


class SecretOutputs(Policy):
    """The policy of a run that knows secrets, or may get to know some."""

    def __init__(self, secrets: SecretTexts) -> None:
        self._secrets = secrets

    def on_event(self, event: Event) -> None:
        if type(event) is StepSucceeded and event.secret:
            self._secrets.add(event.output)

    def on_ended(self) -> None:
        self._secrets.clear()
