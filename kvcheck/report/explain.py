"""A failed case as a message, and the properties of a case for JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvcheck.core.escape import plain
from kvcheck.core.front import command, option
from kvcheck.core.record import AGAINST_OWN, RUN, CaseRecord, Verdict, context_score
from kvcheck.judging.explain import bearable, headline
from kvcheck.report import verdict
from kvcheck.report.examples import Example, Prompts, example
from kvcheck.report.rows import pairs
from kvcheck.report.text import interval, plural, short

OF_THE_RUN = {"budget", *AGAINST_OWN}
"""Questions that all cases of a method together are asked, too."""
SHOWN = 64
"""Characters of a question or an answer that are shown: with its name in front they fill 80 columns."""


@dataclass(frozen=True)
class Session:
    """What a failed case is explained with, beside its records.

    settings: those of the run's header. baseline: the file that it was compared with. alpha: the error rate of this
    case. prompts: makes its contexts anew, for question and expected answer; None: these are left out.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    baseline: str = ""
    alpha: float | None = None
    prompts: Prompts | None = None


def fails(one: Verdict, strict: bool) -> bool:
    """Does this verdict fail its case, or whatever it is about?"""
    return one.outcome == "fail" or (strict and one.outcome == "inconclusive")


def fails_case(verdict: Verdict, strict: bool) -> bool:
    """The same of a single case: what it is too small to tell, the run of all cases is asked."""
    return fails(verdict, strict and verdict.question not in OF_THE_RUN)


def failure(
    record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict], session: Session
) -> Iterator[str]:
    """The message of a failed case: the numbers, which pytest's short summary shows; what was measured, against what,
    how sure, an example, and what to type. One block, however many questions it fails."""
    bad = sorted((one for one in verdicts if fails_case(one, session.strict)), key=lambda one: one.outcome != "fail")
    yield "; ".join(map(verdict.short, bad))
    yield f"  {record.case}  {record.method}"
    for one in bad:
        yield f"  {headline(one, verdict.origin(one, session.settings))}"
        yield from [f"    why: {one.reason}"] if one.reason else ()
    if not any(one.outcome == "fail" for one in bad):
        yield f"  inconclusive is a failure here because of {option('strict')}"
    yield from _measured(record, fp16, bad, session)
    found = example(record, fp16, session.prompts)
    yield from _shown(found) if found is not None else ()
    yield from (f"  {line}" for line in _remedies(record, bad, session.settings))


def _measured(record: CaseRecord, fp16: CaseRecord | None, bad: Sequence[Verdict], session: Session) -> Iterator[str]:
    """The accuracy, context by context, the bytes, and what they were compared with."""
    if record.scored:
        both = [] if fp16 is None else pairs(record, {record.case.key: fp16})
        before = f"{sum(context_score(then) for then, _ in both) / len(both):.3f} -> " if both else ""
        yield f"  accuracy: {before}{record.accuracy:.3f} (a guess scores {record.chance:.3f})"
    drops = [one for one in bad if one.question in ("budget", "regression")]
    for one in drops[:1]:
        same = one.n - one.lost - one.won
        level = "" if session.alpha is None else f"; interval at {100 * (1 - session.alpha):.4g} % for this case"
        yield f"  of the same {plural(one.n, 'context')}: {one.lost} lost, {one.won} won, {same} unchanged{level}"
    if len(record.samples) < record.case.n:
        yield f"  stopped after {len(record.samples)} of {record.case.n} contexts: {record.stopped}"
    if record.memory is not None:
        memory = record.memory
        held = f"{memory.dense_bytes / 1e6:.2f} MB -> {memory.kv_bytes / 1e6:.2f} MB ({memory.ratio:.2f})"
        held += f" and {memory.host_bytes / 1e6:.2f} MB in host memory" if memory.host_bytes else ""
        slots = f"{memory.kept:.0f} of {memory.seen} slots kept"
        yield f"  KV bytes: {held}, {slots}, in {memory.touched} of {memory.layers} layers"
    if session.baseline:
        yield f"  compared with: {session.baseline}"


def _shown(found: Example) -> Iterator[str]:
    """A question with the answers to it, one below the other."""
    depth = "" if found.depth is None else f", evidence at {found.depth:.0%} of the context"
    yield f"  for example: context {found.sample}, turn {found.turn} of {found.turns}{depth}"
    expected = " or ".join(map(_quoted, found.expected)) or f"not known: {found.why}"
    if found.question:
        yield f"    question  {_quoted(found.question)}"
    yield f"    expected  {short(expected, 2 * SHOWN)}"
    if found.fp16 is not None:
        yield f"    fp16      {_quoted(found.fp16)}"
    yield f"    method    {_quoted(found.answer)}"


def _quoted(text: str) -> str:
    return repr(short(text, SHOWN))


def _remedies(record: CaseRecord, bad: Sequence[Verdict], settings: Mapping[str, str]) -> Iterator[str]:
    """What shows the case again, and what would accept it: the commands of all its questions, each once."""
    case, method = record.case, record.method
    seed = {"seed": case.seed} if str(case.seed) != settings.get("seed", "0") else {}
    yield f"look: {command(method, tasks=case.task, modes=case.mode, lengths=case.length, n=case.n, **seed)}"
    limits = {}
    for one in bad:
        if one.outcome == "inconclusive":
            yield f"more contexts: {command(method, tasks=case.task, n=4 * case.n)}"
        elif not verdict.by_own_record(one):
            limits[{"budget": "drop"}.get(one.question, one.question)] = bearable(one)
    if any(one.outcome == "fail" and (verdict.by_own_record(one) or "recorded" in one.reason) for one in bad):
        yield f"accept, if the change is meant: {command(method, record='changed')}"
    if limits:
        budget = ",".join(f"{name}={value}" for name, value in limits.items())
        yield f"accept, if this price is right: {command(method, budget=budget)}"


def pooled(
    scope: str, method: str, found: Mapping[str, Sequence[Verdict]], settings: Mapping[str, str], strict: bool = False
) -> Iterator[str]:
    """The message of a scope that failed: its numbers, what its contexts show together, where, and what to type.

    found: the verdicts of every scope of the method. settings: those of the run's header.
    """
    bad = sorted((one for one in found[scope] if fails(one, strict)), key=lambda one: one.outcome != "fail")
    yield "; ".join(map(verdict.short, bad))
    for one in bad:
        yield f"  {method}, {scope}: {verdict.number(one, settings)}   {one.outcome.upper()}"
        if one.question in verdict.IN_WORDS:
            yield from one.reason.splitlines()[1:]
            continue
        same = one.n - one.lost - one.won
        yield f"  {one.n} contexts: {one.lost} lost, {one.won} won, {same} unchanged"
        yield f"  why: {one.reason}"
        yield from _where(scope, one.question, found)
        yield f"  {_remedy(method, one)}"
    if any(one.question not in verdict.IN_WORDS for one in bad):
        yield f"  look: {_look(scope, method)}"
    if not any(one.outcome == "fail" for one in bad):
        yield f"  inconclusive is a failure here because of {option('strict')}"


def _where(scope: str, question: str, found: Mapping[str, Sequence[Verdict]]) -> Iterator[str]:
    """Of the whole run: the capabilities that lose most."""
    parts = [
        (one.value, name.partition(" ")[2])
        for name, verdicts in found.items()
        for one in verdicts
        if scope == RUN and name.startswith("capability ") and one.question == question and one.value > 0
    ]
    if parts and question in ("budget", "regression"):
        yield "  most in: " + ", ".join(f"{name} {value:.1f}" for value, name in sorted(parts, reverse=True)[:4])


def _look(scope: str, method: str) -> str:
    """The command that measures a scope again."""
    kind, _, name = scope.partition(" ")
    if kind == "capability":
        return f"{command(method)} -m {name}"
    return command(method, **({"tasks": name} if kind == "task" else {}))


def _remedy(method: str, one: Verdict) -> str:
    """What accepts a verdict on a scope, or settles it."""
    if one.outcome == "inconclusive":
        return f"more contexts: {command(method, n='auto')}"
    if one.question in AGAINST_OWN:
        return f"accept, if the change is meant: {command(method, record='changed')}"
    if one.question == "lossless":
        return f"a method that claims less is held to less (MethodInfo.lossless, nearly): {command(method)}"
    name = {"budget": "drop"}.get(one.question, one.question)
    return f"accept, if this price is right: {command(method, budget=f'{name}={bearable(one)}')}"


def scope_properties(scope: str, method: str, outcome: str, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(name, text) pairs for JUnit XML of a verdict on several cases."""
    pairs = [("scope", scope), ("method", method), ("outcome", outcome)]
    for one in verdicts:
        numbers = f"{one.value:.4g} {interval(one.low, one.high, 4)} of {one.limit:g} over {one.n}"
        pairs += [(f"verdict_{one.question}", one.outcome), (one.question, numbers)]
    return [(f"kvcheck_{name}", plain(text)) for name, text in pairs]


def latency_failure(method: str, length: int, verdicts: Sequence[Verdict], strict: bool) -> Iterator[str]:
    """The message of a failed latency item."""
    yield f"latency at {length} tokens  {method}"
    for one in verdicts:
        if fails(one, strict):
            yield f"  {headline(one)}"
            yield f"  why: {one.reason}"
            yield f"  accept: {command(method, budget=f'{one.question}={one.high * 1.005:.3g}')}"
    yield f"  look: {command(method, lengths=length)} -k latency"


def properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    """(name, text) pairs for JUnit XML, made harmless: who reads the file may show them as they are."""
    for name, text in _properties(record, fp16, verdicts):
        yield name, plain(text)


def _properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    yield "case", str(record.case)
    yield "method", record.method
    yield "model", record.model
    if record.scored:
        yield "accuracy", f"{record.accuracy:.4f}"
    if fp16 is not None and record.scored:
        yield "fp16_accuracy", f"{fp16.accuracy:.4f}"
    if record.memory is not None:
        yield "kv_ratio", f"{record.memory.ratio:.4f}"
        if record.memory.host_bytes:
            yield "host_bytes", f"{record.memory.host_bytes}"
    for one in verdicts:
        if one.question == "budget":
            yield "drop", f"{one.value:.2f}"
        yield f"verdict_{one.question}", one.outcome
