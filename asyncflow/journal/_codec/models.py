"""Writes and reads pydantic models by their own rules, without importing pydantic.

Rules:

1. A class is a model if it has the serializer and the validator that pydantic 2 gives its models.
2. A model is written under the names of its fields, without what is computed, and read in the same
   way: aliases are for other data.
3. No message about a model has a value: it may be secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from asyncflow._core.value_size import field_names

_encoder = msgspec.json.Encoder()


class WithGiven(msgspec.Struct):
    """The JSON of a value, and the given fields of its models."""

    value: msgspec.Raw
    given: list[list[str]]


with_given = msgspec.json.Decoder(WithGiven)


class ModelError(ValueError):
    """A model does not accept some data; the message says which field, and why."""


def is_model(cls: object) -> bool:
    """Whether a class is a model of pydantic, and not a dataclass of it."""
    return isinstance(cls, type) and hasattr(cls, "__pydantic_root_model__")


def to_plain(value: Any) -> msgspec.Raw:
    """Return the JSON of a model, for msgspec."""
    cls = type(value)
    if not is_model(cls):
        raise TypeError(f"Encoding objects of type {cls.__name__} is unsupported")
    # What does not have its declared type is found by the comparison with what comes back.
    data = cls.__pydantic_serializer__.to_json(
        value, by_alias=False, round_trip=True, warnings=False
    )
    return msgspec.Raw(data)


@lru_cache(256)
def schema_of_model(cls: Any) -> dict[str, Any]:
    """Return the JSON schema of a model, by the names of its fields, or raise an error."""
    schema: dict[str, Any] = cls.model_json_schema(by_alias=False)
    return schema


def model_from_json(cls: type, data: Any, **names: bool) -> Any:
    """Return the model of decoded JSON, validated as JSON, where dates and the like are text.

    ``cls`` may be a dataclass of pydantic. ``names`` are ``by_alias`` and ``by_name``; without
    them, the model is validated as it is configured.

    Raises:
        ModelError: It is not valid.
        NotImplementedError: The class is no model.
    """
    if not hasattr(cls, "__pydantic_validator__"):
        raise NotImplementedError(f"{cls.__name__} is not supported")
    try:
        return cls.__pydantic_validator__.validate_json(_encoder.encode(data), **names)
    except ValueError as error:
        details: Any = error
        if not hasattr(details, "errors"):
            raise
        found = details.errors(include_url=False, include_context=False, include_input=False)
    raise ModelError(f"not a valid {cls.__name__}: {'; '.join(map(_in_words, found))}")


def _in_words(error: dict[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])


def given_fields(value: Any) -> list[list[str]]:
    """Return which fields of each model in a value were given; empty if all were.

    A model whose fields come back with the values of their defaults would take them for given:
    ``model_dump(exclude_unset=True)`` would have them all.
    """
    models = [*_models(value)]
    given = [sorted(model.__pydantic_fields_set__) for model in models]
    is_all = all(
        len(names) == len(type(model).__pydantic_fields__) + len(model.__pydantic_extra__ or ())
        for names, model in zip(given, models, strict=True)
    )
    return [] if is_all else given


def set_given_fields(value: Any, given: list[list[str]]) -> None:
    """Let the models in a value have the given fields that `given_fields` returned."""
    for model, names in zip(_models(value), given, strict=True):
        object.__setattr__(model, "__pydantic_fields_set__", set(names))


def _models(value: Any) -> Iterator[Any]:
    """Yield all models in a value, in the order of fields and elements, but none of sets."""
    stack = [value]
    while stack:
        each = stack.pop()
        if is_model(type(each)):
            yield each
            stack += (each.__pydantic_extra__ or {}).values()
        if isinstance(each, dict):
            stack += each.values()
        elif isinstance(each, list | tuple):
            stack += each
        elif names := field_names(type(each)):
            stack += [getattr(each, name, None) for name in names]
