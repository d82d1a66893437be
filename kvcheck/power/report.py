"""All of it: what is simulated how often, in which order, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from kvcheck.core.files import write_atomically
from kvcheck.power import sections
from kvcheck.power.recorded import Recorded
from kvcheck.power.runs import Plan, Simulation
from kvcheck.power.tables import Table

Say = Callable[[str, bool], None]

CAVEATS = (
    "The noise of another machine is assumed, not measured: the figures of "
    "`kvcheck.judging.questions.DriftRule` and a share of turned answers that was set by hand.",
    "The 4 or 8 contexts recorded for a case stand for all contexts of its kind; rarer ones are not in the draw.",
    "A case answers two questions, budget and regression, each at its own alpha: what is proved for a run is twice "
    "alpha, the figures above are what is seen.",
    "The usual gate counts samples with one question each. A context has up to four questions that share its cache; "
    "counted in questions, contexts with several are that much dearer.",
    "At the level of one case among 82 an end of the bootstrap interval rests on some 11 of its 200,000 draws.",
)
"""What a reader must know to use the tables."""


def measure(recorded: Recorded, plan: Plan, say: Say = lambda text, whole: None) -> list[Table]:
    """Every table. say is told the progress, and whether a table is whole."""
    found = []
    for title, section in (
        ("A/A runs", sections.against_itself),
        ("single cases against themselves", sections.one_case),
        ("contexts needed", sections.needed),
        ("contexts needed, by method", sections.by_method),
        ("runs with a true drop", sections.with_a_drop),
        ("coverage", sections.intervals),
        ("looking after every block", sections.peeking),
    ):
        started = time.monotonic()

        def tick(done: int, total: int, title: str = title, started: float = started) -> None:
            say(f"{title}: {done} of {total}, {time.monotonic() - started:.0f} s", done >= total)

        found.append(section(Simulation(recorded, plan, tick)))
    return found


def broken(tables: list[Table]) -> list[str]:
    """Every promise that the figures refute."""
    return [one for table in tables for one in table.broken]


def text(tables: list[Table]) -> Iterator[str]:
    """The report for a terminal."""
    for table in tables:
        yield from table.text()


def write(recorded: Recorded, plan: Plan, tables: list[Table], as_json: str | None, as_markdown: str | None) -> None:
    """Write the files that were asked for, whole or not at all. Raises BaselineError where that is not possible."""
    if as_json:
        about = {"model": recorded.model.name, "fingerprint": recorded.model.fingerprint, "seed": plan.seed}
        found = {**about, "runs": plan.runs, "tables": [table.plain() for table in tables]}
        write_atomically(as_json, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if as_markdown:
        write_atomically(as_markdown, "\n".join(markdown(recorded, plan, tables, command(plan, as_markdown))) + "\n")


def command(plan: Plan, path: str) -> str:
    """What to type for the same page."""
    return f"kvcheck power --runs {plan.runs} --seed {plan.seed} --md {path}"


def markdown(recorded: Recorded, plan: Plan, tables: list[Table], made_by: str) -> Iterator[str]:
    """The report as a page."""
    yield from ("# What the statistics keep of their promises", "")
    yield f"Written by `{made_by}`; do not edit. Simulated on the recorded answers of the model"
    yield f"`{recorded.model.name}` ({recorded.model.fingerprint}): {len(recorded.methods)} methods,"
    yield f"{len(recorded.cases)} cases of the default profile, contexts drawn with replacement from those recorded for"
    yield "the case. Records are judged by `judge` of `kvcheck.judging.budget` after its `sequential`, as in a run."
    yield "Intervals of simulated shares are exact (Clopper and Pearson, 95 %). `holds`: the whole interval lies below"
    yield "what was promised; `not refuted`: it does not, nor does it lie above; `BROKEN`: it lies above."
    yield ""
    for table in tables:
        yield from table.markdown()
    found = broken(tables)
    yield from ("## In short", "")
    yield from ([f"- {one}" for one in found] or ["No promise is refuted by these figures."])
    yield from ("", "## What these figures do not say", "")
    yield from (f"- {one}" for one in CAVEATS)
