"""At the end of a run, in the process that prints the summary: did every selected item come to an end and a verdict?

Whatever happened in a test, in a worker or in a method: an item without a result, a result without a verdict, and a
failure that pytest counts as something else (skipped, expected, run again until it passed) make the run red.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from kvcheck.core.record import FAILS
from kvcheck.core.settings import Settings
from kvcheck.report import explain
from kvcheck.store.journal import Ended, Item

GATE = "a test measures and judges its case by `kv_case.gate()`, or by `kv_case.check(kv_case.run())`"
NEVER = "it was selected and never ran"
LEAVE_OUT = "to leave a case out, deselect it: -k, -m or --deselect"


@dataclass
class Result:
    """What the reports of one item said. outcome: as pytest counts it, "" as long as nothing did."""

    outcome: str = ""
    text: str = ""
    ended: Ended | None = None

    def take(self, report: pytest.TestReport, ended: Ended | None) -> None:
        """A report of the item came in. What failed once has failed."""
        if ended is not None:
            failed = self.ended is not None and self.ended.failure
            self.ended = self.ended if failed else ended
        if report.failed:
            self.outcome, self.text = "failed", self.text or report.longreprtext
        elif self.outcome != "failed" and (report.when == "call" or report.skipped):
            expected = hasattr(report, "wasxfail")
            self.outcome = ("xfailed" if report.skipped else "xpassed") if expected else report.outcome
            self.text = self.text or (str(report.longrepr) if report.skipped else "")


def problems(selected: Iterable[Item], results: Mapping[str, Result], settings: Settings) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of every item that failed or has no verdict, beside those that say so themselves."""
    for item in selected:
        result = results.get(item.nodeid, Result())
        text = _of_item(item, result, settings)
        if text:
            yield item.name, text


def _of_item(item: Item, result: Result, settings: Settings) -> str:
    """What is wrong with an item, "" where it has a verdict that pytest counts as it is, or a table says why."""
    ended, outcome = result.ended, result.outcome
    own = _failure(ended, settings)
    if outcome == "failed":
        return "" if ended is not None and _listed(ended) else own or result.text or "it failed"
    if own:
        counted = f"pytest counts it as {outcome}" if outcome else "pytest has no outcome of it"
        return f"{own}\n  {counted}: a failure stays a failure; {LEAVE_OUT}"
    if not outcome:
        return NEVER
    if ended is not None and _has_verdict(ended, settings):
        return ""
    case = item.kind == "kv_case"
    if case and ended is not None and ended.record is not None:
        return f"it was measured and not judged\n  {GATE}"
    why = f" ({result.text})" if result.text else ""
    return f"it has no result: {outcome}{why}\n  {GATE if case else LEAVE_OUT}"


def _listed(ended: Ended) -> bool:
    """Whether a table of the report says what failed."""
    held = ended.property is None or ended.property.outcome == FAILS
    return bool(ended.property or ended.zoo or ended.findings) and held


def _failure(ended: Ended | None, settings: Settings) -> str:
    """What an item itself says that it failed with."""
    if ended is None:
        return ""
    if ended.property is not None and ended.property.outcome == FAILS:
        return f"the property does not hold: {ended.property.reason}"
    bad = [one.question for one in ended.verdicts if explain.fails_case(one, settings.strict)]
    return ended.failure or (f"the verdict on {', '.join(bad)} is fail" if bad else "")


def _has_verdict(ended: Ended, settings: Settings) -> bool:
    """Whether an item that did not fail has what makes it pass."""
    if ended.property is not None or ended.zoo is not None or ended.findings or ended.skipped:
        return True
    record = ended.record
    if record is None:
        return False
    cost = bool(record.latency or record.not_measured) and not record.samples
    return cost or bool(ended.verdicts) or settings.budget.get("drop", 0) is None
