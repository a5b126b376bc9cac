"""Encodes outputs and inputs as bytes, if they come back equal.

As JSON, msgspec decodes what a type hint asks for: tuples, sets, dates, dataclasses; and paths, and
models of pydantic, through these. A value that is not quite what its hint says is stored as
``json-plain`` if JSON's own types are all it has, and a tuple for some sequence as ``json-tuple``:
its step has succeeded, and must not fail for that. With the suffix ``+given``, the JSON also says
which fields of its models were given. cloudpickle takes nearly everything and can run any code when
it is read, so it is used only on request.

Values are encoded in the event loop. In another thread, a value could change meanwhile: it belongs
to the user, whose next steps have it. So ``max_bytes`` bounds the time too: a value is counted
before anything is written, and a pickle is written up to that limit only.

Equal means the same types, values and order of dictionaries. ``==`` is too lax: it takes ``True``
for 1 and ``-0.0`` for ``0.0``, does not take NaN for NaN, and is whatever a class defines. One
exception: to a type checker, an integer is a float (PEP 484), so the 0 of a field ``x: float = 0``
may come back as ``0.0``.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import marshal
import math
import types
import typing
import uuid
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import PurePath
from typing import Any

import msgspec
import msgspec.inspect

from asyncflow._core.arguments import instead_of_iterator, is_iterator
from asyncflow._core.errors import MissingExtraError, PayloadError
from asyncflow._core.history.remote_output import RemoteOutput, is_remote
from asyncflow._core.history.results import REDACTED, REDACTED_OUTPUT, Payload, RestoredOutput
from asyncflow._core.text import describe_fully, escape_controls
from asyncflow._core.value_size import Extent, extent, field_names, safe_repr
from asyncflow.journal._codec.models import (
    WithGiven,
    given_fields,
    is_model,
    model_from_json,
    set_given_fields,
    to_plain,
    with_given,
)

CODECS = ("json", "cloudpickle")

_PLAIN, _TUPLE = "json-plain", "json-tuple"
_GIVEN = "+given"
_PICKLED = 'it is pickled, and read only with codec="cloudpickle"'
_USE_PICKLE = 'pass codec="cloudpickle" to the journal'
_DECODERS = 256
"""How many decoders to cache. A hint may be a type that was made for one pipeline."""

_encoder = msgspec.json.Encoder()
_untyped = msgspec.json.Decoder()


def _to_plain(value: Any) -> Any:
    """Return what stands for a path or a model in JSON; see `msgspec.json.Encoder`."""
    return str(value) if isinstance(value, PurePath) else to_plain(value)


_hooked_encoder = msgspec.json.Encoder(enc_hook=_to_plain)


class Codec:
    """How one journal encodes values.

    ``name`` is ``"json"``, or ``"cloudpickle"`` to pickle what JSON doesn't bring back equal, and
    to read pickles. ``max_bytes`` is the maximum size of an encoded value.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._pickles = name == "cloudpickle"
        if self._pickles:
            _cloudpickle()  # if it is missing, fail before an action has run
        self._max_bytes = max_bytes
        self._cached_decoder = lru_cache(_DECODERS)(_new_decoder)

    def __reduce__(self) -> tuple[type[Codec], tuple[str, int]]:
        return Codec, (self._name, self._max_bytes)  # for the process of a step

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Encode a value.

        Raise `PayloadError` if it would not come back equal, or is too large.
        """
        try:
            return self._as_json(subject, value, hint)
        except PayloadError:
            if not self._pickles:
                raise
        return self._as_pickle(subject, value)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Decode a value.

        Raise `PayloadError` if the hint has changed since, or this codec can't or must not decode
        it.
        """
        codec, data = payload
        try:
            if codec == "cloudpickle" and self._pickles:
                return _cloudpickle().loads(data)
            if codec.removesuffix(_GIVEN) in ("json", _PLAIN, _TUPLE):
                return self.read(payload, hint)
        except Exception as error:  # a pickle may raise anything
            problem = f"can't be read from the journal: {describe_fully(error)}"
            raise PayloadError(subject, problem) from error
        raise PayloadError(subject, f"can't be read from the journal: {_why_unreadable(codec)}")

    def shown(self, subject: str, payload: Payload) -> Any:
        """Return a value for those who don't know its type, or what stands for it.

        Raise `PayloadError` if it can't be decoded, although it needs no code of the user.
        """
        if payload == REDACTED:
            return REDACTED_OUTPUT
        if is_remote(payload):
            return RemoteOutput.from_payload(payload)
        try:
            return self.decode(subject, payload, Any)
        except PayloadError:
            if payload.codec == "cloudpickle":
                return RestoredOutput(f"<{_PICKLED}>")
            raise

    def read(self, payload: Payload, hint: Any) -> Any:
        """Decode a value that is no pickle; raise whatever its type does."""
        codec, data = payload
        if codec.endswith(_GIVEN):
            both = with_given.decode(data)
            value = self.read(Payload(codec.removesuffix(_GIVEN), bytes(both.value)), hint)
            if hint is not Any:
                set_given_fields(value, both.given)
            return value
        if codec == _PLAIN:
            return _untyped.decode(data)
        return self._decoder(_tuple_of(hint) if codec == _TUPLE else hint)[0].decode(data)

    def _as_json(self, subject: str, value: Any, hint: Any) -> Payload:
        found = self._extent(subject, value)
        data, is_hooked = self._written(subject, value)
        self._check_size(subject, data)
        decoder, simple = self._decoder(hint)
        if found == "plain":
            is_typed = decoder is _untyped or _is_identical(value, data, decoder)
            return Payload("json" if is_typed else _PLAIN, data)
        problem = _problem(value, data, decoder, simple=simple)
        if not problem:
            codec = "json"
        elif type(value) is tuple and hint is not Any and self._is_equal_tuple(value, data, hint):
            codec = _TUPLE
        else:
            way_out = _way_out(subject, value, hint, is_hooked and decoder is _untyped)
            raise _refused(subject, problem, way_out)
        return self._payload(subject, codec, value, data, is_hooked)

    def _payload(
        self, subject: str, codec: str, value: Any, data: bytes, is_hooked: bool
    ) -> Payload:
        given = given_fields(value) if is_hooked else []
        if given:
            codec, data = codec + _GIVEN, _encoder.encode(WithGiven(msgspec.Raw(data), given))
            self._check_size(subject, data)
        return Payload(codec, data)

    def encode_parts(self, subject: str, value: Any) -> Payload:
        """Encode plain data, or a value that is known to be of some type, as JSON.

        Raise `ValueError` if a part of it is not what its own class says, and `PayloadError` if it
        is too large.
        """
        self._extent(subject, value)
        try:
            data, is_hooked = _json_of(value)
            for part in _parts(value):
                decoder, _ = self._decoder(type(part))
                if problem := _problem(part, _json_of(part)[0], decoder, simple=False):
                    raise ValueError(problem)
        except ValueError:
            raise
        except Exception as error:  # the user's objects may raise anything
            raise ValueError(f"it can't be written as JSON ({describe_fully(error)})") from None
        self._check_size(subject, data)
        return self._payload(subject, "json", value, data, is_hooked)

    def _extent(self, subject: str, value: Any) -> Extent:
        """Return whether a value is plain.

        Raise `PayloadError` if it is too large, or too deep.
        """
        found = extent(value, self._max_bytes)
        if found == "large":
            raise self._too_large(subject)
        if found == "deep":
            problem = "it is nested too deeply, or contains itself"
            raise _refused(subject, problem, f"{_give(subject)} plain data")
        return found

    def _written(self, subject: str, value: Any) -> tuple[bytes, bool]:
        """Return the JSON of a value, and whether models or paths are in it."""
        try:
            return _json_of(value)
        except Exception as error:  # the user's objects may raise anything
            if is_iterator(value):
                raise _no_list(subject, value) from None
            way_out = f"{_give(subject)} plain data, a dataclass or a pydantic model"
            problem = f"it can't be written as JSON ({describe_fully(error)})"
            raise _refused(subject, problem, way_out, _no_client_hint(subject)) from None

    def _is_equal_tuple(self, value: Any, data: bytes, hint: Any) -> bool:
        decoder, simple = self._decoder(_tuple_of(hint))
        return not _problem(value, data, decoder, simple=simple)

    def _as_pickle(self, subject: str, value: Any) -> Payload:
        cloudpickle = _cloudpickle()
        try:
            file = _BoundedFile(self._max_bytes)
            cloudpickle.Pickler(file).dump(value)
            data = b"".join(file.parts)
            cloudpickle.loads(data)
        except _IsFullError:
            raise self._too_large(subject) from None
        except Exception as error:  # the user's objects may raise anything
            if is_iterator(value):
                raise _no_list(subject, value) from None
            problem = f"cloudpickle can't bring it back: {describe_fully(error)}"
            raise PayloadError(
                subject, f"can't be stored in the journal: {problem}{_no_client_hint(subject)}"
            ) from None
        return Payload("cloudpickle", data)

    def _check_size(self, subject: str, data: bytes) -> None:
        """Check the size before anything else: decoding what is far too large takes seconds."""
        if len(data) > self._max_bytes:
            raise self._too_large(subject, f"{len(data):,} bytes")

    def _too_large(self, subject: str, size: str = "more bytes than can be stored") -> PayloadError:
        limit = (
            f"takes {size} in the journal, whose limit is {self._max_bytes:,}: store it elsewhere"
        )
        if _is_checkpoint(subject):
            return PayloadError(subject, f"{limit} and save where the action has come to")
        verb = _give(subject)
        where = "return where" if verb == "return" else f"{verb} where it is"
        return PayloadError(subject, f"{limit} and {where}, or raise max_payload_bytes")

    def _decoder(self, hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
        """Return the decoder for a hint, and whether it makes only JSON's types and tuples."""
        try:
            return self._cached_decoder(hint)
        except TypeError:  # the hint can't be hashed
            return _new_decoder(hint)


def plain_of(payload: Payload) -> Any:
    """Return the plain data of a payload that is no pickle."""
    if payload.codec.endswith(_GIVEN):
        return _untyped.decode(with_given.decode(payload.data).value)
    return _untyped.decode(payload.data)


def _json_of(value: Any) -> tuple[bytes, bool]:
    """Return the JSON of a value, and whether models or paths are in it."""
    try:
        return _encoder.encode(value), False
    except TypeError:
        return _hooked_encoder.encode(value), True


def _parts(value: Any) -> Iterator[Any]:
    """Yield what is in collections, or is the value, and is of none of JSON's own types."""
    stack = [value]
    while stack:
        each = stack.pop()
        kind = type(each)
        if kind is dict:
            stack += chain(each, each.values())
        elif kind in (list, tuple, set, frozenset):
            stack += each
        elif kind not in (type(None), bool, int, float, str):
            yield each


class _IsFullError(Exception):
    """A pickle is larger than its file may be."""


class _BoundedFile:
    """Takes the parts of a pickle up to a limit."""

    def __init__(self, max_bytes: int) -> None:
        self.parts: list[bytes] = []
        self._left = max_bytes

    def write(self, part: Any) -> None:
        self._left -= memoryview(part).nbytes
        if self._left < 0:
            raise _IsFullError
        self.parts.append(bytes(part))


def _is_identical(value: Any, data: bytes, decoder: msgspec.json.Decoder[Any]) -> bool:
    """Whether a value of JSON's own types comes back from its JSON as it was."""
    try:
        return _bytes_of(value) == _bytes_of(decoder.decode(data))
    except Exception:  # the user's classes may raise anything, and marshal refuses their objects
        return False


def _bytes_of(value: Any) -> bytes:
    """Return bytes that only the same value of JSON's types and tuples has: faster than a walk.

    Raise `ValueError` if it is, or contains, an object of another class. Buffers raise nothing.
    """
    return marshal.dumps(value, 2)  # this version does not depend on what is interned or shared


def _problem(value: Any, data: bytes, decoder: msgspec.json.Decoder[Any], *, simple: bool) -> str:
    """Return why a value does not come back equal from its JSON; empty if it does."""
    try:
        back = decoder.decode(data)
    except Exception as error:  # the user's classes may raise anything
        problem = f"it is not what the annotation says: {describe_fully(error)}"
        return (
            f"{problem} (JSON has no nan and no infinity)" if "got `null`" in problem else problem
        )
    return roundtrip_difference(value, back, simple=simple)


def _refused(subject: str, problem: str, way_out: str, hint: str = "") -> PayloadError:
    return PayloadError(
        subject, f"can't be stored in the journal: {problem}; {way_out}, or {_USE_PICKLE}{hint}"
    )


def _no_list(subject: str, value: object) -> PayloadError:
    problem = f"it is an iterator ({type(value).__name__}), which yields each item only once"
    way_out = f"{_give(subject)} {instead_of_iterator(value)}"
    return PayloadError(subject, f"can't be stored in the journal: {problem}; {way_out}")


def _no_client_hint(subject: str) -> str:
    """Return what to do if an input is no data at all, which is a common mistake."""
    if not _is_input(subject):
        return ""
    return (
        "; a client or a connection can't be an input of a run with a journal: let the action get "
        "it from a module, a context variable, or the object that it is a method of"
    )


def _way_out(subject: str, value: Any, hint: Any, needs_type: bool) -> str:
    """Return what to do if a value does not come back equal."""
    if (verb := _give(subject)) in ("save", "send"):
        return f"{verb} plain data"
    if hint is Any:
        if _is_input(subject):
            return "annotate the parameter that takes it"
        # A call is of a function in the action, whose own annotation says nothing of it.
        returns = "its function" if subject.startswith("what call") else "the action"
        return f"annotate what {returns} returns"
    if needs_type and isinstance(value, PurePath):
        return "annotate a path as Path"
    if needs_type:
        return f"{_give(subject)} one model that contains it, such as a RootModel of the annotation"
    return f"{_give(subject)} what the annotation says, or plain data"


def _give(subject: str) -> str:
    """Return what the user does with such a value."""
    verbs = {"input": "give", "the checkpoint": "save", "signal": "send"}
    return next((verb for start, verb in verbs.items() if subject.startswith(start)), "return")


def _is_input(subject: str) -> bool:
    return subject.startswith("input")


def _is_checkpoint(subject: str) -> bool:
    return subject.startswith("the checkpoint")


def _why_unreadable(codec: str) -> str:
    if codec == "cloudpickle":
        return (
            "it was pickled, and reading a pickle can run any code; if you trust everyone who can "
            f"write to the journal, {_USE_PICKLE}"
        )
    if codec == "redacted":
        return "it was secret, so it was never stored"
    return f"its codec {codec!r} is not one of {', '.join(map(repr, CODECS))}"


def _cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-untyped]  # an extra
    except ImportError as error:
        raise MissingExtraError(
            'codec="cloudpickle" needs cloudpickle, which comes with an extra: '
            "pip install 'asyncflow-tiers[cloudpickle]'"
        ) from error
    return cloudpickle


# --- type hints ----------------------------------------------------------------------------------

_SIMPLE = (Any, None, type(None), bool, int, float, str, list, dict, tuple)


def _new_decoder(hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
    """Return the decoder for a hint, or the untyped one if msgspec does not know the hint."""
    try:
        is_custom = isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType)
        if hint is Any or (is_custom and not (is_model(hint) or _is_path(hint))):
            return _untyped, True
        return msgspec.json.Decoder(hint, dec_hook=_from_plain), _is_simple(hint)
    except Exception:  # it is not a type, or one for type checkers only
        return _untyped, True


def _is_path(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, PurePath)


def _from_plain(cls: type, data: Any) -> Any:
    """Return the path or the model of decoded JSON; see `msgspec.json.Decoder`."""
    if _is_path(cls):
        return cls(data)
    if not is_model(cls) and isinstance(data, cls):
        return data
    return model_from_json(cls, data, by_alias=False, by_name=True)


def _is_simple(hint: Any) -> bool:
    """Whether a hint asks for nothing but JSON's types and tuples."""
    origin = typing.get_origin(hint)
    if origin is None:
        return any(hint is each for each in _SIMPLE)
    arguments = [each for each in typing.get_args(hint) if each is not ...]
    known = origin in (list, dict, tuple, typing.Union, types.UnionType)
    return known and all(map(_is_simple, arguments))


def _tuple_of(hint: Any) -> Any:
    """Return the type of a tuple with the elements of a sequence, if the hint names them."""
    kind: Any = tuple  # type checkers allow its subscript in annotations only
    elements = typing.get_args(hint)
    return kind[elements[0], ...] if len(elements) == 1 else kind


# --- the comparison ------------------------------------------------------------------------------

_BY_VALUE = (str, int, bytes, bytearray)
_BY_REPR = (
    *(float, bool, type(None), decimal.Decimal, uuid.UUID, datetime.timedelta),
    *(datetime.datetime, datetime.date, datetime.time),
)
"""Types whose ``repr`` shows everything: of a date, its time zone and ``fold`` too."""
_BY_BOTH = ("ipaddress", "pathlib", "pydantic", "pydantic_core")
"""Modules whose values are the same if they are equal and have the same ``repr``."""


def roundtrip_difference(value: Any, back: Any, *, simple: bool = False) -> str:
    """Return what of a value came back different and where; empty if it is the same.

    ``simple`` says whether ``back`` consists of JSON's types and tuples only.
    """
    if simple:
        try:
            if _bytes_of(value) == _bytes_of(back):
                return ""
        except ValueError:  # an instance of another class
            pass
    try:
        return _difference(value, back, "")
    except RecursionError:
        return "it is nested too deeply to be compared"
    except Exception as error:  # the user's objects may raise anything
        return f"it can't be compared with what comes back: {type(error).__name__}"


def _difference(value: Any, back: Any, path: str) -> str:
    kind = type(value)
    if kind is not type(back):
        if kind is float and not math.isfinite(value):
            return _at(path, f"JSON has no {value!r}")
        if kind is int and type(back) is float:
            return "" if value == back else _changed(value, back, path)
        return _at(path, f"{_name(kind)} would come back as {_name(type(back))}")
    if kind in _BY_VALUE:
        return "" if value == back else _changed(value, back, path)
    if kind in _BY_REPR:
        same = repr(value) == repr(back) or _is_same_time(value, back)
        return "" if same else _changed(value, back, path)
    if isinstance(value, enum.Enum):
        return "" if value is back else _changed(value, back, path)
    if kind is dict:
        return _in_dict(value, back, path)
    if isinstance(value, list | tuple):
        return _in_sequence(value, back, path)
    if kind in (set, frozenset):
        return _in_set(value, back, path)
    names = field_names(kind)
    if names is not None:
        for name in names:
            if found := _difference(getattr(value, name), getattr(back, name), f"{path}.{name}"):
                return found
        return _in_model(value, back, path) if is_model(kind) else ""
    if kind.__module__.partition(".")[0] in _BY_BOTH:
        same = value == back and repr(value) == repr(back)
        return "" if same else _changed(value, back, path)
    return _at(path, f"there is no telling whether a {_name(kind)} comes back the same")


def _in_model(value: Any, back: Any, path: str) -> str:
    """Compare what a model has beside its fields: extra ones, and private attributes."""
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        one, other = getattr(value, name) or {}, getattr(back, name) or {}
        for each in {**one, **other}:
            where = f"{path}.{each}"
            if each not in one or each not in other:
                return _at(where, "it would not come back")
            if found := _difference(one[each], other[each], where):
                return found
    return ""


def _is_same_time(value: Any, back: Any) -> bool:
    """Whether two times differ only in the class of their fixed offset: pydantic has its own."""
    if getattr(value, "tzinfo", None) is None or getattr(back, "tzinfo", None) is None:
        return False
    zones = {type(value.tzinfo).__name__, type(back.tzinfo).__name__}
    if zones != {"timezone", "TzInfo"} or _has_given_name(value.tzinfo):
        return False
    naive = repr(value.replace(tzinfo=None)) == repr(back.replace(tzinfo=None))
    return naive and value.utcoffset() == back.utcoffset()


def _has_given_name(zone: datetime.tzinfo) -> bool:
    """Whether a fixed offset has a name that it does not get from its hours and minutes."""
    if type(zone) is not datetime.timezone:
        return False
    return zone.tzname(None) != datetime.timezone(zone.utcoffset(None)).tzname(None)


def _in_sequence(value: Any, back: Any, path: str) -> str:
    if len(value) != len(back):
        return _at(path, f"{len(value)} elements would come back as {len(back)}")
    for index, (each, its_back) in enumerate(zip(value, back, strict=True)):
        if found := _difference(each, its_back, f"{path}[{index}]"):
            return found
    return ""


def _in_dict(value: dict[Any, Any], back: dict[Any, Any], path: str) -> str:
    if len(value) != len(back):
        return _at(path, f"{len(value)} keys would come back as {len(back)}")
    for (key, each), (key_back, its_back) in zip(value.items(), back.items(), strict=True):
        if found := _difference(key, key_back, f"a key of {path}" if path else "a key"):
            return found
        if found := _difference(each, its_back, f"{path}[{_short(key)}]"):
            return found
    return ""


def _in_set(value: Any, back: Any, path: str) -> str:
    if len(value) != len(back):
        return _at(path, f"{len(value)} elements would come back as {len(back)}")
    backs = {each: each for each in back}
    element = f"an element of {path}" if path else "an element"
    for each in value:
        if each not in backs:
            return _at(path, f"{_short(each)} would not come back")
        if found := _difference(each, backs[each], element):
            return found
    return ""


def _changed(value: Any, back: Any, path: str) -> str:
    return _at(path, f"{_short(value)} would come back as {_short(back)}")


def _at(path: str, problem: str) -> str:
    return f"{problem}, at {_middle_out(path)}" if path else problem


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _short(value: Any) -> str:
    return _middle_out(escape_controls(safe_repr(value)))


def _middle_out(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:50]}…{text[-25:]}"
