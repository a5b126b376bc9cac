"""The agent: it asks the model, makes the calls that this wants, and asks again.

Each question and each call of a tool has a name, and what it returned is stored before the loop
continues. So a process that is killed costs the call that was under way, and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from asyncflow import Pipeline, Retry, current_step, retry_after

from .model import Message, ToolCall, Turn, complete, note_effect

MOST_TURNS, MOST_TOKENS = 30, 50_000

agents = Pipeline("agents")


async def ask(number: int, messages: list[Message]) -> Turn:
    """Ask the model, and stream its words; the mark before them says whose they are."""
    step, turn = current_step(), Turn(text="")
    step.stream({"turn": number})
    async with asyncio.timeout(120):
        async for each in complete(messages, key=f"{step.idempotency_key}/ask-{number}"):
            if isinstance(each, Turn):
                turn = each
            else:
                step.stream(each)
    return turn


async def use(call: ToolCall) -> str:
    """Use a tool. The model is told what goes wrong."""
    current_step().stream({"tool": call.tool, **call.arguments})
    try:
        async with asyncio.timeout(10):
            return await TOOLS[call.tool](**call.arguments)
    except Exception as error:
        return f"{call.tool} failed: {error!r}"


@agents.step(
    timeout_ms=None,  # of the whole loop: each call has its own
    deadline_ms=3_600_000,
    max_retries=20,  # attempts of the loop, so 19 refusals in all
    retry=Retry(base_ms=500, max_ms=30_000, on=retry_after),
)
async def agent(question: str) -> str:
    step, messages, tokens = current_step(), [Message(role="user", text=question)], 0
    for number in range(MOST_TURNS):
        turn = await step.call(f"ask-{number}", ask, number, messages)
        if not turn.calls:
            return turn.text
        tokens += turn.tokens
        if tokens > MOST_TOKENS:
            raise ValueError(f"no answer within {MOST_TOKENS:,} tokens")
        answers = await asyncio.gather(
            *(step.call(f"use-{number}-{at}", use, call) for at, call in enumerate(turn.calls))
        )
        messages = [
            *messages,
            Message(role="assistant", text=turn.text, calls=turn.calls),
            *(
                Message(role="tool", text=answer, call_id=call.id)
                for call, answer in zip(turn.calls, answers, strict=True)
            ),
        ]
    raise ValueError(f"no answer in {MOST_TURNS} turns")


async def weather(city: str) -> str:
    note_effect("weather")
    return f"18 degrees and sunny in {city}"


async def local_time(city: str) -> str:
    note_effect("local_time")
    return f"14:00 in {city}"


TOOLS: dict[str, Callable[..., Awaitable[str]]] = {"weather": weather, "local_time": local_time}
