"""A time limit on a block of code: a method that hangs is a failure, not a session that never ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 5.0
"""Seconds after which the signal is sent again, should the code under test have swallowed the first exception."""


class TimeLimit(BaseException):
    """The block ran longer than it may. Not an Exception: code that catches those must not swallow it."""


def available() -> bool:
    """Can this thread be interrupted? Only the main thread can be, and not on Windows."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in the block after `seconds`; 0 means no limit.

    The exception comes as soon as the interpreter runs again: a call into a library that never returns is out of reach.
    A timer that was running, such as that of pytest-timeout, is put back afterwards.
    """
    if seconds <= 0 or not available():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"{seconds:g} s")

    handler = signal.signal(signal.SIGALRM, expired)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before[0]:
            signal.setitimer(signal.ITIMER_REAL, *before)
