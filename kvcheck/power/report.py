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
from kvcheck.report.text import wrap

Say = Callable[[str, bool], None]

CAVEATS = (
    "The noise of another machine is assumed, not measured: the figures of `kvcheck.judging.questions.DriftRule` and a "
    "share of turned answers that was set by hand. It makes answers better as often as worse. A machine that only "
    "loses answers looks like a method that does, and is red from about 2 points on.",
    "The 4 or 8 contexts recorded for a case stand for all contexts of its kind; rarer ones are not in the draw.",
    "The usual gate counts samples with one question each. A context has up to four questions that share its cache; "
    "counted in questions, contexts with several are that much dearer.",
    "Bytes, the audit of the cache and crashes are not simulated: they need no statistics.",
)
"""What a reader must know to use the tables."""


def measure(recorded: Recorded, plan: Plan, say: Say = lambda text, whole: None) -> list[Table]:
    """Every table. say is told the progress, and whether a table is whole."""
    found = []
    for title, section in (
        ("true losses", sections.true_losses),
        ("A/A runs", sections.against_itself),
        ("coverage", sections.intervals),
        ("contexts needed", sections.needed),
        ("tests that cannot fail", sections.left_out),
        ("looking after every block", sections.peeking),
    ):
        started = time.monotonic()

        def tick(done: int, total: int, title: str = title, started: float = started) -> None:
            say(f"{title}: {done} of {total}, {time.monotonic() - started:.0f} s", done >= total)

        found.append(section(Simulation(recorded, plan, tick)))
    return found


def broken(tables: list[Table]) -> list[str]:
    """Every figure that is surely missed."""
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
    cases = recorded.cases
    about = f"`{recorded.model.name}` ({recorded.model.fingerprint})"
    yield from ("# What the gate sees, and what it promises", "")
    contexts = sum(case.n for case in cases)
    paragraphs = (
        f"Written by `{made_by}`; do not edit. Simulated runs of the default profile ({len(cases)} cases, {contexts} "
        f"contexts) on the recorded answers of the model {about}, {len(recorded.methods)} methods. The contexts of a "
        "case are drawn with replacement from those recorded for it, the same ones in every mode. Then a loss is put "
        "into the answers, and the noise of another machine into both records. They are judged by the code of the "
        "gate: `kvcheck.judging.budget` case by case, with its looks after every block, and `kvcheck.judging.pooled` "
        "for the run, its capabilities and its tasks. Numbers are drawn from fixed seeds: the same command gives the "
        "same page.",
        "Intervals of simulated shares are exact (Clopper and Pearson, 95 %). `reached`: the share that was seen is on "
        "the right side; `not reached`: it is not, and its interval is not wholly on the wrong side; `MISSED`: it is.",
    )
    for paragraph in paragraphs:
        yield from (*wrap(paragraph, "", 120), "")
    for table in tables:
        yield from table.markdown()
    found = broken(tables)
    yield from ("## In short", "")
    yield from ([f"- {one}" for one in found] or ["No figure is surely missed."])
    yield from ("", "## What these figures do not say", "")
    yield from (f"- {one}" for one in CAVEATS)
