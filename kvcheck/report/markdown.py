"""A run as Markdown for a pull request or a job summary."""

from __future__ import annotations

from collections.abc import Iterator

from kvcheck.core.escape import code
from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import FAILS, Run, RunHeader
from kvcheck.report import conformance, findings, overview, rows, statement, summary, verdict, zoo
from kvcheck.report.rows import References


def lines(run: Run, stored: References | None = None, *, finished: bool = True, sort: str = "") -> Iterator[str]:
    """The summary of a run as Markdown. finished: whether all that was selected has run. sort: as in the terminal."""
    known = rows.references(run, stored)
    header = run.header
    yield f"## kvcheck: {outcome(run, finished)}"
    yield ""
    for method in verdict.judged(run):
        first, *rest = verdict.said(run, verdict.standing(run, method))
        yield f"- **{first[0]}**: {code(method)}: {escape(first[1])}"
        yield from (f"  - **{word}**: {escape(text)}" for word, text in rest)
    yield ""
    methods = overview.ordered(overview.of(run, known), sort)
    if len(methods) > 1:
        yield from overview.table(methods).markdown()
        yield from (f"- {escape(line)}" for line in overview.legend(methods))
        yield ""
    for method in rows.methods(run):
        yield from of_method(run, method, known)
    yield from conformance.markdown(run.properties)
    yield from zoo.markdown(run.zoo)
    yield from findings.markdown(run.findings)
    yield "<details><summary>Run</summary>"
    yield ""
    model = f"{code(header.model_name)} ({code(header.model)})"
    yield f"kvcheck {escape(header.kvcheck)} · model {model} · {escape(commit(header))}"
    yield ""
    for title, values in (("settings", header.settings), ("machine", header.machine), ("packages", header.packages)):
        yield f"{title}: " + ", ".join(f"{escape(name)} {code(value)}" for name, value in sorted(values.items()))
        yield ""
    yield "</details>"


def commit(header: RunHeader) -> str:
    """What the folder that the run was started in held."""
    return f"{header.git[:12]}{' with local changes' if header.dirty else ''}" if header.git else "not in git"


def outcome(run: Run, finished: bool = True) -> str:
    """In one word. What is inconclusive for one method has not passed."""
    if _failed(run):
        return "failed"
    if not finished:
        return "interrupted"
    found = {verdict.standing(run, method).outcome for method in verdict.judged(run)}  # none of a zoo or of findings
    return next((word for word in (verdict.INCONCLUSIVE, verdict.OPEN) if word in found), "passed")


def _failed(run: Run) -> bool:
    """Whether anything failed, with or without a result."""
    return bool(
        run.failures
        or any(verdict.standing(run, method).outcome == verdict.FAIL for method in rows.methods(run))
        or any(one.outcome == FAILS for one in run.properties)
        or any(bool(one.properties or one.cases) == one.correct for one in run.zoo)
        or any(one.outcome == "not shown" for one in run.findings)
    )


def of_method(run: Run, method: str, known: References) -> Iterator[str]:
    """Everything about one method."""
    records, judged = rows.of_method(run, method), rows.judged(run, method)
    yield f"### {code(method)}: {summary.count_text(run, method)}"
    yield ""
    yield statement.plain(run, method, known, code)
    yield ""
    for table in summary.tables(run, judged, known) if judged else ():
        yield from table.markdown()
    facts = [f"- {escape(' '.join(line.split()))}" for line in summary.facts(run, records, known)]
    yield from [*facts, ""] if facts else ()
    found = rows.failed_verdicts(run, records)
    if found:
        yield f"<details{' open' if found[0][1].outcome == 'fail' else ''}><summary>Not passed</summary>"
        yield ""
        for table in summary.not_passed(found, run.header.settings):
            yield from table.markdown()
        yield from ("</details>", "")
    floor = list(summary.not_informative(run, records))
    yield from (f"- not informative: {code(line)}" for line in floor)
    yield from [""] if floor else ()
    unmeasured = rows.not_measured(run, records)
    yield from (f"- not measured: {code(what)} ({len(names)})" for what, names in sorted(unmeasured.items()))
    yield from [""] if unmeasured else ()
    for name, text in rows.errors(run).items():
        if name.endswith(f"|{method}"):
            said = "; ".join([rows.reason(text), *rows.remedy(text)])
            yield f"- **{escape(name.partition('|')[0])}** failed: {code(said)}"
