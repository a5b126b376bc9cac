"""What steps stream while they run: values for those who watch, which are no output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from asyncflow._core.errors import PayloadError
from asyncflow._core.record import record
from asyncflow._core.value_size import extent

MOST_BYTES = 16 * 2**20
"""How many bytes an attempt may stream in a run with a journal, unless that says otherwise."""


@record(frozen=True)
class StreamedValue:
    """A value that an attempt has streamed, with `StepContext.stream`."""

    position: int
    """Rises within a run, through its resumptions, but not always by one. A reader that continues
    after a position misses no value and gets none twice."""
    step: str
    item: int | None
    """The item of a mapped step, counted from 0."""
    segment: int
    """Which process of the run it comes from, counted from 1, as in `StepResult.history`."""
    attempt: int
    """The number of the attempt. With another segment or attempt, the step has begun anew."""
    value: Any
    at_ms: float
    """When it was streamed, in milliseconds since the run started, up to 50 ms too early."""


@record(frozen=True)
class ValuesMissed:
    """Takes the place of values that a slow reader of `RunHandle.streamed` has missed.

    That happens without a journal only, which keeps all.
    """

    count: int
    """How many there were."""


def encode_streamed(step: str, value: object) -> str:
    """Return a value as JSON; raise `PayloadError` if it is not plain data."""
    if type(value) is not str and (found := extent(value, MOST_BYTES)) != "plain":
        problem = {
            "large": f"takes more than {MOST_BYTES:,} bytes: stream less of it at a time",
            "deep": "is nested too deeply, or contains itself",
            "other": "is no plain data: stream what JSON gives back as it was, such as a text, or "
            "the model_dump(mode='json') of a model",
        }[found]
        raise PayloadError(f"what step {step!r} streams", problem)
    try:
        return _json_of(value)
    except ValueError as error:  # an integer of thousands of digits
        raise PayloadError(f"what step {step!r} streams", f"is no plain data: {error}") from None


def without_secrets(text: str, replaced: Callable[[str], str]) -> str:
    """Return the JSON of a value without what ``replaced`` replaces in its texts and numbers.

    In the JSON itself a secret with a quotation mark would not be found, and to replace a number
    there would break it.
    """
    return _json_of(_without_secrets(json.loads(text), replaced))


def _without_secrets(value: Any, replaced: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replaced(value)
    if isinstance(value, list):
        return [_without_secrets(each, replaced) for each in value]
    if isinstance(value, dict):
        return {replaced(key): _without_secrets(each, replaced) for key, each in value.items()}
    if value is None or isinstance(value, bool):
        return value
    public = replaced(str(value))
    return value if public == str(value) else public


def _json_of(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return json.dumps(value)
    return text


def joined(texts: list[str]) -> bytes:
    """Return the JSON of several values, each as `encode_streamed` has returned it."""
    return f"[{','.join(texts)}]".encode()


for _public in (StreamedValue, ValuesMissed):
    _public.__module__ = "asyncflow"  # where users know them from
