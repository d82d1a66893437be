"""What the fixtures share: a test item measures one thing, once, and says what came of it."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from kvcheck.core import front
from kvcheck.plugin import commands, items, options, state
from kvcheck.plugin.state import in_place
from kvcheck.plugin.timelimit import time_limit
from kvcheck.store.journal import Ended

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine

T = TypeVar("T")
FRAMES = 4
"""Frames of the traceback of a method that raised; the innermost ones."""


class KvItem:
    """One thing to measure with one method. What a fixture gives is a subclass: it measures, then checks.

    failure: what the test failed with, "" as long as it has not.
    """

    def __init__(self, request: pytest.FixtureRequest, method: str = "") -> None:
        self.method = method
        self.failure = ""
        self.settings = state.settings(request.config)
        self._request = request
        self._config = request.config
        self._node = request.node
        self._state = state.of(request.config)
        self._node.stash[options.RESULT] = self._ended

    @property
    def _engine(self) -> Engine:
        """The engine, opened when the first test needs it."""
        engine: Engine = self._request.getfixturevalue("kv_session")
        return engine

    def close(self) -> None:
        """The test is over."""

    def _attempt(self, run: Callable[[], T], failed: Callable[[BaseException], str]) -> tuple[T | None, str]:
        """`attempt`, of this item."""

        def begun() -> T:
            self._state.start(items.of(self._node))
            return run()

        return attempt(begun, failed, self.settings.timeout)

    def _fail(self, message: str) -> NoReturn:
        """Fail the test; what is being handled is not printed above the message."""
        self.failure = commands.completer(self._config)(message)
        raise pytest.fail.Exception(self.failure, pytrace=False) from None

    def _ended(self) -> Ended:
        """What rides on the report."""
        raise NotImplementedError


def attempt(run: Callable[[], T], failed: Callable[[BaseException], str], timeout: float) -> tuple[T | None, str]:
    """Run code of a method within its time limit: (what it gave, "" or how its failure reads).

    An interrupt of the user goes on; what pytest raises to skip does not: a method that does so has not passed.
    """
    try:
        with time_limit(timeout), in_place(), threads_fail():
            return run(), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, failed(error)  # as text: the exception would keep alive what the method held


@contextmanager
def threads_fail() -> Iterator[None]:
    """Raise at the end what a thread raised meanwhile: nobody else would hear of it."""
    raised: list[BaseException] = []
    before = threading.excepthook

    def hear(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None:
            raised.append(found.exc_value)

    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before
    if raised:
        raise raised[0]


def tail(error: BaseException | None) -> str:
    """The innermost frames of what a method raised, for its author."""
    if error is None or error.__traceback__ is None:
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in OURS][-FRAMES:]
    return "".join(traceback.format_list(frames))


def said(error: BaseException) -> str:
    """What was raised, in one line; what pytest raises to skip or to expect a failure, with what that means."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception)):
        what += "\n  a method cannot skip, expect or end its own test: what it cannot serve, it refuses in `check`"
    return what


def hangs() -> str:
    """What to do about a method that ran out of time."""
    return f"does it hang? A slow one gets more time with {front.option('timeout', 'SECONDS')} (0: no limit)"


OURS = (__file__, os.path.join(os.path.dirname(__file__), "case.py"))
"""Files of which no frame is shown: the method's author has no part in them."""
