"""The progress line: samples done, verdict so far, time left. On a terminal only, on the rest of the current line."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from kvcheck.core.escape import plain

if TYPE_CHECKING:
    from _pytest.capture import CaptureManager

INTERVAL = 0.2
"""Seconds between two writes."""


def time_text(seconds: float) -> str:
    """Seconds for people.

    >>> [time_text(value) for value in (4.2, 75, 5400)]
    ['4 s', '1 min 15 s', '1 h 30 min']
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def phrases(label: str, done: int, total: int, so_far: str, left: float | None) -> list[str]:
    """The same progress in several lengths, the longest first."""
    count = f"{done}/{total}"
    rest = "" if left is None else f", {time_text(left)} left"
    return [
        f"{label} {count}{so_far and ', ' + so_far}{rest}",
        f"{count}{so_far and ', ' + so_far}{rest}",
        count + rest,
        count,
    ]


class Progress:
    """Writes behind the dots of pytest and takes its text away again, so that the output stays as it was."""

    def __init__(self, config: pytest.Config) -> None:
        self.reporter: pytest.TerminalReporter | None = config.pluginmanager.getplugin("terminalreporter")
        self.capture: CaptureManager | None = config.pluginmanager.getplugin("capturemanager")
        self.shown = self.reporter is not None and wanted(config, self.reporter)
        self.items = 0
        self.finished = 0
        self.began = time.monotonic()
        self.started = self.began
        self.last = 0.0

    def start(self, items: int) -> None:
        """A case begins; `items` is how many the session has."""
        self.items = items
        self.started = time.monotonic()

    def left(self, done: int, total: int) -> float | None:
        """Seconds that the session will still take, from the pace so far. None before there is a pace."""
        now = time.monotonic()
        share = done / total if total else 0.0
        pace = self.finished + share
        if pace < 0.5 or now - self.began < 2:
            return None
        return (now - self.began) / pace * max(self.items - pace, 0.0)

    def update(self, label: str, done: int, total: int, so_far: str = "") -> None:
        """Show how far the case is."""
        now = time.monotonic()
        if self.reporter is None or not self.shown or now - self.last < INTERVAL:
            return
        self.last = now
        writer = self.reporter._tw
        room = writer.fullwidth - writer.width_of_current_line - 3
        for text in phrases(plain(label), done, total, so_far, self.left(done, total)):
            if len(text) <= room:
                self._write(f"  {text}")
                return

    def stop(self) -> None:
        """The case is over: take the text away."""
        self.finished += 1
        if self.shown and self.last:
            self._write("")
            self.last = 0.0

    def _write(self, text: str) -> None:
        """Write behind the cursor and leave the cursor where it was (save, erase to the end of the line, restore)."""
        if self.reporter is None:
            return
        stream = self.reporter._tw._file
        with nullcontext() if self.capture is None else self.capture.global_and_fixture_disabled():
            stream.write(f"\x1b7\x1b[K{text}\x1b8")
            stream.flush()


def wanted(config: pytest.Config, reporter: pytest.TerminalReporter) -> bool:
    """On a terminal, in a session of one process, not under -q, not in CI, not on a dumb terminal."""
    return (
        bool(getattr(reporter, "isatty", False))
        and config.get_verbosity() >= 0
        and not os.environ.get("CI")
        and os.environ.get("TERM", "") != "dumb"
        and not hasattr(config, "workerinput")
        and not getattr(config.option, "numprocesses", None)
    )
