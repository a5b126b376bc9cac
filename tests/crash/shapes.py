"""The pipelines whose processes are killed, and the effects of their actions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from asyncflow import Pipeline, Pool, Signal, WorkflowStep, after, collect, current_step, each
from tests.crash.effects import append, lines_of
from tests.crash.kill_points import Reaper

__all__ = ["INPUTS", "QUOTED", "SHAPES", "SIGNALS", "STAYING", "World"]

INPUTS = {"seed": 3}
SIGNALS = {"waiting": ("paid", "approved"), "staying": ("paid", "approved")}
"""The signals of shapes, in the order in which they are sent."""
STAYING = {"staying"}
"""The shapes whose runs wait in their process."""
QUOTED = ["tea", "milk", "tea", "milk", "tea"]
"""What the items of the step ``quote`` ask for, which has ``cache_ms``."""


class World:
    """The effects of the actions, which no journal can undo."""

    def __init__(self, folder: Path, reaper: Reaper) -> None:
        self._effects = folder / "effects"
        self._failures = folder / "failures"
        self._parts = folder / "parts"
        self._answers = folder / "answers"
        self._asked = folder / "asked"
        self._paid = folder / "paid"
        self._reaper = reaper

    async def act(self) -> None:
        """Perform the effect of an attempt, with a kill point before and after it."""
        await asyncio.sleep(0)
        self.act_in_thread()
        await asyncio.sleep(0)

    def act_in_thread(self) -> None:
        """Do the same in a plain function."""
        step = current_step()
        item = "-" if step.item is None else step.item
        self._reaper.pass_point(f"before the effect of {step.step_name} {item}")
        line = f"{step.run_id} {step.step_name} {item} {step.attempt} {step.idempotency_key}\n"
        append(self._effects, line)
        self._reaper.pass_point(f"after the effect of {step.step_name} {item}")

    def fail_at_first(self, times: int) -> None:
        """Raise the first `times` times for this step or item, counted over all processes."""
        step = current_step()
        line = f"{step.step_name} {step.item}\n"
        if lines_of(self._failures).count(line.rstrip()) < times:
            append(self._failures, line)
            self._reaper.pass_point(f"after the failure of {step.step_name}")
            raise ConnectionError("not yet")

    def begin_parts(self) -> int:
        """Return how many parts of its work the checkpoint of this step says are done."""
        done: int = current_step().last_checkpoint or 0
        append(self._parts, f"begin {done}\n")
        return done

    def do_part(self, part: int) -> None:
        """Do a part of the work of this step, and save that."""
        append(self._parts, f"reach {part}\n")
        self._reaper.pass_point(f"before part {part}")
        append(self._parts, f"part {part}\n")
        self._reaper.pass_point(f"after part {part}")
        current_step().checkpoint(part)

    def take_answers(self, **answers: int) -> None:
        """Note what a step has received from signals."""
        for name, value in answers.items():
            append(self._answers, f"{name} {value}\n")

    async def ask(self, word: str) -> None:
        """Make a call that costs something."""
        self._reaper.pass_point(f"before the call for {word}")
        append(self._asked, f"{word}\n")
        await asyncio.sleep(0.001)
        self._reaper.pass_point(f"after the call for {word}")

    async def pay(self, name: str, days: int) -> date:
        """Make a call by name of the step that runs."""

        async def answer() -> date:
            self._reaper.pass_point(f"before paying for {name}")
            append(self._paid, f"paid {call}\n")
            await asyncio.sleep(0.001)
            self._reaper.pass_point(f"after paying for {name}")
            return date(2024, 2, 28) + timedelta(days=days)

        step = current_step()
        call = f"{step.step_name} {'-' if step.item is None else step.item} {name}"
        answered = await step.call(name, answer)
        append(self._paid, f"has {call}\n")
        self._reaper.pass_point(f"after the answer to {name}")
        return answered


Steps = list[WorkflowStep] | Pipeline


def chain(world: World) -> Steps:
    """One step after the other, with results that plain JSON would not restore."""

    async def first(seed: int) -> date:
        await world.act()
        return date(2024, 2, 29) + timedelta(days=seed)

    async def second(first: date) -> tuple[date, int]:
        await world.act()
        return first, first.day

    async def third(second: tuple[date, int]) -> Decimal:
        await world.act()
        return Decimal(second[1]) / 4

    async def fourth(third: Decimal, second: tuple[date, int]) -> dict[str, set[int]]:
        await world.act()
        return {str(third): {second[1], 7}}

    return [
        WorkflowStep("first", first),
        WorkflowStep("second", second, ["first"]),
        WorkflowStep("third", third, ["second"]),
        WorkflowStep("fourth", fourth, ["third", "second"]),
    ]


def layers(world: World) -> Steps:
    """Two layers of three steps between a source and a sink."""

    async def source(seed: int) -> int:
        await world.act()
        return seed

    def of_all(name: str) -> Callable[..., Any]:
        async def action(**outputs: int) -> int:
            await world.act()
            return sum(outputs.values()) + len(name)

        return action

    upper, lower = ["a", "b", "c"], ["x", "y", "z"]
    return [
        WorkflowStep("source", source),
        *(WorkflowStep(name, of_all(name), ["source"]) for name in upper),
        *(WorkflowStep(name, of_all(name), upper[:place]) for place, name in enumerate(lower, 1)),
        WorkflowStep("sink", of_all("sink"), lower),
    ]


def retried(world: World) -> Steps:
    """A step that succeeds in its last attempt: a crash must not consume an attempt."""

    async def flaky(seed: int) -> str:
        await world.act()
        world.fail_at_first(2)
        return f"after two failures, {seed}"

    async def beside() -> str:
        await world.act()
        return "beside"

    async def last(flaky: str, beside: str) -> str:
        await world.act()
        return f"{flaky} {beside}"

    return [
        WorkflowStep("flaky", flaky, max_retries=3),
        WorkflowStep("beside", beside),
        WorkflowStep("last", last, ["flaky", "beside"]),
    ]


def mapped(world: World) -> Steps:
    """A mapped step with four items, one of which fails at first."""

    async def numbers(seed: int) -> list[int]:
        await world.act()
        return [seed, 10, 20, 30]

    async def square(number: int) -> int:
        await world.act()
        if number == 10:
            world.fail_at_first(1)
        return number**2

    async def total(squares: list[int]) -> int:
        await world.act()
        return sum(squares)

    return [
        WorkflowStep("numbers", numbers),
        WorkflowStep("square", square, {"number": "numbers"}, map_over="numbers", max_retries=2),
        WorkflowStep("total", total, {"squares": "square"}),
    ]


def flowing(world: World) -> Steps:
    """Items flow through three mapped steps: one is retried, one fails, and one falls back."""

    async def numbers(seed: int) -> list[int]:
        await world.act()
        return [seed, 10, 20, 30]

    async def fetch(number: int) -> int:
        await world.act()
        if number == 20:
            raise LookupError("never")
        return number * 2

    async def parse(page: int) -> int:
        await world.act()
        if page == 20:
            world.fail_at_first(1)
        return page + 1

    async def store(row: int) -> int:
        await world.act()
        if row == 61:
            raise LookupError("never")
        return row

    async def total(rows: list[int]) -> int:
        await world.act()
        return sum(rows)

    return [
        WorkflowStep("numbers", numbers),
        WorkflowStep(
            "fetch", fetch, {"number": "numbers"}, map_over="numbers", tolerated_failures=1
        ),
        WorkflowStep("parse", parse, {"page": "fetch"}, map_over="fetch", max_retries=2),
        WorkflowStep("store", store, {"row": "parse"}, map_over="parse", fallback=lambda error: -1),
        WorkflowStep("total", total, {"rows": "store"}),
    ]


def nested(world: World) -> Steps:
    """A pipeline that includes another one, in which a step is mapped."""
    inner, outer = Pipeline("inner"), Pipeline("outer")

    @outer.step
    async def words(seed: int) -> list[str]:
        await world.act()
        return ["one", "two"][:seed]

    @inner.step
    async def upper(words: list[str]) -> list[str]:
        await world.act()
        return [word.upper() for word in words]

    @inner.step
    async def double(word: str = each(upper)) -> str:
        await world.act()
        return word * 2

    @inner.step
    async def joined(parts: list[str] = collect(double)) -> tuple[str, ...]:
        await world.act()
        return (*parts, "end")

    outer.include(inner, depends_on=[words])

    @outer.step
    async def length(parts: tuple[str, ...] = after(inner)) -> int:
        await world.act()
        return len(parts)

    return outer


def cleaned_up(world: World) -> Steps:
    """A resource is rented, used and given back; two steps are skipped by condition, and joined."""

    async def rent(seed: int) -> str:
        await world.act()
        return f"machine {seed}"

    async def use(rent: str) -> int:
        await world.act()
        return len(rent)

    async def extra(use: int) -> int:
        await world.act()
        return use

    async def beyond(extra: int) -> int:
        await world.act()
        return extra

    async def joined(use: int, extra: int | None, beyond: int = 7) -> int:
        await world.act()
        return use + beyond

    async def give_back(rent: str, use: int) -> str:
        await world.act()
        return f"{rent} was used {use} times"

    async def alert() -> None:
        await world.act()

    return [
        WorkflowStep("rent", rent),
        WorkflowStep("use", use, ["rent"]),
        WorkflowStep("extra", extra, ["use"], when=lambda use: use > 1_000),
        WorkflowStep("beyond", beyond, ["extra"]),
        WorkflowStep("joined", joined, ["use", "extra", "beyond"], run_if="unless_failed"),
        WorkflowStep("give_back", give_back, ["rent", "use"], run_if="always"),
        WorkflowStep("alert", alert, run_if="failure"),
    ]


def limited(world: World) -> Steps:
    """Steps in threads that share a pool slot; one of them is retried."""
    slot = Pool(1)

    def one(seed: int) -> int:
        world.act_in_thread()
        return seed

    def two() -> frozenset[str]:
        world.act_in_thread()
        world.fail_at_first(1)
        return frozenset({"two"})

    def both(one: int, two: frozenset[str]) -> list[str]:
        world.act_in_thread()
        return [*two] * one

    return [
        WorkflowStep("one", one, runs_in="thread", pool=slot),
        WorkflowStep("two", two, runs_in="thread", pool=slot, max_retries=2, retry=1),
        WorkflowStep("both", both, ["one", "two"], runs_in="thread", deadline_ms=10_000),
    ]


def saving(world: World) -> Steps:
    """A step that does its work in parts, and continues after the last one that it has saved."""

    async def parts(seed: int) -> list[int]:
        done = world.begin_parts()
        await world.act()
        for part in range(done + 1, 6):
            world.do_part(part)
            await asyncio.sleep(0.08)  # meanwhile it is stored
            if part == done + 1:
                world.fail_at_first(1)
        return [seed] * 4

    async def total(parts: list[int]) -> int:
        await world.act()
        return sum(parts)

    return [
        WorkflowStep("parts", parts, max_retries=2),
        WorkflowStep("total", total, ["parts"]),
    ]


def calling(world: World) -> Steps:
    """A loop of ten calls by name, two items that make some at once, and an attempt that fails."""

    async def agent(seed: int) -> list[date]:
        await world.act()
        answers = [await world.pay(f"ask-{turn}", turn) for turn in range(10)]
        world.fail_at_first(1)
        return answers

    async def beside(number: int) -> list[date]:
        await world.act()
        return await asyncio.gather(*(world.pay(f"at-once-{n}", n * number) for n in range(3)))

    async def numbers() -> list[int]:
        await world.act()
        return [1, 2]

    async def last(agent: list[date], beside: list[list[date]]) -> int:
        await world.act()
        return len(agent) + len(beside)

    return [
        WorkflowStep("agent", agent, max_retries=2),
        WorkflowStep("numbers", numbers, ["agent"]),
        WorkflowStep("beside", beside, {"number": "numbers"}, map_over="numbers"),
        WorkflowStep("last", last, ["agent", "beside"]),
    ]


def waiting(world: World) -> Steps:
    """Two signals, one of which comes about when it expires, equal calls, and parts of work."""

    async def draft(seed: int) -> list[str]:
        await world.act()
        return QUOTED

    async def quote(word: str) -> int:
        await world.ask(word)
        return len(word)

    async def parts(quotes: list[int], approved: int) -> int:
        done = world.begin_parts()
        await world.act()
        for part in range(done + 1, 4):
            world.do_part(part)
            await asyncio.sleep(0.03)
        return sum(quotes)

    async def publish(parts: int, paid: int, approved: int) -> int:
        world.take_answers(paid=paid, approved=approved)
        await world.act()
        return parts

    return [
        WorkflowStep("draft", draft),
        WorkflowStep("paid", Signal(int), ["draft"], deadline_ms=30, fallback=lambda error: 0),
        WorkflowStep("approved", Signal(int), ["draft"]),
        WorkflowStep("quote", quote, {"word": "draft"}, map_over="draft", cache_ms=3_600_000),
        WorkflowStep("parts", parts, {"quotes": "quote", "approved": "approved"}),
        WorkflowStep("publish", publish, ["parts", "paid", "approved"]),
    ]


def staying(world: World) -> Steps:
    """The same steps in a run that waits in its process."""
    return waiting(world)


def failing(world: World) -> Steps:
    """A step that never succeeds, a dependent, an independent step, and a clean-up step."""

    async def good(seed: int) -> int:
        await world.act()
        return seed

    async def bad() -> None:
        await world.act()
        raise LookupError("never")

    async def dependent(bad: None) -> None:
        await world.act()

    async def independent(good: int) -> int:
        await world.act()
        return good + 1

    async def tidy(bad: None, good: int) -> str:
        await world.act()
        return f"tidied after {bad} {good}"

    return [
        WorkflowStep("good", good),
        WorkflowStep("bad", bad, max_retries=2),
        WorkflowStep("dependent", dependent, ["bad"]),
        WorkflowStep("independent", independent, ["good"]),
        WorkflowStep("tidy", tidy, ["bad", "good"], run_if="always"),
    ]


SHAPES: dict[str, Callable[[World], Steps]] = {
    shape.__name__: shape
    for shape in (
        *(
            chain,
            layers,
            retried,
            mapped,
            flowing,
            nested,
            cleaned_up,
            limited,
            saving,
            calling,
            waiting,
            staying,
            failing,
        ),
    )
}
"""By name. Each call builds the steps for one process."""
