"""Values as bytes, and back: only what comes back equal is kept.

JSON by msgspec, which makes of it what a type hint asks for: tuples, sets, dates, dataclasses.
cloudpickle, which keeps nearly everything and can run any code when it is read, only on request.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from asyncflow._errors import PayloadError
from asyncflow._payload import Payload
from asyncflow._same import difference
from asyncflow._text import in_one_line, text_of

try:
    import msgspec
    import msgspec.inspect
except ImportError as _error:
    raise ImportError(
        "a journal needs msgspec, which comes with an extra: pip install 'asyncflow-tiers[journal]'"
    ) from _error

__all__ = ["CODECS", "Codec"]

CODECS = ("json", "cloudpickle")

_ANNOTATE = 'annotate what the action returns, or say codec="cloudpickle" where the journal is made'
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
        self._max_bytes = max_bytes
        self._decoders: dict[Any, tuple[msgspec.json.Decoder[Any], bool]] = {}

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Return a value in bytes.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        data, problem = self._json(value, hint)
        codec = "json"
        if problem and self._pickles:
            codec = "cloudpickle"
            data, problem = _pickled(value)
        if problem:
            raise PayloadError(subject, f"can't be kept in the journal: {problem}")
        if len(data) > self._max_bytes:
            raise PayloadError(
                subject,
                f"takes {len(data):,} bytes in the journal, which keeps up to {self._max_bytes:,}: "
                "keep it elsewhere and return where, or raise max_payload_bytes",
            )
        return Payload(codec, data)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Return the value again.

        Raises:
            PayloadError: The hint is another one by now, or this codec must not or can't read it.
        """
        codec, data = payload
        try:
            if codec == "json":
                return self._decoder(hint)[0].decode(data)
            if codec == "cloudpickle" and self._pickles:
                return _cloudpickle().loads(data)
        except Exception as error:  # of a pickle, anything
            problem = f"can't be read from the journal: {_say(error)}"
            raise PayloadError(subject, problem) from error
        raise PayloadError(subject, f"can't be read from the journal: {_refusal(codec)}")

    def _json(self, value: Any, hint: Any) -> tuple[bytes, str]:
        """Return a value as JSON and why it can't be kept so, if it can't."""
        try:
            data = _encoder.encode(value)
            decoder, simple = self._decoder(hint)
            back = decoder.decode(data)
        except RecursionError:
            return b"", f"it is nested too deeply, or contains itself; {_ANNOTATE}"
        except msgspec.ValidationError as error:
            return b"", f"it is not what the annotation says: {_say(error)}; {_ANNOTATE}"
        except Exception as error:  # the user's objects may raise anything
            return b"", f"{_say(error)}; {_ANNOTATE}"
        changed = difference(value, back, simple=simple)
        return data, f"{changed}; {_ANNOTATE}" if changed else ""

    def _decoder(self, hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
        """Return what decodes values of a hint, and whether all it makes is simple."""
        try:
            return self._decoders[hint]
        except KeyError:
            made = self._decoders[hint] = _decoder_of(hint)
            return made
        except TypeError:  # a hint that can't be hashed
            return _decoder_of(hint)


def _decoder_of(hint: Any) -> tuple[msgspec.json.Decoder[Any], bool]:
    """Return what decodes a hint; of one that msgspec knows nothing of, what JSON has by itself."""
    try:
        if isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType):
            return _untyped, True
        return msgspec.json.Decoder(hint), _is_simple(hint)
    except Exception:  # it is no type at all, or one of those that are for type checkers only
        return _untyped, True


_SIMPLE = (Any, None, type(None), bool, int, float, str, list, dict)


def _is_simple(hint: Any) -> bool:
    """Whether a hint asks for nothing but what JSON has, and tuples."""
    origin = typing.get_origin(hint)
    if origin is None:
        return any(hint is each for each in _SIMPLE)
    arguments = [each for each in typing.get_args(hint) if each is not ...]
    known = origin in (list, dict, tuple, typing.Union, types.UnionType)
    return known and all(map(_is_simple, arguments))


def _pickled(value: Any) -> tuple[bytes, str]:
    """Return a value as a pickle and why it can't be kept so, if it can't."""
    cloudpickle = _cloudpickle()
    try:
        data: bytes = cloudpickle.dumps(value)
        cloudpickle.loads(data)
    except Exception as error:  # anything at all may go wrong in there
        return b"", f"cloudpickle can't bring it back: {_say(error)}"
    return data, ""


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


def _say(error: Exception) -> str:
    return in_one_line(f"{type(error).__name__}: {text_of(str, error)}")
