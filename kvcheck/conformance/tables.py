"""The tables of docs/reference/conformance.md: which properties there are, and to which methods they apply.

python -m kvcheck.conformance.tables docs/reference/conformance.md     # writes them anew
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvcheck.conformance import NAMES, properties
from kvcheck.conformance.base import PROPERTIES
from kvcheck.conformance.false_positives import correct
from kvcheck.methods import make
from kvcheck.methods.adapters.foreign import INFO

FIRST, BEHIND = "## equivalence", "## A property of your own"
"""Headings of the page: where the tables begin, and what comes behind them."""
MODULES = ("equivalence", "reading", "attending", "positions", "turns", "sizes", "parameters", "sharing", "numbers")
"""Those that come first; the others follow in alphabetical order."""


def tables() -> str:
    """All of them, as Markdown."""
    infos = {spec: make(spec).info for spec in correct()}
    names = {name: PROPERTIES[name].check.__module__.rpartition(".")[2] for name in NAMES}
    lines = []
    for module in (*MODULES, *sorted(set(properties.__all__) - set(MODULES))):
        lines += [f"## {module}", "", "| property | holds when | applies to |", "|---|---|---|"]
        for name in (name for name in NAMES if names[name] == module):
            count = sum(not PROPERTIES[name].exemption(info) for info in infos.values())
            lines.append(f"| `{name}` | {PROPERTIES[name].claim} | {count} |")
        lines.append("")
    adapted = sum(not PROPERTIES[name].exemption(INFO) for name in NAMES)
    lines += ["## To whom they apply", ""]
    lines += [
        f"The last column above counts the built-in methods, of {len(infos)}, each at its defaults,",
        "to which a property applies by what they declare. Below is how many of the",
        f"{len(NAMES)} properties apply to each. To an adapted cache of which nothing is declared {adapted} do,",
        "and those that cannot be tried say why. Few methods round what they store: the properties",
        "of `rounding`, and `more_bits_are_nearer`, are theirs.",
        "",
        "| method | apply |",
        "|---|---|",
    ]
    for spec, info in infos.items():
        lines.append(f"| `{spec}` | {sum(not PROPERTIES[name].exemption(info) for name in NAMES)} |")
    return "\n".join([*lines, "", ""])


def written(page: str) -> str:
    """The page with the tables as they are now."""
    before, behind = page.partition(FIRST)[0], page.partition(BEHIND)[2]
    return before + tables() + BEHIND + behind


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text("utf-8")), "utf-8")
