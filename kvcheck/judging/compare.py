"""Two runs, judged as the gate judges: the second, with the first in the place of its records.

A method that both runs have is held to its own record, which is what the first run measured. Where each run has one
method and they are two, the second is held to a budget against the first, as against fp16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import COSTS, FAILS, HOLDS, RUN, CaseRecord, Run, Verdict
from kvcheck.judging.acted import judge_acted
from kvcheck.judging.asked import budget_of, compared
from kvcheck.judging.budget import Budget, case_alpha, judge, judge_ratios
from kvcheck.judging.informative import why_not_here
from kvcheck.judging.pairing import pair
from kvcheck.judging.pooled import judge_pooled
from kvcheck.judging.pools import AGAINST_FP16
from kvcheck.judging.questions import judge_bytes

Limits = Mapping[str, float | None]
LATENCY = ("ttft", "tpot")
"""Limits on ratios to fp16, each of one session: the seconds of two are not compared."""


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    run: the second run with these verdicts; its failures are the cases that were not compared, with the reason.
    known: what the cases were judged against, by method and case.key. pairs: (method, its name in the first run). held:
    how many properties hold in both.
    """

    run: Run
    known: Mapping[str, Mapping[str, CaseRecord]]
    pairs: tuple[tuple[str, str], ...]
    held: int

    def fails(self, strict: bool = False) -> bool:
        """Whether anything is worse for sure or was not compared; with strict, also where anything is inconclusive."""
        outcomes = {one.outcome for verdicts in self.run.verdicts.values() for one in verdicts}
        nothing = not outcomes and not self.held
        return nothing or bool(self.run.failures) or "fail" in outcomes or (strict and "inconclusive" in outcomes)


@dataclass(frozen=True)
class _Two:
    """A record of the second run, what of it the first has too, and those of the first run: that and fp16's, if any."""

    record: CaseRecord
    shared: CaseRecord
    other: CaseRecord
    full: CaseRecord | None

    @property
    def fp16(self) -> CaseRecord | None:
        """fp16's record in the first run, or that which is taken for it."""
        return self.full if self.record.method == self.other.method else self.other

    @property
    def why(self) -> str:
        """Why the case is not informative: by fp16's record, or by that which is taken for it."""
        return why_not_here(self.record, self.fp16)

    def references(self, limits: Limits) -> tuple[CaseRecord | None, CaseRecord | None, str]:
        """(fp16, own, against): what the record of the first run stands for.

        The same method is held to it as its own record; as fp16, too, where the user set a limit against that.
        """
        if self.record.method != self.other.method:
            return self.other, None, "fp16"
        asked = any(limits.get(name) is not None for name in AGAINST_FP16)
        return self.other if asked else None, self.other, "both"


def compare_runs(before: Run, after: Run, limits: Limits | None = None, alpha: float = 0.05) -> Comparison:
    """Judge the second run by the first. limits: those that the user set. A case that only one run has is a failure."""
    limits = limits or {}
    before, after = _alike(before, after), _alike(after, before)
    pairs, failures = _methods(before, after)
    held, broken = _properties(before, after, pairs)
    failures |= broken
    settings = {name: value for name, value in after.header.settings.items() if name != "budget"}
    settings |= {"budget": ",".join(f"{name}={value}" for name, value in limits.items())} if limits else {}
    header = replace(after.header, settings=settings)
    full = {one.case.key: one for one in _of(before, "fp16")}
    run, known = Run(header, (), {}, failures), dict[str, Mapping[str, CaseRecord]]()
    for mine, other in pairs:
        run, known[mine] = _judged(run, _of(before, other), _of(after, mine), full, limits, alpha)
    return Comparison(run, known, pairs, held)


def _alike(run: Run, other: Run) -> Run:
    """Without what --kv-n=auto measured under further seeds and the other run did not, and fp16 beside it."""
    seed = run.header.settings.get("seed")
    methods = {one.method for one in run.cases if str(one.case.seed) == seed}
    known = {one.case.key for one in other.cases}
    cases = (
        one
        for one in run.cases
        if seed is None or str(one.case.seed) == seed or (one.method in methods and one.case.key in known)
    )
    return replace(run, cases=tuple(cases))


def _methods(before: Run, after: Run) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """(method of the second run, its name in the first), and the cases of methods that only one run has."""
    old, new = (sorted({record.method for record in run.cases}) for run in (before, after))
    if len(old) == len(new) == 1:
        return ((new[0], old[0]),), {}
    failures = {
        f"{record.case}|{record.method}": f"missing: only the {which} run has {record.method}"
        for which, run, others in (("first", before, new), ("second", after, old))
        for record in run.cases
        if record.method not in others
    }
    return tuple((name, name) for name in new if name in old), failures


def _properties(before: Run, after: Run, pairs: Sequence[tuple[str, str]]) -> tuple[int, dict[str, str]]:
    """How many properties that held in the first run hold in the second, and those that fail there, with the reason."""
    held = {(one.name, one.method) for one in before.properties if one.outcome == HOLDS}
    names = dict(pairs)
    asked = [one for one in after.properties if (one.name, names.get(one.method, one.method)) in held]
    return sum(one.outcome == HOLDS for one in asked), {
        f"{one.name}|{one.method}": f"a property that held in the first run fails: {one.reason}"
        for one in asked
        if one.outcome == FAILS
    }


def _of(run: Run, method: str) -> list[CaseRecord]:
    return [record for record in run.cases if record.method == method]


def _judged(
    run: Run,
    before: Sequence[CaseRecord],
    after: Sequence[CaseRecord],
    full: Mapping[str, CaseRecord],
    limits: Limits,
    alpha: float,
) -> tuple[Run, dict[str, CaseRecord]]:
    """The run with the verdicts on one method, and what its cases were judged against. full: fp16 of the first run."""
    method = after[0].method
    failures, verdicts, both = dict(run.failures), dict(run.verdicts), list[_Two]()
    old, new = ({one.case.key: one for one in records if one.capability != COSTS} for records in (before, after))
    level = case_alpha(alpha, len(new))
    for key in sorted({*old, *new}):
        record, other = new.get(key), old.get(key)
        if record is None or other is None:
            name = f"{(old | new)[key].case}|{method}"
            failures[name] = f"missing: only the {'first' if record is None else 'second'} run has it"
            continue
        try:
            two = _two(record, other, full.get(key))
            verdicts[f"{two.shared.case}|{method}"] = _judge(two, limits, level)
            both.append(two)
        except KvcheckError as error:
            failures[f"{record.case}|{method}"] = f"not comparable: {error.message}"
    verdicts |= {f"{scope}|{method}": one for scope, one in _pooled(both, limits, alpha).items()}
    costs = [record for record in after if record.capability == COSTS]
    for record in costs:
        verdicts[f"{record.case}|{method}"] = judge_ratios(record.latency, Budget(**limits))
    timed = {one.what for record in costs for one in record.latency}
    for name in LATENCY:
        if limits.get(name) is not None and name not in timed:
            failures[f"{name}|{method}"] = "not comparable: the second run did not measure it"
    run = replace(
        run,
        cases=(*run.cases, *(two.shared for two in both), *costs),
        verdicts={name: found for name, found in verdicts.items() if found},
        failures=failures,
    )
    return run, {two.shared.case.key: two.other for two in both}


def _two(record: CaseRecord, other: CaseRecord, full: CaseRecord | None) -> _Two:
    """Both, with the contexts that they share: one of the two may have stopped early, or have been asked for fewer."""
    indices = {sample.index for sample in other.samples}
    samples = tuple(sample for sample in record.samples if sample.index in indices)
    case = replace(record.case, n=min(record.case.n, other.case.n))
    return _Two(record, replace(record, case=case, samples=samples) if samples else record, other, full)


def _judge(two: _Two, limits: Limits, alpha: float) -> tuple[Verdict, ...]:
    """The verdicts on one case. Bytes are those of all contexts of each side. Raises KvcheckError."""
    record, shared, other = two.record, two.shared, two.other
    pair(shared, other, other.method)
    fp16, own, against = two.references(limits)
    budget = budget_of(limits, own, against)
    verdicts = judge(shared, fp16, own, budget, alpha, against, why=two.why)
    if len(shared.samples) == len(record.samples):
        return verdicts
    size = judge_bytes(record, own, budget.bytes)
    return tuple(size if one.question == "bytes" and size is not None else one for one in verdicts)


def _pooled(both: Sequence[_Two], limits: Limits, alpha: float) -> dict[str, tuple[Verdict, ...]]:
    cases = []
    for two in both:
        fp16, own, against = two.references(limits)
        cases.append(compared(two.shared, fp16, own, budget_of(limits, own, against), against, two.why))
    if not cases:
        return {}
    found = judge_pooled(cases, Budget(**limits), alpha)
    acted = judge_acted([(two.shared, two.fp16) for two in both])
    return found if acted is None else {**found, RUN: (*found.get(RUN, ()), acted)}
