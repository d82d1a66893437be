"""One table for every report: made once, rendered for a terminal or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvcheck.core import escape
from kvcheck.report.text import WIDTH, short

_FIGURES = re.compile(r"[-+\d.,%?\[\] >]*")
"""Cells that hold no markup: numbers, intervals, 0.9 -> 0.8."""
_ADDRESS = re.compile(r"https://[\w./#?=&%:-]+")
"""What is linked; any other text is shown."""

WHOLE = 1 << 20
"""Columns of a table that is not cut."""


class Code(str):
    """A cell that is a code span in Markdown: names of methods, cases, files."""


@dataclass(frozen=True)
class Table:
    """head and rows of text, foreign text as it is: rendering makes it harmless.

    align: "<" or ">" per column. most: columns of the terminal that a column may take; longer texts are cut there. A
    first cell that begins with blanks belongs to the row above. links: addresses of cells, by their text. spare:
    columns that a narrow terminal goes without, in this order.
    """

    head: Sequence[str]
    align: str
    rows: Sequence[Sequence[str]]
    most: Mapping[int, int] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    spare: Sequence[int] = ()

    def text(self, width: int = WIDTH) -> Iterator[str]:
        """Lines for a terminal of so many columns: cells two blanks apart. An empty head is left out."""
        if not self.rows:
            return
        lines = [list(row) for row in ([self.head] if any(self.head) else []) + list(self.rows)]
        for at, most in self.most.items():
            for line in lines:
                line[at] = short(line[at], most)
        widths = {at: max(len(line[at]) for line in lines) for at in range(len(self.align))}
        for at in self.spare:
            if sum(widths.values()) + 2 * (len(widths) - 1) > width:
                del widths[at]
        for line in lines:
            cells = (f"{line[at]:{self.align[at]}{most}}" for at, most in widths.items())
            yield short("  ".join(cells).rstrip(), width)

    def markdown(self) -> Iterator[str]:
        """Lines of Markdown, an empty one behind them; nothing for a table without rows."""
        if not self.rows:
            return
        yield f"| {' | '.join(self.head)} |"
        yield "|" + "|".join("---:" if side == ">" else "---" for side in self.align) + "|"
        nested = any(row[0].startswith(" ") for row in self.rows)
        for first, *rest in self.rows:
            label = self._cell(first)
            if nested:
                label = f"&nbsp;&nbsp;{label}" if first.startswith(" ") else f"**{label}**"
            yield f"| {' | '.join([label, *map(self._cell, rest)])} |"
        yield ""

    def _cell(self, cell: str) -> str:
        if _ADDRESS.fullmatch(self.links.get(cell, "")):
            return f"[{escape.markdown(cell)}]({self.links[cell]})"
        if isinstance(cell, Code):
            return escape.code(cell)
        return cell.strip() if _FIGURES.fullmatch(cell) else escape.markdown(cell)
