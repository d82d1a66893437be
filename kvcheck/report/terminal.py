"""A run as lines for the terminal: at most 100 columns, and no meaning in colour alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.escape import plain
from kvcheck.core.front import option
from kvcheck.core.record import CaseRecord, LatencyRecord, Run
from kvcheck.report import conformance, rows, statement
from kvcheck.report.rows import References, Row
from kvcheck.report.text import WIDTH, between, columns, interval, plural, points, seconds, short, size, wrap
from kvcheck.store.published import gaps

HEAD = ("", "fp16 -> method", "drop", "95% interval", "cases", "n", "chance")
ALIGN = "<<><<>>"
LISTED = 12
"""Cases listed by name; the rest is counted."""


def lines(run: Run, stored: References | None = None) -> Iterator[str]:
    """The summary of a run, foreign text in it made harmless.

    `stored`: fp16 records by case key, for what the run itself did not measure.
    """
    yield from map(plain, _lines(run, rows.references(run, stored)))


def _lines(run: Run, known: References) -> Iterator[str]:
    for method in rows.methods(run):
        yield from of_method(run, method, known)
    yield from failures(run)
    yield from conformance.lines(run.properties)


def of_method(run: Run, method: str, known: References) -> Iterator[str]:
    """Everything about one method."""
    records, judged = rows.of_method(run, method), rows.judged(run, method)
    yield short(f"{method} on {run.header.model_name}: {count_text(run, method)}", WIDTH)
    yield ""
    if judged:
        yield from table(run, judged, known)
        yield ""
        yield from grids(run, judged, known)
        yield from turn_lines(judged, known)
        yield from part_lines(judged, known)
        yield from memory_lines(judged)
    yield from latency_lines(records)
    yield from drift_lines(records)
    yield from own_record_lines(run, records)
    yield from doubt_lines(run, records)
    yield from unmeasured_lines(run, records)
    for line in gaps(records, run.header.model_name):
        yield from wrap(line)
    yield from wrap(statement.plain(run, method, known))
    yield ""


def count_text(run: Run, method: str) -> str:
    """ "57 cases: 54 pass, 1 fail, 2 inconclusive"."""
    records = rows.of_method(run, method)
    counted = rows.outcomes(run, records)
    lost = sum(name.endswith(f"|{method}") for name in run.failures) - sum(
        rows.key(record) in run.failures for record in records
    )
    if lost > 0:
        counted["error"] = counted.get("error", 0) + lost
    total = sum(counted.values())
    unmeasured = sum(bool(record.not_measured) for record in records)
    words = [
        f"{counted[name]} {name}"
        for name in ("pass", "fail", "error", "inconclusive", "not judged", "not measured")
        if counted.get(name)
    ]
    words += [f"{unmeasured} with something not measured"] if unmeasured else []
    return f"{plural(total, 'case')}: {', '.join(words)}"


def outcome_text(row: Row) -> str:
    """The cases of a row by outcome: "9 pass", or what is wrong with how many of them."""
    bad = [name for name in ("fail", "error", "inconclusive", "not judged") if row.outcomes.get(name)]
    if not bad:
        return f"{row.outcomes.get('pass', 0)} pass"
    text = ", ".join(f"{row.outcomes[name]} {'unclear' if name == 'inconclusive' else name}" for name in bad)
    return f"{text} of {sum(row.outcomes.values())}"


def cells(row: Row, indent: str = "") -> tuple[str, ...]:
    """A row as the cells of the table."""
    before, after = ("  ?  " if value is None else f"{value:.3f}" for value in (row.before, row.after))
    drop = "" if row.drop is None else points(row.drop)
    outcome = short(outcome_text(row), 22)
    return (
        short(indent + row.label, 24),
        f"{before} -> {after}",
        drop,
        between(row.low, row.high, row.identical),
        outcome,
        str(row.n),
        f"{row.chance:.2f}",
    )


def table(run: Run, records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """By capability and task."""
    body: list[tuple[str, ...]] = [("capability / task", *HEAD[1:])]
    for capability, tasks in rows.by_capability(run, records, known):
        body.append(cells(capability))
        body += [cells(task, "  ") for task in tasks]
    yield from columns(body, ALIGN)


def grids(run: Run, records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """By mode and by length, where there is more than one."""
    body: list[tuple[str, ...]] = []
    for field, name in (("mode", "by mode"), ("length", "by length")):
        found = rows.by(run, records, known, field)
        if len(found) > 1:
            body += [(name, *HEAD[1:]), *(cells(row, "  ") for row in found)]
    if body:
        yield from columns(body, ALIGN)
        yield ""


def turn_rows(records: Sequence[CaseRecord], known: References) -> list[tuple[str, ...]]:
    """Accuracy turn by turn in multi-turn mode, head first; nothing where there is one turn only."""
    mine = rows.turns(records)
    if len(mine) < 2:
        return []
    theirs = rows.turns_before(records, known)
    body = [("multi-turn accuracy", *(f"turn {number}" for number in range(1, len(mine) + 1)))]
    for name, values in (("fp16", theirs), ("method", mine)):
        if len(values) == len(mine):
            body.append((name, *(f"{value:.3f}" for value in values)))
    return body


def turn_lines(records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """Accuracy turn by turn in multi-turn mode."""
    body = turn_rows(records, known)
    if body:
        indented = [body[0], *((f"  {row[0]}", *row[1:]) for row in body[1:])]
        yield from (short(line, WIDTH) for line in columns(indented, "<" + ">" * (len(body[0]) - 1)))
        yield ""


def part_lines(records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """Accuracy by subtask, where a task has several."""
    found = rows.parts(records, known)
    if not found:
        return
    body = [("by subtask", "fp16 -> method", "answers")]
    for one in found:
        before = "  ?  " if one.before is None else f"{one.before:.3f}"
        body.append((short(f"  {one.task} {one.subtask}", 40), f"{before} -> {one.after:.3f}", str(one.answers)))
    yield from columns(body, "<>>")
    yield ""


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


def latency_lines(records: Sequence[CaseRecord]) -> Iterator[str]:
    """Latency as a ratio to fp16, and what the context took that it was measured on."""
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


def latency_texts(one: LatencyRecord) -> tuple[str, str, str]:
    """(ratio to fp16 with its interval, fp16, method): seconds, or tokens per second of all sequences together."""
    if one.what == "throughput":
        ratio = f"{1 / one.ratio:.2f} x fp16 {interval(1 / one.high, 1 / one.low, 2)}"
        return ratio, f"{one.fp16_rate:,.0f}", f"{one.rate:,.0f} tokens/s of {one.batch} together"
    ratio = f"{one.ratio:.2f} x fp16 {interval(one.low, one.high, 2)}"
    return ratio, seconds(one.fp16_seconds), seconds(one.seconds)


def drift_lines(records: Sequence[CaseRecord]) -> Iterator[str]:
    """What reacts before accuracy does."""
    found = rows.drift(records)
    words = {"nll": "nll {:.3f} nats per token", "agree": "top-1 agreement {:.1%}", "kl": "KL to fp16 {:.4f} nats"}
    if found:
        yield "references   " + ", ".join(words[name].format(value) for name, value in found.items())


def own_record_lines(run: Run, records: Sequence[CaseRecord]) -> Iterator[str]:
    """How the cases stand to the method's own stored record."""
    text = own_record_text(*rows.own_record(run, records))
    if text:
        yield f"own record   {text}"


def own_record_text(repeated: int, changed: int, worse: int) -> str:
    """ "repeated in 80 cases, changed but not clearly worse in 2"; empty without a record."""
    counted = ((repeated, "repeated"), (changed, "changed but not clearly worse"), (worse, "worse"))
    return ", ".join(f"{words} in {plural(number, 'case')}" for number, words in counted if number)


def doubt_lines(run: Run, records: Sequence[CaseRecord]) -> Iterator[str]:
    """The verdicts that are not a pass, case by case."""
    found = rows.failed_verdicts(run, records)
    if not found:
        return
    yield ""
    yield "not passed"
    body = []
    for record, one in found[:LISTED]:
        scale, unit = (1, "points") if one.question in ("budget", "regression") else (3, "")
        seen = f"{one.value:+.{scale}f} {interval(one.low, one.high, scale)} of {one.limit:g} {unit}".rstrip()
        outcome = "unclear" if one.outcome == "inconclusive" else one.outcome
        body.append(
            (f"  {record.case.task} {record.case.mode} {record.case.length}", one.question, outcome, seen, str(one.n))
        )
    yield from (short(line, WIDTH) for line in columns(body, "<<<<>"))
    if len(found) > LISTED:
        yield f"  and {len(found) - LISTED} more"
    unclear = [one.detectable for _, one in found if one.outcome == "inconclusive" and one.detectable is not None]
    if unclear:
        yield from wrap(
            f"  unclear: these contexts show a drop only from {points(min(unclear), False)} points on; "
            f"{option('n')} takes more (of fp16 too: {option('record')}=changed), "
            f"{option('strict')} makes unclear a failure"
        )


def unmeasured_lines(run: Run, records: Sequence[CaseRecord]) -> Iterator[str]:
    """What was not measured, and why."""
    found = rows.not_measured(run, records)
    if found:
        yield ""
        yield "not measured"
        for what, names in sorted(found.items()):
            yield from wrap(f"  {what} ({plural(len(names), 'case')})", "    ")
        yield ""


def failures(run: Run) -> Iterator[str]:
    """Cases that failed before there was a verdict."""
    lost = rows.errors(run)
    if lost:
        shown: list[str] = []
        yield "failed without a verdict"
        for name, text in list(lost.items())[:LISTED]:
            case, _, method = name.partition("|")
            yield short(f"  {case}  {method}", WIDTH)
            yield from wrap(f"    {rows.reason(text)}", "    ")
            hints = rows.remedy(text)
            for hint in hints if hints != shown else ():  # cases that lack the same thing stand together
                yield from [f"      {hint}"] if "pytest " in hint else wrap(f"      {hint}", "      ")  # to be copied
            shown = hints
        if len(lost) > LISTED:
            yield f"  and {len(lost) - LISTED} more"
        yield ""
