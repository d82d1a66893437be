"""Tables of the report: made once, shown in a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvcheck.report import table
from kvcheck.report.text import wrap


@dataclass(frozen=True)
class Table:
    """head and rows of text, a note of how it was made, and what was found. raw: the figures, for JSON.

    align: "<" or ">" per column. broken: figures that are surely missed, one sentence each.
    """

    title: str
    note: str
    head: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    said: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    raw: tuple[dict[str, object], ...] = field(default=())

    def text(self) -> Iterator[str]:
        """Lines for a terminal."""
        yield self.title
        yield from (f"  {line}" for line in self._grid().text(table.WHOLE))
        for line in (self.note, *self.said, *(f"MISSED: {one}" for one in self.broken)):
            yield from wrap(f"  {line}")
        yield ""

    def markdown(self) -> Iterator[str]:
        """Lines of Markdown."""
        yield from (f"## {self.title}", "", self.note, "")
        yield from self._grid().markdown()
        yield from (f"- {line}" for line in self.said)
        yield from (f"- **Missed:** {line}" for line in self.broken)
        if self.said or self.broken:
            yield ""

    def _grid(self) -> table.Table:
        return table.Table(self.head, self.align, self.rows)

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {"title": self.title, "note": self.note, "rows": list(self.raw), "broken": list(self.broken)}
