"""A run as Markdown for a pull request or a job summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.escape import code
from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import FAILS, CaseRecord, Run, RunHeader
from kvcheck.report import conformance, rows, statement, terminal
from kvcheck.report.rows import References, Row
from kvcheck.report.text import between, interval, points, size

HEAD = ("", "fp16", "method", "drop (points)", "95% interval", "cases", "n", "chance")


def lines(run: Run, stored: References | None = None, *, finished: bool = True) -> Iterator[str]:
    """The summary of a run as Markdown. finished: whether all that was selected has run."""
    known = rows.references(run, stored)
    header = run.header
    bad = sum(bool(count_bad(run, method)) for method in rows.methods(run))
    bad += sum(one.outcome == FAILS for one in run.properties)
    yield f"## kvcheck: {'failed' if bad else 'passed' if finished else 'interrupted'}"
    yield ""
    for method in rows.methods(run):
        yield from of_method(run, method, known)
    yield from conformance.markdown(run.properties)
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


def count_bad(run: Run, method: str) -> int:
    """Cases of the method that failed, with or without a result."""
    names = {name for name in run.failures if name.endswith(f"|{method}")}
    names |= {rows.key(one) for one in rows.of_method(run, method) if rows.outcome(run, one) in ("fail", "error")}
    return len(names)


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if at == 0 else "---:" for at in range(len(head))) + "|"
    for row in body:
        yield "| " + " | ".join(row) + " |"
    yield ""


def cells(row: Row, bold: bool) -> tuple[str, ...]:
    """A row of the table."""
    label = f"**{escape(row.label)}**" if bold else f"&nbsp;&nbsp;{escape(row.label)}"
    before = "" if row.before is None else f"{row.before:.3f}"
    after = "" if row.after is None else f"{row.after:.3f}"
    drop = "" if row.drop is None else points(row.drop)
    sure = between(row.low, row.high, row.identical)
    return (label, before, after, drop, sure, terminal.outcome_text(row), str(row.n), f"{row.chance:.2f}")


def of_method(run: Run, method: str, known: References) -> Iterator[str]:
    """Everything about one method."""
    records = rows.of_method(run, method)
    yield f"### {code(method)}: {terminal.count_text(run, method)}"
    yield ""
    yield statement.plain(run, method, known, code)
    yield ""
    body = []
    for capability, tasks in rows.by_capability(run, rows.judged(run, method), known):
        body.append(cells(capability, True))
        body += [cells(task, False) for task in tasks]
    if body:
        yield from grid(HEAD, body)
    turns = terminal.turn_rows(rows.judged(run, method), known)
    if turns:
        yield from grid(turns[0], turns[1:])
    yield from parts(rows.judged(run, method), known)
    yield from costs(records)
    repeated = terminal.own_record_text(*rows.own_record(run, records))
    if repeated:
        yield f"Against its own record: {repeated}."
        yield ""
    yield from doubts(run, records)
    yield from lost(run, method)


def parts(records: Sequence[CaseRecord], known: References) -> Iterator[str]:
    """By subtask, where a task has several."""
    body = []
    for one in rows.parts(records, known):
        before = "" if one.before is None else f"{one.before:.3f}"
        body.append((escape(f"{one.task} {one.subtask}"), before, f"{one.after:.3f}", str(one.answers)))
    if body:
        yield from grid(("subtask", "fp16", "method", "answers"), body)


def costs(records: Sequence[CaseRecord]) -> Iterator[str]:
    """Memory and latency."""
    body = []
    found = [record.memory for record in records if record.memory is not None and record.samples]
    if found:
        held, dense = sum(one.kv_bytes for one in found), sum(one.dense_bytes for one in found)
        body.append(("KV bytes per context", size(dense / len(found)), size(held / len(found)), f"{held / dense:.3f}"))
        away = sum(one.host_bytes for one in found)
        if away:
            body.append(("host memory per context", "", size(away / len(found)), ""))
    for record in records:
        if record.latency and record.memory is not None:
            memory, name = record.memory, f"KV bytes at {record.memory.seen} tokens"
            body.append((name, size(memory.dense_bytes), size(memory.kv_bytes), f"{memory.ratio:.3f}"))
            if memory.peak_bytes is not None:
                body.append((f"peak memory at {memory.seen} tokens", "", size(memory.peak_bytes), ""))
        for one in record.latency:
            name = f"{escape(one.what)} at {one.length} tokens"
            ratio, before, after = terminal.latency_texts(one)
            body.append((name, before, after, ratio.replace(" x fp16", "")))
    if body:
        yield from grid(("", "fp16", "method", "ratio"), body)


def doubts(run: Run, records: Sequence[CaseRecord]) -> Iterator[str]:
    """Verdicts that are not a pass."""
    found = rows.failed_verdicts(run, records)
    if found:
        yield f"<details{' open' if found[0][1].outcome == 'fail' else ''}><summary>Not passed</summary>"
        yield ""
        body = [
            (
                code(record.case),
                escape(one.question),
                escape(one.outcome),
                f"{one.value:.3f} {interval(one.low, one.high, 3)}",
                f"{one.limit:g}",
            )
            for record, one in found
        ]
        yield from grid(("case", "question", "verdict", "seen", "limit"), body)
        yield "</details>"
        yield ""
    for what, names in sorted(rows.not_measured(run, records).items()):
        yield f"- not measured: {code(what)} ({len(names)})"
    if any(record.not_measured for record in records):
        yield ""


def lost(run: Run, method: str) -> Iterator[str]:
    """Cases that failed without a verdict."""
    for name, text in rows.errors(run).items():
        if name.endswith(f"|{method}"):
            said = "; ".join([rows.reason(text), *rows.remedy(text)])
            yield f"- **{escape(name.partition('|')[0])}** failed: {code(said)}"
