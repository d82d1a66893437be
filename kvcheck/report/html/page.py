"""Runs as one HTML page: what each part shows, from the same functions that the terminal and Markdown print.

Foreign text (answers, prompts, specs, names) is escaped by the template engine, and a policy in the page forbids every
request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kvcheck.core.errors import SpecError
from kvcheck.core.escape import seen
from kvcheck.core.record import CLEAR, EXCUSED, FAILS, HOLDS, UNSERVED, PropertyRecord, Run
from kvcheck.judging.compare import Comparison
from kvcheck.report import (
    comparison,
    conformance,
    examples,
    findings,
    markdown,
    overview,
    rows,
    statement,
    summary,
    verdict,
    zoo,
)
from kvcheck.report.examples import Failed, Prompts
from kvcheck.report.html import charts
from kvcheck.report.overview import Line
from kvcheck.report.rows import References
from kvcheck.report.table import Code, Table
from kvcheck.report.text import interval, plural, points
from kvcheck.store.published import gaps

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES, EACH = 160, 24
"""Failed cases that unfold: of all methods together, and of one."""
LISTED = 60
"""Verdicts that did not pass, and errors, listed for a method; the rest is counted."""
LONGEST = 4000
"""Characters of an error or a test that are shown."""
WORST_FIRST = ("failed", "interrupted", verdict.INCONCLUSIVE, verdict.OPEN)
"""Outcomes of a run that is not green."""


@dataclass(frozen=True)
class Part:
    """Everything about one method that is not in a plot."""

    line: Line
    failed: tuple[Sequence[Failed], Sequence[Failed]]

    @cached_property
    def said(self) -> list[tuple[str, str]]:
        """As the terminal says it first."""
        return verdict.said(self.line.run, self.line.standing)

    @property
    def open(self) -> bool:
        return self.line.standing.outcome == verdict.FAIL

    @property
    def counted(self) -> str:
        return summary.count_text(self.line.run, self.line.method)

    @property
    def plain(self) -> str:
        return statement.plain(self.line.run, self.line.method, self.line.known)

    @property
    def facts(self) -> list[str]:
        run = self.line.run
        return list(summary.facts(run, rows.of_method(run, self.line.method), self.line.known))

    @property
    def tables(self) -> list[Table]:
        line = self.line
        return list(summary.tables(line.run, line.records, line.known)) if line.records else []

    @cached_property
    def not_passed(self) -> tuple[list[Table], int]:
        """What did not pass, and how much more there is."""
        found = rows.failed_verdicts(self.line.run, rows.of_method(self.line.run, self.line.method))
        return summary.not_passed(found[:LISTED], self.line.run.header.settings), max(0, len(found) - LISTED)

    @property
    def not_informative(self) -> list[str]:
        return list(summary.not_informative(self.line.run, self.line.records))

    @property
    def not_measured(self) -> list[str]:
        """What was not measured and why, what stopped early, and what no record covers."""
        records = rows.of_method(self.line.run, self.line.method)
        found = rows.not_measured(self.line.run, records)
        told = [f"{what} ({plural(len(names), 'case')})" for what, names in sorted(found.items())]
        early = sum(len(one.samples) < one.case.n and one.stopped == CLEAR for one in self.line.records)
        told += [f"the rest of {plural(early, 'case')}: stopped early, the loss was certain"] if early else []
        return told + list(gaps(records, self.line.run.header.model_name))

    @property
    def errors(self) -> list[tuple[str, str, str]]:
        """(case, the line that says most, everything) of what failed without a verdict."""
        found = rows.errors(self.line.run)
        mine = [(name, text) for name, text in found.items() if name.endswith(f"|{self.line.method}")]
        end = f"|{self.line.method}"
        return [(name.removesuffix(end), rows.reason(text), text[:LONGEST]) for name, text in mine[:LISTED]]

    @cached_property
    def properties(self) -> list[PropertyRecord]:
        return [one for one in self.line.run.properties if one.method == self.line.method]

    @property
    def held(self) -> str:
        return conformance.counts(self.properties)

    def by_outcome(self, outcome: str) -> list[tuple[str, str, str]]:
        """(name, reason, test) of the properties with this outcome; of those that hold, their names."""
        return [
            (one.name.replace("_", " "), conformance.first(one.reason) if one.reason else "", one.snippet[:LONGEST])
            for one in self.properties
            if one.outcome == outcome
        ]


@dataclass(frozen=True)
class Compared:
    """Two runs: what was asked, how each method stands, tables, and what was not compared."""

    before: Run
    after: Run
    found: Comparison

    @property
    def questions(self) -> list[str]:
        return [comparison.question(*both) for both in self.found.pairs]

    @property
    def differences(self) -> list[str]:
        return list(comparison.differences(self.before, self.after))

    @property
    def said(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(method, its outcome and numbers)."""
        names = {mine: comparison.references(mine, other) for mine, other in self.found.pairs}
        run = self.found.run
        return [
            (one, verdict.said(run, verdict.standing(run, one), names.get(one, comparison.NOT_PAIRED)))
            for one in rows.methods(run)
        ]

    @property
    def tables(self) -> list[tuple[str, list[Table]]]:
        """(method, what moved): accuracy by capability and task, bytes, and what did not pass."""
        return [(mine, self._tables(mine, mine == other)) for mine, other in self.found.pairs]

    def _tables(self, mine: str, same: bool) -> list[Table]:
        run, known = self.found.run, self.found.known[mine]
        records = rows.judged(run, mine)
        if not records:
            return []
        both = "before -> after" if same else "first -> second"
        sizes = [
            (one.case.task, str(one.case.length), f"{then.ratio:.3f} -> {now.ratio:.3f}")
            for one in records
            if (then := known[one.case.key].memory)
            and (now := one.memory)
            and f"{then.ratio:.3f}" != f"{now.ratio:.3f}"
        ]
        bad = rows.failed_verdicts(run, rows.of_method(run, mine))
        moved = [Table(("KV bytes moved", "tokens", both), "<>>", sorted(set(sizes)))] if sizes else []
        return [
            *moved,
            *summary.not_passed(bad[:LISTED], run.header.settings),
            *summary.tables(run, records, known, both),
        ]

    @property
    def not_compared(self) -> list[tuple[str, str]]:
        return sorted(self.found.run.failures.items())[:LISTED]


def page(
    runs: Sequence[tuple[Run, References]],
    compared: Compared | None = None,
    prompts: Prompts | None = None,
    *,
    finished: bool = True,
    sort: str = "",
) -> str:
    """The page. runs: each with its fp16 records by case key; a method is shown as the last run has it that has it.

    compared: what differs between two runs, shown first. prompts: generates the prompts of failed cases anew.
    finished: whether all that was selected has run. Raises SpecError for runs of several models.
    """
    expect_one_model([run for run, _ in runs])
    latest = {line.method: line for run, known in runs for line in overview.of(run, known)}
    lines = overview.ordered(latest.values(), sort)
    parts = _parts(lines, prompts)
    last = runs[-1][0]
    outcomes = [markdown.outcome(run, finished) for run, _ in runs]
    return environment().get_template("page.html").render(
        title=_title(last, lines),
        outcome=next((one for one in WORST_FIRST if one in outcomes), "passed"),
        header=last.header,
        commit=markdown.commit(last.header),
        parts=parts,
        compared=compared,
        legend=list(overview.legend(lines)),
        accuracy=charts.accuracy_and_bytes(lines),
        capabilities=charts.by_capability(lines),
        turns=charts.by_turn(lines),
        depths=charts.by_depth(lines),
        drifts=charts.by_length_drift(lines),
        drift_by_task=charts.by_task_drift(lines),
        costs=charts.costs(lines),
        timed=any(line.latency(what) for line in lines for what in overview.TIMED),
        lost=[] if lines else [(name, text[:LONGEST]) for name, text in sorted(last.failures.items())[:LISTED]],
        others=_others([run for run, _ in runs]),
        outcomes={"fails": FAILS, "excused": EXCUSED, "unserved": UNSERVED, "holds": HOLDS},
        **assets(),
    )  # fmt: skip


def assets() -> dict[str, str]:
    """Style, script, and the policy that allows these two and nothing from anywhere."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
    return {"style": Markup(style), "script": Markup(script), "policy": f"{policy}form-action 'none'"}


def expect_one_model(runs: Sequence[Run]) -> None:
    """Accuracies and bytes of several models are not drawn in one plot. Raises SpecError."""
    models = {run.header.model: run.header.model_name for run in runs if run.header.model}
    if len(models) > 1:
        named = ", ".join(f"{name} ({digest})" for digest, name in models.items())
        raise SpecError(f"the runs are of different models: {named}", "make one page for each model")


def _parts(lines: Sequence[Line], prompts: Prompts | None) -> list[Part]:
    """The methods with their failed cases, examples spread over all of them."""
    counts = [line.standing.cases for line in lines]
    share = examples.spread(counts, EXAMPLES, EACH)
    return [
        Part(line, examples.failed(line.run, line.method, line.known, prompts, most))
        for line, most in zip(lines, share, strict=True)
    ]


def _title(run: Run, lines: Sequence[Line]) -> str:
    names = [line.method for line in lines if line.method != "fp16"] or [line.method for line in lines]
    what = names[0] if len(names) == 1 else plural(len(names), "method") if names else "kvcheck"
    return f"{what} on {run.header.model_name}" if run.header.model_name else what


def _others(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(title, lines) of what is no method's: bugs of the zoo, findings of papers."""
    found = [("Mutation tests of known bugs", list(zoo.lines([one for run in runs for one in run.zoo])))]
    found += [("Findings of papers", list(findings.lines([one for run in runs for one in run.findings])))]
    return [(title, lines) for title, lines in found if lines]


def _digest(text: str) -> str:
    """How a policy names a script or a style that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates that escape everything, and write what is not to be seen (controls, turned text) in Python's way."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else seen(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: Mapping[str, object] = {
        "interval": interval, "points": points, "allowed": overview.allowed, "held": overview.held_text,
    }  # fmt: skip
    found.globals |= shown
    found.tests["name"] = lambda cell: isinstance(cell, Code)
    return found
