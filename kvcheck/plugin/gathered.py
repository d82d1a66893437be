"""What rides on the reports of all workers as a property, gathered in the one process that prints a table of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import pytest

from kvcheck.core.escape import plain
from kvcheck.core.files import write_atomically
from kvcheck.plugin import state

T = TypeVar("T")
Lines = Callable[[Sequence[T]], Iterator[str]]


class Gatherer(Generic[T]):
    """Prints a table at the end, and writes it to --kv-md.

    name: of the property; read: its text back to a result; keep: what is done with all results as they come.
    """

    def __init__(
        self,
        config: pytest.Config,
        name: str,
        title: str,
        read: Callable[[str], T],
        lines: Lines[T],
        markdown: Lines[T],
        keep: Callable[[list[T]], None] = lambda found: None,
    ) -> None:
        self.config, self.name, self.title = config, name, title
        self._read, self._lines, self._markdown, self._keep = read, lines, markdown, keep
        self.found: list[T] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the results from a report."""
        if report.when != "call":
            return
        new = [self._read(str(text)) for name, text in report.user_properties if name == self.name]
        self.found += new
        if new:
            self._keep(self.found)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table."""
        if not self.found:
            return
        terminalreporter.section(f"kvcheck: {self.title}", sep="=")
        for line in self._lines(self.found):
            terminalreporter.write_line(plain(line))
        path = state.of(self.config).md_file
        if path:
            write_atomically(str(path), "\n".join(self._markdown(self.found)) + "\n")
            terminalreporter.write_line(plain(f"table written to {path}"))
