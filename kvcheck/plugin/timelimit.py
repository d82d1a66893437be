"""A time limit on a block of code: a method that hangs is a failure, not a session that never ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 5.0
"""Seconds after which the signal is sent again, should the code under test have swallowed the first exception."""
PATIENCE = 15.0
"""Seconds after the limit at which the process is ended, should the code have swallowed all of them."""


class TimeLimit(BaseException):
    """The block ran longer than it may. Not an Exception: code that catches those must not swallow it."""


def available() -> bool:
    """Can this thread be interrupted? Only the main thread can be, and not on Windows."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in the block after `seconds`; 0 means no limit.

    The exception comes as soon as the interpreter runs again. A block that swallows it, or a call into a library that
    never returns, ends with the process, PATIENCE seconds later: the parent or the controller then says which item it
    was. A timer that was running, such as that of pytest-timeout, goes on and comes first where it is the shorter one.
    """
    if seconds <= 0 or not available():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"{seconds:g} s")

    theirs, interval = signal.getitimer(signal.ITIMER_REAL)
    ours = not 0 < theirs <= seconds
    began = time.monotonic()
    nowhere = os.open(os.devnull, os.O_WRONLY)  # what tests write to may have no file behind it
    faulthandler.dump_traceback_later(seconds + PATIENCE, exit=True, file=nowhere)
    handler = signal.getsignal(signal.SIGALRM)
    if ours:
        signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(nowhere)
        if ours:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler if handler is not None else signal.SIG_DFL)
            if theirs:
                signal.setitimer(signal.ITIMER_REAL, max(theirs - (time.monotonic() - began), 0.001), interval)
