"""All methods in one table: what each gives up, what is allowed, what it holds and how fast it is, by capability."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.record import AGAINST_OWN, AS_RECORDED, CAPABILITIES, CaseRecord, LatencyRecord, Run, Verdict
from kvcheck.report import rows, verdict
from kvcheck.report.rows import References, Row
from kvcheck.report.table import Code, Table
from kvcheck.report.text import interval, points, size

SHORT = {
    "string_retrieval": "string",
    "semantic_retrieval": "semantic",
    "global_information": "global",
    "code": "code",
    "needle": "needle",
    "multi_task": "multi",
    "long_generation": "long gen",
    "language_modelling": "lm",
}
"""Capabilities as heads of narrow columns."""
TIMED = ("ttft", "tpot")
NO_RECORD, SAME, NO, YES, OPEN = "no record", "as recorded", "no", "worse", "inconclusive"
"""Whether a method is worse than its own record."""


class Gap(NamedTuple):
    """A drop in points with its interval, and what is allowed with its origin, None where nothing was asked."""

    drop: float
    low: float
    high: float
    allowed: float | None
    origin: str


@dataclass(frozen=True)
class Line:
    """One method of a run. known: fp16 records by case key, see rows.references."""

    run: Run
    method: str
    known: References

    @cached_property
    def records(self) -> list[CaseRecord]:
        """Those with samples."""
        return rows.judged(self.run, self.method)

    @cached_property
    def standing(self) -> verdict.Standing:
        return verdict.standing(self.run, self.method)

    @cached_property
    def whole(self) -> Row:
        """All cases together; meaningless without records."""
        return rows.pool("all", self.run, self.records, self.known)

    @cached_property
    def capabilities(self) -> dict[str, Row]:
        """By name; those that were measured."""
        names = dict.fromkeys(record.capability for record in self.records)
        found = {name: [one for one in self.records if one.capability == name] for name in names}
        return {name: rows.pool(name, self.run, mine, self.known) for name, mine in found.items()}

    @cached_property
    def gap(self) -> Gap | None:
        """The drop against fp16 over the whole run: that of the verdict, where there is one."""
        asked = self._asked("budget")
        if asked is not None:
            origin = verdict.origin(asked, self.run.header.settings)
            return Gap(asked.value, asked.low, asked.high, asked.limit, origin)
        row = self.whole if self.records else None
        if row is None or row.drop is None or row.low is None or row.high is None:
            return None
        origin = "its own record" if self._asked("regression") is not None else ""
        return Gap(row.drop, row.low, row.high, None, origin)

    @cached_property
    def bytes(self) -> tuple[float, float] | None:
        """(KV bytes per context, those of fp16), means over the cases; None where they were not measured."""
        found = [one.memory for one in self.records or rows.of_method(self.run, self.method) if one.memory is not None]
        if not found:
            return None
        return sum(one.kv_bytes for one in found) / len(found), sum(one.dense_bytes for one in found) / len(found)

    @property
    def share(self) -> float | None:
        """KV bytes as a share of fp16's."""
        return None if self.bytes is None else self.bytes[0] / self.bytes[1]

    @property
    def host(self) -> float:
        """Bytes per context in host memory."""
        found = [one.memory.host_bytes for one in self.records if one.memory is not None]
        return sum(found) / len(found) if found else 0.0

    def latency(self, what: str) -> LatencyRecord | None:
        """At the longest length that was timed."""
        found = [one for record in rows.of_method(self.run, self.method) for one in record.latency if one.what == what]
        return max(found, key=lambda one: one.length, default=None)

    @cached_property
    def own(self) -> str:
        """Is it worse than its record?"""
        found = [one for name in AGAINST_OWN if (one := self._asked(name)) is not None]
        outcomes = {one.outcome for one in found}
        if not found:
            return NO_RECORD
        if outcomes & {verdict.FAIL, verdict.INCONCLUSIVE}:
            return YES if verdict.FAIL in outcomes else OPEN
        return SAME if all(one.reason == AS_RECORDED for one in found) else NO

    @property
    def contexts(self) -> int:
        return rows.n_of(self.records)

    def _asked(self, question: str) -> Verdict | None:
        return next((one for one in self.standing.run if one.question == question), None)

    def sort_key(self, by: str) -> tuple[bool, float]:
        """Best first: what is not known comes last."""
        value = {
            "drop": self.gap and self.gap.drop,
            "accuracy": None if not self.records or self.whole.after is None else -self.whole.after,
            "bytes": self.share,
            **{what: timed.ratio for what in TIMED if (timed := self.latency(what)) is not None},
            **{name: -row.after for name, row in self.capabilities.items() if row.after is not None},
        }.get(by)
        return value is None, value or 0.0


def of(run: Run, known: References) -> list[Line]:
    """The methods of a run, fp16 too where it has records."""
    names = dict.fromkeys([*verdict.judged(run), *(one for one in rows.methods(run) if rows.of_method(run, one))])
    return [Line(run, name, known) for name in names]


def ordered(lines: Iterable[Line], by: str) -> list[Line]:
    """Best first; "": those that fail, then those that are not settled, else as they are. Raises SpecError."""
    lines = list(lines)
    worst = (verdict.FAIL, verdict.INCONCLUSIVE)
    keys = ("method", "drop", "accuracy", "bytes", *TIMED, *CAPABILITIES)
    if by == "method":
        return sorted(lines, key=lambda line: line.method)
    if by and by not in keys:
        raise SpecError(f"--sort={by}: there is no such column", did_you_mean(by, keys))
    if by:
        return sorted(lines, key=lambda line: line.sort_key(by))
    return sorted(lines, key=lambda line: worst.index(line.standing.outcome) if line.standing.outcome in worst else 2)


def capabilities(lines: Sequence[Line]) -> list[str]:
    """Those that any method was measured on, in their order."""
    known = {name for line in lines for name in line.capabilities}
    return [name for name in dict.fromkeys([*CAPABILITIES, *sorted(known)]) if name in known]


def table(lines: Sequence[Line]) -> Table:
    """A row per method: what it gives up and holds, then its accuracy by capability."""
    first, second = narrow(lines)
    body = [(*one, *two[1:]) for one, two in zip(first.rows, second.rows, strict=True)]
    return Table((*first.head, *second.head[1:]), first.align + second.align[1:], body, first.most)


def narrow(lines: Sequence[Line]) -> tuple[Table, Table]:
    """The same as two tables, for a terminal: what a method gives up and holds; its accuracy by capability."""
    names = capabilities(lines)
    timed = [what for what in TIMED if any(line.latency(what) for line in lines)]
    head = ("method", "verdict", "drop", "95% interval", "allowed", "bytes", *timed, "n")
    body = [(*_cells(line, timed), str(line.contexts)) for line in lines]
    scores = [(Code(line.method), *(score(line.capabilities.get(name)) for name in names)) for line in lines]
    heads = ("accuracy", *(SHORT.get(name, name) for name in names))
    first = Table(head, "<<><<>" + ">" * (len(timed) + 1), body, {0: 22}, spare=(len(head) - 1,))
    return first, Table(heads, "<" + ">" * len(names), scores, {0: 22})


def _cells(line: Line, timed: Sequence[str]) -> tuple[str, ...]:
    gap = line.gap
    drop = ("", "", "") if gap is None else (points(gap.drop), interval(gap.low, gap.high), allowed(gap))
    share = "" if line.share is None else f"{line.share:.2f}{'+' * bool(line.host)}"
    ratios = (f"{one.ratio:.2f}" if (one := line.latency(what)) else "" for what in timed)
    return (Code(line.method), line.standing.outcome, *drop, share, *ratios)


def allowed(gap: Gap) -> str:
    """The limit in points; where only the method's own record is asked, that."""
    if gap.allowed is not None:
        return f"{gap.allowed:g}"
    return "own record" if gap.origin else ""


def score(row: Row | None) -> str:
    """The accuracy of a method on several cases."""
    return "" if row is None or row.after is None else f"{row.after:.3f}"


def legend(lines: Sequence[Line]) -> Iterator[str]:
    """What the columns mean, and where the limits come from."""
    yield "drop: points of accuracy against fp16; bytes: KV bytes as a share of fp16's; n: contexts"
    if any(line.host for line in lines):
        yield "+: and more in host memory, which is not counted"
    origins = {gap.origin for line in lines if (gap := line.gap) and gap.allowed is not None}
    if origins:
        yield f"allowed: {', '.join(sorted(origins))}"
    if any(what for line in lines for what in TIMED if line.latency(what)):
        yield "ttft, tpot: ratios to fp16, at the longest length that was timed"


def flat(lines: Sequence[Line]) -> list[dict[str, object]]:
    """A row per method and capability, and one for all of them ("all"): what --csv and --parquet hold."""
    return [row for line in lines for row in _flat(line)]


def _flat(line: Line) -> Iterator[dict[str, object]]:
    every: Mapping[str, Row | None] = {"all": line.whole if line.records else None, **line.capabilities}
    for name, row in every.items():
        gap = line.gap if name == "all" else None
        yield {
            "method": line.method,
            "model": line.run.header.model_name,
            "capability": name,
            "outcome": line.standing.outcome if name == "all" else None,
            "accuracy": row and row.after,
            "fp16_accuracy": row and row.before,
            "drop": gap.drop if gap else row and row.drop,
            "drop_low": gap.low if gap else row and row.low,
            "drop_high": gap.high if gap else row and row.high,
            "allowed": gap.allowed if gap else None,
            "allowed_origin": gap.origin or None if gap else None,
            "contexts": row and row.n,
            "chance": row and row.chance,
            **_held(line, name),
            "worse_than_record": line.own if name == "all" else None,
            "kvcheck": line.run.header.kvcheck,
            "commit": line.run.header.git or None,
        }


def _held(line: Line, name: str) -> dict[str, object]:
    """Bytes of the cases of a capability, and latency of the run."""
    mine = [one.memory for one in line.records if one.memory is not None and name in ("all", one.capability)]
    held, dense = sum(one.kv_bytes for one in mine), sum(one.dense_bytes for one in mine)
    found: dict[str, object] = {
        "kv_bytes": held / len(mine) if mine else None,
        "kv_share": held / dense if mine else None,
    }
    for what in TIMED:
        timed = line.latency(what) if name == "all" else None
        found |= {f"{what}_seconds": timed and timed.seconds, f"{what}_ratio": timed and timed.ratio}
    return found


def held_text(line: Line) -> str:
    """ "50% · 1.07 MB", with what lies in host memory."""
    if line.bytes is None:
        return "not measured"
    text = f"{line.bytes[0] / line.bytes[1]:.1%} · {size(line.bytes[0])}"
    return text + (f" + {size(line.host)} host" if line.host else "")
