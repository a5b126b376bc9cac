"""Values as bytes, and back: only what comes back equal is kept.

JSON by msgspec, which makes of it what a type hint asks for: tuples, sets, dates, dataclasses. A
value that is not quite what its hint says, such as 0 for a float, but comes back equal without the
hint, is kept as ``json-plain``, and a tuple for some sequence as ``json-tuple``: its step has
succeeded, and is not failed for that.
cloudpickle, which keeps nearly everything and can run any code when it is read, only on request.

Whether a value came back as it was: exact types, exact values, the order of dictionaries.

``==`` does not do: it takes ``True`` for 1 and ``-0.0`` for ``0.0``, it doesn't take NaN for NaN,
and classes define it as they like.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import marshal
import math
import types
import typing
import uuid
from functools import lru_cache
from typing import Any

from asyncflow._core.errors import PayloadError, describe_fully, escape_controls, safe_text
from asyncflow._core.results import Payload

__all__ = [
    "CODECS",
    "Codec",
    "difference",
]

_BY_VALUE = (str, int, bytes, bytearray)
_BY_REPR = (
    *(float, bool, type(None), decimal.Decimal, uuid.UUID, datetime.timedelta),
    *(datetime.datetime, datetime.date, datetime.time),
)
"""Their ``repr`` tells all about them: of a date, its time zone and ``fold`` too."""


def difference(one: Any, other: Any, *, simple: bool = False) -> str:
    """Return what of a value came back different and where, in words; nothing if it is the same.

    Args:
        one: The value.
        other: What came back.
        simple: Whether ``other`` is made of nothing but what JSON has, and tuples.
    """
    if simple:
        try:
            # Many times faster, and as strict: of the bytes that it also makes of other objects,
            # none can be in what is simple. Version 2 does not ask what is interned or shared.
            if marshal.dumps(one, 2) == marshal.dumps(other, 2):
                return ""
        except ValueError:  # an instance of another class
            pass
    try:
        return _difference(one, other, "")
    except RecursionError:
        return "it is nested too deeply to be compared"
    except Exception as error:  # the user's objects may raise anything
        return f"it can't be compared with what comes back: {type(error).__name__}"


def _difference(one: Any, other: Any, path: str) -> str:
    kind = type(one)
    if kind is not type(other):
        if kind is float and not math.isfinite(one):
            return _say(f"JSON has no {one!r}", path)
        return _say(f"{_name(kind)} would come back as {_name(type(other))}", path)
    if kind in _BY_VALUE:
        return "" if one == other else _changed(one, other, path)
    if kind in _BY_REPR:
        return "" if repr(one) == repr(other) else _changed(one, other, path)
    if isinstance(one, enum.Enum):
        return "" if one is other else _changed(one, other, path)
    if kind is dict:
        return _in_dict(one, other, path)
    if isinstance(one, list | tuple):
        return _in_sequence(one, other, path)
    if kind in (set, frozenset):
        return _in_set(one, other, path)
    names = _fields(one)
    if names is None:
        return _say(f"there is no telling whether a {_name(kind)} comes back the same", path)
    for name in names:
        found = _difference(getattr(one, name), getattr(other, name), f"{path}.{name}")
        if found:
            return found
    return ""


def _in_sequence(one: Any, other: Any, path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} elements would come back as {len(other)}", path)
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if found := _difference(mine, theirs, f"{path}[{index}]"):
            return found
    return ""


def _in_dict(one: dict[Any, Any], other: dict[Any, Any], path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} keys would come back as {len(other)}", path)
    for (key, mine), (back, theirs) in zip(one.items(), other.items(), strict=True):
        if found := _difference(key, back, f"a key of {path}" if path else "a key"):
            return found
        if found := _difference(mine, theirs, f"{path}[{_short(key)}]"):
            return found
    return ""


def _in_set(one: Any, other: Any, path: str) -> str:
    if len(one) != len(other):
        return _say(f"{len(one)} elements would come back as {len(other)}", path)
    partners = {each: each for each in other}
    for each in one:
        if each not in partners:
            return _say(f"{_short(each)} would not come back", path)
        if found := _difference(
            each, partners[each], f"an element of {path}" if path else "an element"
        ):
            return found
    return ""


def _fields(value: Any) -> tuple[str, ...] | None:
    """Return the fields of an instance of a dataclass, of attrs or of msgspec's Struct."""
    cls: Any = type(value)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__struct_fields__"):
        return tuple(cls.__struct_fields__)
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    return None


def _changed(one: Any, other: Any, path: str) -> str:
    return _say(f"{_short(one)} would come back as {_short(other)}", path)


def _say(what: str, path: str) -> str:
    return f"{what}, at {_middle_out(path)}" if path else what


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _short(value: Any) -> str:
    return _middle_out(escape_controls(safe_text(repr, value)))


def _middle_out(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:50]}…{text[-25:]}"


try:
    import msgspec
    import msgspec.inspect
except ImportError as _error:
    raise ImportError(
        "a journal needs msgspec, which comes with an extra: pip install 'asyncflow-tiers[journal]'"
    ) from _error


CODECS = ("json", "cloudpickle")

_PLAIN, _TUPLE = "json-plain", "json-tuple"
_PICKLE = 'say codec="cloudpickle" where the journal is made'
_DECODERS = 256
"""How many are remembered. A hint may be a type that was made for one pipeline."""

_encoder = msgspec.json.Encoder()
_untyped = msgspec.json.Decoder()


class Codec:
    """How the values of one journal are kept.

    Args:
        name: ``"json"``, or ``"cloudpickle"`` to pickle what JSON doesn't bring back equal, and to
            read what was pickled.
        max_bytes: How many bytes one value may take.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._pickles = name == "cloudpickle"
        if self._pickles:
            _cloudpickle()  # that it is missing shall not be told after an action has run
        self._max_bytes = max_bytes
        self._decoder = lru_cache(_DECODERS)(_decoder_of)

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Return a value in bytes.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        try:
            return self._as_json(subject, value, hint)
        except PayloadError:
            if not self._pickles:
                raise
        return self._as_pickle(subject, value)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Return the value again.

        Raises:
            PayloadError: The hint is another one by now, or this codec must not or can't read it.
        """
        codec, data = payload
        try:
            if codec == "json":
                return self._decoder_for(hint)[0].decode(data)
            if codec == _PLAIN:
                return _untyped.decode(data)
            if codec == _TUPLE:
                return self._decoder_for(_tuple_for(hint))[0].decode(data)
            if codec == "cloudpickle" and self._pickles:
                return _cloudpickle().loads(data)
        except Exception as error:  # of a pickle, anything
            problem = f"can't be read from the journal: {describe_fully(error)}"
            raise PayloadError(subject, problem) from error
        raise PayloadError(subject, f"can't be read from the journal: {_refusal(codec)}")

    def _as_json(self, subject: str, value: Any, hint: Any) -> Payload:
        give = "give" if _is_input(subject) else "return"
        try:
            data = _encoder.encode(value)
        except RecursionError:
            problem = "it is nested too deeply, or contains itself"
            raise _refused(subject, problem, f"{give} plain data") from None
        except Exception as error:  # the user's objects may raise anything
            way_out = f"{give} plain data, such as model_dump() of a pydantic model"
            problem = f"msgspec does not know how to write it ({describe_fully(error)})"
            raise _refused(subject, problem, way_out, _instead(subject)) from None
        self._check_size(subject, data)
        decoder, simple = self._decoder_for(hint)
        problem = _problem(value, data, decoder, simple=simple)
        if not problem:
            return Payload("json", data)
        if decoder is not _untyped and not _problem(value, data, _untyped, simple=True):
            return Payload(_PLAIN, data)
        if type(value) is tuple and hint is not Any:
            decoder, simple = self._decoder_for(_tuple_for(hint))
            if not _problem(value, data, decoder, simple=simple):
                return Payload(_TUPLE, data)
        raise _refused(subject, problem, _way_out(subject, hint))

    def _as_pickle(self, subject: str, value: Any) -> Payload:
        cloudpickle = _cloudpickle()
        try:
            data: bytes = cloudpickle.dumps(value)
            self._check_size(subject, data)
            cloudpickle.loads(data)
        except PayloadError:
            raise
        except Exception as error:  # anything at all may go wrong in there
            problem = f"cloudpickle can't bring it back: {describe_fully(error)}{_instead(subject)}"
            raise PayloadError(subject, f"can't be kept in the journal: {problem}") from None
        return Payload("cloudpickle", data)

    def _check_size(self, subject: str, data: bytes) -> None:
        """Check it before anything else is done: what is far too large would take seconds."""
        if len(data) > self._max_bytes:
            where = "give where it is" if _is_input(subject) else "return where"
            raise PayloadError(
                subject,
                f"takes {len(data):,} bytes in the journal, which keeps up to {self._max_bytes:,}: "
                f"keep it elsewhere and {where}, or raise max_payload_bytes",
            )

    def _decoder_for(self, hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
        """Return what decodes values of a hint, and whether all it makes is simple."""
        try:
            return self._decoder(hint)
        except TypeError:  # a hint that can't be hashed
            return _decoder_of(hint)


def _problem(value: Any, data: bytes, decoder: msgspec.json.Decoder[Any], *, simple: bool) -> str:
    """Return why a value does not come back from its JSON as it was; nothing if it does."""
    try:
        back = decoder.decode(data)
    except Exception as error:  # the user's classes may raise anything
        said = f"it is not what the annotation says: {describe_fully(error)}"
        return f"{said} (JSON has no nan and no infinity)" if "got `null`" in said else said
    return difference(value, back, simple=simple)


def _tuple_for(hint: Any) -> Any:
    """Return the type of a tuple whose elements are those of a sequence, as far as that is told."""
    # Type checkers know it as what stands in annotations, and not as what makes types.
    kind: Any = tuple
    of = typing.get_args(hint)
    return kind[of[0], ...] if len(of) == 1 else kind


def _refused(subject: str, problem: str, way_out: str, instead: str = "") -> PayloadError:
    return PayloadError(
        subject, f"can't be kept in the journal: {problem}; {way_out}, or {_PICKLE}{instead}"
    )


def _instead(subject: str) -> str:
    """Return what helps if an input is no data at all, which is often so."""
    if not _is_input(subject):
        return ""
    return (
        "; a client or a connection can't be an input of a run with a journal: let the action get "
        "it from a module, a context variable, or the object that it is a method of"
    )


def _way_out(subject: str, hint: Any) -> str:
    """Return what helps if a value does not come back equal."""
    if _is_input(subject):
        annotate, give = "annotate the parameter that takes it", "give"
    else:
        annotate, give = "annotate what the action returns", "return"
    return annotate if hint is Any else f"{give} what the annotation says, or plain data"


def _is_input(subject: str) -> bool:
    return subject.startswith("input")


def _decoder_of(hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
    """Return what decodes a hint; of one that msgspec knows nothing of, what JSON has by itself."""
    try:
        if isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType):
            return _untyped, True
        return msgspec.json.Decoder(hint), _is_simple(hint)
    except Exception:  # it is no type at all, or one of those that are for type checkers only
        return _untyped, True


_SIMPLE = (Any, None, type(None), bool, int, float, str, list, dict, tuple)


def _is_simple(hint: Any) -> bool:
    """Whether a hint asks for nothing but what JSON has, and tuples."""
    origin = typing.get_origin(hint)
    if origin is None:
        return any(hint is each for each in _SIMPLE)
    arguments = [each for each in typing.get_args(hint) if each is not ...]
    known = origin in (list, dict, tuple, typing.Union, types.UnionType)
    return known and all(map(_is_simple, arguments))


def _cloudpickle() -> Any:
    try:
        # Only those who ask for it need it.
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            'codec="cloudpickle" needs cloudpickle, which comes with an extra: '
            "pip install 'asyncflow-tiers[cloudpickle]'"
        ) from error
    return cloudpickle


def _refusal(codec: str) -> str:
    if codec == "cloudpickle":
        return (
            "it was pickled, and reading a pickle can run any code; if you trust whoever can write "
            'to the journal, say codec="cloudpickle" where it is made'
        )
    if codec == "redacted":
        return "it was secret, so it was never kept"
    return f"its codec {codec!r} is not one of {', '.join(map(repr, CODECS))}"
