"""What the actions and conditions of a run are called with, and who takes what they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncflow._core.arguments import PLAIN_OUTPUTS, Signature, instead_of_iterator, is_iterator
from asyncflow._core.errors import SharedIteratorError
from asyncflow._core.pipeline.graph import ITEM, Binding, ItemOf, Plan, takers_of
from asyncflow._core.running.state import RunState
from asyncflow._kernel.run_scope import RunStart


class ActionData:
    """Finds the arguments of actions and conditions: outputs, items, inputs and resources.

    ``items`` are those of mapped steps that are under way, by node.
    """

    def __init__(self, plan: Plan, start: RunStart, state: RunState) -> None:
        self._plan = plan
        self._start = start
        self.bindings = start.bindings.actions
        self._step_count = len(self.bindings)
        self.items: dict[int, Any] = {}
        self._conditions = start.bindings.conditions
        self._inputs = start.inputs
        self._runs = state.step_runs
        self._readiness = state.readiness

    def provide(self, resources: Mapping[str, Any]) -> None:
        """Take the resources of the run, which parameters receive as they do inputs."""
        self._inputs = {**self._inputs, **resources}

    def input(self, name: str) -> Any:
        """Return an input of the run."""
        return self._inputs[name]

    def of_action(self, node: int) -> dict[str, Any]:
        """Return what the action of a step, or of an item, is called with."""
        is_item = node >= self._step_count
        step = self._runs.owner_of(node) if is_item else node
        signature = self._runs.steps[step].signature
        return self._collect(node, self.bindings[step], signature)

    def of_condition(self, step: int) -> dict[str, Any]:
        """Return what the condition of a step is called with."""
        condition = self._runs.steps[step].condition
        return self._collect(step, self._conditions[step], condition)

    def refuse_shared(self, node: int, output: object) -> None:
        """Refuse an output that is an iterator, if several steps or items take it.

        A step whose result a resumed run reuses takes nothing any more.
        """
        if type(output) in PLAIN_OUTPUTS or not is_iterator(output):
            return
        start, runs, plan = self._start, self._runs, self._plan
        step = node if node < self._step_count else runs.owner_of(node)
        restored = () if start.snapshot is None else start.snapshot.restored_steps(plan)
        takers = [at for at in takers_of(plan, start.bindings, step) if at not in restored]
        if len(takers) > 1:
            names = tuple(plan.steps[at].name for at in dict.fromkeys(takers))
            raise SharedIteratorError(
                runs.name_of(node), type(output).__name__, names, instead_of_iterator(output)
            )

    def _collect(self, node: int, binding: Binding, signature: Signature) -> dict[str, Any]:
        arguments = {}
        for parameter, source in binding:
            if source == ITEM or isinstance(source, ItemOf):
                arguments[parameter] = self.items[node]
            elif isinstance(source, str):
                arguments[parameter] = self._inputs[source]
            elif not (self._readiness.lacks_output(source) and _has_default(parameter, signature)):
                arguments[parameter] = self._runs.output(source)
        return arguments


def _has_default(parameter: str, signature: Signature) -> bool:
    return parameter in signature.names and parameter not in signature.required
