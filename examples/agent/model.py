"""The model behind one function, `complete`: a real one, or a fake that follows a script."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class ToolCall(BaseModel):
    id: str
    tool: str
    arguments: dict[str, Any]


class Turn(BaseModel):
    """What the model has answered: a text, and the tools that it wants to use."""

    text: str
    calls: list[ToolCall] = []
    tokens: int = 0


class Message(BaseModel):
    """A message of the conversation."""

    role: str
    """``"user"``, ``"assistant"`` or ``"tool"``."""
    text: str
    calls: list[ToolCall] = []
    """What the assistant wants to use."""
    call_id: str = ""
    """The call that a tool answers."""


class RateLimitedError(Exception):
    """The model has no time now."""

    status_code = 429

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"429 Too Many Requests, retry after {retry_after_ms} ms")
        self.headers = {"retry-after-ms": str(retry_after_ms)}


async def complete(messages: list[Message], key: str) -> AsyncIterator[str | Turn]:
    """Ask the model: yield its words while it makes them, and its turn at the end.

    ``key`` is the same if the same question is asked again, because its answer was lost.
    """
    model = os.environ.get("AGENT_MODEL")
    answer = _openai(model, messages, key) if model else _fake(messages, key)
    async for each in answer:
        yield each


# The real one: AGENT_MODEL=gpt-5-mini, and OPENAI_API_KEY.

TOOLS = [
    {
        "type": "function",
        "strict": True,
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    for name, description in (
        ("weather", "What the weather is in a city."),
        ("local_time", "What time it is in a city."),
    )
]


async def _openai(
    model: str, messages: list[Message], key: str
) -> AsyncIterator[str | Turn]:  # pragma: no cover  # it costs money
    openai: Any = import_module("openai")  # only the real one needs it
    client = openai.AsyncOpenAI(max_retries=0)  # the step retries
    conversation: list[dict[str, Any]] = []
    for each in messages:
        if each.role == "tool":
            output = {"type": "function_call_output", "call_id": each.call_id, "output": each.text}
            conversation.append(output)
            continue
        if each.text:
            conversation.append({"role": each.role, "content": each.text})
        conversation += [
            {
                "type": "function_call",
                "call_id": call.id,
                "name": call.tool,
                "arguments": json.dumps(call.arguments),
            }
            for call in each.calls
        ]
    headers = {"Idempotency-Key": key}
    async with (
        client,
        client.responses.stream(
            model=model, input=conversation, tools=TOOLS, extra_headers=headers
        ) as stream,
    ):
        async for event in stream:
            if event.type == "response.output_text.delta":
                yield event.delta
        answer = await stream.get_final_response()
    calls = [
        ToolCall(id=each.call_id, tool=each.name, arguments=json.loads(each.arguments))
        for each in answer.output
        if each.type == "function_call"
    ]
    yield Turn(text=answer.output_text, calls=calls, tokens=answer.usage.total_tokens)


# The fake: AGENT_SCRIPT is a file with a list of turns, each of which may be refused a few times
# before.

SCRIPT: list[dict[str, Any]] = [
    {
        "text": "Let me look at the sky and at the clock. ",
        "calls": [["weather", "Bern"], ["local_time", "Bern"]],
        "refused": 1,
    },
    {"text": "In Bern the sun shines at 18 degrees, and it is two o'clock in the afternoon."},
]
_asked = count()


def _script() -> list[dict[str, Any]]:
    path = os.environ.get("AGENT_SCRIPT")
    found: list[dict[str, Any]] = json.loads(Path(path).read_text()) if path else SCRIPT
    return found


def note_effect(what: str) -> None:
    """Write what would have cost something into AGENT_LOG, from which tests see how often."""
    if log := os.environ.get("AGENT_LOG"):
        with Path(log).open("a") as lines:
            lines.write(f"{what}\n")


async def _fake(messages: list[Message], key: str) -> AsyncIterator[str | Turn]:
    turn = _script()[sum(each.role == "assistant" for each in messages)]
    if next(_asked) < turn.get("refused", 0):
        raise RateLimitedError(retry_after_ms=100)
    note_effect(key)
    for word in turn["text"].split(" "):
        await asyncio.sleep(turn.get("word_s", 0.05))
        yield f"{word} "
    calls = [
        ToolCall(id=f"{key}/{number}", tool=tool, arguments={"city": city})
        for number, (tool, city) in enumerate(turn.get("calls", ()))
    ]
    yield Turn(text=turn["text"], calls=calls, tokens=len(turn["text"]) // 4)
