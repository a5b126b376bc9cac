"""Values as bytes, and back: only what comes back equal is kept.

JSON by msgspec, which makes of it what a type hint asks for: tuples, sets, dates, dataclasses. A
value that is not quite what its hint says, such as 0 for a float, but comes back equal without the
hint, is kept as ``json-plain``, and a tuple for some sequence as ``json-tuple``: its step has
succeeded, and is not failed for that.
cloudpickle, which keeps nearly everything and can run any code when it is read, only on request.
"""

from __future__ import annotations

import types
import typing
from functools import lru_cache
from typing import Any

from asyncflow._core.errors import PayloadError, in_full
from asyncflow._core.results import Payload
from asyncflow._same import difference

try:
    import msgspec
    import msgspec.inspect
except ImportError as _error:
    raise ImportError(
        "a journal needs msgspec, which comes with an extra: pip install 'asyncflow-tiers[journal]'"
    ) from _error

__all__ = ["CODECS", "Codec"]

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
            problem = f"can't be read from the journal: {in_full(error)}"
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
            problem = f"msgspec does not know how to write it ({in_full(error)})"
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
            problem = f"cloudpickle can't bring it back: {in_full(error)}{_instead(subject)}"
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
        said = f"it is not what the annotation says: {in_full(error)}"
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
