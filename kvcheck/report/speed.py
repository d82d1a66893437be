"""The table of `kvcheck speed`: what methods cost at several lengths, the roofline beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import CaseRecord, LatencyRecord, Run
from kvcheck.report.markdown import commit
from kvcheck.report.table import Code, Table
from kvcheck.report.text import interval, seconds, size, wrap

NAME = 22
SLOWER = "slower"
"""The mark of a method that saves memory and decodes more slowly than fp16 for sure."""

MEMORY = ("method", "KV bytes", "of fp16", "host", "peak", "TTFT", "roofline", "x fp16")
DECODE = ("method", "TPOT", "roofline", "x fp16", "95% interval", "tokens/s", "roofline", "x fp16", "")
GPU = ("gpu", "gpus", "driver", "cuda", "power limit", "max sm clock", "max memory clock")
MACHINE = (*GPU, "cpu", "cores", "threads")


def lines(run: Run) -> Iterator[str]:
    """For the terminal: two tables per length, at most 100 columns."""
    for line in head(run):
        yield from wrap(line)
    for length, records in by_length(run):
        batch = batch_of(records)
        yield ""
        yield f"at {length:,} tokens; tokens/s of {batch} sequence{'s' * (batch != 1)} together"
        for table in tables(records):
            yield from table.text()
        for text in missing(records):
            yield from wrap(text)
    for line in notes(run):
        yield from wrap(line)


def markdown(run: Run) -> Iterator[str]:
    """The same as Markdown."""
    for line in head(run):
        yield f"- {escape(line)}"
    yield ""
    for length, records in by_length(run):
        batch = batch_of(records)
        yield f"### {length:,} tokens; tokens/s of {batch} sequence{'s' * (batch != 1)} together"
        yield ""
        for table in tables(records):
            yield from table.markdown()
        found = [f"- {escape(text)}" for text in missing(records)]
        yield from [*found, ""] if found else []
    yield from notes(run)


def tables(records: Sequence[CaseRecord]) -> tuple[Table, Table]:
    """Memory and prefill, and decoding, at one length."""
    held = [(Code(one.method), *memory_cells(one), *prefill_cells(one)) for one in records if one.memory]
    timed = [(Code(one.method), *decode_cells(one), mark(one)) for one in records if one.latency]
    return Table(MEMORY, "<>>>>>>>", held, {0: NAME}), Table(DECODE, "<>>>>>>><", timed, {0: NAME})


def head(run: Run) -> Iterator[str]:
    """What the figures were measured on, and how."""
    header, settings = run.header, run.header.settings
    computed, kernel = settings.get("dtype", ""), settings.get("attention", "auto")
    computed += f", attention {kernel}" * (kernel != "auto")
    date = settings.get("date", "")
    yield f"kvcheck {header.kvcheck}, model {header.model_name} ({computed}), {date}, {commit(header)}"
    found = [f"{name} {header.machine[name]}" for name in MACHINE if name in header.machine]
    clocks = [one for record in run.cases for one in record.latency]
    found += [
        text for text in (clock_range("SM", clocks, "sm_mhz"), clock_range("memory", clocks, "memory_mhz")) if text
    ]
    yield "; ".join(found)
    yield ", ".join(f"{name} {header.packages[name]}" for name in ("torch", "transformers") if name in header.packages)
    yield f"{settings.get('rounds', '')} rounds in turns with fp16; roofline: {settings.get('roofline', 'not known')}"


def clock_range(what: str, latency: Sequence[LatencyRecord], field: str) -> str:
    """The clocks that were seen: "SM at 1755 to 1980 MHz"; empty where none were."""
    seen = sorted({value for one in latency if (value := getattr(one, field)) is not None})
    if not seen:
        return ""
    return f"{what} at {seen[0]} MHz" if len(seen) == 1 else f"{what} at {seen[0]} to {seen[-1]} MHz"


def by_length(run: Run) -> list[tuple[int, list[CaseRecord]]]:
    """(length, its records: fp16, then the others by name), shortest first."""
    known = sorted(run.cases, key=lambda one: (one.method != "fp16", one.method))
    lengths = sorted({one.case.length for one in known})
    return [(length, [one for one in known if one.case.length == length]) for length in lengths]


def batch_of(records: Sequence[CaseRecord]) -> int:
    """Sequences that were decoded together; it follows from model, device and length."""
    return max((one.batch for record in records for one in record.latency), default=1)


def memory_cells(record: CaseRecord) -> tuple[str, ...]:
    """KV bytes on the device, their share of fp16's, bytes in host memory, and the peak."""
    memory = record.memory
    if memory is None:
        return ("",) * 4
    host = size(memory.host_bytes) if memory.host_bytes else ""
    return (
        size(memory.kv_bytes),
        f"{memory.ratio:.3f}",
        host,
        "" if memory.peak_bytes is None else size(memory.peak_bytes),
    )


def prefill_cells(record: CaseRecord) -> tuple[str, ...]:
    """Time to first token, its floor, and the ratio."""
    one = timed(record, "ttft")
    return ("",) * 3 if one is None else (seconds(one.seconds), floor(one), f"{one.ratio:.2f}")


def decode_cells(record: CaseRecord) -> tuple[str, ...]:
    """Time per output token with its floor, ratio and interval; tokens per second of the batch with roof and ratio."""
    one, many = timed(record, "tpot"), timed(record, "throughput")
    if one is None or many is None:
        return ("",) * 7
    roof = "" if many.floor is None else f"{many.batch / many.floor:,.0f}"
    step = (seconds(one.seconds), floor(one), f"{one.ratio:.2f}", interval(one.low, one.high, 2))
    return (*step, f"{many.rate:,.0f}", roof, f"{1 / many.ratio:.2f}")


def timed(record: CaseRecord, what: str) -> LatencyRecord | None:
    """What was timed under this name."""
    return next((one for one in record.latency if one.what == what), None)


def floor(one: LatencyRecord) -> str:
    """The floor as text."""
    return "" if one.floor is None else seconds(one.floor)


def mark(record: CaseRecord) -> str:
    """SLOWER where the method saves memory and its whole interval of TPOT lies above fp16's."""
    one, memory = timed(record, "tpot"), record.memory
    saves = memory is not None and memory.kv_bytes < memory.dense_bytes
    return SLOWER if one is not None and saves and one.low > 1 else ""


def missing(records: Sequence[CaseRecord]) -> Iterator[str]:
    """What was not measured, and why."""
    for record in records:
        reasons: dict[str, list[str]] = {}
        for what, why in record.not_measured:
            reasons.setdefault(why, []).append(what)
        for why, names in reasons.items():
            yield f"{record.method}: {' and '.join(names)} not measured: {' '.join(why.split())}"


def notes(run: Run) -> Iterator[str]:
    """What the marks mean, where there are any."""
    if any(mark(record) for record in run.cases):
        yield f"{SLOWER}: it saves memory, and decodes more slowly than fp16 (the whole interval lies above 1)."
