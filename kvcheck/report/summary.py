"""What is to be said of one method of a run: tables and lines that the terminal and the Markdown report both show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvcheck.core.front import option
from kvcheck.core.record import NOT_INFORMATIVE, CaseRecord, LatencyRecord, Run, Verdict
from kvcheck.judging.informative import unfinished
from kvcheck.report import rows, verdict
from kvcheck.report.rows import References, Row
from kvcheck.report.table import Table
from kvcheck.report.text import between, interval, plural, points, seconds, size

HEAD = ("drop", "95% interval", "cases", "n", "chance")
NAMED = 3
"""Tasks that a line names."""
ALIGN, MOST, SPARE = "<<><<>>", {0: 24, 4: 24}, (6, 5)


def count_text(run: Run, method: str) -> str:
    """ "57 cases: 54 pass, 1 fail, 2 inconclusive"."""
    records = rows.of_method(run, method)
    counted = rows.outcomes(run, records)
    lost = rows.lost(run, method)
    if lost:
        counted["error"] = counted.get("error", 0) + len(lost)
    total = sum(counted.values())
    unmeasured = sum(bool(record.not_measured) for record in records)
    words = [
        f"{counted[name]} {name}"
        for name in ("pass", "fail", "error", "inconclusive", NOT_INFORMATIVE, "not judged", "not measured")
        if counted.get(name)
    ]
    words += [f"{unmeasured} with something not measured"] if unmeasured else []
    return f"{plural(total, 'case')}: {', '.join(words)}"


def outcome_text(row: Row) -> str:
    """The cases of a row by outcome: "9 pass", or what is wrong with how many of them."""
    bad = [name for name in ("fail", "error", "inconclusive", "not judged") if row.outcomes.get(name)]
    out = row.outcomes.get(NOT_INFORMATIVE, 0)
    told = sum(row.outcomes.values()) - out
    text = ", ".join(f"{row.outcomes[name]} {name}" for name in bad)
    if len(bad) < 2:
        text = f"{text} of {told}" if bad else f"{row.outcomes.get('pass', 0)} pass" if told else ""
    return " + ".join([*[text] * bool(text), *[f"{out} left out"] * bool(out)])


def _cells(row: Row, indent: str = "") -> tuple[str, ...]:
    before, after = (_score(value) for value in (row.before, row.after))
    drop = "" if row.drop is None else points(row.drop)
    sure = NOT_INFORMATIVE if row.floor else between(row.low, row.high, row.identical)
    both = "no answers" if row.after is None else f"{before} -> {after}"
    return (
        indent + row.label, both, drop, sure, outcome_text(row), str(row.n), f"{row.chance:.2f}"
    )  # fmt: skip


def _score(value: float | None) -> str:
    return "  ?  " if value is None else f"{value:.3f}"


def tables(run: Run, records: Sequence[CaseRecord], known: References, both: str = "fp16 -> method") -> Iterator[Table]:
    """Accuracy of judged records: by capability and task; by mode and by length; by turn; by subtask.

    Of cases that are informative, as for the verdicts on several cases; a row that has no other says so. both: what the
    reference and the method are called.
    """
    head = (both, *HEAD)
    body = []
    for capability, tasks in rows.by_capability(run, records, known):
        body += [_cells(capability), *(_cells(task, "  ") for task in tasks)]
    yield Table(("capability / task", *head), ALIGN, body, MOST, spare=SPARE)
    body = []
    for field in ("mode", "length"):
        found = rows.by(run, records, known, field)
        if len(found) > 1:
            body += [(f"by {field}", *head), *(_cells(row, "  ") for row in found)]
    if body:
        yield Table(body[0], ALIGN, body[1:], MOST, spare=SPARE)
    records = rows.informative(run, records)
    turns = turn_table(records, known, *both.split(" -> "))
    if turns is not None:
        yield turns
    quarters = quarter_table(records, known, *both.split(" -> "))
    if quarters is not None:
        yield quarters
    parts = [
        (f"  {one.task} {one.subtask}", f"{_score(one.before)} -> {one.after:.3f}", str(one.answers))
        for one in rows.parts(records, known)
    ]
    if parts:
        yield Table(("by subtask", both, "answers"), "<>>", parts, {0: 40})


def turn_table(
    records: Sequence[CaseRecord], known: References, before: str = "fp16", after: str = "method"
) -> Table | None:
    """Accuracy turn by turn in multi-turn mode; None where there is one turn only."""
    mine, theirs = rows.turns(records), rows.turns_before(records, known)
    if len(mine) < 2:
        return None
    head = ("multi-turn accuracy", *(f"turn {number}" for number in range(1, len(mine) + 1)))
    both = ((f"  {before}", theirs), (f"  {after}", mine))
    body = [(name, *(f"{value:.3f}" for value in values)) for name, values in both if len(values) == len(mine)]
    return Table(head, "<" + ">" * len(mine), body)


def quarter_table(
    records: Sequence[CaseRecord], known: References, before: str = "fp16", after: str = "method"
) -> Table | None:
    """Accuracy and KL by quarters of long conversations; None where there are none."""
    body = []
    for one in rows.quarters(records, known):
        told = ((before, one.before, 3), (after, one.after, 3), ("KL", one.kl, 4))
        body += [
            (f"  {one.task} {name}", *(f"{mean:.{places}f}" for mean in means)) for name, means, places in told if means
        ]
    head = ("long conversations, by turns", "first quarter", "second", "third", "last")
    return Table(head, "<>>>>", body) if body else None


def facts(run: Run, records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """Memory, latency, drift, and how the cases stand to the method's own record."""
    yield from memory_lines([record for record in records if record.samples])
    for record in records:
        if record.latency and record.memory is not None:
            memory = record.memory
            peak = "" if memory.peak_bytes is None else f", peak {size(memory.peak_bytes)}"
            yield (
                f"{'memory':<12} {size(memory.kv_bytes)} of {size(memory.dense_bytes)}: ratio {memory.ratio:.3f} "
                f"at {memory.seen} tokens{peak}"
            )
        for one in record.latency:
            ratio, before, after = latency_texts(one)
            yield f"{one.what:<12} {ratio} at {one.length} tokens ({before} -> {after}, {one.rounds} rounds)"
    yield from _unfinished(records)
    moved = drift_text(records, known)
    if moved:
        yield f"drift        {moved}"
    own = own_record_text(*rows.own_record(run, records))
    if own:
        yield f"own record   {own}"


def drift_text(records: Sequence[CaseRecord], known: References) -> str:
    """How far the likelihood of the reference answers has moved from fp16's; empty where it was not measured."""
    found, before = rows.drift(records), rows.nll_before(records, known)
    words = {"agree": "top-1 agreement {:.1%}", "kl": "KL {:.4f} nats"}
    texts = [words[name].format(value) for name, value in found.items() if name in words]
    if "nll" in found:
        rise = "" if before is None else f"{round(found['nll'] - before, 3) + 0.0:+.3f} nats per token from fp16 "
        texts.insert(0, f"nll {rise}({found['nll']:.3f})" if rise else f"nll {found['nll']:.3f} nats per token")
    if (first := rows.ranked_first(records, known)) is not None:
        now, then = first
        texts.append(f"reference ranked first {now:.1%}" + (f" (fp16 {then:.1%})" if then is not None else ""))
    return ", ".join(texts)


def _unfinished(records: Sequence[CaseRecord]) -> Iterator[str]:
    """How many answers never ended, in the tasks where that is: they may be right further on."""
    found: dict[str, int] = {}
    for record in records:
        turns = [turn for sample in record.samples for turn in sample.turns]
        if cut := sum(map(unfinished, turns)):
            found[record.case.task] = found.get(record.case.task, 0) + cut
    if found:
        asked = sum(len(sample.turns) for record in records if record.scored for sample in record.samples)
        most = sorted(found.items(), key=lambda pair: -pair[1])[:NAMED]
        named = ", ".join(f"{task} {count}" for task, count in most) + ", …" * (len(found) > NAMED)
        yield f"unfinished   {sum(found.values())} of {plural(asked, 'answer')}, cut by the token limit: {named}"


def memory_lines(records: Sequence[CaseRecord]) -> Iterator[str]:
    """KV bytes and their share of a full 16-bit cache."""
    found = [record.memory for record in records if record.memory is not None]
    if not found:
        yield "KV bytes     not measured"
        return
    held, dense = sum(one.kv_bytes for one in found), sum(one.dense_bytes for one in found)
    ratios = sorted(one.ratio for one in found)
    kept = sum(one.kept for one in found) / sum(one.seen for one in found)
    touched = min((one.touched, one.layers) for one in found)
    yield (
        f"KV bytes     {size(held / len(found))} of {size(dense / len(found))} per context: ratio {held / dense:.3f} "
        f"(cases {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    yield f"             {kept:.1%} of the tokens kept, {touched[0]} of {touched[1]} layers took part"
    away = sum(one.host_bytes for one in found)
    if away:
        yield f"host memory  {size(away / len(found))} per context, not counted above"
    peaks = [one.peak_bytes for one in found if one.peak_bytes is not None]
    if peaks:
        yield f"peak memory  {size(max(peaks))} of device memory"


def latency_texts(one: LatencyRecord) -> tuple[str, str, str]:
    """(ratio to fp16 with its interval, fp16, method): seconds, or tokens per second of all sequences together."""
    if one.what == "throughput":
        ratio = f"{1 / one.ratio:.2f} x fp16 {interval(1 / one.high, 1 / one.low, 2)}"
        return ratio, f"{one.fp16_rate:,.0f}", f"{one.rate:,.0f} tokens/s of {one.batch} together"
    ratio = f"{one.ratio:.2f} x fp16 {interval(one.low, one.high, 2)}"
    return ratio, seconds(one.fp16_seconds), seconds(one.seconds)


def own_record_text(repeated: int, changed: int, worse: int) -> str:
    """ "identical in 80 of 82 cases, changed but not clearly worse in 2"; empty without a record."""
    counted = ((repeated, "identical"), (changed, "changed but not clearly worse"), (worse, "worse"))
    first, *more = [f"{words} in {number}" for number, words in counted if number] or [""]
    total = plural(repeated + changed + worse, "case")
    return ", ".join([f"{first} of {total}", *more]) if first else ""


def not_informative(run: Run, records: Sequence[CaseRecord]) -> Iterator[str]:
    """What cannot show a loss of accuracy, and why: cases of one task with one reason stand together."""
    found: dict[str, list[str]] = {}
    for record in records:
        if why := rows.why_not(run, record):
            found.setdefault(why, []).append(f"{record.case.task} {record.case.mode} {record.case.length}")
    yield from (f"{', '.join(cases)}: {why}" for why, cases in found.items())


def not_passed(found: Sequence[tuple[CaseRecord, Verdict]], settings: Mapping[str, str]) -> list[Table]:
    """Verdicts that are not a pass, case by case, with what is allowed and who says so: those that fail, then those
    that are inconclusive. settings: of the run's header.

    drop: in points of accuracy. A narrow terminal goes without the contexts (n), then without the interval.
    """
    tables = []
    for title, outcome in (("failed", verdict.FAIL), (verdict.INCONCLUSIVE, verdict.INCONCLUSIVE)):
        body = [
            (
                f"  {record.case.task} {record.case.mode} {record.case.length}",
                *_judged(one),
                verdict.origin(one, settings).removeprefix("your ").removeprefix("its ").removesuffix(" budget"),
                str(one.n),
            )
            for record, one in found
            if one.outcome == outcome
        ]
        head = (title, "of", "value", "interval", "allowed", "by", "n")
        tables += [Table(head, "<<><><>", body, {0: 46}, spare=(6, 3))] if body else []
    return tables


def _judged(one: Verdict) -> tuple[str, str, str, str]:
    """(what it is about, the value, its interval, what is allowed)."""
    if one.question == "regression" and one.outcome == "fail" and one.low <= one.limit:
        return "nll", "drifted", "", "noise"  # the scores alone would have passed
    points_lost = one.question in ("budget", "regression")
    value = points(one.value) if points_lost else f"{one.value:.3f}"
    sure = "" if one.low == one.high else interval(one.low, one.high, 1 if points_lost else 3)
    return verdict.quantity(one), value, sure, f"{'>= ' if one.question == 'agree' else ''}{one.limit:.3g}"


def inconclusive(found: Sequence[tuple[CaseRecord, Verdict]]) -> str:
    """What would settle inconclusive verdicts on cases; "" where there are none."""
    drops = [one.detectable for _, one in found if one.outcome == "inconclusive" and one.detectable is not None]
    if not drops:
        return ""
    return (
        f"inconclusive: the contexts of a case show a drop only from {points(min(drops), False)} points on; "
        f"{option('n')} takes more (of fp16 too: {option('record')}=changed), "
        f"{option('strict')} makes inconclusive a failure"
    )
