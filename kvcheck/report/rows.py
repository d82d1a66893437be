"""A run as rows: what the terminal and the Markdown report both show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvcheck.core.record import (
    AGAINST_OWN,
    AS_RECORDED,
    CAPABILITIES,
    MODES,
    NOT_INFORMATIVE,
    CaseRecord,
    Run,
    SampleRecord,
    Verdict,
    context_score,
    is_scope,
)
from kvcheck.judging.informative import told
from kvcheck.judging.pairing import identical, same_inputs

References = Mapping[str, CaseRecord]
"""fp16 records by `case.key`."""
LONG = 12
"""Turns that are told one by one. Conversations that have more are told by quarters."""


@dataclass(frozen=True)
class Row:
    """Cases pooled: a capability, a task, a mode or a length.

    before, after: mean accuracy of fp16 and of the method on the same contexts; None where fp16 is not known, and both
    where nothing is asked.
    drop with its interval in points. outcomes: cases by outcome ("pass", "fail", "inconclusive", "error",
    NOT_INFORMATIVE). Cases that are not informative count among these alone, as in the verdicts on several cases.
    floor: none is informative; the means are theirs then, and there is no drop.
    identical: every answer and score is fp16's. alone: nothing but itself to compare with (fp16 without a record).
    """

    label: str
    before: float | None
    after: float | None
    drop: float | None
    low: float | None
    high: float | None
    outcomes: Mapping[str, int]
    n: int
    chance: float
    identical: bool = False
    alone: bool = False
    floor: bool = False


@dataclass(frozen=True)
class Part:
    """The answers of one kind in the cases of a task: mean score of fp16 (None where not known) and of the method."""

    task: str
    subtask: str
    before: float | None
    after: float
    answers: int


@dataclass(frozen=True)
class Quarters:
    """Long conversations of a task, by quarters of their turns: mean score of fp16 and of the method, and mean KL to
    fp16 in nats. None where not known.
    """

    task: str
    before: list[float] | None
    after: list[float] | None
    kl: list[float] | None


def key(record: CaseRecord) -> str:
    """How the run names the verdicts of a record."""
    return f"{record.case}|{record.method}"


def methods(run: Run) -> list[str]:
    """The methods of a run, in the order of their records; those that only failed come last."""
    failed = (name.partition("|")[2] for name in run.failures)
    return list(dict.fromkeys([*(record.method for record in run.cases), *failed]))


def of_method(run: Run, method: str) -> list[CaseRecord]:
    """The records of one method."""
    return [record for record in run.cases if record.method == method]


def judged(run: Run, method: str) -> list[CaseRecord]:
    """The records of one method that hold samples; a record of latency alone has none."""
    return [record for record in of_method(run, method) if record.samples]


def references(run: Run, stored: References | None = None) -> dict[str, CaseRecord]:
    """fp16 records: the stored ones, which the verdicts are about, above those of the run itself."""
    found = {record.case.key: record for record in run.cases if record.method == "fp16"}
    return {**found, **(stored or {})}


def outcome(run: Run, record: CaseRecord) -> str:
    """The worst outcome of a case: "error" where it failed without a verdict that says so."""
    outcomes = {verdict.outcome for verdict in run.verdicts.get(key(record), ())}
    for name in ("fail", "inconclusive"):
        if name in outcomes:
            return name
    if key(record) in run.failures:
        return "error"
    if not record.samples and not record.latency:
        return "not measured"
    if NOT_INFORMATIVE in outcomes:
        return NOT_INFORMATIVE
    return "pass" if outcomes else "not judged"


def why_not(run: Run, record: CaseRecord) -> str:
    """Why a case is not informative, "" where it is: no drop of its scores is shown then."""
    return told(run.verdicts.get(key(record), ()))


def informative(run: Run, records: Iterable[CaseRecord]) -> list[CaseRecord]:
    """The records that can show a loss of accuracy."""
    return [record for record in records if record.scored and not why_not(run, record)]


def outcomes(run: Run, records: Iterable[CaseRecord]) -> dict[str, int]:
    """Cases by outcome."""
    found: dict[str, int] = {}
    for record in records:
        name = outcome(run, record)
        found[name] = found.get(name, 0) + 1
    return found


def errors(run: Run) -> dict[str, str]:
    """The failures that no verdict explains: the method broke, or there was nothing to compare with."""
    explained = {key(record) for record in run.cases if outcome(run, record) in ("fail", "inconclusive")}
    explained |= run.verdicts.keys() - {key(record) for record in run.cases}  # of several cases together
    return {name: text for name, text in sorted(run.failures.items()) if name not in explained}


def lost(run: Run, method: str) -> list[str]:
    """The failures of a method without a record: cases that came to nothing. Those of several cases are no case."""
    known = {key(record) for record in of_method(run, method)}
    names = (name for name in run.failures if name.endswith(f"|{method}") and name not in known)
    return [name for name in names if not is_scope(name.removesuffix(f"|{method}"))]


def reason(text: str) -> str:
    """The line of a failure's message that says most: the last one that is no hint (hints are indented)."""
    lines = [line for line in text.splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(" ")] or lines
    return plain[-1].strip() if plain else ""


def remedy(text: str) -> list[str]:
    """The lines of a failure's message behind that line: hints, or what was found."""
    lines = [line for line in text.splitlines() if line.strip()]
    behind = next((at for at, line in enumerate(reversed(lines)) if not line.startswith(" ")), 0)
    return [line.strip() for line in lines[len(lines) - behind :]]


def pairs(record: CaseRecord, known: References) -> list[tuple[SampleRecord, SampleRecord]]:
    """(fp16, method): the contexts that both have, paired by index, of the same prompts, ids and grading."""
    other = known.get(record.case.key)
    by_index = {sample.index: sample for sample in other.samples} if other is not None else {}
    both = ((by_index.get(sample.index), sample) for sample in record.samples)
    return [(then, now) for then, now in both if then is not None and same_inputs(now, then)]


def pool(label: str, run: Run, records: Sequence[CaseRecord], known: References) -> Row:
    """One row for several cases, with an interval over all contexts of those that are informative."""
    counted, every = outcomes(run, records), records
    shown = informative(run, records)
    floor, records = not shown, shown or [record for record in records if record.scored]
    if not records:
        return Row(label, None, None, None, None, None, counted, n_of(every), 0.0, floor=True)
    both = [pair for record in records for pair in pairs(record, known)]
    n = n_of(records)
    chance = sum(record.chance for record in records) / len(records)
    if not both or len(both) < n:
        after = sum(record.accuracy for record in records) / len(records)
        return Row(label, None, after, None, None, None, counted, n, chance, floor=floor)
    before, after, low, high = drops(records, known)
    if floor:
        return Row(label, before, after, None, None, None, counted, n, chance, floor=True)
    alone = all(known.get(record.case.key) is record for record in records)
    return Row(label, before, after, (before - after) * 100, low, high, counted, n, chance, identical(both), alone)


def n_of(records: Iterable[CaseRecord]) -> int:
    """Their contexts."""
    return sum(len(record.samples) for record in records)


def drops(records: Iterable[CaseRecord], known: References) -> tuple[float, float, float, float]:
    """(fp16, method, low, high): accuracies, and the interval of the drop in points, as the verdicts have them."""
    from kvcheck.judging import pools

    both = ((record, then, now) for record in records for then, now in pairs(record, known))
    pool = pools.Pool([(record, now, then) for record, then, now in both])
    share, whole = pool.weights, sum(pool.weights)
    before, after = (
        sum(weight * context_score(pair[side]) for weight, pair in zip(share, pool.pairs, strict=True)) / whole
        for side in (1, 0)
    )
    return before, after, *pools.drop_interval(pool)


def by_capability(run: Run, records: Sequence[CaseRecord], known: References) -> list[tuple[Row, list[Row]]]:
    """(capability, its tasks), in the order of the capabilities."""
    found = []
    for capability in dict.fromkeys([*CAPABILITIES, *(record.capability for record in records)]):
        mine = [record for record in records if record.capability == capability]
        if mine:
            found.append((pool(capability, run, mine, known), by(run, mine, known, "task")))
    return found


def by(run: Run, records: Sequence[CaseRecord], known: References, field: str) -> list[Row]:
    """Rows by a field of the case: task, mode or length."""
    groups: dict[object, list[CaseRecord]] = {}
    for record in records:
        groups.setdefault(getattr(record.case, field), []).append(record)
    order = sorted(groups, key=lambda value: MODES.index(value) if value in MODES else value)  # type: ignore[arg-type, return-value]
    return [pool(str(value), run, groups[value], known) for value in order]


def turns(records: Iterable[CaseRecord]) -> list[float]:
    """Mean score of the first, second, … turn over the multi-turn cases whose conversations are not long."""
    return _by_turn(sample for record in records if _turns(record) == "few" for sample in record.samples)


def turns_before(records: Iterable[CaseRecord], known: References) -> list[float]:
    """The same of fp16, on the contexts that the records hold."""
    return _by_turn(then for one in records if _turns(one) == "few" for then, _ in pairs(one, known))


def _turns(record: CaseRecord) -> str:
    """ "few" or "many" turns of a conversation, "" where there is none."""
    most = max((len(sample.turns) for sample in record.samples), default=0)
    return "" if record.case.mode != "multi_turn" else "many" if most > LONG else "few"


def _by_turn(samples: Iterable[SampleRecord]) -> list[float]:
    scores: list[list[float]] = []
    for sample in samples:
        for number, turn in enumerate(sample.turns):
            if number == len(scores):
                scores.append([])
            scores[number].append(turn.score)
    return [sum(column) / len(column) for column in scores]


def quarters(records: Iterable[CaseRecord], known: References) -> list[Quarters]:
    """How long conversations went, by task."""
    tasks: dict[str, list[tuple[SampleRecord, SampleRecord | None]]] = {}
    for record in records:
        if _turns(record) == "many":
            before = {now.index: then for then, now in pairs(record, known)}
            both = [(sample, before.get(sample.index)) for sample in record.samples]
            tasks.setdefault(record.case.task, []).extend(both)
    found = []
    for task, both in sorted(tasks.items()):
        after = [_quartered(now, "score") for now, _ in both]
        kl = [_quartered(now, "kl") for now, _ in both]
        then = [_quartered(then, "score") for _, then in both if then is not None]
        found.append(Quarters(task, _means(then) if len(then) == len(both) else None, _means(after), _means(kl)))
    return found


def _quartered(sample: SampleRecord, name: str) -> list[list[float]]:
    """The values of the turns of each quarter, without those that were not measured."""
    count = len(sample.turns)
    parts = [sample.turns[count * at // 4 : count * (at + 1) // 4] for at in range(4)]
    return [[value for turn in part if (value := getattr(turn, name)) is not None] for part in parts]


def _means(samples: Sequence[list[list[float]]]) -> list[float] | None:
    """The mean of each quarter over the samples; None where one has no value."""
    columns = [[value for one in samples for value in one[at]] for at in range(4)]
    return [sum(column) / len(column) for column in columns] if all(columns) else None


def parts(records: Iterable[CaseRecord], known: References) -> list[Part]:
    """By subtask, for tasks that have several: what a conversation mixes, the lengths of LongBench-E, depths."""
    scores: dict[str, dict[str, list[tuple[float | None, float]]]] = {}
    for record in records:
        before = {now.index: then for then, now in pairs(record, known)}
        for sample in record.samples:
            then = before.get(sample.index)
            for at, turn in enumerate(sample.turns):
                if turn.subtask:
                    found = scores.setdefault(record.case.task, {}).setdefault(turn.subtask, [])
                    found.append((None if then is None else then.turns[at].score, turn.score))
    return [
        _part(task, subtask, found)
        for task, subtasks in sorted(scores.items())
        for subtask, found in sorted(subtasks.items())
        if len(subtasks) > 1
    ]


def _part(task: str, subtask: str, found: Sequence[tuple[float | None, float]]) -> Part:
    before = [then for then, _ in found if then is not None]
    mean = sum(before) / len(before) if len(before) == len(found) else None
    return Part(task, subtask, mean, sum(after for _, after in found) / len(found), len(found))


def drift(records: Iterable[CaseRecord]) -> dict[str, float]:
    """Mean nll, agree and kl over the turns where they were measured."""
    found: dict[str, list[float]] = {"nll": [], "agree": [], "kl": []}
    for record in records:
        for sample in record.samples:
            for turn in sample.turns:
                for name, values in found.items():
                    value = getattr(turn, name)
                    if value is not None:
                        values.append(value)
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def nll_before(records: Iterable[CaseRecord], known: References) -> float | None:
    """Mean nll of fp16 over the turns that the records hold it of; None where fp16 does not have all of them."""
    records = list(records)
    both = [pair for record in records for pair in pairs(record, known)]
    asked = sum(turn.nll is not None for record in records for one in record.samples for turn in one.turns)
    values = [
        then.nll
        for before, after in both
        for then, now in zip(before.turns, after.turns, strict=False)
        if then.nll is not None and now.nll is not None
    ]
    return sum(values) / len(values) if values and asked == len(values) else None


def ranked_first(records: Iterable[CaseRecord], known: References) -> tuple[float, float | None] | None:
    """(share of the references that are likelier than those of the context's other questions, the same of fp16).

    fp16's None where it does not have all of them; None where nothing was ranked.
    """
    records = list(records)
    mine = [turn.rank for record in records for one in record.samples for turn in one.turns if turn.rank is not None]
    theirs = [
        then.rank
        for record in records
        for before, after in pairs(record, known)
        for then, now in zip(before.turns, after.turns, strict=False)
        if then.rank is not None and now.rank is not None
    ]
    if not mine:
        return None
    before = theirs.count(1) / len(theirs) if len(theirs) == len(mine) else None
    return mine.count(1) / len(mine), before


def not_measured(run: Run, records: Iterable[CaseRecord]) -> dict[str, list[str]]:
    """ "what: reason" with the cases that it holds for."""
    found: dict[str, list[str]] = {}
    for record in records:
        for what, reason in record.not_measured:
            found.setdefault(f"{what}: {reason}", []).append(str(record.case))
    return found


def own_record(run: Run, records: Iterable[CaseRecord]) -> tuple[int, int, int]:
    """(repeated, changed, worse): cases judged against the method's own record; changed are not clearly worse."""
    verdicts = [one for record in records for one in run.verdicts.get(key(record), ()) if one.question in AGAINST_OWN]
    worse = sum(one.outcome == "fail" for one in verdicts)
    repeated = sum(_repeated(run.verdicts.get(key(record), ())) for record in records)
    return repeated, len(verdicts) - repeated - worse, worse


def _repeated(verdicts: Iterable[Verdict]) -> bool:
    """Whether nothing moved against the method's own record: no score, no drift, no byte."""
    found = {one.question: one for one in verdicts}
    own, size = next((found[name] for name in AGAINST_OWN if name in found), None), found.get("bytes")
    return own is not None and own.reason == AS_RECORDED and (size is None or size.outcome == "pass")


def failed_verdicts(run: Run, records: Iterable[CaseRecord]) -> list[tuple[CaseRecord, Verdict]]:
    """Every verdict that fails or is inconclusive, failures first."""
    verdicts = ((record, one) for record in records for one in run.verdicts.get(key(record), ()))
    found = [(record, one) for record, one in verdicts if one.outcome not in ("pass", NOT_INFORMATIVE)]
    return sorted(found, key=lambda pair: pair[1].outcome != "fail")
