"""What the traceback of a step's error reads like, with our own frames left out.

Rules:

1. A reader wants the lines of the step. Ours, which called them or stand between them, are shown
   only if that is asked for.
2. That holds for causes, contexts and the errors of groups too, and for a traceback of which a
   journal has kept the text only.
3. No text of it moves a cursor or turns the direction of writing.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from asyncflow._errors import RestoredError
from asyncflow._text import describe, in_one_line

__all__ = ["format_error"]

_PACKAGE = Path(__file__).parent
# A line that begins a frame, in the text of a traceback; in that of a group it is indented more.
_FRAME = re.compile(r'(?P<indent>[ |]*)File "(?P<path>.*)", line \d+')
# Where a journal was written on another machine, the package may stand elsewhere.
_OURS = re.compile(r"[/\\]asyncflow[/\\]_\w+\.py\Z")


def format_error(error: BaseException, *, all_frames: bool = False) -> str:
    """Return the traceback of an error, its causes and the errors of a group included.

    Args:
        error: What a step raised, or what stands for it.
        all_frames: Whether frames of asyncflow are to be shown too.
    """
    if isinstance(error, RestoredError):
        lines = error.traceback.splitlines() or [describe(error)]
    else:
        lines = _format(error, all_frames)
    if not all_frames:  # of a step in a process of its own, a note holds the traceback as text
        lines = [*_without_our_frames(lines)]
    return "\n".join(map(in_one_line, lines))


def _format(error: BaseException, all_frames: bool) -> list[str]:
    try:
        trace = traceback.TracebackException.from_exception(error)
        if not all_frames:
            if type(error).__module__.partition(".")[0] == __package__:
                trace.__context__ = None  # it only says how we came to raise it; a cause says more
            _leave_out_our_frames(trace)
        return "".join(trace.format()).splitlines()
    except Exception:  # it is the user's object: whatever it raises must not spread
        return [describe(error)]


def _leave_out_our_frames(trace: traceback.TracebackException) -> None:
    stack = [trace]
    while stack:
        one = stack.pop()
        frames = [frame for frame in one.stack if not _is_ours(frame.filename)]
        one.stack = traceback.StackSummary.from_list(frames)
        stack += [each for each in (one.__cause__, one.__context__) if each is not None]
        stack += one.exceptions or ()


def _is_ours(path: str) -> bool:
    return bool(_OURS.search(path)) or Path(path).parent == _PACKAGE


def _without_our_frames(lines: list[str]) -> Iterator[str]:
    """Leave our frames out of a text; a frame ends where the indentation ends."""
    left_out: int | None = None
    for line in lines:
        frame = _FRAME.match(line)
        indent = len(line) - len(line.lstrip(" |"))
        if frame is not None:
            left_out = indent if _is_ours(frame["path"]) else None
        elif left_out is not None and indent <= left_out:
            left_out = None
        if left_out is None:
            yield line
