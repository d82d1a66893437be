"""A run as one comment on a pull request: what a reviewer needs in a dozen lines, all else behind a fold."""

from __future__ import annotations

from collections.abc import Iterator

from kvcheck.core.escape import code
from kvcheck.core.escape import markdown as escape
from kvcheck.core.front import command
from kvcheck.core.record import AGAINST_OWN, RUN, CaseRecord, Run, Verdict, is_scope
from kvcheck.core.settings import Settings
from kvcheck.report import markdown, rows, verdict
from kvcheck.report.rows import References
from kvcheck.report.text import interval, short

MARK = "<!-- kvcheck -->"
"""The first line: by it the comment is found again and brought up to date."""
LINES = 15
"""Before the fold."""
LONGEST = 65_000
"""Characters; GitHub takes 65,536."""
WIDTH = 300
"""Characters of a line before the fold."""
CUT = "\n\n… cut: the whole report is in the run's artifacts.\n"


def text(run: Run, stored: References | None = None, title: str = "kvcheck") -> str:
    """The comment. stored: fp16 records as `rows.references` takes them. title: tells several comments apart."""
    mark = MARK if title == "kvcheck" else MARK.replace("kvcheck", f"kvcheck {escape(title)}")
    whole = "\n".join(markdown.lines(run, stored))
    first = [mark, f"### {escape(title)}: {_outcome(run)}", "", *_first(run)]
    head = "\n".join(first[:LINES])
    fold = "\n\n<details><summary>All numbers</summary>\n\n"
    end = "\n\n</details>\n"
    room = LONGEST - len(head) - len(fold) - len(end) - len(CUT)
    if len(whole) > room:
        whole = whole[:room].rpartition("\n")[0] + _closed(whole[:room]) + CUT
    return head + fold + whole + end


def _closed(cut: str) -> str:
    """What closes the folds that a cut has left open."""
    return "\n</details>" * max(0, cut.count("<details") - cut.count("</details>"))


def _outcome(run: Run) -> str:
    methods = verdict.judged(run)
    failed = [name for name in methods if verdict.standing(run, name).outcome == verdict.FAIL]
    if failed:
        return f"failed ({len(failed)} of {len(methods)} methods)" if len(methods) > 1 else "failed"
    return "failed" if run.failures else markdown.outcome(run)


def _first(run: Run) -> Iterator[str]:
    """A line for every method, then what failed: recorded → now, why, and the command that shows it again."""
    methods = verdict.judged(run)
    for method in methods[: LINES // 3]:
        (outcome, said), *_ = verdict.said(run, verdict.standing(run, method))
        yield short(f"- **{outcome}** {code(method)}: {escape(said)}", WIDTH)
    if len(methods) > LINES // 3:
        yield f"- and {len(methods) - LINES // 3} more methods, below"
    yield ""
    failed = [*_scopes(run), *_cases(run)]
    room = LINES - 7 - min(len(methods), LINES // 3)
    yield from (short(f"- {line}", WIDTH) for line in failed[:room])
    if len(failed) > room:
        yield f"- and {len(failed) - room} more failures, below"
    bad = [name for name in methods if verdict.standing(run, name).outcome == verdict.FAIL]
    if bad:
        settings = run.header.settings
        options = {"model": run.header.model_name} if run.header.model_name != "mini" else {}
        usual = {"profile": Settings().profile, "against": Settings().against, "budget": ""}
        options |= {name: value for name in usual if (value := settings.get(name, usual[name])) != usual[name]}
        yield f"- again: {code(command(*bad[:3], **options))}"


def _scopes(run: Run) -> Iterator[str]:
    """Verdicts on many contexts that failed; those on the whole run stand in the line of the method."""
    for name, verdicts in run.verdicts.items():
        scope, _, method = name.partition("|")
        if is_scope(scope) and scope != RUN:
            for one in verdicts:
                if one.outcome == verdict.FAIL:
                    yield f"{code(method)}, {scope}: {escape(verdict.number(one, run.header.settings))}"


def _cases(run: Run) -> Iterator[str]:
    """Cases that failed, with what was recorded and what is now; those without a verdict with their error."""
    for record, one in rows.failed_verdicts(run, run.cases):
        if one.outcome == verdict.FAIL:
            case = f"{record.case.task} {record.case.mode} {record.case.length}"
            yield f"{code(record.method)}, {case}: {_change(record, one)}"
    for name, why in rows.errors(run).items():
        case, _, method = name.partition("|")
        if not is_scope(case):
            yield f"{code(method)}, {escape(case)}: {escape(rows.reason(why))}"


def _change(record: CaseRecord, one: Verdict) -> str:
    """What a verdict compares: recorded → now, and why it fails."""
    if one.question in ("budget", "regression"):
        then = record.accuracy + one.value / 100
        whose = "recorded" if one.question in AGAINST_OWN else "fp16"
        span = interval(one.low, one.high)
        return f"accuracy {then:.3f} ({whose}) → {record.accuracy:.3f}, {one.value:.1f} points lost {span}"
    if one.question == "bytes":
        return f"KV bytes: {escape(one.reason)}"
    return f"{one.question} {one.value:.3g}, allowed {one.limit:.3g}; {escape(one.reason)}"
