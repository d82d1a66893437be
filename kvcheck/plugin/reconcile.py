"""At the end of a run, in the process that prints the summary: did every selected item come to an end and a verdict?

Whatever happened in a test, in a worker or in a method: an item without a result, a result without a verdict, and a
failure that pytest counts as something else (skipped, expected, run again until it passed) make the run red.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from kvcheck.core.record import FAILS
from kvcheck.core.settings import Settings
from kvcheck.plugin import findings, items, zoo
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
    told: set[str] = field(default_factory=set)

    def take(self, report: pytest.TestReport, ended: Ended | None) -> None:
        """A report of the item came in. What failed once has failed."""
        self.told |= {name for name, _ in report.user_properties}
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
    """What is wrong with an item, "" where it has a verdict that pytest counts as it is."""
    ended, outcome = result.ended, result.outcome
    own = _failure(item, ended, settings)
    if outcome == "failed":
        listed = ended is not None and ended.property is not None and ended.property.outcome == FAILS
        return "" if listed or item.kind in (items.FINDING, items.CANDIDATE) else own or result.text or "it failed"
    if own:
        counted = f"pytest counts it as {outcome}" if outcome else "pytest has no outcome of it"
        return f"{own}\n  {counted}: a failure stays a failure; {LEAVE_OUT}"
    if not outcome:
        return NEVER
    if _has_verdict(item, result, settings):
        return ""
    why = f" ({result.text})" if result.text else ""
    if ended is not None and ended.record is not None and item.kind == items.CASE:
        return f"it was measured and not judged\n  {GATE}"
    return f"it has no result: {outcome}{why}\n  {GATE if item.kind == items.CASE else LEAVE_OUT}"


def _failure(item: Item, ended: Ended | None, settings: Settings) -> str:
    """What an item itself says that it failed with."""
    if ended is None:
        return ""
    if ended.property is not None and ended.property.outcome == FAILS:
        return f"the property does not hold: {ended.property.reason}"
    bad = [one.question for one in ended.verdicts if explain.fails(one, settings.strict)]
    return ended.failure or (f"the verdict on {', '.join(bad)} is fail" if bad else "")


def _has_verdict(item: Item, result: Result, settings: Settings) -> bool:
    """Whether an item that did not fail has what makes it pass."""
    ended = result.ended
    if item.kind == items.FINDING:
        return findings.PROPERTY in result.told
    if item.kind == items.CANDIDATE:
        return zoo.RESULT in result.told or (result.outcome == "skipped" and zoo.NO_PLACE in result.text)
    if ended is None:
        return False
    if item.kind == items.PROPERTY:
        return ended.property is not None
    if item.kind == items.LATENCY:
        return ended.record is not None and bool(ended.record.latency or ended.record.not_measured)
    lifted = settings.budget.get("drop", 0) is None
    return ended.record is not None and (bool(ended.verdicts) or lifted)
