"""Frames and tracebacks: which lines are the user's, and what a step's error shows of them.

Rules:

1. A reader wants the lines of the step. Internal frames, which call them or are between them, are
   never shown.
2. That holds for causes, contexts and the errors of groups too, and for a traceback of which a
   journal has stored the text only.
3. No text of a traceback moves a cursor or turns the direction of writing.
4. A message may take most of the memory. It is cut before it becomes part of a text.
5. A display with few lines shows the innermost of the user's frames.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from functools import cache
from types import FrameType
from typing import Any

from asyncflow._core.errors import RestoredError
from asyncflow._core.record import record
from asyncflow._core.text import LONGEST_LINE, cut, describe_error, escape_controls, safe_text

_PACKAGE = __file__.rpartition("_core")[0]
# The line that begins a frame in the text of a traceback; in that of a group it is indented more.
_FRAME = r'[ |]*File "(?P<path>.*)", line \d+'
# A stored traceback may come from a machine that has the package in another folder.
_INTERNAL = r"[/\\]asyncflow[/\\](?!examples[/\\])(\w+[/\\])*_\w+([/\\]\w+)*\.py\Z"


@cache
def is_internal_frame(path: str) -> bool:
    """Whether the source file of a frame belongs to asyncflow, and not to its examples."""
    if path.startswith(_PACKAGE):
        return not path.startswith("examples", len(_PACKAGE))
    return re.search(_INTERNAL, path) is not None


def strip_internal_frames(error: BaseException) -> None:
    """Let the traceback of a step's error begin in the step.

    The internal frames before say nothing to its reader, take memory for as long as the error
    lives, and refer to the run, hence back to the error.
    """
    trace = error.__traceback__
    while trace is not None and is_internal_frame(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    BaseException.with_traceback(error, trace)  # its class may refuse to be assigned to


def strip_frames_until(error: BaseException, function: str) -> None:
    """Let the traceback of an error begin after the first frame of an internal function, if any."""
    trace = error.__traceback__
    while trace is not None:
        code, trace = trace.tb_frame.f_code, trace.tb_next
        if code.co_name == function and is_internal_frame(code.co_filename):
            BaseException.with_traceback(error, trace)
            return


def let_go(errors: Iterable[BaseException]) -> None:
    """Clear what the internal frames behind a run's errors hold, when its nodes have ended.

    The traceback of an error keeps the frames that it went through, and through ``f_back`` their
    callers, also those that were stripped from it. Internal ones lead to the run, hence back to the
    error: that would be a reference cycle. A frame can be cleared only when it has ended, so this
    is for the end of the run.
    """
    pending, seen, frames = list(errors), set[int](), set[FrameType]()
    while pending:
        error = pending.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            _clear_internal(trace.tb_frame, frames)
            trace = trace.tb_next
        pending += [each for each in (error.__cause__, error.__context__) if each is not None]
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions


def _clear_internal(frame: FrameType | None, seen: set[FrameType]) -> None:
    """Clear the internal frames that have called a frame, as far as they are of this run.

    It ends at one of those ``seen``, and adds its own: all errors share the frames of the loop.
    """
    is_called_by_run = False
    while frame is not None and frame not in seen:
        seen.add(frame)
        if is_internal_frame(frame.f_code.co_filename):
            is_called_by_run = True
            try:  # noqa: SIM105 - `suppress` costs more than all else here
                frame.clear()
            except RuntimeError:
                pass  # it still runs
        elif is_called_by_run and not frame.f_globals.get("__name__", "").startswith("asyncio."):
            # Beyond are those who started the run, with eager tasks. It may be a step of another
            # run, which is suspended: before 3.13, to clear its frame would end it.
            return
        frame = frame.f_back


def format_error(error: BaseException) -> str:
    """Return the traceback of an error, with its causes and the errors of a group."""
    if isinstance(error, RestoredError):
        lines = error.traceback.splitlines() or [describe_error(error)]
    else:
        lines = _format(error)
    # For a step in a process, a note holds the traceback as text.
    return "\n".join(map(escape_controls, _without_internal_frames(lines)))


def _format(error: BaseException) -> list[str]:
    try:
        trace = _captured(error)
        if type(error).__module__.partition(".")[0] == "asyncflow":
            trace.__context__ = None  # it only says how asyncflow came to raise the error
        _strip_internal_frames(trace)
        return "".join(trace.format()).splitlines()
    except Exception:  # it is the user's object: whatever it raises must not spread
        return [describe_error(error)]


def _strip_internal_frames(trace: traceback.TracebackException) -> None:
    for one in _all_of(trace):
        frames = [frame for frame in one.stack if not is_internal_frame(frame.filename)]
        one.stack = traceback.StackSummary.from_list(frames)


def full_traceback(error: BaseException) -> str:
    """Return the traceback of an error as Python formats it, with its long messages cut.

    Raise whatever the error raises when it is asked for something.
    """
    return "".join(_captured(error).format())


def has_long_message(error: BaseException) -> bool:
    """Whether an error, one that led to it or one of its group has a message that must be cut."""
    try:
        captured = traceback.TracebackException(type(error), error, None)
        return any(len(text) > LONGEST_LINE for one in _all_of(captured) for text in _texts(one))
    except Exception:  # as in `_format`
        return False


def _captured(error: BaseException) -> traceback.TracebackException:
    """Capture an error, with all of its messages and notes cut to what can be shown."""
    trace: Any = traceback.TracebackException.from_exception(error)
    for one in _all_of(trace):
        if any(len(text) > LONGEST_LINE for text in _texts(one)):
            one._str = cut(one._str, LONGEST_LINE)
            if isinstance(one.__notes__, list):
                one.__notes__ = [cut(safe_text(str, note), LONGEST_LINE) for note in one.__notes__]
    captured: traceback.TracebackException = trace
    return captured


def _all_of(trace: traceback.TracebackException) -> Iterator[Any]:
    """Yield a captured error, those that led to it, and those of groups."""
    stack = [trace]
    while stack:
        one = stack.pop()
        yield one
        stack += [each for each in (one.__cause__, one.__context__) if each is not None]
        stack += one.exceptions or ()


def _texts(one: Any) -> Iterator[str]:
    """Yield the message and the notes of a captured error, which the standard library keeps."""
    yield one._str
    if isinstance(one.__notes__, list):
        yield from (safe_text(str, note) for note in one.__notes__)


def _without_internal_frames(lines: list[str]) -> Iterator[str]:
    """Leave internal frames out of a text; a frame ends where its indentation ends."""
    left_out: int | None = None
    for line in lines:
        frame = re.match(_FRAME, line)
        indent = len(line) - len(line.lstrip(" |"))
        if frame is not None:
            left_out = indent if is_internal_frame(frame["path"]) else None
        elif left_out is not None and indent <= left_out:
            left_out = None
        if left_out is None:
            yield line


@record
class SourceLine:
    """A frame of a traceback."""

    path: str
    line: int
    function: str
    code: str
    """Its line of code, if that is known."""


def user_frames(error: BaseException) -> list[SourceLine]:
    """Return the user's frames of an error, the innermost last; else all frames that it has.

    Of a group, those of its first error; without the frames of causes. A frame is the user's if it
    belongs to neither the standard library, nor an installed package, nor asyncflow.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = format_error(error).splitlines()
    frames: list[SourceLine] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        found = re.fullmatch(r'  File "(.*)", line (\d+), in (.*)', line)
        if found is not None:
            code = following.strip() if following.startswith("    ") else ""
            frames.append(SourceLine(found[1], int(found[2]), found[3], code))
        elif line.startswith("Traceback ("):
            frames = []  # those were of a cause
    return [each for each in frames if not each.path.startswith(_installed())] or frames


_PLACE = re.compile(r'  File "(.*)", line (\d+), in ')
_LED_TO = ("The above exception was the direct", "During handling of the above exception")


def raised_at(error: BaseException) -> tuple[str, int] | None:
    """Return the path and the line of the user's innermost frame of an error, if it has one.

    It is as `user_frames` says, and much faster, as many errors are put into groups by it. An error
    of a worker process has the frames that a note has. That of a group is not known.
    """
    if isinstance(error, BaseExceptionGroup):
        return None
    if isinstance(error, RestoredError):
        places = _places(error.traceback.splitlines())
    else:
        places, trace = list[tuple[str, int]](), error.__traceback__
        while trace is not None:
            places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        if not places:
            notes = getattr(error, "__notes__", ())
            notes = [note for note in notes if isinstance(note, str)]
            places = _places("\n".join(notes).splitlines())
    places = [place for place in places if not is_internal_frame(place[0])]
    users = [place for place in places if not place[0].startswith(_installed())]
    return next(reversed(users or places), None)


def _places(lines: Iterable[str]) -> list[tuple[str, int]]:
    """Return the frames of the first traceback in a text, not those of what led to the error."""
    blocks: list[list[tuple[str, int]]] = []
    is_inside = False
    for line in lines:
        if line.startswith("Traceback ("):
            blocks.append([])
            is_inside = True
        elif line.startswith(_LED_TO):
            blocks, is_inside = [], False
        elif not line.startswith("  "):
            is_inside = False
        elif is_inside and (found := _PLACE.match(line)) is not None:
            blocks[-1].append((found[1], int(found[2])))
    return next(filter(None, blocks), [])


_LIBRARIES = ("asyncio", "anyio", "asyncflow", "uvloop")


def awaiting_location(coroutine: object) -> str:
    """Return ``file:line in function`` of the user's innermost await; see `user_location`.

    It follows what the coroutine awaits down to the last coroutine, generator or asynchronous
    generator.
    """
    frames: list[FrameType] = []
    awaiting: object | None = coroutine
    while awaiting is not None:
        frame = _first(awaiting, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            frames.append(frame)
        awaiting = _first(awaiting, "cr_await", "gi_yieldfrom", "ag_await")
    return user_location(reversed(frames))


def user_location(frames: Iterable[FrameType]) -> str:
    """Return ``file:line in function`` of the user's first frame, or else of the first frame.

    A frame is the user's if it belongs to neither the standard library, nor an installed package,
    nor asyncflow.

    ``frames`` begin with the innermost one.
    """
    innermost = None
    for frame in frames:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _LIBRARIES and not frame.f_code.co_filename.startswith(_installed()):
            return _place(frame)
        innermost = innermost or _place(frame)
    return innermost or "an unknown place"


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


@cache
def _installed() -> tuple[str, ...]:
    """Return the beginnings of the paths of all files that are not the user's."""
    import sysconfig  # nothing else needs it, and it takes a while to import

    folders = ("stdlib", "platstdlib", "purelib", "platlib")
    return ("<frozen ", *map(sysconfig.get_path, folders))


def _first(thing: object, *names: str) -> Any:
    found = (getattr(thing, name, None) for name in names)
    return next((value for value in found if value is not None), None)
