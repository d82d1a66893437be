"""How a method stands in a run: pass, fail or inconclusive, by which numbers, over what. A report begins with it.

The run decides, not its cases: a question that all contexts together were asked is answered there, and one that is
asked of single cases alone by the worst of them. Whatever failed anywhere makes it a fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kvcheck.core.front import option
from kvcheck.core.record import (
    AGAINST_OWN,
    AS_RECORDED,
    FAILS,
    HOLDS,
    NOT_INFORMATIVE,
    RECORDED_NOW,
    RUN,
    CaseRecord,
    Run,
    Verdict,
    is_scope,
)
from kvcheck.core.settings import AGAINST
from kvcheck.judging.informative import QUESTION as INFORMATIVE
from kvcheck.judging.pooled import IDENTICAL, settled_by
from kvcheck.report import rows
from kvcheck.report.text import interval, listed, plural, points, wrap

PASS, FAIL, INCONCLUSIVE, OPEN = "pass", "fail", "inconclusive", "not judged"
IN_WORDS = {INFORMATIVE: "", "acted": "not shown to act: "}
"""Questions that no estimate answers, and what stands before the reason of a verdict that fails."""
NAMED = 4
"""So many tasks are named; of more their number is given."""
LISTED = 6
"""Scopes that failed are listed up to so many."""
WIDTH = 80
"""These lines are whole on a narrow terminal, too."""


@dataclass(frozen=True)
class References:
    """What the two references of a method are called. lost: what is said of cases without a record."""

    fp16: str = "fp16"
    own: str = "its own record"
    lost: str = "failed before there was a record"


GATE = References()


@dataclass(frozen=True)
class Standing:
    """How one method stands.

    run: verdicts on all contexts together. scopes: (name, verdict) of what failed there, the run left out. cases: how
    many failed with a record, lost: without one. properties: how many do not hold.
    """

    method: str
    outcome: str
    run: tuple[Verdict, ...] = ()
    scopes: tuple[tuple[str, Verdict], ...] = ()
    cases: int = 0
    lost: int = 0
    properties: int = 0


def standing(run: Run, method: str) -> Standing:
    """Pass only where something was judged, nothing failed, and no question is left open.

    Where a run records and no case is informative nothing was judged: that fails only where a method is judged.
    """
    whole = run.verdicts.get(f"{RUN}|{method}", ())
    scopes = tuple(
        (scope, one) for scope, verdicts in pooled(run, method).items() for one in verdicts if one.outcome == FAIL
    )
    single = [
        record
        for record in rows.of_method(run, method)
        if rows.key(record) in run.failures or rows.outcome(run, record) == FAIL
    ]
    lost = rows.lost(run, method)
    properties = sum(one.outcome == FAILS and one.method == method for one in run.properties)
    answers = {**_of_cases(run, method), **{one.question: one.outcome for one in whole}}
    together = any(f"{scope}|{method}" in run.failures for scope in (RUN, *pooled(run, method)))
    if scopes or single or lost or properties or together:
        outcome = FAIL
    elif INCONCLUSIVE in answers.values():
        outcome = INCONCLUSIVE
    else:
        blind = any(one.outcome == NOT_INFORMATIVE for one in whole)
        outcome = PASS if (PASS in answers.values() and not blind) or _holding(run, method) else OPEN
    beside = tuple(one for one in scopes if one[0] != RUN)
    return Standing(method, outcome, whole, beside, len(single), len(lost), properties)


def _holding(run: Run, method: str) -> int:
    """How many properties the method was shown to have."""
    return sum(one.outcome == HOLDS and one.method == method for one in run.properties)


def pooled(run: Run, method: str) -> dict[str, tuple[Verdict, ...]]:
    """Verdicts on several cases of a method together, by scope, the run first."""
    end = f"|{method}"
    found = {name.removesuffix(end): one for name, one in run.verdicts.items() if name.endswith(end)}
    return {scope: found[scope] for scope in sorted(found, key=lambda scope: scope != RUN) if is_scope(scope)}


def _of_cases(run: Run, method: str) -> dict[str, str]:
    """The worst answer of the cases to every question."""
    worst: dict[str, str] = {}
    for record in rows.of_method(run, method):
        for one in run.verdicts.get(rows.key(record), ()):
            if one.outcome == INCONCLUSIVE or one.question not in worst:
                worst[one.question] = one.outcome
    return worst


def lines(run: Run) -> Iterator[str]:
    """What is to be read first: every method with its outcome, its numbers and its limits, then what failed in it."""
    for method in judged(run):
        yield from of_method(run, method)


def judged(run: Run) -> list[str]:
    """The methods of a run that it is about: fp16 may have been measured beside them, as a reference alone."""
    every = list(dict.fromkeys([*rows.methods(run), *(one.method for one in run.properties)]))
    return [
        name for name in every if name and (name != "fp16" or len(every) == 1 or standing(run, name).outcome != OPEN)
    ]


def of_method(run: Run, method: str, others: References = GATE) -> Iterator[str]:
    """The lines of one method."""
    first, *rest = said(run, standing(run, method), others)
    yield from wrap(f"{first[0]}: {method} on {run.header.model_name}: {first[1]}", width=WIDTH)
    for outcome, text in rest:
        yield from wrap(f"  {outcome}: {text}", "    ", WIDTH)


def said(run: Run, found: Standing, others: References = GATE) -> list[tuple[str, str]]:
    """(outcome, its numbers): first of the method, then of every scope that failed beside the run."""
    records = rows.judged(run, found.method)
    parts = _numbers(found.run, run, others)
    more = [text for one in found.run if (text := needed(one))]
    more += [f"{plural(found.cases, 'case')} failed"] if found.cases else []
    more += [f"{plural(found.lost, 'case')} {others.lost}"] if found.lost else []
    more += [_properties(found.properties, "does not hold", "do not hold")] if found.properties else []
    more += _strict(run, found)
    if not records and (held := _holding(run, found.method)):
        parts.append(f"accuracy not measured, {_properties(held, 'holds', 'hold')}")
    if _reasons(run, records).get("regression") == {RECORDED_NOW}:
        parts = [RECORDED_NOW]
    judged = "; ".join(parts) or ("judged case by case alone" if _reasons(run, records) else "accuracy not judged")
    text = "; ".join([f"{judged}, {_selection(found, records)}" if records else judged, *more])
    listed = [
        (FAIL, f"{scope}: {number(one, run.header.settings, others)}, over {plural(one.n, 'context')}")
        for scope, one in found.scopes[:LISTED]
    ]
    left = len(found.scopes) - LISTED
    listed += [(FAIL, f"{left} more, in the run file")] if left > 0 else []
    return [(found.outcome, text), *listed]


def _properties(count: int, one: str, several: str) -> str:
    return f"1 property {one}" if count == 1 else f"{count} properties {several}"


def _strict(run: Run, found: Standing) -> list[str]:
    """Why the run fails though no verdict on it does: inconclusive is a failure, or what its message says."""
    why = run.failures.get(f"{RUN}|{found.method}")
    if why is None or any(one.outcome == FAIL for one in found.run):
        return []
    if any(one.outcome == INCONCLUSIVE for one in found.run):
        return [f"inconclusive fails by {option('strict')}"]
    return [rows.reason(why)]


def _reasons(run: Run, records: Sequence[CaseRecord]) -> dict[str, set[str]]:
    """What the verdicts on cases say, by question."""
    found: dict[str, set[str]] = {}
    for record in records:
        for one in run.verdicts.get(rows.key(record), ()):
            found.setdefault(one.question, set()).add(one.reason)
    return found


def _selection(found: Standing, records: Sequence[CaseRecord]) -> str:
    """Over what: "over 96 contexts of 12 cases: kv, needle".

    The mode or the length is named where there is one only; tasks by their number where there are many.
    """
    count = sum(len(record.samples) for record in records)
    fewest = min((one.n for one in found.run if one.question not in IN_WORDS), default=count)
    tasks = sorted({record.case.task for record in records})
    modes = {record.case.mode for record in records}
    lengths = {record.case.length for record in records}
    named = [", ".join(tasks) if len(tasks) <= NAMED else f"{len(tasks)} tasks"]
    named += [mode for mode in modes if len(modes) == 1] + [f"{at} tokens" for at in lengths if len(lengths) == 1]
    share = f"{fewest} of " if fewest < count else ""
    return f"over {share}{plural(count, 'context')} of {plural(len(records), 'case')}: {'; '.join(named)}"


def _numbers(verdicts: Sequence[Verdict], run: Run, others: References) -> list[str]:
    """Each verdict in words, what decides first; what repeats the method's own record is said once."""
    order = (FAIL, INCONCLUSIVE, PASS, NOT_INFORMATIVE)
    moved = [one for one in verdicts if one.reason != AS_RECORDED and (one.question, one.outcome) != ("acted", PASS)]
    parts = [
        number(one, run.header.settings, others) for one in sorted(moved, key=lambda one: order.index(one.outcome))
    ]
    same = [one.question for one in verdicts if one.reason == AS_RECORDED]
    if same:
        what = listed([AGAINST_OWN.get(question, question) for question in same])
        parts.append(f"{what} as in {_named(run.header.settings, others).own}")
    return parts


def _named(settings: Mapping[str, str], others: References) -> References:
    """What the references of a run are called, where it was held to the record of another method."""
    against = settings.get("against", AGAINST[0])
    return replace(GATE, own=f"the record of {against}") if others is GATE and against not in AGAINST else others


def number(verdict: Verdict, settings: Mapping[str, str], others: References = GATE) -> str:
    """A verdict on many contexts: the estimate, its interval, the limit and its origin; words where it has none."""
    others = _named(settings, others)
    if verdict.question in IN_WORDS:
        return IN_WORDS[verdict.question] + verdict.reason.partition("\n")[0]
    return f"{_estimate(verdict, others)}, {_limit(verdict, settings, others)}"


def needed(verdict: Verdict) -> str:
    """What would settle an inconclusive verdict."""
    if verdict.outcome != INCONCLUSIVE:
        return ""
    count = settled_by(verdict)
    return f"about {count:,} contexts would settle it" if count else "it is at the limit"


def _estimate(verdict: Verdict, others: References) -> str:
    if verdict.question == "budget" and verdict.reason == IDENTICAL:
        sure = "" if verdict.outcome == PASS else f" so far, drop {interval(verdict.low, verdict.high)} points"
        return f"answers identical to those of {others.fp16}{sure}"
    if verdict.question in ("budget", "regression"):
        other = others.fp16 if verdict.question == "budget" else others.own
        drop = points(verdict.value, False)
        return f"accuracy drop against {other} {drop} points {interval(verdict.low, verdict.high)}"
    named = {
        "drift": (f"nll {verdict.value:+.3f} nats per token against {others.own}", 3),
        "nll": (f"nll {verdict.value:+.3f} nats per token against {others.fp16}", 3),
        "divergence": (f"KL from fp16 {verdict.value:.4f} nats", 4),
        "lossless": (f"KL from fp16 {verdict.value:.4f} nats", 4),
        "kl": (f"KL divergence from fp16 {verdict.value:.4f} nats", 4),
        "agree": (f"top-1 agreement with fp16 {verdict.value:.3f}", 3),
    }
    words, digits = named.get(verdict.question, (f"{verdict.question} {verdict.value:.4g}", 3))
    return f"{words} {interval(verdict.low, verdict.high, digits)}"


def _limit(verdict: Verdict, settings: Mapping[str, str], others: References) -> str:
    """The limit and where it comes from."""
    if verdict.question == "divergence":
        return f"allowed {verdict.limit:.4f} (by {others.own})"
    if verdict.question == "lossless":
        return f"allowed {verdict.limit:g} (what lossless, or nearly so, means on this model)"
    if verdict.question in AGAINST_OWN:
        noise = "more than" if verdict.outcome == FAIL else f"of which {verdict.limit:g} may be"
        return f"{noise} the noise of other hardware (limit: {others.own})"
    at = "at least" if verdict.question == "agree" else "allowed"
    return f"{at} {verdict.limit:g} ({origin(verdict, settings)})"


def by_own_record(verdict: Verdict) -> bool:
    """Whether the limit is what the method's own record holds, not a number that somebody set."""
    own = verdict.question == "bytes" and "recorded" in verdict.reason and "allowed" not in verdict.reason
    return own or verdict.question in AGAINST_OWN


def origin(verdict: Verdict, settings: Mapping[str, str]) -> str:
    """Where the limit of a verdict comes from."""
    if by_own_record(verdict):
        return _named(settings, GATE).own
    if verdict.question == "lossless":
        return "its claim"
    given = [part.partition("=")[0] for part in settings.get("budget", "").split(",")]
    name = {"budget": "drop"}.get(verdict.question, verdict.question)
    return f"your {option('budget')}" if name in given else "default budget"


def quantity(verdict: Verdict) -> str:
    """What a verdict is about, in one word."""
    named = {"budget": "drop", "regression": "drop", "lossless": "KL", "kl": "KL"}
    return named.get(verdict.question, AGAINST_OWN.get(verdict.question, verdict.question))


def short(verdict: Verdict) -> str:
    """The same in so few columns that pytest's short summary shows the numbers."""
    if verdict.question in IN_WORDS:
        return number(verdict, {})
    scale = 1 if verdict.question in ("budget", "regression") else 3
    what = {"budget": "drop", "regression": "drop", "lossless": "KL"}.get(
        verdict.question, AGAINST_OWN.get(verdict.question, verdict.question)
    )
    unit = " points" if scale == 1 else ""
    whose = "recorded" if by_own_record(verdict) else "allowed"
    limit = " vs own record" if verdict.question in AGAINST_OWN else f", {whose} {verdict.limit:g}"
    sure = "" if verdict.low == verdict.high else f" {interval(verdict.low, verdict.high, scale)}"
    value = f"{round(verdict.value, scale) + 0.0:.{scale}f}{unit}{sure}"
    start = f"{verdict.outcome}: " if verdict.outcome == INCONCLUSIVE else ""
    return f"{start}{what} {value}{limit}"
