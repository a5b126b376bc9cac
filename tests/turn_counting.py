"""An event loop that cancels a task in a given turn."""

from __future__ import annotations

import asyncio

from asyncflow.testing import VirtualTimeLoop


class TurnCountingLoop(VirtualTimeLoop):
    """Cancels a task at the beginning of the given turn of the loop."""

    def __init__(self, turn, eager):
        super().__init__()
        self.turns = 0
        self.turn = turn
        self.victim = None
        self.cancel_accepted = False
        self.complaints = []
        self.set_exception_handler(lambda _, context: self.complaints.append(context))
        if eager and hasattr(asyncio, "eager_task_factory"):
            self.set_task_factory(asyncio.eager_task_factory)

    def _run_once(self):
        if self.victim is not None:
            if self.turns == self.turn and not self.victim.done():
                self.cancel_accepted = self.victim.cancel("from outside")
            self.turns += 1
        super()._run_once()
