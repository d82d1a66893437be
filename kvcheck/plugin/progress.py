"""How far a session is, from the first context on: tests, contexts of the case, its verdict so far, the time left.

On a terminal it stands behind the dots of pytest and goes again; elsewhere, as in CI, it is a line every minute. With
pytest-xdist a worker writes what it is at into a file beside its journal, and the controller shows all of them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvcheck.core.escape import plain

if TYPE_CHECKING:
    from _pytest.capture import CaptureManager

INTERVAL, MINUTE = 0.2, 60.0
"""Seconds between two writes on a terminal and into a worker's file, and between two lines elsewhere."""
POLLED = 1.0
"""Seconds between two looks at the files of the workers."""
SCREEN, LOG, FILE, NOWHERE = "screen", "log", "file", ""
SUFFIX = ".progress"
"""Of a worker's file."""


@dataclass(frozen=True)
class At:
    """A case that is being measured: contexts done of all there are, and what they show so far."""

    label: str
    done: int
    total: int
    so_far: str = ""

    @property
    def count(self) -> str:
        return f"{self.done}/{self.total}" + (f", {self.so_far}" if self.so_far else "")

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


def time_text(seconds: float) -> str:
    """Seconds for people.

    >>> [time_text(value) for value in (4.2, 75, 5400)]
    ['4 s', '1 min 15 s', '1 h 30 min']
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def of_case(at: At, left: float | None) -> list[str]:
    """The progress of the only case in several lengths, the longest first. left: seconds, None where not known."""
    rest = _rest(left)
    bare = f"{at.done}/{at.total}"
    return [f"{at.label} {at.count}{rest}", f"{at.count}{rest}", bare + rest, bare]


def of_session(cases: Sequence[At], finished: int, items: int, left: float | None) -> list[str]:
    """The same of all tests together, with the cases that are being measured."""
    rest, tests = _rest(left), f"{finished} of {items} tests done"
    return [
        f"{tests}; {'; '.join(f'{one.label} {one.count}' for one in cases)}{rest}" if cases else tests + rest,
        f"{tests}; {'; '.join(f'{one.label} {one.done}/{one.total}' for one in cases)}{rest}",
        f"{tests}{rest}",
        f"{finished}/{items}",
    ]


def _rest(left: float | None) -> str:
    return "" if left is None else f", {time_text(left)} left"


class Progress:
    """Of this process. finished: gives how many tests are over. folder: where a worker writes what it is at."""

    def __init__(
        self,
        config: pytest.Config,
        finished: Callable[[], int],
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reporter: pytest.TerminalReporter | None = config.pluginmanager.getplugin("terminalreporter")
        self.capture: CaptureManager | None = config.pluginmanager.getplugin("capturemanager")
        self.where = place(config, self.reporter, folder)
        self.items = 0
        self.extra = 0
        self._tests, self._clock = finished, clock
        self._file = None if folder is None else folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}{SUFFIX}"
        self._began = clock()
        self._last = self._began if self.where == LOG else 0.0

    def _finished(self) -> int:
        """Tests that are over, and cases that were measured behind them (--kv-n=auto)."""
        return self._tests() + self.extra

    def update(self, at: At) -> None:
        """Show how far the case is."""
        if self.where == FILE:
            if self._due(INTERVAL) and self._file is not None:
                with suppress(OSError):  # it is for looking at alone
                    self._file.write_text(json.dumps(asdict(at)), encoding="utf-8")
        else:
            self.show([at], of_case)

    def show(self, cases: Sequence[At], one: Callable[[At, float | None], list[str]] | None = None) -> None:
        """Show the cases that are being measured. one: how a single one is told on a terminal."""
        if not self.items and not cases:
            return  # workers that have not collected yet
        if self.where == SCREEN and self._due(INTERVAL):
            left = self.left(cases)
            texts = one(cases[0], left) if one else of_session(cases, self._finished(), self.items, left)
            self._behind_the_dots(texts)
        elif self.where == LOG and self._due(MINUTE):
            self._line(of_session(cases, self._finished(), self.items, self.left(cases))[0])

    def stop(self) -> None:
        """The case is over: take the text away."""
        if self.where == SCREEN and self._last:
            self._write("")
            self._last = 0.0
        elif self.where == FILE and self._file is not None:
            self._last = 0.0
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def left(self, cases: Sequence[At]) -> float | None:
        """Seconds that the session will still take, from the pace so far. None before there is a pace."""
        pace, passed = self._finished() + sum(one.share for one in cases), self._clock() - self._began
        if pace < 0.5 or passed < 2:
            return None
        return passed / pace * max(self.items - pace, 0.0)

    def _due(self, seconds: float) -> bool:
        """Whether it is time for the next one."""
        now = self._clock()
        if self._last and now - self._last < seconds:
            return False
        self._last = now
        return True

    def _behind_the_dots(self, texts: Sequence[str]) -> None:
        """The longest text for which the line has room."""
        if self.reporter is None:
            return
        writer = self.reporter._tw
        room = writer.fullwidth - writer.width_of_current_line - 3
        text = next((text for text in map(plain, texts) if len(text) <= room), None)
        if text is not None:
            self._write(f"  {text}")

    def _write(self, text: str) -> None:
        """Write behind the cursor and leave the cursor where it was (save, erase to the end of the line, restore)."""
        if self.reporter is not None:
            stream = self.reporter._tw._file
            with self._uncaptured():
                stream.write(f"\x1b7\x1b[K{text}\x1b8")
                stream.flush()

    def _line(self, text: str) -> None:
        if self.reporter is not None:
            with self._uncaptured():
                self.reporter.write_line(plain(f"kvcheck: {text}"))
                self.reporter.flush()

    def _uncaptured(self) -> AbstractContextManager[None]:
        """What a test prints is captured, and this is not. Beside the tests of workers nothing is."""
        if self.capture is None or threading.current_thread() is not threading.main_thread():
            return nullcontext()
        return self.capture.global_and_fixture_disabled()


def place(config: pytest.Config, reporter: pytest.TerminalReporter | None, folder: Path | None) -> str:
    """Where progress is shown: nowhere under -q; behind the dots on a terminal that can, and not in CI."""
    if hasattr(config, "workerinput"):
        return NOWHERE if folder is None else FILE
    if reporter is None or config.get_verbosity() < 0:
        return NOWHERE
    able = getattr(reporter, "isatty", False) and os.environ.get("TERM", "") != "dumb"
    return SCREEN if able and not os.environ.get("CI") else LOG


def at_work(folder: Path) -> list[At]:
    """What the workers are at, by their files."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(OSError, ValueError, TypeError):  # gone, or being written
            found.append(At(**json.loads(path.read_text(encoding="utf-8"))))
    return found


class Watch:
    """Shows what the workers are at, from a thread of the controller, whose main thread waits for them."""

    def __init__(self, shown: Progress, folder: Path) -> None:
        self._shown, self._folder = shown, folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._shown.stop()

    def _watch(self) -> None:
        while not self._over.wait(POLLED):
            self._shown.show(at_work(self._folder))
