"""Which frames of a traceback are ours."""

from __future__ import annotations

from types import FrameType

__all__ = ["leave_out_our_frames"]


def leave_out_our_frames(error: BaseException) -> None:
    """Let the traceback of a step's error begin in the step.

    Our frames say nothing to its reader, take memory for as long as the error is kept, and lead
    to the run, hence back to the error.
    """
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next
    BaseException.with_traceback(error, trace)  # its class may refuse to be assigned to


def _is_ours(frame: FrameType) -> bool:
    # What was made by `exec` may have no such name.
    return str(frame.f_globals.get("__name__")).startswith("asyncflow._")
