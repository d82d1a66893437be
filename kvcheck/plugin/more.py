"""`--kv-n=auto`: more contexts after the selected cases, where they tell most, until a run is decided.

A case is measured again with the next seed: other contexts of the same kind, judged as any case is. Each round takes as
many as there are of the kinds that hold most of what is uncertain, for what they cost. fp16 is measured beside the
method where no record has it. How often that may be asked is known beforehand, and each look gets its part of alpha
(kvcheck/judging/pooled.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import pytest

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import RUN, CaseId, CaseRecord, Verdict
from kvcheck.judging.pools import AGAINST_FP16
from kvcheck.plugin import opening, state
from kvcheck.plugin.case import Measuring, progress
from kvcheck.plugin.gate import Gate, so_far
from kvcheck.plugin.item import attempt
from kvcheck.report import explain
from kvcheck.store.journal import Ended

ASKED = {"budget", *AGAINST_FP16}
"""Questions that more contexts can answer; a method's own record has no more of them."""
Plan = Mapping[str, Iterable[CaseId]]
"""Cases by method."""


def undecided(found: Mapping[str, Iterable[Verdict]]) -> bool:
    """Whether the verdict on a run is left open by what more contexts may settle, and nothing of it has failed."""
    return any(map(_open, found.get(RUN, ()))) and not any(
        one.outcome == "fail" for verdicts in found.values() for one in verdicts
    )


def _open(verdict: Verdict) -> bool:
    return verdict.outcome == "inconclusive" and verdict.question in ASKED


def further(cases: Iterable[CaseId], every: Iterable[CaseId], times: int) -> Iterator[CaseId]:
    """Each of the cases again under the next seeds: as many as it has been measured under, `times` in all at most."""
    taken: dict[CaseId, set[int]] = {}
    for case in every:
        taken.setdefault(replace(case, seed=0), set()).add(case.seed)
    for case in cases:
        seeds = taken[replace(case, seed=0)]
        first, have = min(seeds), len(seeds)
        for at in range(have, min(2 * have, times)):
            yield replace(case, seed=first + at)


class More:
    """Measures further cases in this process."""

    def __init__(self, config: pytest.Config, gate: Gate) -> None:
        self.config = config
        self.state = state.of(config)
        self.gate = gate
        self.records = gate.records

    def take(self, plan: Plan) -> Iterator[Ended]:
        """What came of the cases of each method, fp16 before it where there is no record of it."""
        pairs = [(case, method) for method, cases in plan.items() for case in cases]
        beside = dict.fromkeys(case for case, method in pairs if self._lacks_fp16(case))
        todo = [*((case, "fp16") for case in beside), *pairs]
        engine = opening.open_session(self.config)
        shown = progress(self.config)
        shown.items += len(todo)
        for case, method in dict.fromkeys(todo):
            measuring = Measuring(self.state, engine, case, method, self._look, shown)
            record, problem = measuring.run(partial(attempt, timeout=self.state.settings.timeout))
            shown.stop()
            shown.extra += 1
            yield self._ended(case, method, record, problem)

    def _lacks_fp16(self, case: CaseId) -> bool:
        fp16, _ = self.gate.references(case, "")
        return fp16 is None or len(fp16.samples) < case.n

    def plan(self, found: Mapping[str, Mapping[str, tuple[Verdict, ...]]]) -> dict[str, list[CaseId]]:
        """Cases by method that may settle what is open. found: verdicts of each method, by scope."""
        plan = {}
        for method, verdicts in found.items():
            if not undecided(verdicts):
                continue
            question = next(one.question for one in verdicts[RUN] if _open(one))
            records = [one for one in self.records.values() if one.method == method and one.samples]
            first = [one for one in self.gate.most_telling(records, question) if one.seed == self.state.settings.seed]
            plan[method] = list(further(first, [one.case for one in records], self.state.settings.times))
        return {method: cases for method, cases in plan.items() if cases}

    def _ended(self, case: CaseId, method: str, record: CaseRecord | None, problem: str) -> Ended:
        """What came of a case. It is judged as any other; fp16 that was measured beside a method is not under test."""
        verdicts: tuple[Verdict, ...] = ()
        if record is not None:
            self.records[str(case), method] = record
        if record is not None and method in self.state.settings.methods:
            try:
                judged = self.gate.judge(record)
                record, verdicts = judged.record, judged.verdicts
                if any(explain.fails_case(one, self.state.settings.strict) for one in verdicts):
                    problem = self.gate.message(judged)
            except KvcheckError as error:
                problem = f"{case}  {method}\n{error}"
        ended = Ended(str(case), method, self.state.model, record, verdicts, problem)
        if self.state.journal is not None:
            self.state.journal.end(ended)
        return ended

    def _look(self, record: CaseRecord) -> tuple[str, bool]:
        return so_far(record), False
