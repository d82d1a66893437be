"""Two runs, or a run and the stored baselines, side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.record import CaseRecord, Run
from kvcheck.judging import stats
from kvcheck.judging.pairing import Pairs, differences, is_right_or_wrong, pair, score
from kvcheck.judging.questions import DriftRule, drop_interval, judge_bytes, judge_regression

OUTCOMES = ("worse", "better", "same", "inconclusive", "missing", "not comparable")


@dataclass(frozen=True)
class Row:
    """One case (or one capability) of one method, before and after.

    before, after: mean score in [0, 1]. drop with [low, high]: points of accuracy, above 0 is worse. p: of "changed",
    two-sided, as Holm's method adjusts it over the rows. ratio_before, ratio_after: KV bytes as a share of fp16's.
    outcome: one of OUTCOMES; reason says why for the last two, and what the gate says. None where a side has nothing.
    fails: the gate, with the first side as the method's own record, would fail by scores, drift or bytes: it is worse.
    """

    what: str
    method: str
    capability: str
    outcome: str
    n: int = 0
    before: float | None = None
    after: float | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None
    lost: int = 0
    won: int = 0
    p: float | None = None
    ratio_before: float | None = None
    ratio_after: float | None = None
    reason: str = ""
    fails: bool = False


def compare_runs(before: Run, after: Run, alpha: float = 0.05) -> list[Row]:
    """Case by case, then capability by capability. A case that only one run has is a "missing" row.

    One method in each run is compared with the other whatever their names; otherwise methods pair up by name.
    """
    methods = [sorted({record.method for record in run.cases}) for run in (before, after)]
    renamed = len(methods[0]) == len(methods[1]) == 1 and methods[0] != methods[1]
    old = {(record.case.key, "" if renamed else record.method): record for record in _judgeable(before)}
    new = {(record.case.key, "" if renamed else record.method): record for record in _judgeable(after)}
    return _rows(new, old.get, list(old), alpha)


def _judgeable(run: Run) -> list[CaseRecord]:
    """The records with answers to compare. A latency item has none: seconds of two sessions are not compared."""
    return [record for record in run.cases if record.capability != "latency"]


def regressions(rows: Iterable[Row]) -> list[Row]:
    """The rows that `--fail-on-regression` fails on: worse, missing or not comparable. Nothing passes unseen."""
    return [row for row in rows if row.outcome in ("worse", "missing", "not comparable")]


_Key = tuple[str, str]


def _rows(
    new: dict[_Key, CaseRecord], find: Callable[[_Key], CaseRecord | None], expected: list[_Key], alpha: float
) -> list[Row]:
    rows: list[Row] = []
    groups: dict[tuple[str, str], list[tuple[CaseRecord, Pairs]]] = {}
    cells = max(1, len(new))
    for key in sorted(new):
        record = new[key]
        row, pairs = _case_row(record, key, find, alpha / cells)
        rows.append(row)
        if pairs is not None:
            groups.setdefault((record.capability, record.method), []).append((record, pairs))
    for name, method in sorted(set(expected) - new.keys()):
        rows.append(Row(name, method, "", "missing", reason="only the first run has it"))
    rows = _adjusted(rows, alpha)
    capabilities = [
        _capability_row(name, method, parts, alpha / max(1, len(groups)))
        for (name, method), parts in sorted(groups.items())
    ]
    return rows + _adjusted(capabilities, alpha)


def _case_row(
    record: CaseRecord, key: _Key, find: Callable[[_Key], CaseRecord | None], alpha: float
) -> tuple[Row, Pairs | None]:
    blank = Row(record.case.key, record.method, record.capability, "missing", reason="no record to compare with")
    if not record.samples:
        return replace(blank, reason="no samples"), None
    blank = replace(blank, after=record.accuracy, n=len(record.samples))
    try:
        other = find(key)
        if other is None:
            return blank, None
        shared = _shared(record, other)
        pairs = pair(shared, other, other.method)
    except KvcheckError as error:
        kind = "not comparable" if isinstance(error, BaselineError) else "missing"
        return replace(blank, outcome=kind, reason=error.message), None
    complete = replace(shared, case=replace(shared.case, n=len(shared.samples)))
    row = _measured(blank, complete, other, pairs, alpha)
    ratios = [one.memory.ratio if one.memory is not None else None for one in (other, record)]
    row = replace(row, ratio_before=ratios[0], ratio_after=ratios[1])
    if record.method != other.method:
        return row, pairs
    try:
        return _judged(row, complete, record, other, alpha), pairs
    except KvcheckError as error:
        return replace(blank, outcome="not comparable", reason=error.message), None


def _judged(row: Row, complete: CaseRecord, record: CaseRecord, other: CaseRecord, alpha: float) -> Row:
    """The row with the gate's answers where the method is the same. Bytes are those of all contexts of each side."""
    regression = judge_regression(complete, other, alpha, DriftRule())
    verdicts = [one for one in (regression, judge_bytes(record, other, None)) if one is not None]
    bad = [one.reason for one in verdicts if one.outcome == "fail"]
    return replace(row, fails=bool(bad), reason="; ".join(bad))


def _shared(record: CaseRecord, other: CaseRecord) -> CaseRecord:
    """The record cut down to the contexts that the other has too (one of the two may have stopped early)."""
    known = {sample.index for sample in other.samples}
    kept = tuple(sample for sample in record.samples if sample.index in known)
    return replace(record, samples=kept) if kept else record


def _measured(blank: Row, record: CaseRecord, other: CaseRecord, pairs: Pairs, alpha: float) -> Row:
    drops = differences(pairs)
    lost, won = stats.count_changes(drops)
    low, high = drop_interval(record, other, pairs, alpha)
    before = sum(turn.score for _, then in pairs for turn in then.turns) / sum(len(then.turns) for _, then in pairs)
    p = _two_sided(pairs, drops, lost, won)
    return replace(
        blank,
        n=len(drops),
        before=before,
        drop=100 * float(np.mean(drops)),
        low=100 * low,
        high=100 * high,
        lost=lost,
        won=won,
        p=p,
        reason="",
    )


def _two_sided(pairs: Pairs, drops: list[float], lost: int, won: int) -> float:
    if is_right_or_wrong(pairs):
        return stats.mcnemar(lost, won)
    return min(1.0, 2 * min(stats.sign_flip(drops), stats.sign_flip([-drop for drop in drops])))


def _capability_row(name: str, method: str, parts: list[tuple[CaseRecord, Pairs]], alpha: float) -> Row:
    """All contexts of a capability together: the mean over contexts, each context one unit."""
    pairs = [both for _, cases in parts for both in cases]
    drops = differences(pairs)
    lost, won = stats.count_changes(drops)
    yardstick = float(np.mean([score(then) for _, then in pairs]))
    low, high = stats.bootstrap_interval(drops, alpha, lowest=yardstick - 1.0, highest=yardstick)
    before, after = (
        float(np.mean([np.mean([turn.score for turn in both[side].turns]) for both in pairs])) for side in (1, 0)
    )
    row = Row(f"{name} ({len(parts)} cases)", method, name, "same", len(pairs), before, after)
    p = _two_sided(pairs, drops, lost, won)
    drop = 100 * float(np.mean(drops))
    return replace(row, drop=drop, low=100 * low, high=100 * high, lost=lost, won=won, p=p)


def _adjusted(rows: list[Row], alpha: float) -> list[Row]:
    """Holm over the rows that have a p-value. Changed: p <= alpha, or an interval beyond what numerics may flip."""
    measured = [at for at, row in enumerate(rows) if row.p is not None]
    for at, p in zip(measured, stats.holm([rows[at].p or 0.0 for at in measured]), strict=True):
        row = rows[at]
        drop, noise = row.drop or 0.0, DriftRule().points
        if p <= alpha or (row.low or 0.0) > noise or (row.high or 0.0) < -noise:
            outcome = "worse" if drop > 0 else "better"
        else:
            outcome = "same" if not row.lost and not row.won else "inconclusive"
        outcome = "worse" if row.fails else outcome
        rows[at] = replace(row, p=p, outcome=outcome)
    return rows
