"""Failed cases to look at: prompt, question, expected answer, what fp16 and the method said, and how to see it again.

A run file holds answers and digests, no prompts: those are generated anew from the case, and shown only where their
digest is the recorded one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvcheck.core.errors import KvcheckError
from kvcheck.core.front import for_pytest
from kvcheck.core.record import CaseRecord, Run, RunHeader, SampleRecord, Verdict
from kvcheck.core.settings import MODEL, OPTIONS, PROMPTS, Settings
from kvcheck.judging.explain import headline
from kvcheck.report import rows
from kvcheck.report.rows import References
from kvcheck.tasks.base import Sample, Turn

Prompts = Callable[[CaseRecord, int], Sample]
"""(record, index) -> the context as it was shown, generated anew. Raises KvcheckError where it cannot be had."""
AROUND = 160
"""Characters of the prompt that are shown before and behind the evidence."""
LONGEST = 600
"""Characters of an answer, a question, a piece of evidence that are shown."""
REPEATED = ("device", "dtype", "query_aware", "against", "alpha", "budget", *PROMPTS, *MODEL)
"""Settings that a command repeats where the run did not have their default."""
SUITE = ("pytest", "--pyargs", "kvcheck.suites", "-m", "not conformance")


@dataclass(frozen=True)
class Excerpt:
    """A piece of a prompt: its evidence with what stands before and behind it."""

    before: str
    evidence: str
    after: str


@dataclass(frozen=True)
class Example:
    """One question of a failed case. expected: () where it is not known, see `why`. fp16: None where that has no record
    of it. score, fp16_score: in [0, 1]."""

    sample: int
    turn: int
    turns: int
    depth: float | None
    answer: str
    score: float
    fp16: str | None
    fp16_score: float | None
    question: str = ""
    expected: tuple[str, ...] = ()
    excerpt: Excerpt | None = None
    why: str = ""


@dataclass(frozen=True)
class Failed:
    """A case that failed: what its verdicts say, an example where an answer is worse than fp16's, and a command."""

    record: CaseRecord
    verdicts: tuple[tuple[str, str], ...]
    example: Example | None
    command: str

    @property
    def name(self) -> str:
        """ "kv multi_turn 512"."""
        case = self.record.case
        return f"{case.task} {case.mode} {case.length}"


def failed(
    run: Run, method: str, known: References, prompts: Prompts | None, most: int
) -> tuple[list[Failed], list[Failed]]:
    """(cases that failed with an example, the rest without), those first that lose most. most: examples."""
    by_case: dict[str, tuple[CaseRecord, list[Verdict]]] = {}
    for record, one in rows.failed_verdicts(run, rows.of_method(run, method)):
        if one.outcome == "fail":
            by_case.setdefault(rows.key(record), (record, []))[1].append(one)
    worst = sorted(by_case.values(), key=lambda pair: -max(_lost(one) for one in pair[1]))
    found = [
        Failed(
            record,
            tuple((headline(one), one.reason) for one in verdicts),
            example(record, known.get(record.case.key), prompts) if at < most else None,
            command(run.header, record),
        )
        for at, (record, verdicts) in enumerate(worst)
    ]
    return found[:most], found[most:]


def _lost(one: Verdict) -> float:
    """What the worst cases are found by: points of accuracy, then anything else that failed."""
    return one.value if one.question in ("budget", "regression") else 0.0


def example(record: CaseRecord, fp16: CaseRecord | None, prompts: Prompts | None) -> Example | None:
    """The first turn that fp16 got right and the method got wrong; without fp16, the first that is not wholly right."""
    known = {sample.index: sample for sample in fp16.samples} if fp16 is not None else {}
    for sample in record.samples:
        other = known.get(sample.index)
        for at, turn in enumerate(sample.turns):
            before = other.turns[at] if other is not None and at < len(other.turns) else None
            if turn.score < (1.0 if before is None else before.score):
                said = None if before is None else _cut(before.answer)
                scored = None if before is None else before.score
                told = Example(
                    sample.index, at + 1, len(sample.turns), turn.depth, _cut(turn.answer), turn.score, said, scored
                )
                return _with_prompt(told, record, sample, prompts)
    return None


def _with_prompt(told: Example, record: CaseRecord, sample: SampleRecord, prompts: Prompts | None) -> Example:
    """The example with its question, the expected answer and an excerpt, or why they are not there."""
    if prompts is None:
        return replace(told, why="prompts were not generated anew")
    try:
        shown = prompts(record, sample.index)
    except KvcheckError as error:
        return replace(told, why=error.message)
    except Exception as error:  # a task of the user's, on another machine than the run's
        return replace(told, why=f"generating it failed: {error}")
    if told.turn > len(shown.turns):
        return replace(told, why="this case asks fewer questions here")
    asked = shown.turns[told.turn - 1]
    expected = tuple(_cut(one) for one in (asked.references or (asked.expected,)))
    return replace(told, question=_cut(asked.question.strip()), expected=expected, excerpt=excerpt(shown, asked))


def excerpt(sample: Sample, asked: Turn) -> Excerpt:
    """The first evidence of a question with what stands around it; without evidence, the end of the context."""
    text = sample.context
    start, end = asked.evidence[0] if asked.evidence else (len(text), len(text))
    left, right = max(0, start - AROUND), min(len(text), end + AROUND)
    before = ("…" if left else "") + text[left:start]
    return Excerpt(before, _cut(text[start:end]), text[end:right] + ("…" if right < len(text) else ""))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more characters)"


def command(header: RunHeader, record: CaseRecord) -> str:
    """What shows this case again, for a shell: model, profile, case, contexts, and every setting of the run that is not
    its default."""
    case, usual = record.case, Settings()
    model = header.model_name.partition("@")[0]
    chosen = {"methods": record.method, "model": model, "profile": header.settings.get("profile", usual.profile)}
    named = {name: header.settings[name] for name in REPEATED if name in header.settings}
    chosen |= {name: value for name, value in named.items() if value != str(getattr(usual, name))}
    only = {"tasks": case.task, "modes": case.mode, "lengths": case.length, "n": case.n, "seed": case.seed}
    chosen |= {name: str(value) for name, value in only.items()}
    return shlex.join([*SUITE, *_typed(chosen)])


def _typed(chosen: dict[str, str]) -> Iterator[str]:
    for name, value in chosen.items():
        if OPTIONS[name].metavar:
            yield for_pytest(name, value)
        elif value == "True":
            yield for_pytest(name)


def spread(counts: Sequence[int], most: int, each: int) -> list[int]:
    """How many examples every method gets, at most `each` and about `most` together.

    >>> spread([50, 2, 0], 6, 4), spread([9], 6, 4)
    ([3, 2, 0], [4])
    """
    share = max(1, most // max(1, sum(count > 0 for count in counts)))
    return [min(count, each, share) for count in counts]
